"""The memory of a program and of all that it started, watched while it runs.

Pages of a process's own are counted for it; the object store's are counted once, by the file that Ray's daemon holds
open, and not in each process that maps it. Linux only: it reads /proc.
"""

import os
import statistics
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mien.platform.trainer import Tail

PARTS = ("driver", "controller", "worker", "data tasks", "Ray", "object store")


class Memory(threading.Thread):
    """Looks at what this process and all that it started hold, again and again, in MiB by kind of process."""

    def __init__(self, metrics: Path, seconds: float) -> None:
        super().__init__(daemon=True)
        self.samples: list[dict[str, float]] = []
        self._steps, self._seconds, self._ended = Tail(metrics), seconds, threading.Event()

    def run(self) -> None:
        """Take samples until `end`."""
        step = 0
        while not self._ended.wait(self._seconds):
            if new := self._steps.records():
                step = new[-1]["step"]
            found = memory()
            self.samples.append({"step": step, **found, "all": sum(found.values())})

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self.join()


def memory() -> dict[str, float]:
    """Return the MiB of this process and its descendants: their own pages, and the object store's, once."""
    found = dict.fromkeys(PARTS, 0.0)
    for pid in [os.getpid(), *descendants(os.getpid())]:
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended while we were looking
            status = Path(f"/proc/{pid}/status").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            own = [float(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
            found[part_of(pid, command)] += sum(own) / 1024
            if "raylet/raylet" in command.split(" ")[0]:
                found["object store"] += shared_memory(pid)
    return found


def shared_memory(pid: int) -> float:
    """Return the MiB of shared memory that a process keeps files of, mapped by itself or not."""
    stores = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if str(link.readlink()).startswith("/dev/shm/"):
            file = link.stat()
            stores[file.st_ino] = file.st_blocks * 512 / 2**20
    return sum(stores.values())


def part_of(pid: int, command: str) -> str:
    """Return what a process is to the run."""
    if pid == os.getpid():
        return "driver"
    if not command.startswith("ray::"):
        return "Ray"
    if "Controller" in command:
        return "controller"
    return "worker" if "TrainWorker" in command else "data tasks"


def descendants(pid: int) -> list[int]:
    """Return the process ids of the children of `pid`, of their children, and so on."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The command's name stands in brackets and may hold anything; state and parent follow it.
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found[1:]


def flatness(samples: Sequence[dict[str, float]], steps: int) -> dict[str, Any]:
    """Return the median memory of the second fifth of the run and of its last, MiB; the first fifth fills up."""
    fifths = {
        name: [sample for sample in samples if low * steps <= sample["step"] < high * steps]
        for name, low, high in (("second fifth", 0.2, 0.4), ("last fifth", 0.8, 1.0))
    }
    found: dict[str, Any] = {}
    for name, part in fifths.items():
        if not part:
            return {}  # too short a run
        found[name] = {kind: round(statistics.median(sample[kind] for sample in part)) for kind in (*PARTS, "all")}
    growth = found["last fifth"]["all"] - found["second fifth"]["all"]
    thinned = samples[:: max(len(samples) // 24, 1)]
    return found | {"growth": growth, "all, by step": {int(sample["step"]): round(sample["all"]) for sample in thinned}}
