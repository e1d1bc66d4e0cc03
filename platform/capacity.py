"""How many clips of a training step fit into a device: sizes are tried upwards, and one is foretold before it is tried.

Each size runs in a process of its own: it leaves nothing behind for the next, and what it cannot have ends it alone. On
a CPU that process may have no more memory than the limit, so an allocation fails in it long before the system ends
programs by choice. The next size is what the growth of the last two says will fit, at most twice the last.
"""

import itertools
import math
import resource
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from mien.platform.loop import LoopConfig, start, train
from mien.platform.optim import OptimConfig

STEPS = 2  # the first makes AdamW's moments; the last is timed
ENOUGH = 0.95  # of the best rate: more clips at a time than reach it bring nothing
T = TypeVar("T")
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Tried(NamedTuple):
    """What came of a size: bytes and seconds of a step, or why it does not fit."""

    clips: int
    bytes: int = 0
    seconds: float = math.nan
    failed: str = ""

    @property
    def rate(self) -> float:
        """Clips a second; 0 where they do not fit."""
        return 0.0 if self.failed else self.clips / self.seconds


class EndedError(RuntimeError):
    """A process that ended without a word."""


class Growth(NamedTuple):
    """Memory as a line over the clips: what any step takes, and what each clip adds."""

    fixed: float
    clip: float

    def most(self, limit: float) -> int:
        """Return the clips that fit into `limit` bytes."""
        return math.floor((limit - self.fixed) / max(self.clip, 1))


def growth(tried: Sequence[Tried]) -> Growth:
    """Return the line through the last two sizes that fitted; of one alone, all of its memory is its clips'."""
    *_, before, last = [Tried(0), *sorted(one for one in tried if not one.failed)]
    clip = max((last.bytes - before.bytes) / (last.clips - before.clips), 0.0)
    return Growth(last.bytes - clip * last.clips, clip)


def search(measure: Callable[[int], Tried], limit: int, most: int, patience_seconds: float) -> list[Tried]:
    """Try sizes from 1 to `most` until no larger one fits into `limit` bytes, or would take too long to be tried."""
    tried: list[Tried] = []
    size = 1
    while size:
        tried.append(measure(size))
        size = following(tried, limit, most, patience_seconds)
    return sorted(tried, key=lambda one: one.clips)


def following(tried: Sequence[Tried], limit: int, most: int, patience_seconds: float) -> int:
    """Return the size to try next, or 0: upwards as far as foretold; below one that did not fit, to an eighth."""
    top = largest(tried)
    if top is None:
        return 0
    too_large = min((one.clips for one in tried if one.failed), default=0)
    if too_large:
        return (top.clips + too_large) // 2 if too_large - top.clips > max(top.clips // 8, 1) else 0
    size = min(2 * top.clips, most)
    if len(tried) > 1:
        size = min(size, growth(tried).most(limit))
    slow = STEPS * top.seconds * size / top.clips > patience_seconds
    return 0 if size <= top.clips or slow else size


def largest(tried: Sequence[Tried]) -> Tried | None:
    """Return the largest size that fitted."""
    return max((one for one in tried if not one.failed), key=lambda one: one.clips, default=None)


def fastest(tried: Sequence[Tried]) -> Tried:
    """Return the smallest size that is as good as the fastest."""
    best = max(one.rate for one in tried)
    return min((one for one in tried if one.rate >= ENOUGH * best), key=lambda one: one.clips)


def step_memory(
    make: Callable[[], nn.Module],
    batch: dict[str, Tensor],
    clips: int,
    loop: LoopConfig,
    optim: OptimConfig,
    workers: int,
    limit: int,
) -> Tried:
    """Take the steps of a training on `batch`, `clips` as `loop.batch_size` counts them, and return what they took.

    To be called in a process of its own, which gets the limit; `make` gives the task on its device. Gradients are
    counted once more, because pieces after the first find those of the first, and twice more for several workers,
    which exchange them in buckets.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_per_process_memory_fraction(min(limit / torch.cuda.get_device_properties().total_memory, 1.0))
    else:
        limit_memory(limit)
    loop = loop.model_copy(update={"steps": STEPS, "batch_size": clips, "accumulate": 1})
    optim = optim.model_copy(update={"warmup_steps": 1})
    seconds = math.nan
    try:
        task = make()
        steps = train(task, start(task, loop, optim), itertools.repeat(batch), loop, optim, num_clips=clips)
        for _ in range(STEPS):
            began = time.perf_counter()
            next(steps)  # which reads the loss, so the device is done
            seconds = time.perf_counter() - began
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        return Tried(clips, failed="no memory left")
    finally:
        if not cuda:  # so that there is some to say it with
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    gradients = sum(one.nbytes for one in task.parameters() if one.requires_grad) * (1 if workers == 1 else 2)
    used = torch.cuda.max_memory_reserved() if cuda else resident("VmHWM")
    found = Tried(clips, used + gradients, seconds)
    return found if found.bytes <= limit else found._replace(failed="over the limit")


def alone(function: Callable[..., T], *arguments: object) -> T:
    """Return what a function of a module gives in a new process, which ends with it, and with this one.

    Raises what the function raises, and EndedError where its process ended without a word.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(sender, function, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        found, error = receiver.recv()
    except EOFError:
        process.join()
        raise EndedError(f"its process was ended from outside (exit code {process.exitcode})") from None
    process.join()
    if error is not None:
        raise error
    return cast(T, found)


def answer(sender: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Send what a function gives or raises."""
    try:
        sender.send((function(*arguments), None))
    except (ValueError, RuntimeError, OSError) as error:
        sender.send((None, error))


def resident(name: str, pid: str = "self") -> int:
    """Return the bytes of a line of a process's status, such as VmHWM: the most that was ever in memory."""
    lines = (PROC / pid / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def limit_memory(limit: int) -> None:
    """Let this process fill no more than `limit` bytes; what it has asked for but not touched does not count."""
    untouched = resident("VmData") - resident("RssAnon")
    files = resident("RssFile")
    most = max(limit - files, 0) + max(untouched, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def free_bytes(device: torch.device) -> int:
    """Return the memory that a training could fill: the device's free one; of a machine, also within its cgroup."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    lines = (PROC / "meminfo").read_text(encoding="utf-8").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([available, *cgroup_bytes()])


def cgroup_bytes() -> list[int]:
    """Return what is left to fill in each control group that this process is in and that has a limit."""
    found = []
    for line in (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root, limit, used, cached = (
            (CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if kinds
            else (CGROUPS, "memory.max", "memory.current", "inactive_file")
        )
        group = root / path.lstrip("/")
        for place in (group, *group.parents):
            if (place / limit).is_file() and (told := (place / limit).read_text().strip()) != "max":
                stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                kept = int((place / used).read_text()) - int(stat.get(cached, 0))
                found.append(max(int(told) - kept, 0))
            if place == root:
                break
    return found
