"""Silence becomes an error that names its cause: which worker has stood still, since when, and at which line.

Workers wait for one another in every step, so one that hangs (a mount that went away, a device that does not answer, a
collective that one rank never enters) stops all of them without a word. A thread in each worker looks whether steps go
on; where none has for long it writes down what the training thread stands in, and it touches a file as a sign of life,
for a process whose threads all stand still. The driver reads both in the run's folder and tells those that wait for
others from those that are waited for.
"""

import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mien.platform.storage import write_whole

BEAT_SECONDS = 5.0
FRAMES = 8
# What a rank stands in while it waits for the others: a sum of gradients, a barrier, or Ray's registering for all.
WAITING = ("all_reduce", "_engine_run_backward", "barrier", "broadcast", "agreed", "commit", "report", "synchronize")


@dataclass
class Pulse:
    """A worker's side, asked about once a second by a thread of its own."""

    folder: Path
    rank: int
    seconds: float  # without a step until that is silence
    thread: int = field(default_factory=threading.get_ident)  # that trains: the one that makes this
    steps: int = -1
    since: float = field(default_factory=time.monotonic)
    touched: float = 0.0
    told: bool = False

    def look(self, steps: int) -> None:
        """Note how many steps there were; write what the training thread stands in once there is silence."""
        now = time.monotonic()
        if steps != self.steps:
            if self.told:
                (self.folder / f"silent_{self.rank}.json").unlink(missing_ok=True)
            self.steps, self.since, self.told = steps, now, False
        if now - self.touched > BEAT_SECONDS:
            (self.folder / f"alive_{self.rank}").touch()
            self.touched = now
        if not self.told and now - self.since > self.seconds:
            self.told = True
            said = {
                "rank": self.rank,
                "host": socket.gethostname(),
                "steps": self.steps,
                "stack": stack_of(self.thread),
            }
            write_whole(self.folder / f"silent_{self.rank}.json", json.dumps(said, indent=1) + "\n")


def stack_of(thread: int) -> list[str]:
    """Return where a thread stands, the innermost call last: `function (file:line)`."""
    frame = sys._current_frames().get(thread)
    found = traceback.extract_stack(frame) if frame is not None else traceback.StackSummary()
    return [f"{one.name} ({Path(one.filename).name}:{one.lineno})" for one in found[-FRAMES:]]


def forget(folder: Path, first: int) -> None:
    """Remove the signs of workers from rank `first` on, who were there before a start with fewer."""
    for path in (*folder.glob("alive_*"), *folder.glob("silent_*.json")):
        if int(path.stem.split("_")[1]) >= first:
            path.unlink(missing_ok=True)


@dataclass
class Watchdog:
    """The driver's side: looks for signs of life in the folder of a run."""

    folder: Path
    seconds: float
    seen: dict[Path, tuple[float, float]] = field(default_factory=dict)  # time of the file, and when we saw it change
    looked: float = -BEAT_SECONDS

    def silence(self) -> str | None:
        """Return what is to be said of a silence, or None while all goes on."""
        now = time.monotonic()
        if now - self.looked < BEAT_SECONDS:
            return None
        self.looked = now
        words = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("silent_*.json"))]
        if words:
            return f"no step was made for {self.seconds:g} seconds (trainer.silence_seconds). {cause(words)}"
        for path in self.folder.glob("alive_*"):
            changed = path.stat().st_mtime  # compared with itself alone: clocks of hosts may differ
            before = self.seen.get(path)
            if before is None or before[0] != changed:
                self.seen[path] = (changed, now)
            elif now - before[1] > self.seconds:
                rank = path.name.removeprefix("alive_")
                return (
                    f"worker {rank} has given no sign of life for {self.seconds:g} seconds (trainer.silence_seconds): "
                    "its process, its host or its way to the run folder stands still"
                )
        return None


def cause(words: Sequence[dict[str, Any]]) -> str:
    """Say which of the silent workers stands in something of its own, and where; the others wait for it."""
    own = [one for one in words if not any(place.split(" ")[0] in WAITING for place in one["stack"])]
    lines = [
        f"worker {one['rank']} on {one['host']} after {max(one['steps'], 0)} step(s) of this start, in "
        + " < ".join(reversed(one["stack"][-4:]))
        for one in own or words
    ]
    others = len(words) - len(own)
    if own and others:
        lines.append(f"{others} other(s) wait for it")
    elif not own:
        lines.append("all of them wait for one another or for one that says nothing")
    return "; ".join(lines)
