"""A packed manifest gives the clips of the unpacked one, wherever they stand, and packing can be stopped anywhere."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pytest

from mien.data_pipelines import decode, packing, shards
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.blocks import StreamConfig
from mien.data_pipelines.clips import evaluation_views, stream
from mien.data_pipelines.contents import contents
from mien.data_pipelines.gaze_labels import with_gaze
from mien.data_pipelines.manifest import Manifest, build, concat
from mien.data_pipelines.packing import PackConfig
from mien.data_pipelines.reading import ReadConfig, load_manifest, local_batches, local_views, locate
from mien.data_pipelines.sampling import SamplingConfig

SMALL = PackConfig(layout="source", part_clips=3, shard_mib=0.01)  # several parts, and several shards in a part


def rows_of(lengths: dict[str, int], **more: Any) -> list[dict[str, Any]]:
    about = {"dataset": "toy", "label": 0, "height": 48, "width": 64} | more
    return [{"video": f"v{path}", "path": path, "frames": frames} | about for path, frames in lengths.items()]


@pytest.fixture
def manifest(tmp_path: Path, make_frames: Callable[..., Path], make_video: Callable[..., Path]) -> Manifest:
    """Return seven clips: folders of 8 to 12 frames, one of them PNGs, a video of 30 frames and an image."""
    root = tmp_path / "raw"
    lengths = {}
    for number in range(5):
        make_frames(root / str(number), frames=8 + number, name="{:05d}.png" if number == 2 else "{:05d}.jpg")
        lengths[str(number)] = 8 + number
    make_video(root / "a clip.mp4", frames=30)
    shutil.copy(root / "0" / "00003.jpg", root / "face.jpg")
    return build(rows_of(lengths | {"a clip.mp4": 30, "face.jpg": 1}), ("a",), root, "toy")


def pack(manifest: Manifest, config: PackConfig, output: Path) -> Manifest:
    for number, clips in enumerate(packing.parts(packing.plan(manifest, config), config)):
        if not packing.is_whole(output, number):
            packing.pack_part(clips, number, config, output)
    made, _ = packing.packed_manifest(manifest, config, output)
    assert made is not None
    return made


def reading(manifest: Manifest) -> ReadConfig:
    sampling = SamplingConfig(frames=4, stride=2)
    return ReadConfig(sampling=sampling, augment=AugmentConfig(kind="finetune"), size=32, root=manifest.root)


def frames(manifest: Manifest, line: int) -> np.ndarray:
    row = manifest.row(line)
    return decode.read(locate(row, manifest.root), row["start"] + np.arange(row["frames"]))


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    assert one.keys() == two.keys()
    return all(np.array_equal(np.asarray(one[name]), np.asarray(two[name]), name == "gaze") for name in one)


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9)))


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("shard-*")}


def test_source_layout_gives_the_very_batches_views_and_files(manifest: Manifest, tmp_path: Path) -> None:
    packed = pack(manifest, SMALL, tmp_path / "out")
    assert len({path.rpartition("#")[0] for path in packed.column("path")}) > 3
    rows = range(len(manifest))
    one, two = (list(local_batches(m, rows, 2, 3, reading(m), threads=2, steps=9)) for m in (manifest, packed))
    assert all(same(a, b) and not drops and not d for (a, drops), (b, d) in zip(one, two, strict=True))
    one, two = (list(local_views(m, rows, 4, reading(m))) for m in (manifest, packed))
    assert all(map(same, one, two))
    files, held = (load_manifest(m, rows, m.root) for m in (manifest, packed))
    assert np.array_equal(files.data, held.data) and np.array_equal(files.images, held.images)
    views = list(local_views(packed, rows, 4, reading(packed), sources=held))
    assert all(map(same, one, views))
    digests = [contents(m, False, 1).digests[:6] for m in (manifest, packed)]  # an audit finds them to be the same
    assert digests[0] == digests[1]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_source_layout_gives_the_very_batches_through_ray(manifest: Manifest, tmp_path: Path) -> None:
    packed = pack(manifest, SMALL, tmp_path / "out")
    config = StreamConfig(block_clips=4, segment_blocks=2, task_cpus=0.5, stall_seconds=60)
    rows = np.arange(len(manifest))
    local = list(local_batches(manifest, rows, 4, 3, reading(manifest), steps=4))
    found = list(stream(packed, rows, reading(packed), config, seed=3, batch_size=4, steps=4))
    assert all(same(a, b) for (a, _), (b, _) in zip(local, found, strict=True))
    views = list(evaluation_views(packed, rows, reading(packed), config, batch_size=4))
    assert all(map(same, local_views(manifest, rows, 4, reading(manifest)), views))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_told_gaze_of_frames_and_its_spread_go_through_shards_and_ray(manifest: Manifest, tmp_path: Path) -> None:
    lengths = np.array(manifest.column("frames"))
    rows = np.repeat(np.arange(len(manifest)), lengths)
    yaw = np.arange(len(rows)) / 100
    told = pa.table({"row": rows, "pitch": yaw / 2, "yaw": yaw, "spread": yaw / 4})
    angles_rad = np.zeros((len(manifest), 2))
    manifest = with_gaze(manifest, angles_rad, "told", np.full(len(manifest), 0.5), told)
    packed = pack(manifest, SMALL, tmp_path / "out")
    shutil.rmtree(tmp_path / "raw" / "3")  # packed before; of the source, a place is held for it
    kept = AugmentConfig(kind="finetune").for_gaze()
    ways = [reading(m).model_copy(update={"augment": kept, "frame_gaze": True}) for m in (manifest, packed)]
    config = StreamConfig(block_clips=4, task_cpus=0.5, stall_seconds=60, max_dropped_ratio=1)
    lines = np.arange(len(manifest))
    raw, shards = (
        list(stream(m, lines, way, config, seed=3, batch_size=7, steps=2))
        for m, way in zip((manifest, packed), ways, strict=True)
    )
    for (found, drops), (batch, none) in zip(raw, shards, strict=True):
        assert [clip["row"] for clip in drops] == [3] and not none
        there = batch["row"] != 3
        assert batch["gaze"].shape == (7, 4, 2) and batch["gaze_spread"].shape == (7, 4)
        assert all(np.array_equal(batch[name][there], found[name]) for name in batch)
        known = batch["gaze"][..., 1].abs() / 4  # a mirror turns yaw and leaves the spread
        assert np.allclose(batch["gaze_spread"], known, atol=1e-6)


def test_jpeg_layout_keeps_jpegs_and_is_close_where_it_encodes(manifest: Manifest, tmp_path: Path) -> None:
    packed = pack(manifest, PackConfig(layout="jpeg"), tmp_path / "out")
    for line in (0, 1, 3, 4, 6):
        assert np.array_equal(frames(manifest, line), frames(packed, line))
    for line in (2, 5):  # PNGs and a video
        assert 34 < psnr_db(frames(manifest, line), frames(packed, line)) < 99
    assert "packed as jpeg from manifest" in packed.notes[-1] and "PSNR" in packed.notes[-1]
    held = decode.load(packed.root + "/" + packed.column("path")[5])
    assert held.images and len(held.parts) == 30 and held.path.endswith("/a clip.mp4")


@pytest.mark.parametrize("sides", [(48, 64), (47, 63)])
def test_h264_layout_keeps_count_and_order_with_keyframes_where_asked(
    sides: tuple[int, int], tmp_path: Path, make_frames: Callable[..., Path], which: Callable[[np.ndarray], list[int]]
) -> None:
    height, width = sides
    make_frames(tmp_path / "raw" / "a", frames=40, height=height, width=width)
    manifest = build(rows_of({"a": 40}, height=height, width=width, fps=29.97), ("a",), tmp_path / "raw", "toy")
    packed = pack(manifest, PackConfig(layout="h264", crf=10), tmp_path / "out")
    pictures = frames(packed, 0)
    assert pictures.shape == (40, height, width, 3) and which(pictures) == list(range(40))
    assert psnr_db(frames(manifest, 0), pictures) > 38
    record = shards.fetch(locate(packed.row(0), packed.root))
    assert record.name == "a.mp4" and not record.images
    with av.open(io.BytesIO(bytes(record.parts[0]))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == [0, 16, 32]
    assert [packet.pts for packet in packets] == sorted(packet.pts for packet in packets)
    with pytest.raises(decode.DecodeError, match=r"out/shard.*a\.mp4: holds 40 frames"):
        decode.read(locate(packed.row(0), packed.root), [40])


@pytest.mark.parametrize("layout", ["jpeg", "source", "h264"])
def test_only_what_rows_need_is_packed_and_what_they_share_once(
    layout: Any, tmp_path: Path, make_frames: Callable[..., Path], make_video: Callable[..., Path]
) -> None:
    make_frames(tmp_path / "raw" / "a", frames=40)
    make_video(tmp_path / "raw" / "b.mp4", frames=40)
    windows = [("a", 3, 4), ("b.mp4", 20, 10), ("a", 30, 5), ("a", 5, 6), ("b.mp4", 25, 10)]
    rows = [rows_of({path: n})[0] | {"video": str(i), "start": s} for i, (path, s, n) in enumerate(windows)]
    manifest = build(rows, ("a",), tmp_path / "raw", "toy")
    packed = pack(manifest, PackConfig(layout=layout), tmp_path / "out")
    assert packed.column("video") == manifest.column("video")
    paths = packed.column("path")
    assert paths[0] == paths[3] != paths[2] and paths[1] == paths[4]
    assert packed.column("start") == [0, 20 if layout == "source" else 0, 0, 2, 25 if layout == "source" else 5]
    assert sum(clip.frames for clip in packing.plan(manifest, PackConfig(layout=layout))) == (
        8 + 5 + (35 if layout == "source" else 15)
    )
    for line in range(5):
        assert psnr_db(frames(manifest, line), frames(packed, line)) > 30
    held = load_manifest(packed, [2, 3], packed.root)  # of a shared packed clip, a study holds the row's own images
    assert layout == "h264" or (len(held.source(2).parts), len(held.source(3).parts)) == (5, 6)


def test_a_packed_manifest_is_packed_again_and_joined_with_others(manifest: Manifest, tmp_path: Path) -> None:
    packed = pack(manifest, SMALL, tmp_path / "out")
    again = pack(packed, SMALL, tmp_path / "again")
    assert shard_bytes(tmp_path / "again") == shard_bytes(tmp_path / "out")
    rekeyed = pack(packed, PackConfig(layout="h264"), tmp_path / "rekeyed")
    assert psnr_db(frames(manifest, 5), frames(rekeyed, 5)) > 30
    other = replace(again.take([5, 6]), root="memory://bucket")
    both = concat([packed.take([0, 1]), other])
    assert both.column("path")[0] == f"{packed.root}/{packed.column('path')[0]}"
    assert both.column("path")[2] == f"memory://bucket/{again.column('path')[5]}"
    assert np.array_equal(frames(both, 0), frames(manifest, 0))


def test_a_manifest_is_read_from_a_url(manifest: Manifest, tmp_path: Path) -> None:
    packed = pack(manifest, SMALL, tmp_path / "out")
    memory = fsspec.filesystem("memory")
    for name, content in shard_bytes(tmp_path / "out").items():
        memory.pipe_file(f"/bucket/toy/{name}", content)
    packed.write(tmp_path / "m.parquet")
    try:
        for root in ("memory://bucket/toy", f"file://{tmp_path}/out/"):
            remote = Manifest.read(tmp_path / "m.parquet", root)
            one, two = (list(local_batches(m, range(7), 4, 3, reading(m), steps=3)) for m in (manifest, remote))
            assert all(same(a, b) for (a, _), (b, _) in zip(one, two, strict=True))
    finally:
        memory.rm("/bucket", recursive=True)


def test_unreadable_clips_are_rejected_with_their_reason_and_the_others_are_packed(
    manifest: Manifest, tmp_path: Path
) -> None:
    root = Path(manifest.root)
    damaged = (root / "1" / "00004.jpg").read_bytes()
    (root / "1" / "00004.jpg").write_bytes(b"no image")
    shutil.rmtree(root / "3")
    os.truncate(root / "a clip.mp4", 2000)
    for layout in ("jpeg", "source", "h264"):
        config = PackConfig(layout=layout)
        packing.pack_part(packing.plan(manifest, config), 0, config, tmp_path / layout)
        packed, rejected = packing.packed_manifest(manifest, config, tmp_path / layout)
        assert packed is not None and packed.column("video") == ["v0", "v2", "v4", "vface.jpg"]
        assert {row["video"] for row in rejected} == {"v1", "v3", "va clip.mp4"}
        reasons = {row["path"]: row["reason"] for row in rejected}
        assert "is not an image" in reasons["1"] and "truncated" in reasons["a clip.mp4"]
        assert "No such file" in reasons["3"]
        assert [tuple(item) for item in packed.rejected] == list(reasons.items())
    # Nothing at all is an answer of its own.
    (root / "1" / "00004.jpg").write_bytes(damaged)
    gone = replace(manifest, root=str(tmp_path / "elsewhere"))
    packing.pack_part(packing.plan(gone, SMALL), 0, SMALL.model_copy(update={"part_clips": 9}), tmp_path / "none")
    assert packing.packed_manifest(gone, SMALL.model_copy(update={"part_clips": 9}), tmp_path / "none")[0] is None


def test_packing_that_was_killed_goes_on_to_the_same_bytes(manifest: Manifest, tmp_path: Path) -> None:
    expected = pack(manifest, SMALL, tmp_path / "whole")
    manifest.write(tmp_path / "m.parquet")
    program = f"""
