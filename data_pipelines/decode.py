"""A file or a folder of frames, and frame indices, to uint8 pictures `(t, h, w, c)` in RGB; or a DecodeError.

Four sources look alike: a video file, a folder of frame images in natural order (2.jpg before 10.jpg), one image, which
is a video of one frame, and a clip in a shard (`shards`), which holds one of these. Folders and images are read by
OpenCV here, videos in `video_files`.

`load` keeps a clip's files encoded, and `pack` many of them in one array, so that the trials of a study can share a
dataset through the object store and decode it themselves.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mien.data_pipelines import shards
from mien.data_pipelines.video_files import Bytes, DecodeError, Probe, check_length, probe_video, read_video

cv2.setNumThreads(1)  # clips are read side by side; threads inside one small frame only get in each other's way

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class Encoded:
    """A clip's files as they are on disk: one video, or the images of frames `first`, `first` + 1, ...

    Of a clip in a shard, `path` ends with the name of the file that it was.
    """

    path: str
    parts: tuple[Bytes, ...]
    images: bool
    first: int = 0


@dataclass(frozen=True)
class Packed:
    """Many `Encoded` in one flat array, which a process maps without copying."""

    data: np.ndarray  # uint8 (bytes,)
    part_ends: np.ndarray  # int64 (parts,): where each file's bytes end
    source_ends: np.ndarray  # int64 (sources,): where each source's parts end
    images: np.ndarray  # bool (sources,)
    first: np.ndarray  # int64 (sources,)
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def source(self, index: int) -> Encoded:
        """Return the `index`-th source, its parts views of `data`."""
        begin = int(self.source_ends[index - 1]) if index else 0
        parts = []
        for part in range(begin, int(self.source_ends[index])):
            offset = int(self.part_ends[part - 1]) if part else 0
            parts.append(self.data[offset : int(self.part_ends[part])])
        return Encoded(self.paths[index], tuple(parts), bool(self.images[index]), int(self.first[index]))


def pack(sources: Sequence[Encoded]) -> Packed:
    """Return `sources` copied into one array."""
    parts = [np.frombuffer(part, np.uint8) for source in sources for part in source.parts]
    return Packed(
        data=np.concatenate(parts) if parts else np.empty(0, np.uint8),
        part_ends=np.cumsum([len(part) for part in parts], dtype=np.int64),
        source_ends=np.cumsum([len(source.parts) for source in sources], dtype=np.int64),
        images=np.array([source.images for source in sources], dtype=bool),
        first=np.array([source.first for source in sources], dtype=np.int64),
        paths=tuple(source.path for source in sources),
    )


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key under which numbers inside names count as numbers: 2.jpg before 10.jpg."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def frame_files(folder: str | Path) -> list[Path]:
    """Return the images of a frame folder in natural order; other files are passed over."""
    found = (path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGES and not path.name.startswith("."))
    return sorted(found, key=lambda path: natural(path.name))


def probe(path: str | Path) -> Probe:
    """Return length, rate and size of a source; raises DecodeError.

    Of a folder, the first and the last frame are decoded. Of the others the headers are read, which shows what is
    empty, no image, or of another size; a frame that is damaged behind its header is found when it is read.
    """
    path = Path(path)
    if not is_images(path):
        return probe_video(str(path))
    files = _listed(path)
    sizes = [_written_size(file) for file in files]  # 100 frames: 0.5 ms, where decoding them takes 60
    doubtful = [file for file, size in zip(files, sizes, strict=True) if size is None or size != sizes[0]]
    for file in dict.fromkeys([files[-1], *doubtful]):
        height, width = _pictures(str(path), [(str(f), _content(f)) for f in (files[0], file)]).shape[1:3]
    return Probe(len(files), None, height, width)


def load(path: str | Path, start: int = 0, frames: int | None = None) -> Encoded:
    """Return a clip's files, still encoded: a video whole, of a folder `frames` images from `start` on."""
    last = None if frames is None else start + frames
    if shards.is_clip(path):
        held = shards.fetch(path, None if last is None else range(start, last))
        parts, first = (held.parts[start:last], start) if held.images else (held.parts, 0)
        return Encoded(f"{path}/{held.name}", parts, held.images, first)
    path = Path(path)
    if not path.is_dir():
        return Encoded(str(path), (_content(path),), images=is_images(path))
    return Encoded(str(path), tuple(_content(file) for file in _listed(path)[start:last]), images=True, first=start)


