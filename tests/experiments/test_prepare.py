"""prepare.py leaves manifests that the other programs read, renders a world once, and lists what it could not use."""

import json
import shutil
from pathlib import Path

import pytest

from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.preparers import DATASETS
from mien.experiments import prepare
from mien.platform.config import ConfigError


def test_a_world_gives_labelled_clips_with_gaze_in_five_folds_and_unlabelled_videos(world: Path) -> None:
    labelled = Manifest.read(world / "manifest.parquet")
    assert len(labelled) == 70 and set(labelled.column("fold")) == {1, 2, 3, 4, 5}
    assert None not in labelled.column("pitch") and len(set(labelled.column("subject"))) == 10
    unlabelled = Manifest.read(world / "unlabelled.parquet")
    assert len(unlabelled) == 8 and set(unlabelled.column("label")) == {None}
    assert not set(unlabelled.column("subject")) & set(labelled.column("subject"))


def test_a_second_call_renders_nothing(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in world.rglob("*") if path.is_file()}

    before = times()
    config = json.loads((world / "world" / "world.json").read_text())["config"]
    prepare.main(["synthetic", "--output", str(world), *(f"{key}={value}" for key, value in config.items())])
    assert times() == before
    assert "78/78 clips" in capsys.readouterr().out


def test_videos_in_a_folder_with_a_space_become_a_manifest_with_folds_and_the_broken_one_is_listed(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "my videos"
    shutil.copytree(world / "world" / "voxceleb2" / "dev" / "mp4", root)
    (root / "notes.mp4").write_text("a shopping list")
    output = tmp_path / "out put"
    prepare.main(["videos", f"root={root}", "subject_from_folder=true", "--folds", "2", "--output", str(output)])
    manifest = Manifest.read(output / "manifest.parquet")
    assert len(manifest) == 8 and set(manifest.column("fold")) == {1, 2}
    (rejected,) = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert rejected["path"] == "notes.mp4" and "not an mp4 file" in rejected["reason"]
    assert "1 files could not be used" in capsys.readouterr().out


def test_a_dry_run_counts_and_writes_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    prepare.main(["dfew", f"root={world / 'world' / 'dfew'}", "--dry-run", "--output", str(output)])
    shown = capsys.readouterr().out
    assert "clips: Clip/jpg_256" in shown and "70 clips of dfew, 10 subjects" in shown
    prepare.main(["synthetic", "identities=20", "clips_per_identity=7", "--dry-run", "--output", str(output)])
    shown = capsys.readouterr().out
    assert "identities: 20" in shown and "140 labelled clips, 1,000 unlabelled videos" in shown
    assert not output.exists()


@pytest.mark.parametrize("name", ["synthetic", *DATASETS])
def test_help_lists_the_settings_of_every_dataset(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare.main([name, "--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert ("clips_per_identity" if name == "synthetic" else "root (str)") in shown
    assert (name == "synthetic") != ("folds of our own" in shown)


def test_without_a_word_the_datasets_are_listed_and_an_unknown_one_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare.main([])
    assert ", ".join(DATASETS) in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"one of synthetic, .*dfew.*; got 'dfw'"):
        prepare.main(["dfw"])
