"""Watching: how a study or a run stands, from its folder alone, without reading all of it again and again."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mien.platform.records import RecordsError
from mien.platform.watching import SHOWN, Watch, last_record, trial_rows


def trial(number: int, state: str, uar: float | None = None, folds: int = 0) -> dict[str, Any]:
    mean = {} if uar is None else {"uar": uar}
    record = {"id": f"id{number}", "number": number, "state": state, "params": {"task.alpha": 0.5}, "mean": mean}
    return record | {"folds": {str(fold + 1): mean for fold in range(folds)}, "seconds": 12.4}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value) if path.suffix == ".yaml" else json.dumps(value), encoding="utf-8")


def study(folder: Path, *trials: dict[str, Any]) -> Path:
    write(folder / "config.yaml", {"study": {"trials": 4, "objective": "uar"}})
    write(folder / "environment.json", {"command": "python experiments/tune_dfew.py --output a_study"})
    for record in trials:
        write(folder / "trials" / record["id"] / "trial.json", record)
    return folder


def run(folder: Path, steps: int) -> Path:
    write(folder / "config.yaml", {"loop": {"steps": None, "epochs": 3, "batch_size": 8}})
    write(folder / "inputs.json", {"trained_on": {"parts": {"train": 83}}})
    write(folder / "environment.json", {"command": "python experiments/pretrain.py"})
    times = {"train/seconds": 0.5, "train/wait_seconds": 0.05}
    lines = [{"step": step, "train/loss": 1 / step, **times} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "dropped.jsonl").write_text('{"video": "a"}\n{"video": "b"}\n', encoding="utf-8")
    return folder


def test_a_study_shows_its_trials_the_best_and_the_fold_that_is_being_judged(tmp_path: Path) -> None:
    study(tmp_path, trial(0, "complete", 0.25, 5), trial(1, "complete", 0.5, 5), trial(2, "running", 0.75, 1))
    run(tmp_path / "trials" / "id2" / "fold_1", 30)
    os.utime(tmp_path / "trials" / "id2" / "fold_1", (1, 1))
    run(tmp_path / "trials" / "id2" / "fold_2", 12)
    view = Watch(tmp_path).look()
    assert view.title == f"study {tmp_path.name}: 2 complete, 1 running of 4 · best is trial 0001, uar 0.5"
    assert [(row["trial"], row["alpha"], row["folds"], row["UAR"]) for row in view.rows] == [
        (0, 0.5, 5, 0.25),
        (1, 0.5, 5, 0.5),
        (2, 0.5, 1, 0.75),
    ]
    # 83 clips in batches of 8 are 10 steps an epoch; 18 steps of half a second are left.
    assert view.lines == [
        "trial 0002 fold_2: step 12/30 · 16 clips/s · waiting 10% · about 0:09 left · loss 0.0833 · 2 dropped"
    ]
    assert not view.finished and view.warning(60) is None


def test_a_run_shows_its_steps_and_is_finished_after_the_last(tmp_path: Path) -> None:
    run(tmp_path, 29)
    assert Watch(tmp_path).look().title.startswith(f"run {tmp_path.name}: step 29/30 · 16 clips/s · waiting 10% · ")
    assert not Watch(tmp_path).look().finished
    run(tmp_path, 30)
    assert Watch(tmp_path).look().finished and Watch(tmp_path).look().status() == "finished"


def test_the_newest_record_of_all_says_whether_it_lives_and_a_dead_one_how_it_goes_on(tmp_path: Path) -> None:
    study(tmp_path, trial(0, "running"))
    run(tmp_path / "trials" / "id0" / "fold_1", 3)
    for path in tmp_path.rglob("*"):
        os.utime(path, (time.time() - 500, time.time() - 500))
    view = Watch(tmp_path).look()
    assert view.status() == "last record 8:20 ago" and view.warning(600) is None
    said = view.warning(400) or ""
    assert said.startswith("no record since 20") and said.endswith("python experiments/tune_dfew.py --output a_study")
    (tmp_path / "trials" / "id0" / "fold_1" / "metrics.jsonl").touch()
    assert Watch(tmp_path).look().warning(400) is None


def test_a_finished_study_is_not_called_dead(tmp_path: Path) -> None:
    study(tmp_path, trial(0, "complete", 0.5, 5))
    write(tmp_path / "winner.json", {"trial": "id0"})
    for path in tmp_path.rglob("*"):
        os.utime(path, (1, 1))
    assert Watch(tmp_path).look().finished and Watch(tmp_path).look().warning(1) is None


def test_only_trials_that_have_changed_are_read_again(tmp_path: Path) -> None:
    study(tmp_path, trial(0, "complete", 0.5, 5), trial(1, "running"))
    watch = Watch(tmp_path)
    watch.look()
    settled = tmp_path / "trials" / "id0" / "trial.json"
    before = settled.stat()
    settled.write_text("not read again", encoding="utf-8")
    os.utime(settled, ns=(before.st_atime_ns, before.st_mtime_ns))
    write(tmp_path / "trials" / "id1" / "trial.json", trial(1, "failed"))
    assert [row["state"] for row in watch.look().rows] == ["complete", "failed"]


def test_a_line_that_is_being_written_is_left_for_the_next_look_and_long_files_are_read_at_their_end(
    tmp_path: Path,
) -> None:
    run(tmp_path, 5000)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5000, "val/uar": 0.5}\n{"step": 5001, "train/lo')
    assert last_record(tmp_path) == {
        "step": 5000, "train/loss": 1 / 5000, "train/seconds": 0.5, "train/wait_seconds": 0.05, "val/uar": 0.5
    }  # fmt: skip


def test_of_many_trials_those_that_run_the_best_and_the_newest_are_shown() -> None:
    trials = [trial(number, "complete", 0.9 if number == 7 else 0.5, 5) for number in range(500)]
    trials[3] = trial(3, "running")
    shown = [row["trial"] for row in trial_rows(trials)]
    assert shown == [3, 7, *range(500 - SHOWN + 2, 500)]
    assert [row["trial"] for row in trial_rows(trials[:5])] == [0, 1, 2, 3, 4]


def test_a_folder_without_records_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    with pytest.raises(RecordsError, match="only the folder of a study or of a run can be watched, found something"):
        Watch(tmp_path).look()
