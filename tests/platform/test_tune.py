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
import ray
from optuna.trial import TrialState
from ray._private.state import state
from ray.core.generated.gcs_pb2 import ActorTableData

from mien.platform import cluster
from mien.platform.cluster import ClusterError
from mien.platform.space import Range
from mien.platform.storage import StorageError
from mien.platform.study import StudyConfig, StudyError
from mien.platform.tune import concurrency, run_study

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


def seen(params: dict[str, Any], fold: str, folder: Path, context: Any) -> dict[str, float]:
    """Write down what Ray calls this fold."""
    folder.mkdir(parents=True)
    (folder / "name").write_text(ray.get_runtime_context().get_task_name())
    return {"uar": 0.5}


def states(folder: Path) -> list[TrialState]:
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.state for trial in study.trials]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("trials/*/trial.json")]


def test_trials_of_several_workers_need_a_dashboard_and_run_no_more_at_a_time_than_fit(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StudyConfig(trials=1, workers_per_trial=2, cpus_per_trial=1)
    with pytest.raises(ClusterError, match=r"need Ray's dashboard.*cluster\.dashboard=true"):
        run_study(judge, SPACE, FOLDS, config, tmp_path, {})
    monkeypatch.setattr(cluster, "check_dashboard", lambda: None)
    assert concurrency(config) == 2  # of four CPUs
    assert concurrency(config.model_copy(update={"concurrency": 9})) == 2
    assert concurrency(config.model_copy(update={"concurrency": 1})) == 1
    with pytest.raises(ClusterError, match=r"trial of 5 workers .* 4 fit\. Lower study\.workers_per_trial"):
        concurrency(config.model_copy(update={"workers_per_trial": 5}))
    with pytest.raises(StudyError, match=r"gpus_per_trial=0\.5 with workers_per_trial=2; set it to 0 or 1"):
        concurrency(config.model_copy(update={"gpus_per_trial": 0.5}))


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


def test_trials_and_folds_are_called_by_their_settings_where_the_dashboard_shows_actors_and_tasks(
    ray_cluster: None, tmp_path: Path
) -> None:
    config = StudyConfig(trials=1, cpus_per_trial=0.5, start_points=({"x": 0.25},))
    run_study(seen, SPACE, ("1", "dfew_3"), config, tmp_path)
    names = [path.read_text() for path in sorted(tmp_path.glob("trials/*/fold_*/name"))]
    assert names == ["trial 0000 x=0.25 fold 1/2", "trial 0000 x=0.25 fold dfew_3 (2/2)"]
    # The dashboard's column; what it reads that from is asked here, because this cluster has none.
    rows = state._connect_and_get_accessor().get_actor_table(None, None)
    assert "trial 0000 x=0.25" in {ActorTableData.FromString(row).repr_name for row in rows}


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
from mien.platform.run import Run, interruptible
from mien.platform.space import Range
from mien.platform.study import StudyConfig
from mien.platform.tune import run_study
sys.path.insert(0, {tests!r})
from test_tune import FOLDS, SPACE, judge
import ray.cloudpickle, test_tune
ray.cloudpickle.register_pickle_by_value(test_tune)
folder = Path({folder!r})
kept, size = "finished folds are kept", ClusterConfig(num_cpus=2, object_store_gib=0.2)
with interruptible(Run(folder), "the same command", kept=kept), connect(size):
    config = StudyConfig(trials=4, concurrency=2, grace_folds=3)
    run_study(judge, SPACE, FOLDS, config, folder, {{"seconds": 0.7}})
"""


def test_a_driver_that_is_killed_and_one_that_gets_ctrl_c_lose_no_trial_and_repeat_none(
    processes: Any, tmp_path: Path
) -> None:
    program = [sys.executable, "-c", DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))]

    def done() -> dict[Path, str]:
        return {path: path.read_text() for path in tmp_path.glob("trials/*/fold_*/scores.json")}

    def stop(number: signal.Signals, folds: int) -> tuple[int, str]:
        """Start the program and send it a signal as soon as so many folds are done; return its exit code and words."""
        pipe = subprocess.PIPE
        driver = subprocess.Popen(program, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        until = time.monotonic() + 90
        while len(done()) < folds and time.monotonic() < until:
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.05)
        started = processes.living(driver.pid)
        # As a terminal does: Ctrl-C goes to the whole group. SIGKILL strikes the driver alone.
        (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
        said = driver.communicate(timeout=60)[0]
        processes.end(processes.wait_until_gone(started, 10) and started)
        return driver.returncode, said

    assert stop(signal.SIGKILL, folds=3)[0] == -signal.SIGKILL
    before = done()
    assert 3 <= len(before) < 10
    code, said = stop(signal.SIGINT, folds=len(before) + 2)
    assert code == 130 and "finished folds are kept" in said and "resume with: the same command" in said, said
    assert "Traceback" not in said
    assert before.items() <= done().items()
    before = done()
    assert len(before) < 12

    again = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert again.returncode == 0, again.stdout
    assert states(tmp_path) == [TrialState.COMPLETE] * 4
    assert len(records(tmp_path)) == 4
    assert before.items() <= done().items()
    # What was under way when the driver ended, two folds each time, was computed anew; all else once.
    computed = [path.read_text() for path in tmp_path.glob("trials/*/fold_*/computed")]
    assert len(computed) == 12 and sum(text.count("once") for text in computed) <= 12 + 2 * 2
