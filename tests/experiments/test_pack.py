"""pack.py accounts for every clip, goes on where it was, refuses another config, and names a damaged shard."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mien.data_pipelines import decode
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import locate
from mien.experiments import pack
from mien.platform.run import RunError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def world_with_a_hole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the labelled manifest whose fourth clip has lost its frames."""
    root = tmp_path_factory.mktemp("hole")
    manifest = Manifest.read(world / "manifest.parquet")
    shutil.copytree(manifest.root, root / "dfew")
    shutil.rmtree(root / "dfew" / manifest.row(3)["path"])
    shutil.copy(world / "manifest.parquet", root / "manifest.parquet")
    return root


def call(root: Path, output: Path, *more: str) -> None:
    data = [f"manifest={root / 'manifest.parquet'}", f"root={root / 'dfew'}"]
    pack.main([*data, "--output", str(output), "part_clips=20", "task_cpus=0.5", *more])


def test_every_clip_is_packed_or_rejected_and_the_same_command_does_nothing_twice(
    world_with_a_hole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    call(world_with_a_hole, output)
    shown = capsys.readouterr().out
    assert "70 clips = 69 packed + 1 rejected" in shown and "4 shards" in shown and "packing 70/70 clips" in shown
    before = Manifest.read(world_with_a_hole / "manifest.parquet", str(world_with_a_hole / "dfew"))
    packed = Manifest.read(output / "manifest.parquet")
    (rejected,) = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert rejected["video"] == before.row(3)["video"] and rejected["reason"]
    assert packed.column("video") == before.column("video")[:3] + before.column("video")[4:]
    assert packed.column("label") == before.column("label")[:3] + before.column("label")[4:]
    for one, two in ((before.row(0), packed.row(0)), (before.row(69), packed.row(68))):
        frames = [decode.read(locate(row, m.root), np.arange(4)) for row, m in ((one, before), (two, packed))]
        assert np.array_equal(*frames)

    times = {file: file.stat().st_mtime_ns for file in output.rglob("*-*.parquet")}
    call(world_with_a_hole, output)
    assert "packing" not in capsys.readouterr().out
    next(output.glob("shard-00001-*")).unlink()
    call(world_with_a_hole, output)
    assert "packing 20/20 clips" in capsys.readouterr().out
    changed = [file.name for file in times if file.stat().st_mtime_ns != times[file]]
    assert sorted(changed) == ["part-00001.parquet", "shard-00001-00.parquet"]

    with pytest.raises(RunError, match="layout: jpeg there, h264 given"):
        call(world_with_a_hole, output, "layout=h264")

    pack.main(["--output", str(output), "--verify"])
    assert "0 damaged or missing clips" in capsys.readouterr().out
    shard = output / "shard-00002-00.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 8
    shard.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        pack.main(["--output", str(output), "--verify"])
    shown = capsys.readouterr().out
    assert ended.value.code == 1
    assert "1 damaged or missing" in shown and f"{shard}#" in shown and "remove the shards named" in shown


def test_videos_are_rekeyed_with_their_quality_told(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    settings = [f"manifest={world / 'unlabelled.parquet'}", "layout=h264", "task_cpus=0.5"]
    pack.main([*settings, "--output", str(output), "--dry-run"])
    assert "8 rows need 8 packed clips, 64 frames" in capsys.readouterr().out and not output.exists()
    pack.main([*settings, "--output", str(output)])
    shown = capsys.readouterr().out
    assert "8 clips = 8 packed + 0 rejected" in shown and "packed as h264" in shown and "PSNR" in shown
    assert len(Manifest.read(output / "manifest.parquet")) == 8


def test_nothing_readable_is_an_error(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of 70 is.*rejected\.jsonl, and give root=FOLDER"):
        data = [f"manifest={world / 'manifest.parquet'}", f"root={tmp_path}"]
        pack.main([*data, "task_cpus=0.5", "--output", str(tmp_path / "out")])
    assert len((tmp_path / "out" / "rejected.jsonl").read_text().splitlines()) == 70
