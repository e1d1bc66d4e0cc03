"""Whole clips for a model that takes a few frames: every frame once, in order, and windows that cover all of them.

All frames of the chosen manifest lines stand on one line. A data task reads a stretch of it, whatever clips that holds,
so blocks have one size for one-frame clips and two-hour videos alike, and a frame is decoded and sent once, however
often windows overlap on it. `cut` puts the windows together where the frames arrive, and holds no more frames than one
window spans and a block has. Windows of a run's own stride are what it saw while it learned, and what
`sampling.view_indices` evaluates it on; those of every phase together show each frame.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from mien.data_pipelines.attempts import Attempts
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import Batch, ReadConfig, locate, read_frames
from mien.data_pipelines.unreadable import Dropped


class FrameLine(NamedTuple):
    """The frames of some clips, one clip after another."""

    rows: np.ndarray  # int64 (clips,): the manifest lines
    ends: np.ndarray  # int64 (clips,): where on the line each clip's frames end

    @staticmethod
    def of(manifest: Manifest, rows: np.ndarray) -> "FrameLine":
        """Return the line of all frames of the manifest lines `rows`."""
        frames = manifest.table["frames"].to_numpy()
        return FrameLine(rows, np.cumsum(frames[rows], dtype=np.int64))

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (manifest line, first, last) of the clips between two places of the line: frames first..last-1."""
        place = int(np.searchsorted(self.ends, begin, side="right"))
        while begin < end:
            clip_begin = int(self.ends[place - 1]) if place else 0
            stop = min(end, int(self.ends[place]))
            yield int(self.rows[place]), begin - clip_begin, stop - clip_begin
            begin, place = stop, place + 1


def read_line(
    manifest: Manifest, line: FrameLine, begin: int, end: int, read: ReadConfig, attempts: Attempts | None = None
) -> Batch:
    """Return the frames begin..end-1 of the line: `image` uint8 (n, h, w, c), `row`, `frame` (from 0 in its clip).

    `ok` is false for frames of a piece that cannot be decoded, with `video`, `path` and `reason`; their image is only
    there because the rows of a block share a shape.
    """
    parts = []
    for index, first, last in line.pieces(begin, end):
        row, count = manifest.row(index), last - first
        words = {"video": "", "path": "", "reason": ""}
        try:
            with attempts.at(index, locate(row, read.root)) if attempts else nullcontext():
                image = read_frames(row, first, last, read)
        except DecodeError as error:
            image = np.zeros((count, read.size, read.size, 3), np.uint8)
            words = {"video": row["video"], "path": error.path, "reason": error.reason}
        numbers = {"row": np.full(count, index, np.int64), "frame": np.arange(first, last, dtype=np.int64)}
        told = {name: np.full(count, word, object) for name, word in words.items()}
        parts.append({"image": image, "ok": np.full(count, not words["reason"]), **numbers, **told})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def local_frames(manifest: Manifest, rows: np.ndarray, read: ReadConfig, batch_frames: int) -> Iterator[Batch]:
    """Yield all frames of the manifest lines `rows` as `clips.video_frames` does, without Ray."""
    line = FrameLine.of(manifest, rows)
    for begin in range(0, line.frames, batch_frames):
        yield read_line(manifest, line, begin, min(begin + batch_frames, line.frames), read)


def windows(num_frames: int, frames: int, hop: int, stride: int = 1) -> np.ndarray:
    """Return the windows `(n, frames)` of a clip, int64, by their last frame: together they show every frame.

    A window takes every `stride`-th frame, the next one begins `hop` of its frames later, and the last one of each
    phase (frames 0, 1, ... stride - 1 to begin with) is moved back to end with the phase's last frame, so no remainder
    is lost. Fewer frames than a window has are followed by the last one again and again, as in `sampling`.
    """
    assert num_frames >= 1 and 1 <= hop <= frames and stride >= 1
    found = []
    for phase in range(min(stride, num_frames)):
        shown = np.arange(phase, num_frames, stride, dtype=np.int64)
        spare = max(len(shown) - frames, 0)
        starts = np.unique([*range(0, spare, hop), spare])
        found.append(shown[np.minimum(starts[:, None] + np.arange(frames), len(shown) - 1)])
    every = np.concatenate(found)
    return every[np.lexsort((every[:, 0], every[:, -1]))]


def endings(num_frames: int, frames: int) -> np.ndarray:
    """Return the windows `(num_frames, frames)` of consecutive frames that end with each frame; see ending_indices."""
    assert num_frames >= 1
    return np.maximum(np.arange(num_frames, dtype=np.int64)[:, None] + np.arange(1 - frames, 1), 0)


def cut(
    stream: Iterable[Batch],
    plan: Callable[[int], np.ndarray],
    batch_size: int,
    report: Callable[[Dropped], None],
) -> Iterator[Batch]:
    """Yield the windows `plan(row)` of each clip in the stream, in its order, `batch_size` at a time.

    A batch has `clip` uint8 (b, t, h, w, c), `row` (b,) and `frames` (b, t), the clip's frames that it shows. `plan`
    gives the windows (n, t) of a manifest line by their last frame. `report` is called once for each clip that cannot
    be decoded, when that is found; of a long one, windows may have come before.
    """
    held: dict[int, np.ndarray] = {}
    todo: deque[np.ndarray] = deque()
    ready: list[tuple[np.ndarray, int, np.ndarray]] = []
    span, readable = 0, True
    for batch in stream:
        for place, (row, frame) in enumerate(zip(batch["row"].tolist(), batch["frame"].tolist(), strict=True)):
            if frame == 0:
                planned = plan(row)
                held, todo, readable = {}, deque(planned), True
                span = int((planned[:, -1] - planned[:, 0]).max()) + 1
            if readable and not batch["ok"][place]:
                report({"row": row} | {name: str(batch[name][place]) for name in ("video", "path", "reason")})
                held, readable = {}, False
            if not readable:
                continue
            held[frame] = batch["image"][place]
            held.pop(frame - span, None)
            while todo and todo[0][-1] <= frame:
                shown = todo.popleft()
                ready.append((np.stack([held[number] for number in shown.tolist()]), row, shown))
                if len(ready) == batch_size:
                    yield _stacked(ready)
                    ready = []
    if ready:
        yield _stacked(ready)


def _stacked(ready: list[tuple[np.ndarray, int, np.ndarray]]) -> Batch:
    clips, rows, frames = zip(*ready, strict=True)
    return {"clip": np.stack(clips), "row": np.array(rows, np.int64), "frames": np.stack(frames)}
