"""Windows over the frames of one face that last as long as training clips did, whatever the footage's frame rate.

A model that learned from every 4th frame of 25 a second has seen 16 frames in 2.4 seconds. Of footage at 60 frames a
second a window therefore takes every 9.6th, rounded; of a slower one some frames twice. `windows.py` covers the clips
of a manifest so that each frame is shown; here an answer is about all frames of its time, shown or not.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mien.data_pipelines.augment import AugmentConfig, augment
from mien.data_pipelines.crop_files import cut_out
from mien.data_pipelines.face_tracks import Track, squares
from mien.data_pipelines.footage import Frame
from mien.data_pipelines.sampling import SamplingConfig

PRECROPPED = 224  # pixels: what the voxceleb2 pre-crop cuts from


class Window(NamedTuple):
    """The frames `shown` to a model, int64 (t,), and for each of its answers the frames told of: first, last + 1."""

    shown: np.ndarray
    told: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class WindowPlan:
    """How windows lie on a track; all numbers but `frames` are frames of the footage."""

    frames: int  # of a window, as many as the model takes
    step: float  # from one of a window's frames to the next
    hop: int  # from a window to the next
    ends_with_label: bool = False  # a window's one answer is about its last frame
    per_frame: bool = False  # the model answers for each of a window's frames

    def __post_init__(self) -> None:
        assert self.frames >= 1 and self.step > 0 and self.hop >= 1 and not (self.ends_with_label and self.per_frame)

    @classmethod
    def paced(
        cls,
        sampling: SamplingConfig,
        frames: int,
        per_frame: bool,
        fps: float,
        learned_fps: float | None,
        hop: int | None,
    ) -> "WindowPlan":
        """Return the plan for footage of `fps`: clips as long in time as those that were sampled at `learned_fps`.

        Where that is not known, clips take the frames that training took. `hop` counts frames of a clip; None is a
        quarter of a clip, and 1 where an answer is about a clip's last frame.
        """
        ends = sampling.ends_with_label and not per_frame
        stride = 1 if sampling.ends_with_label else sampling.stride
        step = stride * fps / (learned_fps or fps)
        hop = hop or (1 if ends else max(1, frames // 4))
        return cls(frames, step, max(1, round(hop * step)), ends, per_frame)

    def seconds(self, fps: float) -> float:
        """Return the time from a clip's first frame to the end of its last."""
        return ((self.frames - 1) * self.step + 1) / fps

    def is_short(self, num_frames: int) -> bool:
        """Say whether a track is shorter than a window."""
        return num_frames <= int(self._offsets()[-1])

    def windows(self, num_frames: int) -> Iterator[Window]:
        """Yield the windows of a track of `num_frames`; their first and last frames ascend, and all frames are told of.

        A track that is shorter than a window repeats a frame as short clips do in evaluation: the last one that the
        step reaches, or, where the last frame bears the label, the first.
        """
        assert num_frames >= 1
        if self.ends_with_label:
            yield from self._endings(num_frames)
            return
        offsets = self._offsets()
        spare = max(num_frames - 1 - int(offsets[-1]), 0)
        reachable = offsets[offsets < num_frames][-1]
        for start in dict.fromkeys([*range(0, spare, self.hop), spare]):
            shown = start + np.minimum(offsets, reachable)
            # A clip lasts until its next frame would come: so no frame lies between clips that do not overlap.
            last = num_frames if start == spare else start + max(int(offsets[-1]) + 1, min(self.hop, spare - start))
            yield Window(shown, nearest(shown, start, last) if self.per_frame else ((start, last),))

    def _offsets(self) -> np.ndarray:
        return np.rint(np.arange(self.frames) * self.step).astype(np.int64)

    def _endings(self, num_frames: int) -> Iterator[Window]:
        ends = list(dict.fromkeys([*range(0, num_frames, self.hop), num_frames - 1]))
        told = nearest(np.array(ends), 0, num_frames)
        back = self._offsets()[::-1]
        for end, about in zip(ends, told, strict=True):
            yield Window(np.maximum(end - back, 0), (about,))


def nearest(shown: np.ndarray, first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Share the frames first..last-1 out to the frames `shown`, ascending: each (begin, end) of those nearest to it.

    A frame that is shown again and again is told of by its last showing alone.
    """
    between = [(a + b + 1) // 2 for a, b in itertools.pairwise(shown.tolist())]
    edges = [first, *between, last]
    return tuple((begin, max(begin, end)) for begin, end in itertools.pairwise(edges))


class FaceWindow(NamedTuple):
    """A window of the track `number`, cut out: clip uint8 (t, h, w, c)."""

    number: int
    window: Window
    clip: np.ndarray


class _Running:
    """A track that the reading has come to."""

    def __init__(self, track: Track, plan: WindowPlan, margin: float) -> None:
        self.track, self.squares = track, squares(track.boxes, margin)
        self._coming = plan.windows(len(track))
        self._next = next(self._coming, None)
        self._open: deque[Window] = deque()
        self._crops: dict[int, np.ndarray] = {}

    def wants(self, place: int) -> bool:
        """Say whether a window shows the track's frame `place`."""
        while self._next is not None and self._next.shown[0] <= place:
            self._open.append(self._next)
            self._next = next(self._coming, None)
        return any(place in window.shown for window in self._open)

    def add(self, place: int, crop: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
        """Take a crop, and yield the windows that end with it."""
        self._crops[place] = crop
        while self._open and self._open[0].shown[-1] <= place:
            window = self._open.popleft()
            yield window, np.stack([self._crops[frame] for frame in window.shown.tolist()])
        held = [window.shown[0] for window in (*self._open, self._next) if window is not None]
        for frame in [frame for frame in self._crops if not held or frame < held[0]]:
            del self._crops[frame]


def face_windows(
    frames: Iterable[Frame],
    tracks: Sequence[Track],
    plan: WindowPlan,
    *,
    margin: float,
    size: int,
    precrop: AugmentConfig,
) -> Iterator[FaceWindow]:
    """Yield the windows of all tracks, sorted by start, as soon as their last frame is read.

    Crops are made as for evaluation, of `size` pixels after the pre-crop that `precrop` asks for. Held are the crops of
    one window's time for each face that is there, and a frame is converted only where a window shows it.
    """
    plain = precrop.model_copy(update={"kind": "none"})
    cut_size = size if plain.precrop == "none" else PRECROPPED
    unknown = np.full(2, np.nan, np.float32)
    waiting = deque(enumerate(tracks))
    running: dict[int, _Running] = {}
    for frame in frames:
        while waiting and waiting[0][1].start <= frame.index:
            number, track = waiting.popleft()
            running[number] = _Running(track, plan, margin)
        picture: np.ndarray | None = None
        for number, one in list(running.items()):
            place = frame.index - one.track.start
            if one.wants(place):
                picture = frame.rgb() if picture is None else picture
                crop = cut_out(picture, one.squares[place], cut_size)
                crop = augment(crop[None], unknown, np.random.default_rng(0), plain, size)[0][0]
                for window, clip in one.add(place, crop):
                    yield FaceWindow(number, window, clip)
            if place + 1 == len(one.track):
                del running[number]
    assert not waiting and not running, "this reading gave fewer frames than the one that found the faces"
