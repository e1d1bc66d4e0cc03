"""pretrain.py through Ray: what it leaves behind, and that neither a kill nor a damaged file changes the weights."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mien.data_pipelines.manifest import Manifest
from mien.experiments import pretrain, report
from mien.models.mae import MaskedAutoencoder
from mien.platform import config as settings
from mien.platform.run import records
from mien.platform.trainer import WorkerError

Weights = Callable[[Path], dict[str, Tensor]]


@pytest.mark.ray
def test_a_run_leaves_weights_records_and_sheets_and_is_not_run_twice(
    pretrained: Path, recipes: dict[str, Path], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = records(pretrained / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert sorted(path.name for path in (pretrained / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]
    assert (pretrained / "reconstructions" / "step_00000006.png").stat().st_size > 1000
    about = json.loads((pretrained / "checkpoints" / "step_00000006" / "config.json").read_text())
    assert about["task"]["name"] == "mae" and about["task"]["backbone"]["encoder"]["region"] == [2, 2, 4]
    assert about["fingerprint"] == Manifest.read(world / "unlabelled.parquet").fingerprint()
    pretrain.main(["--config", str(recipes["pretrain"]), "--output", str(pretrained)])
    assert "finished, 6 steps" in capsys.readouterr().out
    report.main([str(pretrained), "--output", str(tmp_path / "report.html")])
    assert "Reconstructions" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.ray
def test_the_program_killed_and_called_again_ends_with_the_weights_of_one_that_was_not(
    pretrained: Path,
    recipes: dict[str, Path],
    program: Callable[..., Any],
    processes: Any,
    weights: Weights,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    words = ["--config", str(recipes["pretrain"]), "--output", str(folder)]
    driver = program("pretrain", *words)
    until = time.monotonic() + 150
    while not (folder / "checkpoints" / "step_00000002").exists() and time.monotonic() < until:
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.02)
    started = processes.living(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    processes.end(started)  # before an orphan comes to the end: how they die by themselves is tested elsewhere
    driver.communicate(timeout=60)
    newest = max(path.name for path in (folder / "checkpoints").glob("step_*"))
    assert newest < "step_00000006", "it had ended before it was killed"

    pretrain.main(words)
    assert f"going on from {folder / 'checkpoints' / newest}" in capsys.readouterr().out
    undisturbed = weights(pretrained)
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(folder).items())
    losses = [[line["train/loss"] for line in records(place / "metrics.jsonl")] for place in (folder, pretrained)]
    assert losses[0] == losses[1]


@pytest.mark.ray
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_gives_the_same_weights(
    pretrained: Path, recipes: dict[str, Path], weights: Weights, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pretrained, tmp_path / "run"))
    file = folder / "checkpoints" / "step_00000006" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.warns(UserWarning, match=r"step_00000006 is corrupt.*going back to the checkpoint before it"):
        pretrain.main(["--config", str(recipes["pretrain"]), "--output", str(folder)])
    undisturbed = weights(pretrained)
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(folder).items())


@pytest.mark.ray
def test_a_probe_and_more_sheets_leave_the_weights_as_they_are_and_are_shown(
    pretrained: Path, recipes: dict[str, Path], world: Path, weights: Weights, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    probe = [f"probe.manifest={world / 'manifest.parquet'}", "probe.fold=1", "probe.every_epochs=2", "sheet_every=3"]
    pretrain.main(["--config", str(recipes["pretrain"]), "--output", str(folder), *probe])
    undisturbed = weights(pretrained)
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(folder).items())
    found = {line["step"]: line for line in records(folder / "metrics.jsonl") if "probe/uar_linear" in line}
    assert list(found) == [0, 2, 4, 6]
    for line in found.values():
        for name in ("probe/uar_linear", "probe/uar_knn"):
            assert 0 <= line[f"{name}_low"] <= line[name] <= line[f"{name}_high"] <= 1
    assert sorted(path.name for path in (folder / "reconstructions").iterdir()) == [
        "step_00000003.png", "step_00000006.png",
    ]  # fmt: skip
    report.main([str(folder), "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    low, score, high = (f"{found[6][f'probe/uar_linear{end}']:.3f}" for end in ("_low", "", "_high"))
    assert "Validation UAR of frozen features" in page and f"linear {score} [{low}, {high}]" in page


@pytest.mark.ray
def test_two_clips_of_a_video_are_learned_under_one_mask(
    ray_cluster: None, recipes: dict[str, Path], tmp_path: Path
) -> None:
    words = ["data.sampling.num_samples=2", "loop.steps=3", "loop.accumulate=2", "data.augment.kind=pretrain"]
    folder = tmp_path / "run"
    pretrain.main(["--config", str(recipes["pretrain"]), "--output", str(folder), *words])
    assert [line["step"] for line in records(folder / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.ray
def test_a_pretraining_goes_on_from_the_weights_of_another(
    pretrained: Path, recipes: dict[str, Path], weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The rate is too small to move anything, so the weights are still those of the first.
    still = ["optim.lr=1e-30", "optim.min_lr=0", "optim.weight_decay=0", "loop.steps=3", f"pretrained={pretrained}"]
    pretrain.main(["--config", str(recipes["pretrain"]), "--output", str(tmp_path / "run"), *still])
    before, after = weights(pretrained), weights(tmp_path / "run")
    assert f"{len(before)} parameters loaded" in capsys.readouterr().out
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    known = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert known["pretrained_on"] == json.loads((pretrained / "inputs.json").read_text())["trained_on"]


def test_a_probe_of_a_set_without_classes_is_refused_before_there_is_a_folder(
    recipes: dict[str, Path], world: Path, tmp_path: Path
) -> None:
    words = ["--config", str(recipes["pretrain"]), "--output", str(tmp_path / "run")]
    with pytest.raises(settings.ConfigError, match="a probe tells classes apart"):
        pretrain.main([*words, f"probe.manifest={world / 'unlabelled.parquet'}"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def damaged(world: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Return a function that gives a manifest of which the first so many videos are empty files."""

    def make(count: int) -> Path:
        root = Path(shutil.copytree(world / "world" / "voxceleb2", tmp_path / "videos"))
        manifest = Manifest.read(world / "unlabelled.parquet", root=str(root))
        for path in manifest.column("path")[:count]:
            (root / path).write_bytes(b"")
        manifest.write(tmp_path / "damaged.parquet")
        return tmp_path / "damaged.parquet"

    return make


