"""Which frames: every draw of the data pipeline, as a function of (seed, epoch, row) and of nothing else.

So any worker makes the same clip, in any order, and a run resumes in the middle of an epoch by counting. Frame indices
follow MAE-DFER (Sun et al., ACM MM 2023) and, for gaze, the Gaze360 reader of its fork, with two differences: views
that are all the same are evaluated once by default, which leaves their mean as it is; and one segment is the middle of
the video.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, model_validator

Ablation = Literal["none", "still", "reversed", "shuffled"]


class SamplingConfig(BaseModel, frozen=True, extra="forbid"):
    """How a clip's frames are chosen from its video."""

    rule: Literal["pretrain", "finetune", "ending"] = Field(
        "finetune",
        description="training frames: pretrain = every stride-th from a random start; finetune = spread evenly; "
        "ending = the consecutive frames that end with the last one, whose label it is, in evaluation too (gaze; no "
        "stride, one view)",
    )
    frames: int = Field(16, ge=1, description="frames in a clip")
    stride: int = Field(4, ge=1, description="video frames from one frame of the clip to the next")
    segments: int = Field(2, ge=1, description="evaluation views over time, evenly spread")
    crops: int = Field(
        1, ge=1, description="evaluation views over space; frames are square, so more than 1 repeats views"
    )
    num_samples: int = Field(
        1,
        ge=1,
        description="pretrain: clips taken of a video when it is opened, one from each stretch of it; they share crop "
        "and mask, and loop.batch_size counts videos",
    )
    published_views: bool = Field(
        False, description="evaluate all segments x crops views, those included that do not change the mean"
    )
    ablate: Ablation = Field(
        "none",
        description="spoil a clip's motion, in training and evaluation, to see what it is worth: still = the middle "
        "frame again and again; reversed = the frames backwards; shuffled = the frames in any order",
    )

    @property
    def span(self) -> int:
        """Video frames that a clip covers."""
        return self.frames * self.stride

    @property
    def frames_read(self) -> int:
        """Frames that are read of a video in training: those of all its clips, one after another."""
        return self.frames * self.num_samples

    @property
    def ends_with_label(self) -> bool:
        """Whether a clip's label is that of its last frame."""
        return self.rule == "ending"

    @property
    def views(self) -> int:
        """Evaluation views of a video, at most: fewer where they would all be the same."""
        return 1 if self.rule == "ending" else self.segments * self.crops

    @property
    def views_told(self) -> str:
        """Evaluation views in words, those named that only repeat others."""
        if self.rule == "ending":
            return "1, the frames that end with the label's"
        over_time = f"{self.segments} over time" if self.segments > 1 else "1, the middle"
        if not self.published_views:
            return over_time + (", one of a video where all are the same" if self.segments > 1 else "")
        repeated = f", each {self.crops} times: duplicates, as published, of square frames" if self.crops > 1 else ""
        return f"{self.views}: {over_time}{repeated}; of a short video all are the same, and none is left out"

    @model_validator(mode="after")
    def _samples_are_unlabelled(self) -> "SamplingConfig":
        if self.num_samples > 1 and (self.rule != "pretrain" or self.ablate != "none"):
            raise ValueError(
                f"num_samples above 1 needs rule 'pretrain' and ablate 'none', but got {self.num_samples} with "
                f"{self.rule!r} and {self.ablate!r}; set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _crops_repeat(self) -> "SamplingConfig":
        if self.crops > 1 and not self.published_views:
            raise ValueError(
                f"crops must be 1, because views of a square frame are all the same, but got {self.crops}: "
                "set published_views to evaluate the repeated views of the published protocol"
            )
        return self


def clip_draw(seed: int, epoch: int, row: int) -> int:
    """Return the 63-bit number from which all of a clip's random choices in that epoch come."""
    digest = hashlib.blake2b(f"clip {seed} {epoch} {row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@lru_cache(maxsize=4)  # every step of an epoch asks again, and a million rows take 50 ms
def epoch_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation, int64 `(num_rows,)` and read-only, in which an epoch visits the rows."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.flags.writeable = False
    return order


class Stream(NamedTuple):
    """A stretch of the endless training stream; int64 arrays of one length."""

    position: np.ndarray  # place in the stream, from 0 over all epochs
    row: np.ndarray  # line of the manifest
    draw: np.ndarray  # clip_draw(seed, epoch, row)

    def items(self) -> Iterator[tuple[int, int, int]]:
        """Return (position, row, draw) of every place."""
        return zip(self.position.tolist(), self.row.tolist(), self.draw.tolist(), strict=True)


def stream(rows: Sequence[int] | np.ndarray, seed: int, first: int, last: int) -> Stream:
    """Return positions first..last-1 of the stream over the manifest lines `rows`, each line once an epoch."""
    rows = np.asarray(rows, dtype=np.int64)
    assert len(rows) > 0 and 0 <= first <= last
    positions = np.arange(first, last, dtype=np.int64)
    epochs, places = np.divmod(positions, len(rows))
    visited = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        visited[here] = rows[epoch_order(len(rows), seed, int(epoch))[places[here]]]
    draws = [clip_draw(seed, int(epoch), int(row)) for epoch, row in zip(epochs, visited, strict=True)]
    return Stream(positions, visited, np.array(draws, dtype=np.int64))


def train_indices(num_frames: int, config: SamplingConfig, rng: np.random.Generator) -> np.ndarray:
    """Return the `(frames_read,)` indices of a training clip, or of a video's clips, by `config.rule`."""
    match config.rule:
        case "pretrain":
            return pretrain_indices(num_frames, config, rng)
        case "finetune":
            return finetune_indices(num_frames, config, rng)
        case "ending":
            return ending_indices(num_frames, config)


def pretrain_indices(num_frames: int, config: SamplingConfig, rng: np.random.Generator) -> np.ndarray:
    """Return `(frames_read,)` indices: every stride-th frame from a random start, for each of `num_samples` clips.

    Starts lie in stretches of equal length, one each; where a video has fewer starts than clips, anywhere, in order. A
    short video repeats the last frame that the stride reaches, which can lie up to `stride` frames before its end.
    """
    assert num_frames >= 1
    k, possible = config.num_samples, num_frames - config.span + 1
    if possible >= k:
        starts = np.arange(k) * (possible // k) + rng.integers(possible // k, size=k)
    elif num_frames > max(k, config.span):
        starts = np.sort(rng.integers(possible, size=k))
    else:
        starts = np.zeros(k, np.int64)
    reachable = (
        np.maximum(num_frames - 2 - starts, 0) // config.stride
    )  # steps f -> f + stride while f + 1 + stride < D
    steps = np.minimum(np.arange(config.frames), reachable[:, None])
    return (starts[:, None] + config.stride * steps).ravel()


def finetune_indices(num_frames: int, config: SamplingConfig, rng: np.random.Generator) -> np.ndarray:
    """Return `(frames,)` indices spread evenly over a random stretch of `span` frames, or over all of a shorter video.

    As published, a short video gives one point every stride, then its last frame again and again; in a long one the
    points are span / (frames - 1) apart, not stride.
    """
    assert num_frames >= 1
    if num_frames <= config.span:
        points = np.linspace(0, num_frames, num_frames // config.stride)
        points = np.concatenate([points, np.full(config.frames - len(points), num_frames)])
        return np.clip(points, 0, num_frames - 1).astype(np.int64)
    end = int(rng.integers(config.span, num_frames))
    return np.clip(np.linspace(end - config.span, end, config.frames), 0, end - 1).astype(np.int64)


def ending_indices(num_frames: int, config: SamplingConfig) -> np.ndarray:
    """Return `(frames,)` indices: consecutive frames up to the last one; a short video repeats its first in front."""
    assert num_frames >= 1
    return np.maximum(np.arange(num_frames - config.frames, num_frames), 0)


def view_indices(num_frames: int, config: SamplingConfig) -> list[np.ndarray]:
    """Return the evaluation views, each `(frames,)`: `segments` stretches of every stride-th frame, first to last.

    Views that are all the same, as those of a short video with its last frame repeated, are given once. Where only some
    are, all stay, because the mean over views is published so. With `published_views` every view comes `crops` times,
    segment-major, and none is left out.
    """
    assert num_frames >= 1
    if config.rule == "ending":
        return [ending_indices(num_frames, config)]
    kept = np.arange(0, num_frames, config.stride)
    kept = np.concatenate([kept, np.full(max(config.frames - len(kept), 0), kept[-1])])
    spare = len(kept) - config.frames
    if config.segments == 1:
        starts = [spare // 2]
    else:
        starts = [int(segment * (spare / (config.segments - 1))) for segment in range(config.segments)]
    if config.published_views:
        starts = [start for start in starts for _ in range(config.crops)]
    elif len(set(starts)) == 1:
        starts = starts[:1]
    return [kept[start : start + config.frames] for start in starts]


def ablated(indices: np.ndarray, config: SamplingConfig, rng: np.random.Generator) -> np.ndarray:
    """Return a clip's indices with its motion spoilt as `config.ablate` says; only `shuffled` draws."""
    match config.ablate:
        case "none":
            return indices
        case "still":
            return np.full_like(indices, indices[len(indices) // 2])
        case "reversed":
            return indices[::-1]
        case "shuffled":
            return rng.permutation(indices)