import os, signal
from pathlib import Path
import pyarrow.parquet as pq
from mien.data_pipelines import packing
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.packing import PackConfig
manifest, config = Manifest.read({str(tmp_path / "m.parquet")!r}), PackConfig(**{SMALL.model_dump()!r})
before, count = os.replace, 0
def replace(one, other):  # the second shard of the second part is written, and not yet named
    global count
    count += 1
    if str(other).endswith("shard-00001-01.parquet"):
        os.kill(os.getpid(), signal.SIGKILL)
    before(one, other)
os.replace = replace
for number, clips in enumerate(packing.parts(packing.plan(manifest, config), config)):
    packing.pack_part(clips, number, config, Path({str(tmp_path / "killed")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    out = tmp_path / "killed"
    assert packing.is_whole(out, 0) and not packing.is_whole(out, 1)
    assert (out / "shard-00001-01.parquet.unfinished").exists()
    written = (out / "shard-00000-00.parquet").stat().st_mtime_ns
    found = pack(manifest, SMALL, out)
    assert (out / "shard-00000-00.parquet").stat().st_mtime_ns == written
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
    assert found.table == expected.table
    # A shard that is missing or cut off is made anew, and no other.
    last = out / "shard-00001-00.parquet"
    for harm in (last.unlink, lambda: os.truncate(last, 100)):
        harm()
        assert [packing.is_whole(out, number) for number in range(3)] == [True, False, True]
        pack(manifest, SMALL, out)
        assert shard_bytes(out) == shard_bytes(tmp_path / "whole")


def test_a_missing_shard_whose_clips_are_gone_is_not_given_up_in_silence(manifest: Manifest, tmp_path: Path) -> None:
    pack(manifest, SMALL, tmp_path / "out")
    (tmp_path / "out" / "shard-00001-00.parquet").unlink()
    before = shard_bytes(tmp_path / "out")
    shutil.rmtree(Path(manifest.root) / "3")
    with pytest.raises(ValueError, match=r"raw/3 was packed once and now .*restore shard-00001-\* or the clip"):
        pack(manifest, SMALL, tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == before


def test_damage_is_found_by_reading_every_clip(manifest: Manifest, tmp_path: Path) -> None:
    packed = pack(manifest, SMALL, tmp_path / "out")
    assert list(packing.damaged(packed)) == [None] * 7
    shard, _, where = packed.column("path")[4].partition("#")
    with (tmp_path / "out" / shard).open("r+b") as file:
        file.seek(int(where.split("+")[0]) + 20)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    (error,) = [error for error in packing.damaged(packed, threads=2) if error is not None]
    assert shard in error.path and "damaged" in error.reason
    batches = list(local_batches(packed, range(7), 7, 3, reading(packed), steps=1))
    assert [drop["video"] for drop in batches[0][1]] == ["v4"]


def test_frames_of_a_folder_that_differ_in_size_are_kept_as_they_are(
    tmp_path: Path, make_frames: Callable[..., Path]
) -> None:
    make_frames(tmp_path / "raw" / "a", frames=5)
    assert cv2.imwrite(str(tmp_path / "raw" / "a" / "00003.jpg"), np.full((60, 80, 3), 7, np.uint8))
    manifest = build(rows_of({"a": 5}), ("a",), tmp_path / "raw", "toy")
    packed = pack(manifest, SMALL, tmp_path / "out")
    row = packed.row(0)
    assert same(*({"a": decode.read(locate(m.row(0), m.root), range(5), (48, 64))} for m in (manifest, packed)))
    with pytest.raises(decode.DecodeError, match="of one size"):
        decode.read(locate(row, packed.root), range(5))
