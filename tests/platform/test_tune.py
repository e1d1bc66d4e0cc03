"""Studies on a real Ray cluster: trials end as the book says, and a driver's death loses and repeats nothing."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mien.platform.storage import StorageError
from mien.platform.study import Range, StudyConfig, StudyError
from mien.platform.tune import run_study

pytestmark = pytest.mark.ray
SPACE = {"x": Range(low=0, high=1)}
FOLDS = ("1", "2", "3")


def judge(params: dict[str, Any], fold: str, folder: Path, context: Any) -> dict[str, float]:
    """Score by x; count how often each fold is computed; be slow, or fail, where the context asks for it."""
    record = folder / "scores.json"
    if record.exists():
        return json.loads(record.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "computed").open("a") as file:
        file.write("once\n")
    time.sleep(context.get("seconds", 0))
    if fold == context.get("full_at"):
        raise StorageError(errno.ENOSPC, "trials: the disk is full")
    if params["x"] > context.get("fail_above", 2):
        raise ValueError(f"x must stay below {context['fail_above']}")
    scores = {"uar": params["x"] + 0.01 * int(fold)}
    record.write_text(json.dumps(scores))
    return scores


def states(folder: Path) -> list[TrialState]:
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.state for trial in study.trials]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("trials/*/trial.json")]


def test_trials_are_judged_pruned_and_the_best_wins(ray_cluster: None, tmp_path: Path) -> None:
    seen: list[int] = []
    config = StudyConfig(trials=6, concurrency=2, cpus_per_trial=0.5)
    winner = run_study(judge, SPACE, FOLDS, config, tmp_path, {}, lambda rows: seen.append(len(rows)))
    found = {record["id"]: record for record in records(tmp_path)}
    assert len(found) == 6 and max(seen) == 6
    assert {record["state"] for record in found.values()} <= {"complete", "pruned"}
    assert sorted(state.name.lower() for state in states(tmp_path)) == sorted(r["state"] for r in found.values())
    complete = [record for record in found.values() if record["state"] == "complete"]
    assert winner["params"]["x"] == max(record["params"]["x"] for record in complete)
    assert all(len(record["folds"]) == 3 for record in complete)
    # A finished study takes no trial and gives the same answer.
    assert run_study(judge, SPACE, FOLDS, config, tmp_path, {}) == winner


def test_a_trial_that_raises_is_failed_with_its_words_and_the_others_go_on(ray_cluster: None, tmp_path: Path) -> None:
    points = ({"x": 0.9}, {"x": 0.1})
    config = StudyConfig(trials=2, concurrency=1, cpus_per_trial=0.5, retries=0, start_points=points)
    winner = run_study(judge, SPACE, FOLDS, config, tmp_path, {"fail_above": 0.5})
    assert winner["params"] == {"x": 0.1}
    (failed,) = [record for record in records(tmp_path) if record["state"] == "failed"]
    assert "x must stay below 0.5" in failed["error"]
    assert states(tmp_path) == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_study_in_which_every_trial_fails_says_why(ray_cluster: None, tmp_path: Path) -> None:
    config = StudyConfig(trials=1, concurrency=1, cpus_per_trial=0.5, retries=0)
    with pytest.raises(StudyError, match="x must stay below -1"):
        run_study(judge, SPACE, FOLDS, config, tmp_path, {"fail_above": -1})


def test_an_objective_that_no_fold_has_ends_the_study_in_its_own_words(ray_cluster: None, tmp_path: Path) -> None:
    config = StudyConfig(trials=1, objective="angular_error_deg", cpus_per_trial=0.5)
    with pytest.raises(
        StudyError, match=r"^the objective must be a score of every fold, but 1 has no angular_error_deg"
    ):
        run_study(judge, SPACE, FOLDS, config, tmp_path, {})


def test_a_full_disk_stops_the_study_and_the_trial_that_met_it_goes_on_later(ray_cluster: None, tmp_path: Path) -> None:
    config = StudyConfig(trials=2, concurrency=1, cpus_per_trial=0.5, retries=0, grace_folds=3)
    with pytest.raises(StorageError, match=r"^trials: the disk is full$"):
        run_study(judge, SPACE, FOLDS, config, tmp_path, {"full_at": "2"})
    (met,) = records(tmp_path)
    assert met["state"] == "running" and met["folds"].keys() == {"1"}
    run_study(judge, SPACE, FOLDS, config, tmp_path, {})
    assert states(tmp_path) == [TrialState.COMPLETE] * 2
    computed = sorted(path.parent.name for path in tmp_path.glob("trials/*/fold_*/computed"))
    assert computed == [f"fold_{fold}" for fold in "112233"]


DRIVER = """
import sys
from pathlib import Path
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.study import Range, StudyConfig
from mien.platform.tune import run_study
sys.path.insert(0, {tests!r})
from test_tune import FOLDS, SPACE, judge
import ray.cloudpickle, test_tune
ray.cloudpickle.register_pickle_by_value(test_tune)
with connect(ClusterConfig(num_cpus=2, object_store_gib=0.2)):
    config = StudyConfig(trials=4, concurrency=2, grace_folds=3)
    run_study(judge, SPACE, FOLDS, config, Path({folder!r}), {{"seconds": 0.7}})
"""


def test_a_killed_driver_loses_no_trial_and_repeats_none(processes: Any, tmp_path: Path) -> None:
    program = DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def folds_done() -> int:
        return len(list(tmp_path.glob("trials/*/fold_*/scores.json")))

    driver = start()
    until = time.monotonic() + 90
    while folds_done() < 4 and time.monotonic() < until:
        assert driver.poll() is None, driver.communicate()[1]
        time.sleep(0.05)
    started = processes.living(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=30)
    processes.end(processes.wait_until_gone(started, 10) and started)
    before = {path: path.read_text() for path in tmp_path.glob("trials/*/fold_*/scores.json")}
    assert 4 <= len(before) < 12

    driver = start()
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == 0, errors
    assert states(tmp_path) == [TrialState.COMPLETE] * 4
    assert len(records(tmp_path)) == 4
    assert {path: path.read_text() for path in before} == before
    # What was finished was computed once; what was under way when the driver died, at most twice.
    for path in before:
        assert (path.parent / "computed").read_text() == "once\n"
    again = [path for path in tmp_path.glob("trials/*/fold_*/computed") if path.read_text() != "once\n"]
    assert len(again) <= 2
