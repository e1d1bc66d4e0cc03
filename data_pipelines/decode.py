"""A file or a folder of frames, and frame indices, to uint8 pictures `(t, h, w, c)` in RGB; or a DecodeError.

Four sources look alike: a video file, a folder of frame images in natural order (2.jpg before 10.jpg), one image, which
is a video of one frame, and a clip in a shard (`shards`), which holds one of these. `image_files` decodes images,
`video_files` videos.

`load` keeps a clip's files encoded, and `pack` many of them in one array, so that the trials of a study can share a
dataset through the object store and decode it themselves.
"""

import errno
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from mien.data_pipelines import shards
from mien.data_pipelines.image_files import HEAD_BYTES, IMAGES, header_size, picture
from mien.data_pipelines.video_files import (
    Bytes,
    DecodeError,
    Each,
    Probe,
    check_length,
    check_size,
    probe_video,
    read_video,
)

__all__ = ["IMAGES", "DecodeError", "Encoded", "Packed", "Probe", "frame_files", "load", "pack", "probe", "read"]


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
    source: str | Path | Encoded,
    indices: Sequence[int] | np.ndarray,
    size: tuple[int, int] | None = None,
    each: Each | None = None,
) -> np.ndarray:
    """Return the frames `indices` of a path or of loaded files, uint8 `(t, h, w, c)` RGB; indices may repeat.

    Images are brought to `size`, height and width, where they have another: crops of a head that comes nearer grow.
    `each` is done to every frame as soon as it is decoded, and its results, all of one shape, are returned.

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
        frames = _read_encoded(source, wanted, size, each)
    elif is_images(Path(source)):
        files = _listed(Path(source))
        check_length(str(source), len(files), wanted)
        frames = _pictures(str(source), [(str(files[i]), _content(files[i])) for i in wanted], size, each)
    else:
        frames = read_video(str(source), None, wanted, each)
    return frames[where] if len(where) > len(wanted) or (np.diff(where) < 0).any() else frames


def is_images(path: Path) -> bool:
    """Return whether a path is a frame folder or an image, not a video."""
    return path.is_dir() or path.suffix.lower() in IMAGES


def _listed(path: Path) -> list[Path]:
    """Return the images of a folder, or the one image that `path` is."""
    if not path.is_dir():
        return [path]
    try:
        files = frame_files(path)
    except OSError as error:
        raise DecodeError(path, f"cannot be read: {error.strerror}") from error
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
    """Return height and width as an image's header gives them; None where there is no such header."""
    try:
        with _opened(image) as stream:
            head = stream.read(HEAD_BYTES)
            size = header_size(head)
            return size if size or len(head) < HEAD_BYTES else header_size(head + stream.read())
    except OSError:
        return None  # reading it will say why


def _opened(path: Path) -> BinaryIO:
    """Open a file; raises OSError for anything else: to open a pipe could take for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is not a file")
    return path.open("rb")


def _content(path: Path) -> bytes:
    try:
        with _opened(path) as stream:
            return stream.read()
    except OSError as error:
        raise DecodeError(path, f"cannot be read: {error.strerror}") from error


def _read_encoded(source: Encoded, wanted: np.ndarray, size: tuple[int, int] | None, each: Each | None) -> np.ndarray:
    if not source.parts:
        raise DecodeError(source.path, "nothing of it was loaded")
    if not source.images:
        return read_video(source.path, source.parts[0], wanted, each)
    check_length(source.path, source.first + len(source.parts), wanted)
    assert wanted[0] >= source.first, "frames before the loaded ones"
    files = [(f"{source.path}, frame {i}", source.parts[i - source.first]) for i in wanted]
    return _pictures(source.path, files, size, each)


def _pictures(
    path: str,
    files: Sequence[tuple[str, Bytes]],
    size: tuple[int, int] | None = None,
    each: Each | None = None,
) -> np.ndarray:
    """Return images, each a name and its bytes, as one array; they must share one size, or are given `size`."""
    frames, shape = None, None
    for place, (name, content) in enumerate(files):
        frame = picture(path, name, content)
        if size is not None and frame.shape[:2] != size:
            shrinks = frame.shape[0] * frame.shape[1] > size[0] * size[1]
            frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if shape is not None and frame.shape != shape:
            sizes = [f"{s[1]}x{s[0]}" for s in (shape, frame.shape)]
            told = f"but {files[0][0]} is {sizes[0]} and {name} is {sizes[1]}"
            raise DecodeError(path, f"frames must be of one size, {told}")
        shape = frame.shape
        frame = frame if each is None else each(frame)
        if frames is None:
            check_size(path, frame.shape[0], frame.shape[1], len(files))
            frames = np.empty((len(files), *frame.shape), np.uint8)
        frames[place] = frame  # while it is in the cache: stacking all in the end took a tenth of the time
    assert frames is not None, "no files"
    return frames
