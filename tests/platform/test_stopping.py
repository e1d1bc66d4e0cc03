"""A study or a fold that is told to stop saves what it has, and goes on from there."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from mien.platform import interrupt, trial
from mien.platform.interrupt import TOLD, Notice
from mien.platform.space import Range
from mien.platform.study import StudyConfig
from mien.platform.tune import Stopping, run_study

SPACE = {"x": Range(low=0, high=1)}
FOLDS = ("1", "2")
STEPS = 40


def judge(params: dict[str, Any], fold: str, folder: Path, context: Any) -> dict[str, float]:
    """Train as `run_training` does, by steps, of which each is noted; its state is the last one that was saved."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "saved"
    step = int(saved.read_text()) if saved.exists() else 0
    while step < STEPS:
        time.sleep(0.05)
        step += 1
        with (folder / "steps").open("a") as file:
            file.write(f"{step}\n")
        if context.get("terminated_at") == step and not (folder / "told").exists():
            (folder / "told").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        if interrupt.TOLD.asked or interrupt.TOLD.save:
            saved.write_text(str(step))
            interrupt.TOLD.save = False
        if interrupt.TOLD.asked:
            raise interrupt.TOLD.error()
    return {"uar": params["x"]}


def steps(folder: Path) -> dict[str, list[int]]:
    """Return the steps that were made of each fold, by its place."""
    return {
        str(path.parent.relative_to(folder)): [int(line) for line in path.read_text().split()]
        for path in folder.glob("trials/*/fold_*/steps")
    }


DRIVER = """
import sys
from pathlib import Path
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.run import Run, interruptible
from mien.platform.study import StudyConfig
from mien.platform.tune import run_study
sys.path.insert(0, {tests!r})
import ray.cloudpickle, test_stopping
ray.cloudpickle.register_pickle_by_value(test_stopping)
folder = Path({folder!r})
with interruptible(Run(folder), "the same command"), connect(ClusterConfig(num_cpus=2, object_store_gib=0.1)):
    config = StudyConfig(trials=2, concurrency=2, grace_folds=2, retries=0)
    run_study(test_stopping.judge, test_stopping.SPACE, test_stopping.FOLDS, config, folder, {{}})
"""


@pytest.mark.ray
def test_a_study_that_gets_sigterm_lets_its_folds_save_and_no_step_is_made_twice(
    processes: Any, tmp_path: Path
) -> None:
    program = [sys.executable, "-c", DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(program, text=True, **output) as driver:
        until = time.monotonic() + 200
        while not (len(steps(tmp_path)) == 2 and all(steps(tmp_path).values())) and time.monotonic() < until:
            time.sleep(0.05)
        started = processes.living(driver.pid)
        driver.send_signal(signal.SIGTERM)
        said = driver.communicate(timeout=100)[0]
    assert driver.returncode == 143 and "SIGTERM: the folds save their state" in said, said
    assert "resume with: the same command" in said and "Traceback" not in said, said
    assert not processes.wait_until_gone(started, 30)
    before = steps(tmp_path)
    assert len(before) == 2 and all(0 < len(made) < STEPS for made in before.values())
    again = subprocess.run(program, text=True, timeout=200, check=False, **output)
    assert again.returncode == 0, again.stdout
    assert len(steps(tmp_path)) == 4
    assert all(made == list(range(1, STEPS + 1)) for made in steps(tmp_path).values())
    records = [json.loads(path.read_text()) for path in tmp_path.glob("trials/*/trial.json")]
    assert [record["state"] for record in records] == ["complete"] * 2


@pytest.mark.ray
def test_a_folds_process_that_gets_sigterm_saves_and_the_trial_goes_on_without_a_new_start(
    ray_cluster: None, tmp_path: Path
) -> None:
    config = StudyConfig(trials=1, cpus_per_trial=0.5, retries=0)
    run_study(judge, SPACE, FOLDS, config, tmp_path, {"terminated_at": 7})
    assert len(list(tmp_path.glob("trials/*/fold_*/told"))) == 2
    assert [made == list(range(1, STEPS + 1)) for made in steps(tmp_path).values()] == [True, True]


@pytest.mark.ray
def test_a_fold_hears_that_its_node_will_be_taken_away(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ray.get_runtime_context().get_node_id()

    class Draining:
        def get_draining_nodes(self) -> dict[str, int]:
            return {"another": 0, here: 0}

    assert trial.state.get_draining_nodes() == {}  # Ray's own word, which the next line replaces
    monkeypatch.setattr(trial, "state", Draining())
    monkeypatch.setattr(trial, "LISTEN_SECONDS", 0.01)
    monkeypatch.setattr(TOLD, "save", False)
    ended = threading.Event()
    thread = threading.Thread(target=trial.listen, args=(tmp_path / "stop", ended))
    thread.start()
    until = time.monotonic() + 20
    while not TOLD.save and time.monotonic() < until:
        time.sleep(0.01)
    ended.set()
    thread.join()
    assert TOLD.save and not TOLD.asked
    assert capsys.readouterr().out == f"node(s) {here} will be taken away: saving\n"


def test_what_will_be_taken_away_saves_when_it_hears_of_it_and_once_more_near_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notice, saved = Notice(), []
    for seconds in (60, 50, 10, 5):
        monkeypatch.setattr(TOLD, "save", False)
        notice.hear("a", int((time.time() + seconds) * 1000))
        saved.append(TOLD.save)
    assert saved == [True, False, True, False]
    assert capsys.readouterr().out.count("node(s) a will be taken away, in ") == 2


def test_folds_that_do_not_save_in_time_are_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = Stopping(tmp_path / "session" / "stop", grace_seconds=0.05)
    stopping.check()
    stopping.ask()
    assert stopping.file.exists() and "the folds save" in capsys.readouterr().err
    stopping.check()
    time.sleep(0.1)
    with pytest.raises(interrupt.Terminated):
        stopping.check()
    with pytest.raises(interrupt.Terminated):
        stopping.ask()  # a second SIGTERM
