"""Manifest rows to batches of numpy arrays, with threads and without Ray.

A training clip is a function of its row and its draw alone, so this stream and the Ray Data stream hold the same clips
at the same positions. A clip that cannot be decoded is absent from its training batch and reported beside it; in
evaluation it ends the run, after all the others were tried, with one error that lists them all.
"""

from collections.abc import Generator, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines import decode
from mien.data_pipelines.augment import Augmentation, AugmentConfig
from mien.data_pipelines.decode import DecodeError, Encoded, Packed
from mien.data_pipelines.manifest import Manifest, located
from mien.data_pipelines.sampling import (
    SamplingConfig,
    ablated,
    stream,
    train_indices,
    view_indices,
)
from mien.data_pipelines.threads import in_order
from mien.data_pipelines.unreadable import Dropped

# One clip: clip uint8 (t,h,w,c), row, draw, label, gaze float32 (2,), gaze_spread float32, perhaps view and position.
# `gaze_spread`, radians, stands beside the contract's gaze so that a task can trust a teacher's labels as far as the
# teacher does; it is 0 where gaze was measured, or nobody said, and then weighs as it always did. With `frame_gaze`,
# for a model that gives each frame an answer, gaze is (t,2) and gaze_spread (t,).
Example = dict[str, Any]
Batch = dict[str, np.ndarray]  # the same names, stacked


class Files(Protocol):
    """Encoded files by manifest line, in memory: `decode.Packed`, or a study's clips (`clips.Sources`)."""

    def source(self, index: int) -> Encoded:
        """Return the files of manifest line `index`."""


class ReadConfig(BaseModel, frozen=True, extra="forbid"):
    """How a manifest row becomes a clip."""

    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    size: int = Field(160, ge=8, description="height and width of a clip, pixels")
    root: str = Field("", description="folder that the manifest's relative paths start from")
    frame_gaze: bool = Field(False, description="give the gaze of each frame, not of the clip")

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip, or of the several that a repeated sampling reads at once."""
        return self.sampling.frames_read * self.size * self.size * 3


def for_model(
    sampling: SamplingConfig, augment: AugmentConfig, *, frames: int, size: int, root: str, frame_gaze: bool = False
) -> ReadConfig:
    """Return how to read the clips that a model takes; its frames win over the default, and over nothing else."""
    default = SamplingConfig.model_fields["frames"].default
    if sampling.frames not in (default, frames):
        raise ValueError(
            f"a clip has as many frames as the model takes, {frames}, but sampling.frames is {sampling.frames}; "
            "leave sampling.frames out"
        )
    sampling = sampling.model_copy(update={"frames": frames})
    return ReadConfig(sampling=sampling, augment=augment, size=size, root=root, frame_gaze=frame_gaze)


class EvaluationDecodeError(ValueError):
    """Clips of an evaluation cannot be decoded; `failures` holds every DecodeError."""

    def __init__(self, failures: Sequence[DecodeError]) -> None:
        shown = "".join(f"\n  {failure}" for failure in failures[:20])
        more = f"\n  and {len(failures) - 20} more" if len(failures) > 20 else ""
        super().__init__(
            f"every clip of an evaluation must be readable, but {len(failures)} are not; "
            f"repair them or prepare the manifest again without them:{shown}{more}"
        )
        self.failures = tuple(failures)


def locate(row: dict[str, Any], root: str) -> str | Path:
    """Return where a row's file, folder or clip in a shard stands: a path, or the URL of an object store."""
    return located(root, row["path"])


def read_train(
    row: dict[str, Any], index: int, draw: int, config: ReadConfig, source: Encoded | None = None
) -> Example:
    """Return the training clip that `draw` chooses of manifest line `index`; raises DecodeError."""
    frames_rng, augment_rng = (np.random.default_rng([draw, part]) for part in (0, 1))
    indices = ablated(train_indices(row["frames"], config.sampling, frames_rng), config.sampling, frames_rng)
    drawn = Augmentation(augment_rng, config.augment, config.size)
    frames = decode.read(source or locate(row, config.root), row["start"] + indices, _size(row), drawn.frame)
    gaze, spread = _gaze(row, indices, config)
    clip, gaze = drawn.clip(frames, gaze)
    return _example(row, index, draw, clip, gaze, spread)


