"""Checkpoints: a folder that is complete or does not count, read without ever running what it holds.

`checkpoints/step_00000123/` holds `weights.safetensors`, `ema.safetensors` if there is an average, `loop.pt` (step,
optimiser, scaler: plain tensors and numbers), `config.json` (whatever describes the model: the program's config, class
names, fingerprints of what it was trained on) and `complete`, the marker with each file's size and checksum. It is
written under a temporary name, brought to the disk and renamed, so a crash leaves the checkpoint before it.

The checksum is CRC-32: it stands against torn writes and failing disks, not against people, and costs half of SHA-256.
"""

import errno
import json
import pickle
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mien.platform.loop import LoopState, copy_weights, unwrapped, weights_of
from mien.platform.storage import StorageError, explain, free_bytes, storing, sync, write_whole

MARKER = "complete"
NAME = re.compile(r"step_\d{8,}")


class CheckpointError(ValueError):
    """A checkpoint that is not whole, not plain data or not of this model."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds: plain tensors and numbers."""

    weights: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    loop: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        moments = [value for entry in self.loop["optimiser"]["state"].values() for value in entry.values()]
        return sum(tensor.nbytes for tensor in (*self.weights.values(), *(self.ema or {}).values(), *moments))


def snapshot(task: nn.Module, state: LoopState, *, copy: bool) -> Snapshot:
    """Return the state of a run; as a copy in the machine's memory it stays what it is while training goes on."""
    loop = {
        "step": state.step,
        "skipped": state.skipped,
        "scaler": state.scaler.state_dict(),
        "optimiser": state.optimiser.state_dict(),
    }
    found = Snapshot(weights_of(unwrapped(task)), state.ema, loop)
    return Snapshot(*(copied(part) for part in (found.weights, found.ema, found.loop))) if copy else found


def copied(value: Any) -> Any:
    """Return plain data with a copy of each tensor in the machine's memory."""
    match value:
        case Tensor():
            return value.detach().to("cpu", copy=True)
        case dict():
            return {key: copied(part) for key, part in value.items()}
        case list() | tuple():
            return type(value)(copied(part) for part in value)
    return value


def save(folder: Path, step: int, task: nn.Module, state: LoopState, about: Mapping[str, Any], keep: int = 2) -> Path:
    """Write `folder/step_<step>`, remove all others but the last `keep`, and return its path.

    `about` is plain data, kept as config.json. Raises StorageError, and leaves no part of a checkpoint, if it cannot be
    written.
    """
    return write(folder, step, snapshot(task, state, copy=False), about, keep)


