"""diagnose.py: sound recipes pass, a rate at which nothing is learned and labels that say nothing do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from mien.data_pipelines.label_checks import few, with_shuffled_labels
from mien.data_pipelines.manifest import Manifest
from mien.experiments import diagnose
from mien.platform.config import ConfigError

SHORT = ["diagnose.steps=3", "diagnose.shuffles=2", "diagnose.shuffle_steps=4", "diagnose.shuffle_clips=24"]


def findings(folder: Path) -> dict[str, dict[str, object]]:
    told = json.loads((folder / "diagnosis.json").read_text())
    return {one["check"]: one for one in told["findings"]}


def test_a_sound_fine_tuning_passes_every_check(
    recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnose.main(
        ["finetune", "--config", str(recipes["finetune"]), "--output", str(tmp_path), *SHORT, "optim.lr=5e-3"]
    )
    found = findings(tmp_path)
    verdicts = {name: one["verdict"] for name, one in found.items()}
    assert verdicts.pop("shuffled labels") in ("good", "look")  # four steps are few to learn the true ones
    assert verdicts == {"overfit": "good", "gradients": "good", "skipped steps": "good"}
    assert "learned by heart" in capsys.readouterr().out


def test_a_rate_at_which_nothing_is_learned_ends_with_1(recipes: dict[str, Path], tmp_path: Path) -> None:
    words = ["finetune", "--config", str(recipes["finetune"]), "--output", str(tmp_path), *SHORT]
    with pytest.raises(SystemExit) as ended:
        diagnose.main([*words, "optim.lr=1e-9", "optim.min_lr=0", "diagnose.rates=[]", "diagnose.overfit_steps=10"])
    assert ended.value.code == 1
    assert findings(tmp_path)["overfit"]["verdict"] == "wrong"


def test_a_pretraining_is_diagnosed_without_ray(recipes: dict[str, Path], tmp_path: Path) -> None:
    diagnose.main(
        ["pretrain", "--config", str(recipes["pretrain"]), "--output", str(tmp_path), *SHORT, "optim.lr=5e-3"]
    )
    found = findings(tmp_path)
    assert found["overfit"]["verdict"] == "good" and found["shuffled labels"]["verdict"] == "left out"


def test_the_first_word_names_the_program() -> None:
    with pytest.raises(ConfigError, match="finetune or pretrain"):
        diagnose.main(["evaluate"])


def test_shuffled_labels_are_dealt_among_the_given_lines_alone(world: Path) -> None:
    manifest, rows = Manifest.read(world / "manifest.parquet"), np.arange(40)
    shuffled = with_shuffled_labels(manifest, rows, seed=0)
    before, after = np.array(manifest.column("label")), np.array(shuffled.column("label"))
    assert (before[40:] == after[40:]).all() and (before[:40] != after[:40]).any()
    assert sorted(before[:40]) == sorted(after[:40])
    assert set(before[few(manifest, rows, 7)]) == set(range(7))
