"""Video files to frames: mp4 by decord, any other container by PyAV, after a look at the file itself.

decord 0.6 is the faster of the two on a few frames of an mp4, but it ends the whole process on truncated mkv and avi
files and counts the frames of transport streams wrongly, so it is given nothing else; and of an mp4 the chain of boxes
is walked first, which finds what was cut off or is no mp4 at all, and says so better than a decoder does. Of another
container that was cut off, the frames before the cut are there and the count says how many.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import decord
import numpy as np
from decord.logging import QUIET, set_level

set_level(QUIET)  # what goes wrong is raised; FFmpeg's own words about it would drown the progress

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
_DECORD = frozenset({".mp4", ".m4v", ".mov"})
_FIRST_BOXES = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})

Bytes = bytes | np.ndarray  # encoded content; an array is uint8, one-dimensional


class DecodeError(ValueError):
    """A clip's file cannot be turned into the frames asked for; `path` and `reason` say which and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Probe(NamedTuple):
    """What a manifest row needs to know of a source."""

    frames: int
    fps: float | None
    height: int
    width: int


def probe_video(path: str) -> Probe:
    """Return length, rate and size; the first frame is decoded, of containers other than mp4 every frame."""
    if Path(path).suffix.lower() in _DECORD:
        reader = _open_decord(path, None)
        height, width = _decord_frames(reader, path, [0]).shape[1:3]
        fps = float(reader.get_avg_fps())
        return Probe(len(reader), fps if fps > 0 else None, height, width)
    frames = 0
    for frame, rate in _av_frames(path, None):
        frames, found = frames + 1, (rate, frame.height, frame.width)
    return Probe(frames, *found)


def check_length(path: str, frames: int, wanted: np.ndarray) -> None:
    if wanted[-1] >= frames:
        reason = (
            f"holds {frames} frames, but frame {wanted[-1]} (from 0) is asked for: damaged, or changed since prepared"
        )
        raise DecodeError(path, reason)


def read_video(path: str, content: Bytes | None, wanted: np.ndarray) -> np.ndarray:
    """Return frames of a video that is given by its bytes or, without, read from `path` piece by piece."""
    if Path(path).suffix.lower() in _DECORD:
        reader = _open_decord(path, content)
        check_length(path, len(reader), wanted)
        return _decord_frames(reader, path, wanted.tolist())
    chosen, frames, count = set(wanted.tolist()), [], 0
    for frame, _ in _av_frames(path, content):
        if count in chosen:
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == len(chosen):
                return np.stack(frames)
        count += 1
    check_length(path, count, wanted)
    raise AssertionError("every wanted frame was passed")


@contextmanager
def _opened(path: str, content: Bytes | None) -> Iterator[BinaryIO]:
    """Open the bytes, or the file `path` where there are none; raises DecodeError for what is missing or empty."""
    try:
        with Path(path).open("rb") if content is None else io.BytesIO(bytes(content)) as stream:
            if not stream.read(1):
                raise DecodeError(path, "is empty (0 bytes)")
            stream.seek(0)
            yield stream
    except OSError as error:
        raise DecodeError(path, f"cannot be read: {error.strerror or error}") from error


def _open_decord(path: str, content: Bytes | None) -> decord.VideoReader:
    with _opened(path, content) as stream:
        _check_boxes(path, stream)
        stream.seek(0)
        try:
            return decord.VideoReader(path if content is None else stream, num_threads=1)
        except (decord.DECORDError, RuntimeError) as error:
            raise DecodeError(path, f"cannot be opened as a video: {_told(error)}") from error


def _decord_frames(reader: decord.VideoReader, path: str, indices: list[int]) -> np.ndarray:
    try:
        return reader.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise DecodeError(path, f"frames cannot be decoded: {_told(error)}") from error


def _check_boxes(path: str, stream: BinaryIO) -> None:
    """Raise DecodeError unless the file is a whole chain of mp4 boxes, each a 4-byte length and a 4-byte kind."""
    size = stream.seek(0, io.SEEK_END)
    offset = 0
    kinds: set[bytes] = set()
    while offset + 8 <= size:
        stream.seek(offset)
        head = stream.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if not kinds and kind not in _FIRST_BOXES:
            raise DecodeError(path, "is not an mp4 file, whatever its name says")
        kinds.add(kind)
        if length == 0:  # this box goes on to the end of the file
            break
        if length == 1:  # a long box: its length stands after its kind
            length = int.from_bytes(head[8:], "big")
        if length < 8:
            raise DecodeError(path, f"is damaged: the box at byte {offset} has no possible length")
        offset += length
    if offset > size:
        raise DecodeError(path, f"is truncated: {offset - size} of {offset} bytes are missing")
    if b"moov" not in kinds:
        raise DecodeError(path, "is truncated or unfinished: it has no index (moov box)")


def _av_frames(path: str, content: Bytes | None) -> Iterator[tuple[av.VideoFrame, float | None]]:
    """Yield the frames of any container with its frame rate; or raise DecodeError where none is or one is broken."""
    count = 0
    try:
        with _opened(path, content) as stream, av.open(stream, "r") as container:
            if not container.streams.video:
                raise DecodeError(path, "holds no video stream")
            video = container.streams.video[0]
            video.codec_context.thread_count = 1
            rate = float(video.average_rate) if video.average_rate else None
            for frame in container.decode(video):
                count += 1
                yield frame, rate
    except av.FFmpegError as error:
        raise DecodeError(path, f"cannot be decoded as a video: {error.strerror}") from error
    if not count:
        raise DecodeError(path, "holds no frame that can be decoded")


def _told(error: BaseException) -> str:
    """Return the telling end of decord's message, without the time and the build path in front."""
    return str(error).strip().splitlines()[0].rpartition("] ")[2].rpartition(": ")[2]