def read(
    source: str | Path | Encoded, indices: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return the frames `indices` of a path or of loaded files, uint8 `(t, h, w, c)` RGB; indices may repeat.

    Images are brought to `size`, height and width, where they have another: crops of a head that comes nearer grow.
    Raises DecodeError where the file is missing, empty, damaged or shorter than asked, or, without `size`, its frames
    differ in size.
    """
    indices = np.asarray(indices, dtype=np.int64)
    assert indices.ndim == 1 and len(indices) and indices.min() >= 0
    wanted, where = np.unique(indices, return_inverse=True)
    if not isinstance(source, Encoded) and shards.is_clip(source):
        held = shards.fetch(source, wanted.tolist())
        source = Encoded(f"{source}/{held.name}", held.parts, held.images)
    if isinstance(source, Encoded):
        frames = _read_encoded(source, wanted, size)
    elif is_images(Path(source)):
        files = _listed(Path(source))
        check_length(str(source), len(files), wanted)
        frames = _pictures(str(source), [(str(files[i]), _content(files[i])) for i in wanted], size)
    else:
        frames = read_video(str(source), None, wanted)
    return frames[where] if len(where) > len(wanted) or (np.diff(where) < 0).any() else frames


def is_images(path: Path) -> bool:
    """Return whether a path is a frame folder or an image, not a video."""
    return path.is_dir() or path.suffix.lower() in IMAGES


def _listed(path: Path) -> list[Path]:
    """Return the images of a folder, or the one image that `path` is."""
    if not path.is_dir():
        return [path]
    files = frame_files(path)
    if not files:
        raise DecodeError(path, f"a frame folder must hold images ({', '.join(sorted(IMAGES))}), but there is none")
    return files


def frame_size(image: Path) -> tuple[int, int]:
    """Return height and width of one image from its header or, where that does not say, its picture; or DecodeError."""
    size = _written_size(image)
    if size is None or min(size) == 0:
        height, width = _pictures(str(image), [(image.name, _content(image))]).shape[1:3]
        return height, width
    return size


def _written_size(image: Path) -> tuple[int, int] | None:
    """Return height and width as a JPEG's or PNG's header gives them; None where there is no such header."""
    try:
        with image.open("rb") as stream:
            head = stream.read(24)
            if head.startswith(b"\x89PNG\r\n\x1a\n"):
                return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")
            if not head.startswith(b"\xff\xd8"):
                return None
            stream.seek(2)
            while len(head := stream.read(4)) == 4 and head[0] == 0xFF:  # a segment: 0xFF, its kind, its length
                if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):  # kinds that begin a picture
                    sides = stream.read(5)[1:]  # behind a byte for the depth; a file may end here
                    return (int.from_bytes(sides[:2], "big"), int.from_bytes(sides[2:], "big")) if sides[3:] else None
                stream.seek(int.from_bytes(head[2:], "big") - 2, 1)
    except OSError:
        pass  # reading it will say why
    return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DecodeError(path, f"cannot be read: {error.strerror}") from error


def _read_encoded(source: Encoded, wanted: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if not source.parts:
        raise DecodeError(source.path, "nothing of it was loaded")
    if not source.images:
        return read_video(source.path, source.parts[0], wanted)
    check_length(source.path, source.first + len(source.parts), wanted)
    assert wanted[0] >= source.first, "frames before the loaded ones"
    files = [(f"{source.path}, frame {i}", source.parts[i - source.first]) for i in wanted]
    return _pictures(source.path, files, size)


def _pictures(path: str, files: Iterable[tuple[str, Bytes]], size: tuple[int, int] | None = None) -> np.ndarray:
    """Return images, each a name and its bytes, as one array; they must share one size, or are given `size`."""
    files = list(files)
    frames = None
    for place, (name, content) in enumerate(files):
        if not len(content):
            raise DecodeError(path, f"{name} is empty (0 bytes)")
        frame = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        if frame is None:
            raise DecodeError(path, f"{name} is not an image that can be decoded")
        if size is not None and frame.shape[:2] != size:
            shrinks = frame.shape[0] * frame.shape[1] > size[0] * size[1]
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if frames is None:
            frames = np.empty((len(files), *frame.shape), np.uint8)
        elif frame.shape != frames.shape[1:]:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (frames.shape[1:], frame.shape)]
            raise DecodeError(
                path, f"frames must be of one size, but {files[0][0]} is {sizes[0]} and {name} is {sizes[1]}"
            )
        frames[place] = frame  # while it is in the cache: stacking all in the end took a tenth of the time
    assert frames is not None, "no files"
    return frames
