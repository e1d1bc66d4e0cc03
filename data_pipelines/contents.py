"""What stands in the clips' files: whether they can be read, a hash of their bytes, and small grey frames of each.

An audit reads every clip once, five frames of it or all, and keeps 1.3 kB a clip.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mien.data_pipelines import decode, shards
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.duplicates import FRAMES, SIDE, moments, thumbnails
from mien.data_pipelines.isolation import isolated
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import locate
from mien.data_pipelines.threads import in_order

Advance = Callable[[int, int], None]  # clips read so far, clips in all
FRAMES_AT_ONCE = 64  # where every frame is decoded; bounds the memory of a long video


class Content(NamedTuple):
    """What one clip's file holds."""

    digest: bytes  # of the encoded bytes
    frames: np.ndarray  # uint8 (FRAMES, SIDE, SIDE)
    height: int
    width: int
    several_sizes: bool  # its images differ in size, and were brought to the row's


class Contents(NamedTuple):
    """What the files of a manifest hold, a line a clip; zeros and None where a clip cannot be read."""

    digests: list[bytes | None]
    frames: np.ndarray  # uint8 (n, FRAMES, SIDE, SIDE)
    sizes: np.ndarray  # int64 (n, 2): height and width in pixels
    unreadable: dict[int, str]  # line -> reason
    several_sizes: list[int]  # lines whose frames differ in size

    @property
    def readable(self) -> np.ndarray:
        """Return the lines that could be read, int64 ascending."""
        return np.flatnonzero([digest is not None for digest in self.digests])


def contents(manifest: Manifest, every_frame: bool, threads: int, advance: Advance | None = None) -> Contents:
    """Read every clip of a manifest, `threads` of them side by side."""
    known: dict[Path, bytes] = {}  # clips cut from one long video do not read it again and again

    def look(index: int) -> Content | DecodeError:
        try:
            return content(manifest.row(index), manifest.root, every_frame, known)
        except DecodeError as error:
            return error

    count = len(manifest)
    found = Contents([None] * count, np.zeros((count, FRAMES, SIDE, SIDE), np.uint8), np.zeros((count, 2), int), {}, [])
    for index, result in enumerate(in_order(look, range(count), threads, ahead=8 * threads)):
        if isinstance(result, DecodeError):
            found.unreadable[index] = result.reason
        else:
            found.digests[index], found.frames[index] = result.digest, result.frames
            found.sizes[index] = result.height, result.width
            if result.several_sizes:
                found.several_sizes.append(index)
        if advance:
            advance(index + 1, count)
    return found


def content(row: dict[str, Any], root: str, every_frame: bool, known: dict[Path, bytes]) -> Content:
    """Return what one row's file holds; raises DecodeError. `known` remembers the digests of files."""
    path = locate(row, root)
    size, shown, several = isolated(path, _shown, path, row, every_frame)
    return Content(_digest(path, row["start"], row["frames"], known), shown, *size, several_sizes=several)


def _shown(path: str | Path, row: dict[str, Any], every_frame: bool) -> tuple[tuple[int, int], np.ndarray, bool]:
    """Return height and width, thumbnails, and whether the frames differ in size; raises DecodeError."""
    start, frames, size = row["start"], row["frames"], (row["height"], row["width"])
    seen: set[tuple[int, ...]] = set()
    if every_frame:
        for begin in range(0, frames, FRAMES_AT_ONCE):
            seen |= _read(path, start + np.arange(begin, min(begin + FRAMES_AT_ONCE, frames)), size)[1]
    pictures, sizes = _read(path, start + moments(frames), size)
    several = len(seen | sizes) > 1
    height, width = size if several else pictures.shape[1:3]
    return (height, width), thumbnails(pictures), several


def _read(path: str | Path, indices: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, set[tuple[int, ...]]]:
    """Return frames as training reads them, and their sizes: more than one where they had to be brought to `size`."""
    try:
        pictures = decode.read(path, indices)
    except DecodeError:  # if only their sizes differ, they can be read at the row's; if not, this says why again
        return decode.read(path, indices, size), {size, (0, 0)}
    return pictures, {pictures.shape[1:3]}


def _digest(path: str | Path, start: int, frames: int, known: dict[Path, bytes]) -> bytes:
    """Return a hash of a clip's encoded bytes: of its images, or of its whole video and the place in it."""
    hashed = hashlib.blake2b(digest_size=16)
    if shards.is_clip(path):
        held = decode.load(path, start, frames)
        for part in held.parts:
            hashed.update(hashlib.blake2b(bytes(part)).digest())
        if not held.images:
            hashed.update(f" {start} {frames}".encode())
        return hashed.digest()
    path = Path(path)
    try:
        if path.is_dir():
            for file in decode.frame_files(path)[start : start + frames]:
                hashed.update(hashlib.blake2b(file.read_bytes()).digest())
        else:
            if path not in known:
                with path.open("rb") as stream:
                    known[path] = hashlib.file_digest(stream, "blake2b").digest()
            hashed.update(known[path] + f" {start} {frames}".encode())
    except OSError as error:
        raise DecodeError(path, f"cannot be read: {error.strerror}") from error
    return hashed.digest()
