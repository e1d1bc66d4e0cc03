"""What chaos.py calls lost is lost, and a few kills of each job lose nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from mien.data_pipelines.manifest import build
from mien.experiments.benchmarks import chaos, chaos_verdict
from mien.platform import checkpoint


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders that a run of two steps might have left, equal but for times."""
    size = {"frames": 4, "height": 8, "width": 8}
    build([{"video": str(n), "path": str(n), "dataset": "toy", **size} for n in range(4)], (), "", "toy").write(
        tmp_path / "manifest.parquet"
    )
    peace, war = tmp_path / "peace", tmp_path / "war"
    (peace / "clips").mkdir(parents=True)
    config = {"data": {"manifest": str(tmp_path / "manifest.parquet")}, "loop": {"steps": 2, "batch_size": 2}}
    (peace / "config.yaml").write_text(yaml.safe_dump(config))
    (peace / "clips" / "rank_0.jsonl").write_text('{"step": 1, "rows": [0, 3]}\n{"step": 2, "rows": [1, 2]}\n')
    lines = [{"step": step, "train/loss": 1 / step, "train/seconds": step} for step in (1, 2)]
    (peace / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoint.export(peace / "checkpoints" / "step_00000002", {"weight": torch.ones(3)}, {})
    shutil.copytree(peace, war)
    (war / "metrics.jsonl").write_text("".join(json.dumps(line | {"train/seconds": 9}) + "\n" for line in lines))
    return peace, war


def test_runs_that_learned_the_same_are_equal_whatever_their_times(runs: tuple[Path, Path]) -> None:
    found = chaos_verdict.compare_runs(*runs)
    assert found == {"steps": 2, "clips": 4, "epochs": 1.0, "differs": []}


def test_a_clip_lost_a_loss_changed_and_a_weight_off_by_a_bit_are_each_said(runs: tuple[Path, Path]) -> None:
    peace, war = runs
    (war / "clips" / "rank_0.jsonl").write_text('{"step": 1, "rows": [0, 3]}\n{"step": 2, "rows": [1, 1]}\n')
    (war / "metrics.jsonl").write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "train/loss": 0.4999}\n')
    shutil.rmtree(war / "checkpoints")
    weight = torch.ones(3)
    weight[1] = torch.nextafter(weight[1], torch.tensor(2.0))
    checkpoint.export(war / "checkpoints" / "step_00000002", {"weight": weight}, {})
    assert chaos_verdict.compare_runs(peace, war)["differs"] == [
        "weights differ, by 1.2e-07 at most",
        "records differ: 2 and 2 lines, unequal at steps [2]",
        "disturbed: epoch 0 has 1 clips more than once and 1 never",
    ]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("ray::RayTrainWorker", "worker"),
        ("ray::trial 0003 alpha=0.31", "worker"),
        ("ray::trial 0003 alpha=0.31 fold 2/5", "task"),
        ("ray::ReadBlocks", "task"),
        ("ray::IDLE", ""),
        ("ray::TrainController.run", ""),
        ("python experiments/pretrain.py", ""),
    ],
)
def test_what_is_killed_is_the_jobs_own(command: str, kind: str) -> None:
    assert chaos_verdict.kind_of(command) == kind


@pytest.mark.ray
def test_a_pretraining_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    words = ["kills=4", "parts=[one worker]", "again_ratio=0", "away_seconds=1", "weights.driver=1", "seed=3"]
    chaos.main(["--output", str(tmp_path), *words])  # raises ChaosError where something was lost
    found = json.loads((tmp_path / "chaos.json").read_text())["one worker"]
    assert found["kills"] == 4 and found["differs"] == [] and found["left"] == []
    assert found["epochs"] > 1
