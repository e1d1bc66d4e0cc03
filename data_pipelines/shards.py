"""Clips in shards: Parquet files of encoded clips, each read by its range of bytes, from a disk or an object store.

A shard has the columns `video` and `clip` and one row group a clip, so that any reader of Parquet can list it. `clip`
is not compressed and stands in the file as it is, so a manifest names it by its place,

    shard-00012-00.parquet#OFFSET+LENGTH

and to read it takes one file open for a moment, or one request to an object store. The Parquet footer is not looked at:
it would have to be read anew for every clip, or kept in memory for every shard.

What stands there describes itself: a line that begins with its own CRC-32 as 8 hexadecimal digits and holds, as JSON,
the name of the file or folder that it was, whether its files are images, where each ends and its CRC-32. The files'
bytes follow.
"""

import json
import mmap
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from mien.data_pipelines.unfinished import unfinished
from mien.data_pipelines.video_files import Bytes, DecodeError

MAX_CLIP_BYTES = 2**30  # a Parquet value must be under 2 GiB, and a clip is read whole
_SCHEMA = pa.schema([pa.field("video", pa.string(), nullable=False), pa.field("clip", pa.binary(), nullable=False)])
_PLACE = re.compile(r"(.+\.parquet)#(\d+)\+(\d+)", re.DOTALL)
_CRC_LETTERS = 8
_HEAD_BYTES = 2**15  # read at once, to find the line about the clip: that of 1,000 images is 20 KiB
_Read = Callable[[int, int], bytes]  # the bytes of a clip from the first to the last


class Record(NamedTuple):
    """A clip's encoded files: one video, or images in their order."""

    name: str  # of the file or folder that it was; a video's ending says which decoder reads it
    images: bool
    parts: tuple[Bytes, ...]


def is_clip(path: str | Path) -> bool:
    """Return whether a path names a clip in a shard."""
    return _PLACE.fullmatch(str(path)) is not None


def place(shard: str, offset: int, length: int) -> str:
    """Return the path of a clip in a shard."""
    return f"{shard}#{offset}+{length}"


def size(path: str | Path) -> int:
    """Return how many bytes a clip in a shard, or a file, has: 0 for one that is missing."""
    if found := _PLACE.fullmatch(str(path)):
        return int(found[3])
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def to_bytes(record: Record) -> bytes:
    """Return a clip as it stands in a shard."""
    parts = [bytes(part) for part in record.parts]
    ends, crcs = list(accumulate(map(len, parts))), [zlib.crc32(part) for part in parts]
    about = {"name": record.name, "images": record.images, "ends": ends, "crcs": crcs}
    line = json.dumps(about).encode() + b"\n"
    return b"".join([b"%08x" % zlib.crc32(line), line, *parts])


def fetch(path: str | Path, wanted: Iterable[int] | None = None) -> Record:
    """Return the clip that `path` names; raises DecodeError.

    Of images on a disk, only those `wanted` are read, if that is given, and the others are empty: in a long clip of
    which a few frames are decoded, reading and checking the rest would take a good part of the time. An object store
    is asked once, for all.
    """
    found = _PLACE.fullmatch(str(path))
    assert found, f"{path} names no clip in a shard"
    shard, offset, length = found[1], int(found[2]), int(found[3])
    try:
        with _opened(shard, offset, length) as (there, read):
            if there < length:
                raise DecodeError(
                    path, f"the shard is truncated: {length - there} of the clip's {length} bytes are missing"
                )
            return _record(path, length, read, wanted)
    except OSError as error:
        told = error.strerror or error or type(error).__name__
        raise DecodeError(path, f"the shard cannot be read: {told}") from error


def _record(path: str | Path, length: int, read: _Read, wanted: Iterable[int] | None) -> Record:
    line = read(0, min(length, _HEAD_BYTES))
    if b"\n" not in line:
        line = read(0, length)
    begin = line.find(b"\n") + 1
    if line[:_CRC_LETTERS] != b"%08x" % zlib.crc32(line[_CRC_LETTERS:begin]):
        raise _damaged(path, "its header")
    about = json.loads(line[_CRC_LETTERS:begin])
    places = list(pairwise([0, *about["ends"]]))
    every = range(len(places))
    chosen = set(every if wanted is None or not about["images"] else wanted).intersection(every)
    content = read(begin, length) if len(chosen) == len(places) else None
    parts: list[bytes | memoryview] = [b""] * len(places)
    for number in sorted(chosen):
        first, last = places[number]
        parts[number] = read(begin + first, begin + last) if content is None else memoryview(content)[first:last]
        if zlib.crc32(parts[number]) != about["crcs"][number]:
            raise _damaged(path, f"file {number} of {len(parts)}, counted from 0,")
    return Record(about["name"], about["images"], tuple(np.frombuffer(part, np.uint8) for part in parts))


def _damaged(path: str | Path, what: str) -> DecodeError:
    return DecodeError(path, f"the shard is damaged: {what} does not have its checksum; restore or remake the shard")


def write(path: Path, clips: Sequence[tuple[str, bytes]]) -> list[int]:
    """Write a shard of (video id, `to_bytes`), whole or not at all; return where in the file each clip begins."""
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    offsets = []
    with unfinished(path) as part:
        with pq.ParquetWriter(part, _SCHEMA, **plain) as writer:
            for video, content in clips:
                writer.write_table(pa.table([[video], [content]], schema=_SCHEMA))
        groups = pq.read_metadata(part)
        with part.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as written:
            for number, (video, content) in enumerate(clips):
                column = groups.row_group(number).column(1)
                # One plain value ends with its bytes; what stands before them are the page's header and their number.
                offset = column.data_page_offset + column.total_compressed_size - len(content)
                there = written[offset : offset + len(content)]
                assert there == content, f"{video} does not stand where Parquet puts it"
                offsets.append(offset)
            os.fsync(file.fileno())
    return offsets


@contextmanager
def _opened(shard: str, offset: int, length: int) -> Iterator[tuple[int, _Read]]:
    """Yield how many of the `length` bytes from `offset` on a file or URL has, and how to read some of them."""
    if "://" in shard:
        filesystem, name = url_to_fs(shard)
        content = filesystem.cat_file(name, start=offset, end=offset + length)
        yield len(content), lambda first, last: content[first:last]
        return
    with open(shard, "rb", buffering=0) as file:
        there = min(length, max(os.fstat(file.fileno()).st_size - offset, 0))
        yield there, lambda first, last: os.pread(file.fileno(), last - first, offset + first)
