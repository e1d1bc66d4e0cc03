"""Raw footage, as people and datasets have it, to upright frames at a constant rate, one at a time.

A phone's video lies on its side and says so; its rate wavers with the light. Here frames are turned upright and put on
a grid of constant rate: a place without a frame repeats the one before, a frame too many is passed over. Time that is
missing altogether (a second and more) is not filled; the next frame says that it comes after a jump. Damaged packets
are passed over, as players do, and counted. Of a footage that breaks off, the frames before are there.

Videos are read by PyAV, which tells times and rotation; memory holds a frame or two, whatever the length.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from mien.data_pipelines import decode
from mien.data_pipelines.decode import IMAGES, DecodeError
from mien.data_pipelines.video_files import CONTAINERS, MAX_PIXELS

GAP_SECONDS = 1.0  # without a frame, from which on it is a jump and is not filled with repeats
UNKNOWN_RATE = 25.0  # frames/s, of frame folders and of videos that do not say theirs
THUMBNAIL = (64, 36)  # width and height, pixels


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame, converted only when its pixels are asked for; it is `turns` times 90 degrees short of upright."""

    index: int
    jump: bool  # time is missing before it
    picture: av.VideoFrame | np.ndarray
    turns: int = 0
    time: float = 0.0  # seconds, of its place on the source's own clock, which that of the sound is too

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width, upright."""
        stored = self._stored_size()
        return stored[::-1] if self.turns % 2 else stored

    def rgb(self, longest: int | None = None) -> np.ndarray:
        """Return uint8 `(h, w, c)`, upright; shrunk until no side is longer than `longest`."""
        height, width = self._stored_size()
        scale = min(1.0, longest / max(height, width)) if longest else 1.0
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
        if isinstance(self.picture, np.ndarray):
            whole = self.picture
            shrunk = whole if scale == 1 else cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
        else:
            # Also where nothing shrinks: the frames of one file may have several formats, PyAV converts them all.
            shrunk = self.picture.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
        return np.ascontiguousarray(np.rot90(shrunk, self.turns)) if self.turns else shrunk

    def thumbnail(self) -> np.ndarray:
        """Return a small grey picture, uint8 `(36, 64)`, turned as it is stored: to be compared with the next one's."""
        if isinstance(self.picture, np.ndarray):
            return cv2.resize(cv2.cvtColor(self.picture, cv2.COLOR_RGB2GRAY), THUMBNAIL, interpolation=cv2.INTER_AREA)
        return self.picture.to_ndarray(format="gray", width=THUMBNAIL[0], height=THUMBNAIL[1], interpolation="AREA")

    def _stored_size(self) -> tuple[int, int]:
        if isinstance(self.picture, np.ndarray):
            return self.picture.shape[0], self.picture.shape[1]
        return self.picture.height, self.picture.width


