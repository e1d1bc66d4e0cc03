"""Clips that cannot be read: absent from their training batch, counted, and the end of the run when they are too many.

The same rule holds for the stream through Ray (`clips.py`) and for the one without (`reading.local_batches`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

Dropped = dict[str, Any]  # row, video, path, reason, position: one line of dropped.jsonl
WORDS = ("video", "path", "reason")  # columns that tell why a clip is not there
SHOWN = 10  # clips that an error names


class DropLimit(BaseModel, frozen=True, extra="forbid"):
    """How many clips may be missing."""

    max_dropped_ratio: float = Field(0.05, ge=0, le=1, description="share of unreadable clips that stops the run")
    dropped_after: int = Field(200, ge=1, description="clips seen by a worker before that share is judged")


class DroppedTooManyError(ValueError):
    """More clips than `max_dropped_ratio` cannot be read, or none of a batch."""


def dropped_of(batch: Mapping[str, np.ndarray]) -> list[Dropped]:
    """Return a record for each clip of a batch from Ray that is not `ok`: it holds only a place."""
    return [
        {"row": int(batch["row"][place])}
        | {word: str(batch[word][place]) for word in WORDS}
        | ({"position": int(batch["position"][place])} if "position" in batch else {})
        for place in np.flatnonzero(~batch["ok"])
    ]


class DropCount:
    """Counts the clips of a stream and those that could not be read; `section` is where the limit is set."""

    def __init__(self, limit: DropLimit, section: str) -> None:
        self.limit, self.section = limit, section
        self.seen, self.missing = 0, 0
        self._first: list[Dropped] = []

    def add(self, clips: int, dropped: Sequence[Dropped]) -> None:
        """Count a batch of `clips` clips, those in `dropped` included; raises DroppedTooManyError."""
        self.seen, self.missing = self.seen + clips, self.missing + len(dropped)
        self._first += dropped[: SHOWN - len(self._first)]
        most = self.limit.max_dropped_ratio
        if len(dropped) == clips:
            raise DroppedTooManyError(_told("a batch must hold a readable clip, but this one has none", dropped))
        if self.seen >= self.limit.dropped_after and self.missing > most * self.seen:
            rule = f"at most {self.section}.max_dropped_ratio={most:g} of the clips may be unreadable"
            raise DroppedTooManyError(_told(f"{rule}, but {self.missing} of {self.seen} are", self._first))


def _told(rule: str, dropped: Sequence[Dropped]) -> str:
    shown = "".join(f"\n  {clip['path']}: {clip['reason']}" for clip in dropped[:SHOWN])
    return f"{rule}. Repair them, or prepare the manifest again without them. The first:{shown}"