def read_views(row: dict[str, Any], index: int, config: ReadConfig, source: Encoded | None = None) -> list[Example]:
    """Return the evaluation views of manifest line `index`, resized and nothing else; raises DecodeError."""
    rng = np.random.default_rng(index)  # of the row alone, so that an evaluation can be repeated
    views = [ablated(view, config.sampling, rng) for view in view_indices(row["frames"], config.sampling)]
    frames = _plain(row, np.concatenate(views), config, source)
    clips = np.split(frames, len(views))
    told = [_gaze(row, view, config) for view in views]
    examples = [_example(row, index, 0, clip, *known) for clip, known in zip(clips, told, strict=True)]
    return [{**example, "view": np.int64(view)} for view, example in enumerate(examples)]


def read_frames(row: dict[str, Any], first: int, last: int, config: ReadConfig) -> np.ndarray:
    """Return the frames first..last-1 of a row's clip as evaluation sees them, uint8 `(n, h, w, c)`; or DecodeError."""
    return _plain(row, np.arange(first, last), config)


def _plain(row: dict[str, Any], indices: np.ndarray, config: ReadConfig, source: Encoded | None = None) -> np.ndarray:
    plain = config.augment.model_copy(update={"kind": "none"})
    resized = Augmentation(np.random.default_rng(0), plain, config.size)
    return decode.read(source or locate(row, config.root), row["start"] + indices, _size(row), resized.frame)


def _source(sources: Files | None, index: int) -> Encoded | None:
    return None if sources is None else sources.source(index)


def _size(row: dict[str, Any]) -> tuple[int, int]:
    return row["height"], row["width"]