class Footage:
    """A video, a folder of frames or an image. Reading it twice gives the same frames; `notes` are of the last time."""

    def __init__(self, path: str | Path, fps: float | None = None) -> None:
        """Name the footage; `fps` is the rate of the frames that are wanted, without it the footage's own."""
        self.path, self._wanted_fps = Path(path), fps
        self.fps = fps or UNKNOWN_RATE  # known once frames are read
        self.notes: dict[str, int | str] = {}
        self.expected: int | None = None  # frames, as far as a header tells before they are read

    def frames(self) -> Iterator[Frame]:
        """Yield the frames, numbered from 0 without a gap; raises DecodeError where there is not one."""
        self.notes = {}
        found = 0
        for frame in self._images() if self.path.is_dir() or self.path.suffix.lower() in IMAGES else self._video():
            found += 1
            yield frame
        if not found:
            damage = self.notes.get("first damage")
            raise DecodeError(self.path, "holds no frame that can be decoded" + (f": {damage}" if damage else ""))

    def _count(self, what: str, number: int = 1) -> None:
        self.notes[what] = int(self.notes.get(what, 0)) + number

    def _images(self) -> Iterator[Frame]:
        files = decode.frame_files(self.path) if self.path.is_dir() else [self.path]
        index = 0
        for file in files:
            try:
                picture = decode.read(file, [0])[0]
            except DecodeError as error:
                self._count("damaged images")
                self.notes.setdefault("first damage", f"{file.name}: {error.reason}")
                continue
            yield Frame(index, False, picture, time=index / self.fps)
            index += 1

    def _video(self) -> Iterator[Frame]:
        """Yield a video's frames at their places of the grid."""
        following = 0  # the place that comes next
        origin: float | None = None  # seconds, of place 0
        held: Frame | None = None
        for picture in self._decoded():
            place, jump = following, False
            if picture.time is not None:
                origin = picture.time if origin is None else origin
                # The nearest place; of two, the earlier one, so that half the rate takes every other frame.
                place = math.ceil((picture.time - origin) * self.fps - 0.5 - 1e-6)
            if abs(place - following) > GAP_SECONDS * self.fps:  # time is missing, or a clock was set back
                jump, origin, place = True, (picture.time or 0.0) - following / self.fps, following
                self._count("jumps in time")
            if place < following:
                self._count("frames too many")
                continue
            for index in range(following, place):
                assert held is not None
                yield Frame(index, False, held.picture, held.turns, (origin or 0.0) + index / self.fps)
                self._count("frames repeated")
            # FFmpeg's angle is that by which the frame is to be turned counterclockwise.
            turns, now = round(picture.rotation / 90) % 4, (origin or 0.0) + place / self.fps
            held = Frame(place, jump, picture, turns, now)
            if held.turns:
                self.notes["turned"] = f"{90 * held.turns} degrees counterclockwise"
            yield held
            following = place + 1

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Yield what can be decoded, in order; raises DecodeError where the file cannot be opened."""
        try:
            if not self.path.stat().st_size:
                raise DecodeError(self.path, "is empty (0 bytes)")
            container = av.open(f"file:{self.path}", container_options=CONTAINERS, metadata_errors="replace")
        except av.FFmpegError as error:
            raise DecodeError(self.path, f"cannot be opened as a video: {error.strerror}") from error
        except OSError as error:
            raise DecodeError(self.path, f"cannot be read: {error.strerror or error}") from error
        with container:
            if not container.streams.video:
                raise DecodeError(self.path, "holds no video stream")
            video = container.streams.video[0]
            context = video.codec_context
            if context is None:
                raise DecodeError(self.path, "holds a video stream whose codec FFmpeg does not know")
            context.thread_count = 1
            if context.width * context.height > MAX_PIXELS:
                size = f"{context.width}x{context.height}"
                raise DecodeError(
                    self.path, f"says that its frames are {size}; more than {MAX_PIXELS:,} pixels are not"
                )
            self.fps = self._wanted_fps or _rate(video.average_rate) or _rate(video.guessed_rate) or UNKNOWN_RATE
            seconds = (container.duration or 0) / av.time_base
            self.expected = round(seconds * self.fps) or video.frames or None
            count, last, packets = 0, 0.0, container.demux(video)
            ordered = (
                container.format.name == "avi"
            )  # it has no times of display; those that FFmpeg makes up swap frames
            while True:
                try:
                    packet = next(packets, None)
                except (av.FFmpegError, OSError) as error:
                    self.notes["ends early"] = f"after {count} frames: {error.strerror or error}"
                    return
                if packet is None:
                    break
                try:
                    pictures = packet.decode()
                except av.FFmpegError as error:
                    self._count("damaged packets")
                    self.notes.setdefault("first damage", f"after {count} frames: {error.strerror}")
                    continue
                for picture in pictures:
                    assert isinstance(picture, av.VideoFrame)
                    count += 1
                    if ordered:
                        picture.pts = picture.dts
                    last = (picture.time or 0.0) - (video.start_time or 0) * float(video.time_base or 0)
                    yield picture
            if max(count, round(last * (video.average_rate or 0)) + 1) < video.frames:  # some have places without frame
                self.notes["ends early"] = f"after {count} of the {video.frames} frames that its header tells of"


def _rate(rate: Fraction | None) -> float | None:
    """Return a plausible rate; damaged headers tell of a million frames/s."""
    return float(rate) if rate and 0.1 <= rate <= 1000 else None