@pytest.mark.ray
def test_too_many_unreadable_videos_end_the_run_in_words_that_reach_the_user(
    ray_cluster: None, recipes: dict[str, Path], damaged: Callable[[int], Path], tmp_path: Path
) -> None:
    words = ["--config", str(recipes["pretrain"]), "--output", str(tmp_path / "run"), "stream.dropped_after=16"]
    with pytest.raises(WorkerError, match=r"(?s)stream\.max_dropped_ratio=0\.05 .*2 of 16 are.*00001\.mp4: is empty"):
        pretrain.main([*words, f"data.manifest={damaged(1)}"])
    # The first batch went on without its clip.
    (dropped,) = records(tmp_path / "run" / "dropped.jsonl")
    assert dropped["row"] == 0 and dropped["reason"] == "is empty (0 bytes)"


def test_a_sheet_of_reconstructions_does_without_what_cannot_be_read(
    recipes: dict[str, Path], damaged: Callable[[int], Path], tmp_path: Path
) -> None:
    config = settings.load(pretrain.PretrainConfig, recipes["pretrain"], {"data.manifest": str(damaged(7))})
    manifest, read = pretrain.open_data(config)
    task = MaskedAutoencoder(config.task)
    pretrain.draw_sheet(task, manifest, read, 4, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000
    (Path(manifest.root) / manifest.row(7)["path"]).unlink()
    pretrain.draw_sheet(task, manifest, read, 4, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_dry_run_counts_and_writes_nothing(
    recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.main(["--config", str(recipes["pretrain"]), "--output", str(tmp_path / "run"), "--dry-run"])
    shown = capsys.readouterr().out
    for words in ("task_cpus: 0.5", "32 a clip", "parameters", "GFLOP a clip", "training clips  8", "6 (6.0 epochs)"):
        assert words in shown
    assert not (tmp_path / "run").exists()


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        pretrain.main(["--help"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    for setting in settings.settings(pretrain.PretrainConfig):
        assert f"  {setting.key} (" in shown
        assert setting.meaning, f"{setting.key} has no meaning"