def unknown_gaze(config: ReadConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return gaze and gaze_spread of a clip about which nothing is known."""
    shape = (config.sampling.frames,) if config.frame_gaze else ()
    return np.full((*shape, 2), np.nan, np.float32), np.zeros(shape, np.float32)


def _gaze(row: dict[str, Any], indices: np.ndarray, config: ReadConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return gaze and gaze_spread of a row's clip, or of its frames `indices` (t,).

    Where the manifest does not know each frame's own, all bear the clip's; but of a clip that ends with the frame of
    its label, that frame alone.
    """
    gaze, spread = unknown_gaze(config)
    if config.frame_gaze and row["frame_pitch"] is not None:
        pitch, yaw = (np.array(row[name], np.float32)[indices] for name in ("frame_pitch", "frame_yaw"))
        gaze = np.stack([pitch, yaw], axis=1)
        if row["frame_spread"] is not None:
            spread = np.nan_to_num(np.array(row["frame_spread"], np.float32)[indices])
    elif row["pitch"] is not None:
        ends = config.frame_gaze and config.sampling.ends_with_label
        told = indices == row["frames"] - 1 if ends else slice(None)
        gaze[told] = row["pitch"], row["yaw"]
        spread[told if config.frame_gaze else ()] = row["gaze_spread"] or 0
    return gaze, spread


def _example(
    row: dict[str, Any], index: int, draw: int, clip: np.ndarray, gaze: np.ndarray, spread: np.ndarray
) -> Example:
    label = -1 if row["label"] is None else row["label"]
    numbers = {"row": np.int64(index), "draw": np.int64(draw), "label": np.int64(label)}
    return {"clip": clip, "gaze": gaze, "gaze_spread": spread} | numbers


def collate(examples: Sequence[Example], config: ReadConfig) -> Batch:
    """Return examples stacked; of none, the same arrays with no clip in them."""
    if not examples:
        clip = np.empty((0, config.sampling.frames_read, config.size, config.size, 3), np.uint8)
        numbers = {name: np.empty(0, np.int64) for name in ("row", "draw", "label", "position")}
        gaze, spread = (np.empty((0, *one.shape), np.float32) for one in unknown_gaze(config))
        return {"clip": clip, "gaze": gaze, "gaze_spread": spread, **numbers}
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def local_batches(
    manifest: Manifest,
    rows: Sequence[int] | np.ndarray,
    batch_size: int,
    seed: int,
    config: ReadConfig,
    start_step: int = 0,
    steps: int | None = None,
    threads: int = 1,
    sources: Files | None = None,
    part: tuple[int, int] | None = None,
) -> Generator[tuple[Batch, list[Dropped]], None, None]:
    """Yield (batch, dropped) for `steps` steps, or without end, of the stream over the manifest lines `rows`.

    Step s holds positions s * batch_size up to (s + 1) * batch_size, the same for any `threads` and any `start_step`;
    with `part`, places in a batch from the first to before the last, what one of several workers takes of it. A batch
    also holds `position`. `sources`, made by `load_manifest`, stands in for the files.
    """

    def read(item: tuple[int, int, int]) -> Example | Dropped:
        position, index, draw = item
        row = manifest.row(index)
        try:
            example = read_train(row, index, draw, config, _source(sources, index))
        except DecodeError as error:
            return {
                "row": index,
                "video": row["video"],
                "path": error.path,
                "reason": error.reason,
                "position": position,
            }
        return {**example, "position": np.int64(position)}

    rows = np.asarray(rows, dtype=np.int64)
    wanted = count(start_step) if steps is None else range(start_step, start_step + steps)
    first, last = part or (0, batch_size)
    parts = (stream(rows, seed, step * batch_size + first, step * batch_size + last) for step in wanted)
    results = in_order(read, (item for part in parts for item in part.items()), threads, ahead=2 * batch_size)
    while step_results := list(islice(results, last - first)):
        examples = [result for result in step_results if "clip" in result]
        yield collate(examples, config), [result for result in step_results if "clip" not in result]


def local_views(
    manifest: Manifest,
    rows: Sequence[int] | np.ndarray,
    batch_size: int,
    config: ReadConfig,
    threads: int = 1,
    sources: Files | None = None,
) -> Iterator[Batch]:
    """Yield the evaluation views of the manifest lines `rows` in order; a video's views can fall into two batches.

    Raises EvaluationDecodeError at the end if any clip could not be decoded; no batch comes after the first failure.
    """

    def read(index: int) -> list[Example] | DecodeError:
        try:
            return read_views(manifest.row(index), index, config, _source(sources, index))
        except DecodeError as error:
            return error

    failures: list[DecodeError] = []
    waiting: list[Example] = []
    for result in in_order(read, map(int, rows), threads, ahead=2 * batch_size):
        if isinstance(result, DecodeError):
            failures.append(result)
        elif not failures:
            waiting += result
        while len(waiting) >= batch_size and not failures:
            yield collate(waiting[:batch_size], config)
            waiting = waiting[batch_size:]
    if failures:
        raise EvaluationDecodeError(failures)
    if waiting:
        yield collate(waiting, config)


def load_manifest(manifest: Manifest, rows: Sequence[int] | np.ndarray, root: str, threads: int = 1) -> Packed:
    """Return the encoded files of the manifest lines `rows` in one array, to be shared between processes.

    Source i belongs to manifest line i; those of other lines, and of files that cannot be read, are empty.
    """
    chosen = set(map(int, rows))

    def read(index: int) -> Encoded:
        row = manifest.row(index)
        path = locate(row, root)
        if index not in chosen:
            return Encoded(str(path), (), images=False)
        try:
            return decode.load(path, row["start"], row["frames"])
        except DecodeError:
            return Encoded(str(path), (), images=False)

    return decode.pack(list(in_order(read, range(len(manifest)), threads, ahead=64)))
