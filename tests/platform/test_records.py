"""Records are read back as they were written; what cannot be read is left out and named."""

import json
import math
from pathlib import Path

import pytest

from mien.platform import records


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_line_that_a_killed_run_left_unfinished_is_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", '{"step": 1, "train/loss": 2.0}\n{"step": 2, "tra')
    run = records.read_run(tmp_path)
    assert run.values("loss") == ([1.0], [2.0])
    assert len(run.problems) == 1
    assert "metrics.jsonl: 1 unreadable" in run.problems[0]


def test_a_value_that_was_not_finite_stays_a_gap(tmp_path: Path) -> None:
    write(
        tmp_path / "metrics.jsonl",
        '{"step": 1, "train/loss": null}\n{"step": 2, "train/loss": 0.5}\n{"step": 2, "val/uar": 1}',
    )
    steps, values = records.read_run(tmp_path).values("loss")
    assert steps == [1, 2]
    assert math.isnan(values[0])


def test_speed_is_the_batch_over_the_median_step(tmp_path: Path) -> None:
    lines = [{"step": step, "train/seconds": seconds} for step, seconds in ((10, 0.5), (20, 0.5), (30, 5.0))]
    write(tmp_path / "metrics.jsonl", "\n".join(map(json.dumps, lines)))
    write(tmp_path / "config.yaml", "loop: {batch_size: 32}")
    run = records.read_run(tmp_path)
    assert run.clips_per_second() == 64
    assert run.seconds() == pytest.approx(60)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "scores.json"])
def test_a_damaged_record_is_named_and_the_rest_is_read(tmp_path: Path, name: str) -> None:
    write(tmp_path / "metrics.jsonl", '{"step": 1, "train/loss": 2.0}\n')
    write(tmp_path / name, '{"a": [1')
    run = records.read_run(tmp_path)
    assert name in run.problems[0]
    assert run.values("loss") == ([1.0], [2.0])


@pytest.mark.parametrize("moved", [False, True])
def test_the_pretraining_run_is_found_from_its_checkpoint_also_after_both_moved(tmp_path: Path, moved: bool) -> None:
    for name in ("config.yaml", "metrics.jsonl"):
        write(tmp_path / "demo" / "pretrain" / name, "{}")
    root = Path("elsewhere") if moved else tmp_path
    checkpoint = root / "demo" / "pretrain" / "checkpoints" / "step_00000100"
    assert records.run_of(checkpoint, tmp_path / "demo" / "study") == tmp_path / "demo" / "pretrain"


def test_a_checkpoint_that_is_nowhere_gives_no_run(tmp_path: Path) -> None:
    assert records.run_of(Path("elsewhere/pretrain/checkpoints/step_1"), tmp_path / "study") is None


def test_the_spread_of_folds_is_the_t_interval_of_their_mean() -> None:
    mean, deviation, half = records.spread([0.6259, 0.6196, 0.6400, 0.6307, 0.6542])
    assert mean == pytest.approx(0.63408)
    assert deviation == pytest.approx(0.013484, abs=1e-5)
    assert half == pytest.approx(2.776 * deviation / math.sqrt(5))
    assert math.isnan(records.spread([0.5])[2])


def test_a_key_is_found_at_the_outermost_place() -> None:
    assert records.find({"a": {"seed": 2}, "seed": 1}, "seed") == 1
    assert records.find({"a": {"b": {"seed": 2}}}, "seed") == 2
    assert records.find({}, "seed") is None


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_records_is_refused_with_what_was_found(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        write(folder / "notes.txt", "")
    with pytest.raises(records.RecordsError, match=r"notes\.txt" if make else "no such folder"):
        records.read(folder)
