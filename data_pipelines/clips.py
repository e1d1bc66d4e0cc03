"""Clips through Ray: the training stream, the views of an evaluation, all frames of whole clips, and a study's files.

Position p of the endless training stream is one clip, by the rule of `sampling.stream`, so a stream needs no list of
clips and no shuffle: a data task is given the numbers of the positions it reads. Worker r of n takes the r-th part of
every global batch, so step s holds the same clips whatever n is, and a run resumes at any step by counting.

Every worker drives its own Ray Data execution (`blocks.py`). A clip that cannot be decoded keeps its place in a block,
because rows share a shape, and is taken out before the trainer sees the batch; one that ends its process too.
"""

import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from mien.data_pipelines.attempts import Attempts
from mien.data_pipelines.blocks import Block, Execution, StreamConfig, Task, as_block, clips_per_block, stalled
from mien.data_pipelines.decode import DecodeError, Encoded, Packed
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import (
    Batch,
    EvaluationDecodeError,
    ReadConfig,
    load_manifest,
    locate,
    read_train,
    read_views,
    unknown_gaze,
)
from mien.data_pipelines.sampling import stream as positions_of
from mien.data_pipelines.unreadable import WORDS, DropCount, Dropped, dropped_of
from mien.data_pipelines.windows import FrameLine, read_line

if TYPE_CHECKING:  # data tasks import this file too, and need no torch: a second and 150 MiB for each of them
    import torch

CHUNK_ROWS = 512  # clips of one shared object; some 64 MiB of DFEW's frames


