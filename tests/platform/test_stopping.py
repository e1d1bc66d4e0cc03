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
STEPS = 10
GO_ON = "go on"  # a file of the study, without which no fold comes past its half
CONFIG = StudyConfig(trials=2, concurrency=2, cpus_per_trial=0.5, grace_folds=2, retries=0)


def judge(params: dict[str, Any], fold: str, folder: Path, context: Any) -> dict[str, float]:
    """Train as `run_training` does, by steps, of which each is noted; its state is the last one that was saved."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "saved"
    step = int(saved.read_text()) if saved.exists() else 0
    while step < STEPS:
        step += 1
        with (folder / "steps").open("a") as file:
            file.write(f"{step}\n")
        if context.get("terminated_at") == step and not (folder / "told").exists():
            (folder / "told").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        if step == STEPS // 2 and not (folder.parents[2] / GO_ON).exists():
            wait_until_told()
            if context.get("lost") and not saved.exists():
                saved.write_text("0")
                os.kill(os.getpid(), signal.SIGKILL)
        if interrupt.TOLD.asked or interrupt.TOLD.save:
            saved.write_text(str(step))
            interrupt.TOLD.save = False
        if interrupt.TOLD.asked:
            raise interrupt.TOLD.error()
    return {"uar": params["x"]}


def wait_until_told() -> None:
    until = time.monotonic() + 200
    while not interrupt.TOLD.asked and time.monotonic() < until:
        time.sleep(0.02)


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
    run_study(test_stopping.judge, test_stopping.SPACE, test_stopping.FOLDS, test_stopping.CONFIG, folder, {{}})
"""


@pytest.mark.ray
def test_a_study_that_gets_sigterm_lets_its_folds_save_and_no_step_is_made_twice(
    ray_cluster: None, processes: Any, tmp_path: Path
) -> None:
    program = [sys.executable, "-c", DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))]
    with subprocess.Popen(program, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as driver:
        try:
            until = time.monotonic() + 200
            while sum(map(len, steps(tmp_path).values())) < STEPS and time.monotonic() < until:  # two halves
                time.sleep(0.05)
            started = processes.living(driver.pid)
            driver.send_signal(signal.SIGTERM)
            said = driver.communicate(timeout=100)[0]
        finally:
            driver.kill()
    assert driver.returncode == 143 and "SIGTERM: the folds save their state" in said, said
    assert "resume with: the same command" in said and "Traceback" not in said
    assert not processes.wait_until_gone(started, 30)
    assert list(steps(tmp_path).values()) == [list(range(1, STEPS // 2 + 1))] * 2
    (tmp_path / GO_ON).touch()
    run_study(judge, SPACE, FOLDS, CONFIG, tmp_path, {})
    assert list(steps(tmp_path).values()) == [list(range(1, STEPS + 1))] * 4
    assert states(tmp_path) == ["complete"] * 2


@pytest.mark.ray
def test_a_process_that_is_lost_while_the_study_stops_is_no_failure_of_its_trial(
    ray_cluster: None, tmp_path: Path
) -> None:
    """As when a machine shuts down; nor does what told one session to stop tell the next, whatever was tidied up."""
    threading.Thread(target=tell_when_half, args=(tmp_path,), daemon=True).start()
    config = StudyConfig(trials=1, cpus_per_trial=0.5, retries=0)
    (tmp_path / "tune" / "session_001").mkdir(parents=True)
    with pytest.raises(interrupt.Terminated):
        run_study(judge, SPACE, FOLDS, config, tmp_path, {"lost": True})
    assert states(tmp_path) == ["running"] and (tmp_path / "tune" / "session_002" / "stop").exists()
    (tmp_path / "tune" / "session_001").rmdir()
    (tmp_path / GO_ON).touch()
    run_study(judge, SPACE, FOLDS, config, tmp_path, {})
    assert states(tmp_path) == ["complete"]


def tell_when_half(study: Path) -> None:
    """Send this process SIGTERM once a fold has come to its half."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if any(len(made) >= STEPS // 2 for made in steps(study).values()):
            return os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)


def states(study: Path) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in study.glob("trials/*/trial.json")]


@pytest.mark.ray
def test_a_folds_process_that_gets_sigterm_saves_and_the_trial_goes_on_without_a_new_start(
    ray_cluster: None, tmp_path: Path
) -> None:
    (tmp_path / GO_ON).touch()
    config = StudyConfig(trials=1, cpus_per_trial=0.5, retries=0)
    run_study(judge, SPACE, FOLDS, config, tmp_path, {"terminated_at": 7})
    assert len(list(tmp_path.glob("trials/*/fold_*/told"))) == 2
    assert list(steps(tmp_path).values()) == [list(range(1, STEPS + 1))] * 2


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


@pytest.mark.parametrize("once_more", [Stopping.check, Stopping.ask])
def test_folds_that_do_not_save_in_time_or_before_a_second_sigterm_are_not_waited_for(
    once_more: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = Stopping(tmp_path / "session" / "stop", grace_seconds=60)
    stopping.check()
    stopping.ask()
    assert stopping.file.exists() and "the folds save" in capsys.readouterr().err
    stopping.check()
    if once_more is Stopping.check:
        stopping.until = time.monotonic() - 1
    with pytest.raises(interrupt.Terminated):
        once_more(stopping)