def write(folder: Path, step: int, taken: Snapshot, about: Mapping[str, Any], keep: int = 2) -> Path:
    """Do what `save` does with a state that was taken before."""
    final, temporary = folder / f"step_{step:08d}", folder / f".step_{step:08d}.new"
    needed = taken.nbytes
    try:
        with storing(folder, needed):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".step_*.new"):
                shutil.rmtree(leftover)
            temporary.mkdir()
            write_tensors(temporary / "weights.safetensors", taken.weights)
            if taken.ema is not None:
                write_tensors(temporary / "ema.safetensors", taken.ema)
            torch.save(taken.loop, temporary / "loop.pt")
            seal(temporary, about)
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
            sync(folder)
            past = [path for path in steps(folder) if number(path) <= step]
            for other in {*steps(folder)} - {*past[-keep:]}:  # later ones are of a run that went on from before them
                shutil.rmtree(other)
    except (SafetensorError, RuntimeError) as error:  # how these two libraries say that a write failed
        shutil.rmtree(temporary, ignore_errors=True)
        code = errno.ENOSPC if needed > free_bytes(folder) else errno.EIO
        raise StorageError(code, explain(folder, OSError(code, str(error)), needed)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def export(folder: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write weights alone as a checkpoint `folder`, from which nothing can go on, but whatever reads weights begins.

    Raises ValueError where the folder exists, and StorageError, leaving nothing, if it cannot be written.
    """
    if folder.exists():
        raise ValueError(f"weights are written to a new folder, but {folder} exists; give another --output")
    temporary = folder.with_name(f".{folder.name}.new")
    needed = sum(tensor.nbytes for tensor in weights.values())
    try:
        with storing(folder, needed):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_tensors(temporary / "weights.safetensors", weights)
            seal(temporary, about)
            temporary.rename(folder)
            sync(folder.parent)
    except SafetensorError as error:
        raise StorageError(errno.EIO, explain(folder, OSError(errno.EIO, str(error)), needed)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle(folder: Path) -> None:
    """Keep of a finished run's `checkpoints` the newest weights: it will not go on, and its state is twice as large."""
    last = newest(folder)
    for other in set(steps(folder)) - {last}:
        shutil.rmtree(other)
    if last is not None and (last / "loop.pt").exists():
        # First the marker, so that the checkpoint is whole at every moment.
        files = json.loads((last / MARKER).read_text(encoding="utf-8"))
        write_whole(last / MARKER, json.dumps({name: files[name] for name in files if name != "loop.pt"}, indent=1))
        (last / "loop.pt").unlink()


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Write what a checkpoint is about and the marker of each file, and bring the folder to the disk."""
    (folder / "config.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    files = {path.name: {"bytes": path.stat().st_size, "crc32": crc32(path)} for path in folder.iterdir()}
    (folder / MARKER).write_text(json.dumps(files, indent=1), encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        sync(path)


def newest(folder: Path, report: Callable[[str], Any] = warnings.warn) -> Path | None:
    """Return the newest whole checkpoint of a `checkpoints` folder, or None; `report` hears why not a newer one."""
    for path in reversed(steps(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            report(f"{error}; going back to the checkpoint before it")
        else:
            return path
    return None


def find(path: Path) -> Path:
    """Return the checkpoint meant by a path: itself, or the newest whole one of a run or `checkpoints` folder.

    Raises CheckpointError when there is none.
    """
    if (path / MARKER).exists():
        verify(path)
        return path
    found = newest(path / "checkpoints") or newest(path)
    if found is None:
        raise CheckpointError(
            f"expected a checkpoint or the folder of a run that has one, but {path} holds none (of a study, "
            "trials that can no longer win keep theirs with study.keep=all alone)"
        )
    return found


def restore(path: Path, task: nn.Module, state: LoopState) -> dict[str, Any]:
    """Bring task and state back to where `save` took them, and return `about`.

    Raises CheckpointError when the file is corrupt, would run code, or is of another model (names and both shapes).
    """
    verify(path)
    try:
        loop = torch.load(path / "loop.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path / 'loop.pt'} must hold plain tensors and numbers, but {error}") from error
    live = weights_of(unwrapped(task))
    saved = read_weights(path, ema=False)
    check_same(path, saved, live)
    if (path / "ema.safetensors").exists() != (state.ema is not None):
        has, wants = ("none", "one") if state.ema is not None else ("one", "none")
        raise CheckpointError(f"{path} has {has} of averaged weights and loop.ema_decay asks for {wants}")
    named = [
        [group["param_names"] for group in which["param_groups"]]
        for which in (loop["optimiser"], state.optimiser.state_dict())
    ]
    if named[0] != named[1]:
        raise CheckpointError(f"{path} was made with other parameter groups; give the optim settings it was made with")
    copy_weights(saved, live)
    if state.ema is not None:
        copy_weights(read_weights(path, ema=True), state.ema)
    state.optimiser.load_state_dict(loop["optimiser"])
    state.scaler.load_state_dict(loop["scaler"])
    state.step, state.skipped = loop["step"], loop["skipped"]
    return about(path)


def weights(path: Path, ema: bool = False) -> dict[str, Tensor]:
    """Return the weights, or their moving average, of a checkpoint or of a run's newest one, on the CPU by name."""
    return read_weights(find(path), ema)


def about(path: Path) -> dict[str, Any]:
    """Return what was said about a checkpoint, or a run's newest one, when it was saved."""
    found: dict[str, Any] = json.loads((find(path) / "config.json").read_text(encoding="utf-8"))
    return found


def has_average(path: Path) -> bool:
    """Say whether the newest checkpoint of a run folder, or a checkpoint, holds the moving average of its weights."""
    return (find(path) / "ema.safetensors").is_file()


def read_weights(path: Path, ema: bool) -> dict[str, Tensor]:
    """Read one of the two weight files of a checkpoint."""
    file = path / ("ema.safetensors" if ema else "weights.safetensors")
    if not file.exists():
        raise CheckpointError(f"{path} holds no averaged weights: its run had no loop.ema_decay; use its own weights")
    return load_file(file)


def check_same(path: Path, saved: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless both have the same names and shapes; the error lists what differs."""
    shapes = [
        f"{name} is {tuple(saved[name].shape)} there and {tuple(live[name].shape)} here"
        for name in live
        if name in saved and saved[name].shape != live[name].shape
    ]
    only_there = [f"{name} only there" for name in saved if name not in live]
    only_here = [f"{name} only here" for name in live if name not in saved]
    wrong = [*shapes, *only_there, *only_here]
    if wrong:
        more = f" and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise CheckpointError(
            f"{path} must be of this very model, but {'; '.join(wrong[:12])}{more}; "
            "give the settings it was made with (its config.json) or another --output"
        )


def verify(path: Path) -> None:
    """Raise CheckpointError unless every file of a checkpoint is there as it was written."""
    try:
        files = json.loads((path / MARKER).read_text(encoding="utf-8"))
        for name, expected in files.items():
            found = {"bytes": (path / name).stat().st_size, "crc32": crc32(path / name)}
            if found != expected:
                raise CheckpointError(f"the checkpoint {path} is corrupt: {name} is {found}, written was {expected}")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the checkpoint {path} is not whole: {error}") from error


def steps(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted((path for path in folder.glob("step_*") if NAME.fullmatch(path.name)), key=number)


def number(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors of any device as safetensors."""
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path)


def crc32(path: Path) -> int:
    """Return the CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
