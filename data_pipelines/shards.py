"""Clips in shards: Parquet files of encoded clips, each read by its range of bytes, from a disk or an object store.

A shard has the columns `video` and `clip` and one row group a clip, so that any reader of Parquet can list it. `clip`
is not compressed and stands in the file as it is, so a manifest names it by its place,

    shard-00012-00.parquet#OFFSET+LENGTH

and to read it takes one file open for a moment, or one request to an object store. The Parquet footer is not looked at:
it would have to be read anew for every clip, or kept in memory for every shard.

What stands there describes itself: the CRC-32 of all that follows, as 8 hexadecimal digits; a line of JSON with the
name of the file or folder that it was, whether its files are images, and where each of them ends; the files' bytes.
"""

import json
import mmap
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from mien.data_pipelines.video_files import Bytes, DecodeError

MAX_CLIP_BYTES = 2**30  # a Parquet value must be under 2 GiB, and a clip is read whole
_SCHEMA = pa.schema([pa.field("video", pa.string(), nullable=False), pa.field("clip", pa.binary(), nullable=False)])
_PLACE = re.compile(r"(.+\.parquet)#(\d+)\+(\d+)", re.DOTALL)
_CRC_LETTERS = 8


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


def to_bytes(record: Record) -> bytes:
    """Return a clip as it stands in a shard."""
    ends = np.cumsum([len(part) for part in record.parts], dtype=np.int64).tolist()
    about = {"name": record.name, "images": record.images, "ends": ends}
    content = b"".join([json.dumps(about).encode(), b"\n", *map(bytes, record.parts)])
    return b"%08x" % zlib.crc32(content) + content


def fetch(path: str | Path) -> Record:
    """Return the clip that `path` names, after its checksum; raises DecodeError."""
    found = _PLACE.fullmatch(str(path))
    assert found, f"{path} names no clip in a shard"
    shard, offset, length = found[1], int(found[2]), int(found[3])
    try:
        content = _range(shard, offset, length)
    except OSError as error:
        raise DecodeError(
            path, f"the shard cannot be read: {error.strerror or error or type(error).__name__}"
        ) from error
    if len(content) < length:
        raise DecodeError(
            path, f"the shard is truncated: {length - len(content)} of the clip's {length} bytes are missing"
        )
    if content[:_CRC_LETTERS] != b"%08x" % zlib.crc32(memoryview(content)[_CRC_LETTERS:]):
        raise DecodeError(path, "the shard is damaged: the clip's bytes do not have their checksum; restore the shard")
    head = content.index(b"\n") + 1
    about = json.loads(content[_CRC_LETTERS:head])
    parts = np.split(np.frombuffer(content, np.uint8)[head:], about["ends"][:-1])
    return Record(about["name"], about["images"], tuple(parts))


def write(path: Path, clips: Sequence[tuple[str, bytes]]) -> list[int]:
    """Write a shard of (video id, `to_bytes`), whole or not at all; return where in the file each clip begins."""
    unfinished = path.with_name(path.name + ".unfinished")
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    with pq.ParquetWriter(unfinished, _SCHEMA, **plain) as writer:
        for video, content in clips:
            writer.write_table(pa.table([[video], [content]], schema=_SCHEMA))
    groups = pq.read_metadata(unfinished)
    offsets = []
    with unfinished.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as written:
        for number, (video, content) in enumerate(clips):
            column = groups.row_group(number).column(1)
            # One plain value ends with its bytes; what stands before them are the page's header and their number.
            offset = column.data_page_offset + column.total_compressed_size - len(content)
            assert written[offset : offset + len(content)] == content, f"{video} does not stand where Parquet puts it"
            offsets.append(offset)
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return offsets


def _range(shard: str, offset: int, length: int) -> bytes:
    """Return up to `length` bytes of a file or URL from `offset` on."""
    if "://" in shard:
        filesystem, name = url_to_fs(shard)
        return filesystem.cat_file(name, start=offset, end=offset + length)
    with open(shard, "rb") as file:
        file.seek(offset)
        return file.read(length)
