"""A manifest's clips into shards: what is packed together, how it is encoded, and the manifest of what was packed.

Packed is what rows need of their files and no more: rows whose frames overlap in one file share a packed clip, frames
that no row names are left out. Every packed frame is decoded once, so that a packed clip is a readable one; of clips
that are encoded anew, the result is decoded too and compared with the source.

Clips are packed in parts of a fixed number. A part depends on nothing but its clips, so parts are made side by side in
any order and give the same bytes; it ends with a small table of where everything stands, written last: a part with a
table, and with the shards that the table names, is whole.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from mien.data_pipelines import decode, shards
from mien.data_pipelines.attempts import Attempts
from mien.data_pipelines.decode import DecodeError, Encoded
from mien.data_pipelines.manifest import SCHEMA, Manifest, Rejected, located
from mien.data_pipelines.rekey import h264
from mien.data_pipelines.threads import in_order
from mien.data_pipelines.unfinished import unfinished
from mien.data_pipelines.video_files import Bytes

MIB = 2**20
Beat = Callable[[], None]  # called while a clip is worked on, so that whoever watches knows that it goes on
_KEY = b"mien"  # of the shards' sizes in a part's table
PIECE_BYTES = 64 * MIB  # of decoded frames at a time: 870 of 160x160
TABLE = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),  # the packed clip's source
        pa.field("start", pa.int64(), nullable=False),  # its first frame there
        pa.field("packed", pa.string()),  # its place in a shard, relative to the output folder; null where rejected
        pa.field("psnr_db", pa.float64()),  # of frames that were encoded anew; null where the files' own bytes are kept
        pa.field("reason", pa.string()),  # why it was rejected
    ]
)


class PackConfig(BaseModel, frozen=True, extra="forbid"):
    """How clips stand in shards."""

    layout: Literal["jpeg", "source", "h264"] = Field(
        "jpeg",
        description="jpeg = a JPEG for each frame, files that are JPEG kept as they are; source = the files' own "
        "bytes, videos whole; h264 = videos with a keyframe every few frames",
    )
    shard_mib: float = Field(128.0, gt=0, description="largest shard, MiB; a larger clip has one for itself")
    part_clips: int = Field(1000, ge=1, description="clips packed by one task; what a stopped program repeats at most")
    jpeg_quality: int = Field(95, ge=1, le=100, description="quality of frames that become JPEG")
    keyframe_every: int = Field(16, ge=1, description="frames from a keyframe of h264 to the next")
    crf: int = Field(
        14, ge=0, le=51, description="x264's constant rate factor, 0 to 51: 14 is as close as JPEG of quality 95"
    )


class Clip(NamedTuple):
    """What is packed as one: `frames` frames from `start` on of a file or folder, and the manifest lines inside."""

    path: str | Path
    start: int
    frames: int
    lines: tuple[int, ...]
    video: str  # of the first line
    fps: float | None
    size: tuple[int, int]  # height and width


def plan(manifest: Manifest, config: PackConfig) -> list[Clip]:
    """Return what is packed, in the order of the first line of each file."""
    files: dict[str, list[int]] = {}
    starts, frames = manifest.column("start"), manifest.column("frames")
    for line, path in enumerate(manifest.column("path")):
        files.setdefault(path, []).append(line)
    root = manifest.root if "://" in manifest.root else str(Path(manifest.root).absolute())
    clips = []
    for path, lines in files.items():
        place = located(root, path)
        row = manifest.row(lines[0])
        about = row["video"], row["fps"], (row["height"], row["width"])
        if config.layout == "source" and not decode.is_images(Path(place)):
            end = max(starts[line] + frames[line] for line in lines)
            clips.append(Clip(place, 0, end, tuple(lines), *about))  # a video's bytes cannot be cut
            continue
        lines.sort(key=lambda line: (starts[line], line))
        while lines:
            begin = starts[lines[0]]
            end, inside = begin, []
            while lines and starts[lines[0]] <= end:
                end = max(end, starts[lines[0]] + frames[lines[0]])
                inside.append(lines.pop(0))
            clips.append(Clip(place, begin, end - begin, tuple(inside), *about))
    return clips


def pack_clip(clip: Clip, config: PackConfig, beat: Beat = lambda: None) -> tuple[bytes, float | None]:
    """Return a clip as it stands in a shard, and the PSNR in dB if frames were encoded anew; raises DecodeError."""
    source = decode.load(clip.path) if shards.is_clip(clip.path) else clip.path
    name = Path(source.path if isinstance(source, Encoded) else source).name
    images = source.images if isinstance(source, Encoded) else decode.is_images(Path(source))
    parts: tuple[Bytes, ...]
    anew = True
    if config.layout == "h264":
        parts = (h264(_pieces(source, clip.start, clip, beat), clip.fps, config.keyframe_every, config.crf),)
        name, images = f"{Path(name).stem}.mp4", False
    elif config.layout == "jpeg" and not images:
        frames = (frame for piece in _pieces(source, clip.start, clip, beat) for frame in piece)
        parts, images = tuple(_jpeg(frame, config) for frame in frames), True
    else:
        files = decode.load(clip.path, clip.start, clip.frames).parts
        parts = files if config.layout == "source" else tuple(_as_jpeg(file, clip, config) for file in files)
        anew = any(part is not file for part, file in zip(parts, files, strict=True))
    if (length := sum(map(len, parts))) > shards.MAX_CLIP_BYTES:
        raise DecodeError(clip.path, f"a packed clip must have at most 1 GiB, but it has {length / 2**30:.1f}: cut it")
    made = Encoded(f"{clip.path}, packed/{name}", parts, images)
    if anew:
        psnr_db = _psnr_db(_pieces(source, clip.start, clip, beat), _pieces(made, 0, clip, beat))
    else:
        psnr_db = None
        for _ in _pieces(made, 0, clip, beat):
            pass  # decoded, so that what is packed is known to be readable
    return shards.to_bytes(shards.Record(name, images, parts)), psnr_db


def pack_part(
    clips: Sequence[Clip], number: int, config: PackConfig, output: Path, attempts: Attempts | None = None
) -> dict[str, int]:
    """Write part `number`, its shards and then its table; return how many clips and bytes were packed or rejected.

    Where a part is made anew because a shard is missing, ValueError is raised for a clip that was packed before and
    cannot be read any more.
    """
    before = {(row["path"], row["start"]) for row in _table(output, number) if row["packed"]}
    rows: list[dict[str, Any]] = []
    waiting: list[tuple[Clip, bytes, float | None]] = []
    sizes: dict[str, int] = {}
    (output / "parts").mkdir(parents=True, exist_ok=True)

    def write() -> None:
        shard = f"shard-{number:05d}-{len(sizes):02d}.parquet"
        offsets = shards.write(output / shard, [(clip.video, content) for clip, content, _ in waiting])
        sizes[shard] = (output / shard).stat().st_size
        for (clip, content, psnr_db), offset in zip(waiting, offsets, strict=True):
            rows.append(_row(clip) | {"packed": shards.place(shard, offset, len(content)), "psnr_db": psnr_db})
        waiting.clear()

    for place, clip in enumerate(clips):
        try:
            with attempts.at(place, clip.path) if attempts else nullcontext(lambda: None) as beat:
                content, psnr_db = pack_clip(clip, config, beat)
        except DecodeError as error:
            if (str(clip.path), clip.start) in before:
                raise ValueError(
                    f"a shard that is missing is made anew from its clips, but {clip.path} was packed once and now "
                    f"{error.reason}: restore shard-{number:05d}-* or the clip; to go on without it, remove "
                    f"{_table_file(output, number)}"
                ) from error
            rows.append(_row(clip) | {"reason": error.reason})
            continue
        if waiting and sum(len(held) for _, held, _ in waiting) + len(content) > config.shard_mib * MIB:
            write()
        waiting.append((clip, content, psnr_db))
    if waiting:
        write()
    table = pa.Table.from_pylist(rows, schema=TABLE).replace_schema_metadata({_KEY: json.dumps(sizes)})
    with unfinished(_table_file(output, number)) as part:
        pq.write_table(table, part)
    rejected = sum(row.get("reason") is not None for row in rows)
    return {"packed": len(rows) - rejected, "rejected": rejected, "bytes": sum(sizes.values())}


def parts(clips: Sequence[Clip], config: PackConfig) -> list[Sequence[Clip]]:
    """Return the clips of each part."""
    return [clips[first : first + config.part_clips] for first in range(0, len(clips), config.part_clips)]


def is_whole(output: Path, number: int) -> bool:
    """Return whether a part was packed, and its shards are there in their full size."""
    file = _table_file(output, number)
    if not file.is_file():
        return False
    sizes = json.loads(pq.read_schema(file).metadata[_KEY])
    return all((output / shard).is_file() and (output / shard).stat().st_size == size for shard, size in sizes.items())


def packed_manifest(manifest: Manifest, config: PackConfig, output: Path) -> tuple[Manifest | None, list[Any]]:
    """Return the manifest of what was packed (None: nothing was) and the rows, with reason, of what was not."""
    clips = plan(manifest, config)
    numbers = range(len(parts(clips, config)))
    found = {(row["path"], row["start"]): row for number in numbers for row in _table(output, number)}
    paths, starts = manifest.column("path"), manifest.column("start")
    rejected: list[dict[str, Any]] = []
    kept: list[int] = []
    for clip in clips:
        row = found[str(clip.path), clip.start]
        for line in clip.lines:
            if row["packed"] is None:
                about = {"video": manifest.row(line)["video"], "path": paths[line], "reason": row["reason"]}
                rejected.append(about)
                continue
            kept.append(line)
            paths[line], starts[line] = row["packed"], starts[line] - clip.start
    if not kept:
        return None, rejected
    table = manifest.table
    for name, values in (("path", paths), ("start", starts)):
        field = SCHEMA.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.array(values, field.type))
    quality = [row["psnr_db"] for row in found.values() if row["psnr_db"] is not None]
    told = f", PSNR {np.mean(quality):.1f} dB, at least {min(quality):.1f}" if quality else ""
    note = f"packed as {config.layout} from manifest {manifest.fingerprint()} of {manifest.root}{told}"
    made = replace(
        manifest,
        table=table,
        root=str(output.resolve()),
        rejected=(*manifest.rejected, *(Rejected(row["path"], row["reason"]) for row in rejected)),
        notes=(*manifest.notes, note),
    )
    return made.take(sorted(kept)), rejected


def damaged(manifest: Manifest, threads: int = 1) -> Iterator[DecodeError | None]:
    """Read every packed clip of a manifest once; yield for each an error, or None where its checksum is right."""

    def look(path: str) -> DecodeError | None:
        try:
            shards.fetch(located(manifest.root, path))
        except DecodeError as error:
            return error
        return None

    yield from in_order(look, dict.fromkeys(manifest.column("path")), threads, ahead=4 * threads)


def _row(clip: Clip) -> dict[str, Any]:
    return {"path": str(clip.path), "start": clip.start}


def _table(output: Path, number: int) -> list[dict[str, Any]]:
    file = _table_file(output, number)
    return pq.read_table(file).to_pylist() if file.is_file() else []


def _table_file(output: Path, number: int) -> Path:
    return output / "parts" / f"part-{number:05d}.parquet"


def _pieces(source: str | Path | Encoded, start: int, clip: Clip, beat: Beat) -> Iterator[np.ndarray]:
    """Yield the clip's frames, which begin at `start` in `source`, in pieces of bounded size, a beat before each."""
    height, width = clip.size
    most = max(1, PIECE_BYTES // (height * width * 3))
    for begin in range(start, start + clip.frames, most):
        beat()
        yield decode.read(source, np.arange(begin, min(begin + most, start + clip.frames)), clip.size)


def _jpeg(frame: np.ndarray, config: PackConfig) -> bytes:
    done, content = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality])
    assert done
    return content.tobytes()


def _as_jpeg(file: Bytes, clip: Clip, config: PackConfig) -> Bytes:
    """Return the file if it is a JPEG, else its picture as one."""
    if bytes(file[:3]) == b"\xff\xd8\xff":
        return file
    return _jpeg(decode.read(Encoded(str(clip.path), (file,), images=True), [0])[0], config)


def _psnr_db(one: Iterator[np.ndarray], other: Iterator[np.ndarray]) -> float:
    """Return the peak signal-to-noise ratio of two clips in dB; of equal ones 100, which no coding loss comes near."""
    errors, count = 0.0, 0
    for a, b in zip(one, other, strict=True):
        errors += float(np.square(a.astype(np.float32) - b).sum(dtype=np.float64))
        count += a.size
    return 100.0 if not errors else float(10 * np.log10(255**2 * count / errors))