@dataclass(frozen=True)
class Share:
    """What a worker reads: positions first..last of each global batch of `batch_size`, at step 0, 1, ..."""

    seed: int
    batch_size: int
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    @staticmethod
    def of(rank: int, world_size: int, seed: int, batch_size: int) -> "Share":
        """Return the part of worker `rank` of `world_size`, one clip more or less than the others'.

        Raises ValueError where there are fewer clips than workers.
        """
        if batch_size < world_size:
            raise ValueError(
                f"each worker takes part of every batch, but loop.batch_size={batch_size} and there are {world_size}: "
                f"set it to {world_size} or more"
            )
        return Share(seed, batch_size, rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

    def places(self, first: int, last: int, rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Yield (position, row, draw) of this worker's clips number first..last-1, counted from step 0."""
        for step in range(first // len(self), math.ceil(last / len(self))):
            begin = step * self.batch_size + self.first
            low = begin + max(first - step * len(self), 0)
            high = begin + min(last - step * len(self), len(self))
            yield from positions_of(rows, self.seed, low, high).items()


def stream(
    manifest: Manifest,
    rows: Sequence[int] | np.ndarray,
    read: ReadConfig,
    config: StreamConfig,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    steps: int,
) -> Iterator[tuple[dict[str, "torch.Tensor"], list[Dropped]]]:
    """Yield (batch, dropped) of this worker for `steps` steps from `start_step` on; `batch_size` is the global one.

    A batch owns its memory, so it may be written to. Clips that cannot be decoded are not in it but in `dropped`.
    Raises DroppedTooManyError, also when a batch holds no readable clip at all, and StalledError.
    """
    share = Share.of(rank, world_size, seed, batch_size)
    table = ray.put((uuid.uuid4().hex, manifest, np.asarray(rows, dtype=np.int64)))
    clips = clips_per_block(len(share), read.clip_bytes, config)
    first, last = start_step * len(share), (start_step + steps) * len(share)

    def task(number: int) -> Task:
        begin = first + number * clips
        end = min(begin + clips, last)
        return Task(partial(_read_clips, begin, end, table, share, read), end - begin)

    count = DropCount(config, "stream")
    execution = Execution(task, math.ceil((last - first) / clips), clips * read.clip_bytes, config, world_size)
    for batch in execution.batches(len(share), batches_per_block=clips / len(share)):
        dropped = dropped_of(batch)
        count.add(len(batch["ok"]), dropped)
        yield _tensors(batch), dropped


def evaluation_views(
    manifest: Manifest, rows: Sequence[int] | np.ndarray, read: ReadConfig, config: StreamConfig, *, batch_size: int
) -> Iterator[dict[str, "torch.Tensor"]]:
    """Yield the evaluation views of the manifest lines `rows` in order; a video's views can fall into two batches.

    Nothing is dropped: raises EvaluationDecodeError at the end if any clip could not be decoded, naming all of them,
    and yields no batch after the first failure. Raises StalledError.
    """
    table = ray.put((uuid.uuid4().hex, manifest, np.asarray(rows, dtype=np.int64)))
    read = read.model_copy(update={"sampling": read.sampling.model_copy(update={"num_samples": 1})})
    views = read.sampling.views
    videos = clips_per_block(1, views * read.clip_bytes, config)

    def task(number: int) -> Task:
        begin, end = number * videos, min((number + 1) * videos, len(rows))
        return Task(partial(_read_views, begin, end, table, read), (end - begin) * views)

    failures: list[DecodeError] = []
    execution = Execution(task, math.ceil(len(rows) / videos), videos * views * read.clip_bytes, config, workers=1)
    for batch in execution.batches(batch_size, batches_per_block=videos * views / batch_size):
        failures += [DecodeError(dropped["path"], dropped["reason"]) for dropped in dropped_of(batch)]
        if not failures:
            yield _tensors(batch)
    if failures:
        raise EvaluationDecodeError(failures)


def video_frames(
    manifest: Manifest, rows: Sequence[int] | np.ndarray, read: ReadConfig, config: StreamConfig
) -> Iterator[Batch]:
    """Yield every frame of the manifest lines `rows`, in order and read once, as `windows.read_line` describes them.

    Frames that cannot be decoded keep their places, with `ok` false. Raises StalledError.
    """
    line = FrameLine.of(manifest, np.asarray(rows, dtype=np.int64))
    table = ray.put((uuid.uuid4().hex, manifest, line))
    frame_bytes = read.size * read.size * 3
    most = config.model_copy(update={"block_clips": config.block_clips * read.sampling.frames})
    frames = clips_per_block(1, frame_bytes, most)

    def task(number: int) -> Task:
        begin, end = number * frames, min((number + 1) * frames, line.frames)
        return Task(partial(_read_frames, begin, end, table, read), end - begin)

    execution = Execution(task, math.ceil(line.frames / frames), frames * frame_bytes, config, workers=1)
    yield from execution.batches(frames, batches_per_block=1)


def _read_frames(begin: int, end: int, table: ray.ObjectRef, read: ReadConfig) -> list[Block]:
    run, manifest, line = ray.get(table)
    with Attempts(f"{run}-{begin}") as attempts:
        return [as_block(read_line(manifest, line, begin, end, read, attempts))]


def _read_clips(begin: int, end: int, table: ray.ObjectRef, share: Share, read: ReadConfig) -> list[Block]:
    """Return a worker's clips number begin..end-1 as a block; runs in a data task."""
    run, manifest, rows = ray.get(table)
    examples = []
    with Attempts(f"{run}-{begin}") as attempts:
        for position, index, draw in share.places(begin, end, rows):
            row = manifest.row(index)
            try:
                with attempts.at(position, locate(row, read.root)):
                    example = _readable(read_train(row, index, draw, read))
            except DecodeError as error:
                example = _unreadable(row, index, draw, error, read)
            examples.append(example | {"position": np.int64(position)})
    return [_block(examples)]


def _read_views(begin: int, end: int, table: ray.ObjectRef, read: ReadConfig) -> list[Block]:
    """Return the views of rows number begin..end-1 as a block; runs in a data task."""
    run, manifest, rows = ray.get(table)
    examples = []
    with Attempts(f"{run}-{begin}") as attempts:
        for index in rows[begin:end].tolist():
            row = manifest.row(index)
            try:
                with attempts.at(index, locate(row, read.root)):
                    examples += [_readable(view) for view in read_views(row, index, read)]
            except DecodeError as error:
                examples.append(_unreadable(row, index, 0, error, read) | {"view": np.int64(0)})
    return [_block(examples)]


def _readable(example: dict[str, Any]) -> dict[str, Any]:
    return example | {"ok": True} | dict.fromkeys(WORDS, "")


def _unreadable(row: dict[str, Any], index: int, draw: int, error: DecodeError, read: ReadConfig) -> dict[str, Any]:
    """Return what holds the place of a clip, because every row of a block has the same shape."""
    gaze, spread = unknown_gaze(read)
    return {
        "clip": np.zeros((read.sampling.frames_read, read.size, read.size, 3), np.uint8),
        "row": np.int64(index),
        "draw": np.int64(draw),
        "label": np.int64(-1),
        "gaze": gaze,
        "gaze_spread": spread,
        "ok": False,
        "video": row["video"],
        "path": error.path,
        "reason": error.reason,
    }


def _block(examples: Sequence[dict[str, Any]]) -> Block:
    columns = {name: [example[name] for example in examples] for name in examples[0]}
    return as_block(
        {name: np.array(values, object) if name in WORDS else np.stack(values) for name, values in columns.items()}
    )


def _tensors(batch: Batch) -> dict[str, "torch.Tensor"]:
    """Return the clips that are there as tensors."""
    import torch

    names = [name for name in batch if name not in (*WORDS, "ok")]
    if batch["ok"].all():
        return {name: torch.from_numpy(batch[name]) for name in names}
    return {name: torch.from_numpy(batch[name][batch["ok"]]) for name in names}


@dataclass(frozen=True)
class SharedClips:
    """Where a study's encoded files stand in the object store; small, so it can be handed to every trial."""

    chunks: tuple[ray.ObjectRef, ...]
    rows: np.ndarray  # the manifest lines, int64, in the chunks' order
    chunk_rows: int


class Sources:
    """A study's encoded files, mapped from the object store without copying."""

    def __init__(self, handle: SharedClips) -> None:
        self._chunks: list[Packed] = ray.get(list(handle.chunks))
        self._places = {int(row): divmod(place, handle.chunk_rows) for place, row in enumerate(handle.rows)}

    def source(self, index: int) -> Encoded:
        """Return the files of manifest line `index`."""
        chunk, place = self._places[index]
        return self._chunks[chunk].source(place)


def share(
    manifest: Manifest,
    rows: Sequence[int] | np.ndarray,
    root: str,
    *,
    task_cpus: float = 1.0,
    stall_seconds: float = 600.0,
) -> SharedClips:
    """Read the encoded files of the manifest lines `rows` once, by Ray tasks, into the object store.

    A file that cannot be read is empty there, and its clips are dropped like any other that cannot be decoded. Raises
    StalledError when no chunk of files arrives for `stall_seconds`.
    """
    lines = np.unique(np.asarray(rows, dtype=np.int64))
    load = ray.remote(num_cpus=task_cpus)(_load)
    parts = [lines[begin : begin + CHUNK_ROWS] for begin in range(0, len(lines), CHUNK_ROWS)]
    chunks = [load.remote(manifest.take(part), root) for part in parts]
    waiting = chunks
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=stall_seconds, fetch_local=False)
        if not ready:
            raise stalled(stall_seconds, task_cpus)
    return SharedClips(tuple(chunks), lines, CHUNK_ROWS)


def shared(handle: SharedClips) -> Sources:
    """Return what `share` read, in a trial."""
    return Sources(handle)


def _load(manifest: Manifest, root: str) -> Packed:
    return load_manifest(manifest, range(len(manifest)), root)
