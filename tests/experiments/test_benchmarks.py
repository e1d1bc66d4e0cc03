"""The benchmarks take minutes; here they only have to start, and what they compute from their runs has to be right."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mien.data_pipelines.gaze_labels import with_gaze
from mien.data_pipelines.manifest import build
from mien.experiments.benchmarks import inference, learning, memory, relabelling, step_memory
from mien.platform import config as settings

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(
    path.stem
    for path in (ROOT / "experiments" / "benchmarks").glob("*.py")
    if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
)
WITH_SETTINGS = [name for name in PROGRAMS if name != "rendering"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_benchmark_says_how_it_is_called(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = importlib.import_module(f"mien.experiments.benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"]) if name in WITH_SETTINGS else program.main()
    assert not ended.value.code
    assert f"python experiments/benchmarks/{name}.py" in capsys.readouterr().out


@pytest.mark.parametrize("name", WITH_SETTINGS)
def test_a_dry_run_prints_the_settings_and_does_nothing(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    program = importlib.import_module(f"mien.experiments.benchmarks.{name}")
    program.main(["--dry-run", "--output", str(tmp_path / "out")])
    assert re.search(r"^\w+:", capsys.readouterr().out, re.MULTILINE)
    assert not (tmp_path / "out").exists()


def test_the_arms_of_every_claim_are_settings_that_exist_and_differ(tmp_path: Path) -> None:
    config = settings.load(learning.LearningConfig, learning.RECIPE, {})
    for claim in config.claims:
        one, two = (
            learning.run_config(config, claim, arm, 1, tmp_path) for arm in learning.arms(claim, config).values()
        )
        assert one != two
        assert (one.data.fold, one.data.split.seed, one.loop.seed) == (2, 1, 1)
        assert one.data.manifest == two.data.manifest


def test_a_claim_is_judged_by_the_mean_over_seeds_of_the_difference() -> None:
    by_arm = {"new": [{"test/uar": 0.5}, {"test/uar": 0.75}], "old": [{"test/uar": 0.5}, {"test/uar": 0.5}]}
    found = learning.verdict(by_arm, [learning.Measure("test/uar", 0.125)])
    gain = found["claimed"]["test/uar: new - old"]
    assert gain["seeds"] == [0.0, 0.25] and gain["mean"] == 0.125 and gain["reached"]
    assert found["arms"]["old"]["test/uar"] == {"mean": 0.5, "sd": 0.0, "seeds": [0.5, 0.5]}
    worse = learning.verdict(by_arm, [learning.Measure("test/uar", 0.126)])
    assert not worse["claimed"]["test/uar: new - old"]["reached"]


def test_memory_counts_this_process_and_flatness_compares_the_second_fifth_with_the_last() -> None:
    assert memory.memory()["driver"] > 10
    kinds = dict.fromkeys(memory.PARTS, 0.0)
    samples = [{"step": step, **kinds, "driver": 2.0 * step, "all": 2.0 * step} for step in range(100)]
    assert memory.flatness(samples, 100)["growth"] == 120
    assert memory.flatness(samples[:50], 100) == {}


def test_students_learn_from_told_gaze_and_are_tested_on_the_true_one() -> None:
    rows = [
        {"video": str(n), "path": str(n), "dataset": "toy", "frames": 2, "height": 8, "width": 8, "fold": n + 1}
        | {"pitch": 0.0, "yaw": n / 10}
        for n in range(3)
    ]
    true = build(rows, (), "", "toy")
    told = with_gaze(true, np.full((3, 2), 0.5), "told", np.array([0.125, 0.25, np.nan]))
    made = relabelling.student_manifest(true, told, fold=2)
    assert made.column("yaw") == [0.5, pytest.approx(0.1), 0.5] and made.column("pitch") == [0.5, 0, 0.5]
    assert made.column("gaze_spread") == [0.125, None, None] and made.notes[-1] == "told; true in fold 2"


def test_a_students_gain_is_the_degrees_by_which_its_error_is_smaller() -> None:
    errors = {"truth": [5.0, 7.0], "told": [6.0, 8.5], "weighted": [6.5, 8.0], "none": [20.0, 22.5]}
    by_arm = {
        arm: [{"test/angular_error_deg": value, "test/uar": 0.5} for value in values] for arm, values in errors.items()
    }
    found = relabelling.figures([{"angular_error_deg": 3.0}, {"angular_error_deg": 5.0}], by_arm)
    assert found["labels"]["angular_error_deg"]["mean"] == 4
    assert found["gains_deg"]["told over none"]["seeds"] == [14, 14]
    assert found["gains_deg"]["weighted over told"]["mean"] == 0
    assert found["gains_deg"]["truth over told"]["seeds"] == [1, 1.5]


def test_the_memory_of_a_step_is_told_with_the_price_of_saving_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["tubes.frames=4", "tubes.size=32", "encoder.width=32", "encoder.depth=6", "encoder.heads=2"]
    words = [f"{part}.backbone.{word}" for part in ("task", "mae") for word in [*small, "encoder.region=[2,2,2]"]]
    asked = ["batch_sizes=[8,16]", "timed_clips=1", "rounds=1", "mae.mask.ratio=0.5", "mae.decoder.width=32"]
    step_memory.main([*words, *asked, "mae.decoder.heads=2", "--output", str(tmp_path / "m.json")])
    found = json.loads((tmp_path / "m.json").read_text())
    for name in ("finetune", "pretrain"):
        assert found[name]["memory_a_clip_divided_by"] > 1 and found[name]["time_multiplied_by"] > 0
        assert found[name]["kept"]["mib_of_moments"] == found[name]["run again"]["mib_of_moments"] > 0
    assert "finetune: activation checkpointing takes" in capsys.readouterr().out


def test_every_way_of_inference_answers_as_the_eager_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["tubes.frames=4", "tubes.size=16", "tubes.patch=8", "encoder.width=16", "encoder.depth=1"]
    words = [f"task.backbone.{word}" for word in [*small, "encoder.heads=2", "encoder.region=[1,2,2]"]]
    inference.main([*words, "compile=false", "batch_sizes=[1,3]", "rounds=1", "--output", str(tmp_path / "i.json")])
    found = json.loads((tmp_path / "i.json").read_text())
    assert {"eager fp32", "eager bf16", "exported fp32"} <= {row["way"] for row in found["ways"]}
    assert {row["clips"] for row in found["ways"]} == {1, 3} and all(row["clips/s"] > 0 for row in found["ways"])
    assert all(row["gaze off by"] < 1e-6 for row in found["ways"] if row["way"].endswith("fp32"))
    assert "over eager fp32" in capsys.readouterr().out
