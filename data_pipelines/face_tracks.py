"""Boxes of every few frames to tracks: one person's face from its first frame to its last, with a steady box a frame.

The faces of two looks belong together where their boxes overlap. A face that is not found for a moment keeps its track,
and its box moves on a straight line meanwhile; a hard cut ends all tracks, because the next picture shows other people
in the same places. Since whole tracks are smoothed when they are complete, a smoothed box does not lag behind the face.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, Field
from scipy.ndimage import gaussian_filter1d

from mien.data_pipelines.face_detector import overlaps

FLAT = 8.0  # variance (grey levels squared) of two pictures below which they are flat, and alike


class TrackConfig(BaseModel, frozen=True, extra="forbid"):
    """When faces of several frames are one person's."""

    detect_every: int = Field(5, ge=1, description="frames from one look for faces to the next")
    min_score: float = Field(0.5, gt=0, lt=1, description="score of a face with which a track begins, at least")
    keep_score: float = Field(0.3, gt=0, lt=1, description="score of a face with which a track goes on, at least")
    min_overlap: float = Field(0.25, gt=0, lt=1, description="IoU of a face's boxes in two looks, at least")
    max_gap_seconds: float = Field(0.5, ge=0, description="longest time that a face may not be found, seconds")
    min_frames: int = Field(16, ge=1, description="a track that is shorter is not kept")
    smooth_seconds: float = Field(0.15, ge=0, description="standard deviation of the smoothing over time; 0: none")
    cut: float = Field(
        0.5, ge=-1, le=1, description="likeness of a frame to the one before that is a hard cut; -1: none is"
    )


@dataclass(frozen=True)
class Track:
    """One person's face in the frames `start`, `start` + 1, ...; boxes are centre x, centre y, width, height."""

    start: int
    boxes: np.ndarray  # float32 (frames, 4), pixels of the upright frame
    found: int  # looks that found the face
    looks: int  # looks that fell into the track
    score: float  # mean of the scores where it was found

    def __len__(self) -> int:
        return len(self.boxes)

    def box(self, frame: int) -> np.ndarray | None:
        """Return the box in a frame, or None where the track is not."""
        return self.boxes[frame - self.start] if self.start <= frame < self.start + len(self) else None


@dataclass
class _Open:
    """A track that goes on: what the looks found, corners of boxes and scores."""

    frames: list[int] = field(default_factory=list)
    # No arrays: thousands of small ones between a video's pictures keep the allocator from using their room again.
    faces: list[list[float]] = field(default_factory=list)


class Tracker:
    """Joins what looks find. Holds boxes and no pictures: two hours with one face are 25 MB."""

    def __init__(self, config: TrackConfig, fps: float) -> None:
        self._config, self._fps = config, fps
        self._open: list[_Open] = []
        self._tracks: list[Track] = []
        self._looks: list[int] = []

    def look(self, frame: int, faces: np.ndarray) -> None:
        """Take the faces `(n, 5)` found in a frame: left, top, right, bottom, score."""
        self._looks.append(frame)
        longest = self._config.detect_every + self._config.max_gap_seconds * self._fps
        self._close(lambda track: frame - track.frames[-1] > longest)
        last = np.array([track.faces[-1] for track in self._open], np.float32).reshape(-1, 5)
        shared = overlaps(last, faces)
        free = set(range(len(faces)))
        while shared.size and shared.max() >= self._config.min_overlap:  # the most certain pair first
            old, new = np.unravel_index(shared.argmax(), shared.shape)
            self._open[old].frames.append(frame)
            self._open[old].faces.append(faces[new].tolist())
            shared[old, :], shared[:, new] = 0, 0
            free.discard(int(new))
        begin = (i for i in sorted(free) if faces[i, 4] >= self._config.min_score)
        self._open += [_Open([frame], [faces[i].tolist()]) for i in begin]

    def cut(self, frame: int) -> None:
        """End all tracks before `frame`; faces found in the last look before are taken to stay until there."""
        held = self._looks[-1] if self._looks else -1
        for track in self._open:
            if track.frames[-1] == held and frame - 1 > held:
                track.frames.append(frame - 1)
                track.faces.append(track.faces[-1])
        self._close(lambda track: True)

    def finish(self, frames: int) -> list[Track]:
        """End at a footage's last frame, and return the tracks that are long enough, as they begin."""
        self.cut(frames)
        return sorted(self._tracks, key=lambda track: track.start)

    def _close(self, ends: Callable[[_Open], bool]) -> None:
        for track in [track for track in self._open if ends(track)]:
            self._open.remove(track)
            if track.frames[-1] - track.frames[0] + 1 >= self._config.min_frames:
                self._tracks.append(self._made(track))

    def _made(self, track: _Open) -> Track:
        places = np.arange(track.frames[0], track.frames[-1] + 1)
        faces = np.array(track.faces, np.float32)
        middles = np.concatenate([(faces[:, :2] + faces[:, 2:4]) / 2, faces[:, 2:4] - faces[:, :2]], axis=1)
        boxes = np.stack([np.interp(places, track.frames, values) for values in middles.T], axis=1)
        sigma = self._config.smooth_seconds * self._fps
        if sigma > 0:
            # Continued beyond its ends as it moves there, or smoothing would hold a moving face back.
            more = min(len(boxes) - 1, math.ceil(4 * sigma))
            longer = np.pad(boxes, ((more, more), (0, 0)), mode="reflect", reflect_type="odd")
            boxes = gaussian_filter1d(longer, sigma, axis=0, mode="nearest")[more : more + len(boxes)]
        looks = bisect_right(self._looks, places[-1]) - bisect_left(self._looks, places[0])
        found = len(faces) - (track.frames[-1] != self._looks[bisect_right(self._looks, places[-1]) - 1])
        return Track(track.frames[0], boxes.astype(np.float32), found, looks, float(faces[:, 4].mean()))


def likeness(before: np.ndarray, after: np.ndarray) -> float:
    """Return how alike two grey thumbnails `(h, w)` are, to 1: the contrast and structure that they share, as in SSIM.

    Brightness does not count. In the footage that was measured, hard cuts were at most 0.21 and all else at least 0.79,
    cameras that change their exposure included, which histograms took for cuts.
    """
    first, second = (picture - picture.mean(dtype=np.float64) for picture in (before, after))
    shared, own = (first * second).mean(), (first * first).mean() + (second * second).mean()
    return float((2 * shared + FLAT) / (own + FLAT))


def squares(boxes: np.ndarray, margin: float) -> np.ndarray:
    """Return the squares around boxes `(n, 4)`: centre x, centre y, side `(n, 3)`.

    The longer side of a box grows on either end by its `margin`-th part.
    """
    return np.column_stack([boxes[:, :2], boxes[:, 2:].max(axis=1) * (1 + 2 * margin)])


def main_track(tracks: Sequence[Track]) -> Track:
    """Return the track of the person whom a clip is about: the largest face, summed over its frames."""
    return max(tracks, key=lambda track: float(track.boxes[:, 2:].prod(axis=1).sum()))
