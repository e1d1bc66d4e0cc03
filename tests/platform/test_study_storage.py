"""The driver's view of its study's database: what it wrote itself it sees, and it reads no trial for nothing."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from mien.platform.study_storage import OnlyWriter


@pytest.fixture
def url(tmp_path: Path) -> str:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return f"sqlite:///{tmp_path / 'study.db'}"


def made(url: str) -> optuna.Study:
    pruner = optuna.pruners.SuccessiveHalvingPruner(1, 2, 0)
    return optuna.create_study(storage=OnlyWriter(url), study_name="a", pruner=pruner, load_if_exists=True)


def test_every_change_is_seen_here_as_another_process_sees_it(url: str) -> None:
    study = made(url)
    study.enqueue_trial({"x": 0.25})
    for number in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("id", f"id{number}")
        trial.report(0.5 + number, step=1)
        trial.should_prune()  # writes an attribute of Optuna's
        if number:
            study.tell(trial, 0.5 if number == 1 else None, TrialState.COMPLETE if number == 1 else TrialState.PRUNED)
        here = study.get_trials(deepcopy=False)
        elsewhere = optuna.load_study(study_name="a", storage=url).get_trials(deepcopy=False)
        assert here == elsewhere
        assert [trial.state for trial in study.get_trials(deepcopy=False)] == [trial.state for trial in elsewhere]
    # A driver that opens it again sees what the one before left.
    assert made(url).get_trials(deepcopy=False) == elsewhere


def test_running_trials_are_not_read_again_at_every_look(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = made(url)
    trials = [study.ask() for _ in range(20)]
    study.get_trials(deepcopy=False)
    read: list[Any] = []
    one, several = RDBStorage.get_trial, RDBStorage._get_trials

    def get_trial(storage: RDBStorage, trial_id: int) -> Any:
        read.append(trial_id)
        return one(storage, trial_id)

    def get_trials(storage: RDBStorage, *words: Any, **more: Any) -> Any:
        found = several(storage, *words, **more)
        read.extend(trial._trial_id for trial in found)
        return found

    monkeypatch.setattr(RDBStorage, "get_trial", get_trial)
    monkeypatch.setattr(RDBStorage, "_get_trials", get_trials)
    for _ in range(5):
        study.get_trials(deepcopy=False)
    assert read == []
    trials[7].set_user_attr("id", "a")
    read.clear()
    assert study.get_trials(deepcopy=False)[7].user_attrs == {"id": "a"}
    assert read == [trials[7]._trial_id]
