"""Video files to frames, by PyAV: frames of an mp4 or mov from the keyframes before them on, other containers in order.

Of decord, decord2 and PyAV, PyAV alone survives damaged files: of 2,400 mp4 files damaged in eight ways, 15 ended the
process under decord 0.6.0 and 17 under decord2 3.4.0 (an uncaught C++ exception), none under PyAV, whose errors are
Python's. The pixels are equal where the file is 8-bit and progressive, none leaks over 10,000 opens, and read as here
PyAV is the fastest of the three (`experiments/benchmarks/decoders.py`). torchcodec's wheels ask for CUDA or for the
system's FFmpeg.

Of an mp4 the chain of boxes is walked first, which finds what was cut off or is no mp4 at all, and says so better than
a decoder does. Of another container that was cut off, the frames before the cut are there and the count says how many.
A file may take only so much time and memory: `MAX_PIXELS` a frame, `MAX_BYTES` a clip, `time_limit`.
"""

import io
import stat
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
MP4 = frozenset({".mp4", ".m4v", ".mov"})
MAX_PIXELS = 2**26  # of a frame, 8192x8192: more is a damaged header
MAX_BYTES = 2 * 2**30  # of the frames that one call returns
SECONDS = 60.0  # that a file may take, and a second more for each MiB of it
_FIRST_BOXES = frozenset({b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
# FFmpeg would also take text for pictures, and follow playlists to other files and into the network.
CONTAINERS = {
    "format_whitelist": "mov,avi,matroska,mpeg,mpegvideo,mpegts,asf,flv,ogg",
    "protocol_whitelist": "file",
}

Bytes = bytes | np.ndarray  # encoded content; an array is uint8, one-dimensional
Each = Callable[[np.ndarray], np.ndarray]  # what is done to a frame uint8 (h,w,c) as soon as it is decoded


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
    with _opened_video(path, None) as video:
        if _is_mp4(path):
            times, keys = video.times()
            return Probe(len(times), video.rate, *video.at([times[0]], keys).shape[1:3])
        frames = 0
        for frame in video.decoded():
            frames, size = frames + 1, video.size(frame)
        if not frames:
            raise DecodeError(path, "holds no frame that can be decoded")
        return Probe(frames, video.rate, *size)


def time_limit(size: int) -> float:
    """Return the seconds that a file of `size` bytes may take to be read."""
    return SECONDS + size / 2**20


def check_length(path: str, frames: int, wanted: np.ndarray) -> None:
    """Raise DecodeError unless a source of `frames` frames holds those `wanted`, ascending."""
    if wanted[-1] >= frames:
        reason = (
            f"holds {frames} frames, but frame {wanted[-1]} (from 0) is asked for: damaged, or changed since prepared"
        )
        raise DecodeError(path, reason)


def check_size(path: str | Path, height: int, width: int, frames: int = 1) -> None:
    """Raise DecodeError for frames that only a damaged header has, or that do not fit into memory together."""
    if height * width > MAX_PIXELS:
        raise DecodeError(path, f"says that its frames are {width}x{height}; more than {MAX_PIXELS:,} pixels are not")
    if height * width * 3 * frames > MAX_BYTES:
        gib = height * width * 3 * frames / 2**30
        reason = f"{frames} frames of {width}x{height} are {gib:.1f} GiB; more than {MAX_BYTES / 2**30:g} are not read"
        raise DecodeError(path, f"{reason}: make them smaller, as crop_faces.py does")


def read_video(path: str, content: Bytes | None, wanted: np.ndarray, each: Each | None = None) -> np.ndarray:
    """Return frames of a video that is given by its bytes or, without, read from `path` piece by piece.

    `wanted` holds their numbers, ascending and each once; `each` is done to every one of them.
    """
    with _opened_video(path, content, each) as video:
        if _is_mp4(path):
            times, keys = video.times()
            check_length(path, len(times), wanted)
            if len(set(times)) == len(times):  # else numbers are all that tells frames apart
                return video.at([times[number] for number in wanted.tolist()], keys)
            video.rewind()
        chosen, frames, count = set(wanted.tolist()), [], 0
        for frame in video.decoded():
            if count in chosen:
                frames.append(video.rgb(frame, len(chosen)))
                if len(frames) == len(chosen):
                    return np.stack(frames)
            count += 1
        if not count:
            raise DecodeError(path, "holds no frame that can be decoded")
        check_length(path, count, wanted)
        raise AssertionError("every wanted frame was passed")


def _is_mp4(path: str) -> bool:
    return Path(path).suffix.lower() in MP4


@contextmanager
def _opened(path: str, content: Bytes | None) -> Iterator[BinaryIO]:
    """Open the bytes, or the file `path` where there are none; raises DecodeError for what is missing or empty."""
    try:
        if content is None and not stat.S_ISREG(Path(path).stat().st_mode):  # to open a pipe could take for ever
            raise DecodeError(path, "is not a file")
        with Path(path).open("rb") if content is None else io.BytesIO(bytes(content)) as stream:
            if not stream.read(1):
                raise DecodeError(path, "is empty (0 bytes)")
            yield stream
    except OSError as error:
        raise DecodeError(path, f"cannot be read: {error.strerror or error}") from error


@contextmanager
def _opened_video(path: str, content: Bytes | None, each: Each | None = None) -> Iterator["_Video"]:
    """Open a video; what FFmpeg raises, also while it is read, becomes a DecodeError."""
    with _opened(path, content) as stream:
        size = stream.seek(0, io.SEEK_END)
        if _is_mp4(path):
            _check_boxes(path, stream, size)
        stream.seek(0)
        try:
            with av.open(stream, "r", container_options=CONTAINERS, metadata_errors="replace") as container:
                yield _Video(path, container, time_limit(size), each)
        except av.FFmpegError as error:
            raise DecodeError(path, f"cannot be decoded as a video: {error.strerror}") from error


def _check_boxes(path: str, stream: BinaryIO, size: int) -> None:
    """Raise DecodeError unless the file is a whole chain of mp4 boxes, each a 4-byte length and a 4-byte kind."""
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


class _Video:
    """The first video stream of an open container, read by one thread and within the limits of a file."""

    def __init__(self, path: str, container: av.container.InputContainer, seconds: float, each: Each | None) -> None:
        self._path, self._container, self._seconds, self._each = path, container, seconds, each
        self._until = time.monotonic() + seconds
        if not container.streams.video:
            raise DecodeError(path, "holds no video stream")
        self._stream = container.streams.video[0]
        context = self._stream.codec_context
        if context is None:
            raise DecodeError(path, "holds a video stream whose codec FFmpeg does not know")
        check_size(path, context.height, context.width)
        context.options = {"max_pixels": str(MAX_PIXELS)}  # a frame may be larger than the container says
        context.thread_count = 1
        # Pictures that no other one refers to are passed over where they are not wanted; H.264 says so of each.
        self._skips = context.name == "h264"
        self._context, self._to_rgb = context, VideoReformatter()
        self._height, self._width = context.height, context.width  # a damaged frame may come in another size
        self.rate = float(self._stream.average_rate) if self._stream.average_rate else None
        self._coded: dict[int, int] = {}  # by a keyframe's time, its time of decoding, by which files are searched
        self._first = 0  # time of decoding of what stands first

    def times(self) -> tuple[list[int], list[int]]:
        """Return the times of all frames and of the keyframes, both ascending; nothing is decoded for it."""
        times, coded = [], []
        for packet in self._packets():
            if packet.dts is not None:
                coded.append(packet.dts)
            if packet.pts is not None and not packet.is_discard:
                times.append(packet.pts)
                if packet.is_keyframe:
                    self._coded[packet.pts] = packet.pts if packet.dts is None else packet.dts
        if not times:
            raise DecodeError(self._path, "holds no frame")
        self._first = min(coded, default=times[0])
        return sorted(times), sorted(self._coded)

    def rewind(self) -> None:
        """Go to the beginning, once the times are known."""
        self._container.seek(self._first, stream=self._stream)

    def decoded(self) -> Iterator[av.VideoFrame]:
        """Yield the frames that follow, in order."""
        for packet in self._packets():
            yield from self._context.decode(packet)

    def at(self, wanted: list[int], keys: list[int]) -> np.ndarray:
        """Return the frames shown at the times `wanted`, ascending, each decoded from the keyframe before it on."""
        frames: list[np.ndarray] = []
        while len(frames) < len(wanted):
            following = bisect_right(keys, wanted[len(frames)])  # the keyframe that comes next
            last = bisect_left(wanted, keys[following]) if following < len(keys) else len(wanted)
            near = wanted[len(frames) : last]
            # Its time may lead to a later keyframe where they stand close, its time of decoding to an earlier one.
            key = keys[following - 1 : following]
            for begin in (*key, *map(self._coded.__getitem__, key), self._first):
                found = self._shown(begin, near, len(wanted))
                if len(found) == len(near):
                    break
            if missing := len(near) - len(found):
                raise DecodeError(self._path, f"frames cannot be decoded: {missing} of {len(wanted)} do not come")
            frames += found
        return np.stack(frames)

    def _shown(self, begin: int, wanted: list[int], frames: int) -> list[np.ndarray]:
        """Return those frames at the times `wanted` that come when decoding begins where a time leads."""
        self._container.seek(begin, stream=self._stream)
        at = set(wanted)
        found: list[np.ndarray] = []
        for packet in self._packets():
            if self._skips:
                self._context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in at else "NONREF"
            for frame in self._context.decode(packet):
                if frame.pts in at:
                    found.append(self.rgb(frame, frames))
                if frame.pts is not None and frame.pts >= wanted[-1]:
                    return found
        return found

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Return height and width of a frame as it is to be seen."""
        return (self._width, self._height) if _turns(frame) % 2 else (self._height, self._width)

    def rgb(self, frame: av.VideoFrame, frames: int) -> np.ndarray:
        """Return one of `frames` as uint8 `(h, w, c)`, upright and in the header's size, after what is done to each."""
        check_size(self._path, self._height, self._width, frames if self._each is None else 1)
        made: np.ndarray = self._to_rgb.reformat(frame, self._width, self._height, "rgb24", threads=1).to_ndarray()
        turns = _turns(frame)
        made = np.ascontiguousarray(np.rot90(made, turns)) if turns else made
        return made if self._each is None else self._each(made)

    def _packets(self) -> Iterator[av.Packet]:
        """Yield the packets that follow, as long as there is time."""
        for packet in self._container.demux(self._stream):
            if time.monotonic() > self._until:
                raise DecodeError(self._path, f"takes longer than {self._seconds:.0f} s, the limit for its size")
            yield packet


def _turns(frame: av.VideoFrame) -> int:
    """Return how many times 90 degrees, counterclockwise, a frame is to be turned to be upright."""
    return round(frame.rotation / 90) % 4
