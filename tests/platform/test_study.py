"""The book of a study: what Optuna is told, what is kept, and that a killed driver loses and repeats nothing."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState

from mien.platform.space import Choice, Range
from mien.platform.storage import write_whole
from mien.platform.study import Study, StudyConfig, StudyError

SPACE = {
    "alpha": Range(low=0.1, high=10, log=True),
    "depth": Range(low=1, high=3, whole=True),
    "kind": Choice(values=("a", "b")),
}
FOLDS = ("1", "2", "3")


def book(folder: Path, **settings: Any) -> Study:
    return Study(folder, SPACE, FOLDS, StudyConfig(**{"trials": 6, "grace_folds": 3, **settings}))


def score(record: dict[str, Any]) -> float:
    return 1 / (1 + abs(record["params"]["alpha"] - 1))


def judge(study: Study, record: dict[str, Any], folds: tuple[str, ...] = FOLDS) -> bool:
    """Report folds until the study says that the trial has ended."""
    return any(
        study.fold_done(record["id"], fold, {"uar": score(record), "angular_error_deg": 9.0}, 1.0) for fold in folds
    )


def finish(study: Study) -> None:
    while (record := study.next()) is not None:
        assert judge(study, record)


def loaded(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")


def test_a_study_runs_its_trials_and_optunas_tools_read_them(tmp_path: Path) -> None:
    study = book(tmp_path)
    finish(study)
    assert study.left() == 0
    trials = loaded(tmp_path).trials
    assert loaded(tmp_path).metric_names == ["uar"]  # as optuna-dashboard calls its axes
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    for trial in trials:
        record = json.loads((tmp_path / "trials" / trial.user_attrs["id"] / "trial.json").read_text())
        assert record["params"] == trial.params
        assert record["state"] == "complete" and record["seconds"] == 3.0
        assert trial.value == pytest.approx(record["mean"]["uar"])
        assert trial.intermediate_values.keys() == {1, 2, 3}


def test_the_winner_is_the_best_complete_mean(tmp_path: Path) -> None:
    study = book(tmp_path)
    finish(study)
    winner = study.winner()
    assert winner == json.loads((tmp_path / "winner.json").read_text())
    assert winner["value"] == max(record["mean"]["uar"] for record in study.records.values())


def test_of_equals_the_first_wins_also_after_a_restart(tmp_path: Path) -> None:
    study = book(tmp_path)
    while (record := study.next()) is not None:
        for fold in FOLDS:
            study.fold_done(record["id"], fold, {"uar": 0.5}, 1.0)
    winner = study.winner()
    assert study.records[winner["trial"]]["number"] == 0
    assert book(tmp_path).winner() == winner


def test_a_pruned_trial_is_pruned_for_optuna_too_and_never_wins(tmp_path: Path) -> None:
    study = book(tmp_path, trials=12, grace_folds=1)
    finish(study)
    states = {record["state"] for record in study.records.values()}
    assert states == {"complete", "pruned"}
    for trial in loaded(tmp_path).trials:
        record = study.records[trial.user_attrs["id"]]
        assert trial.state.name.lower() == record["state"]
        if record["state"] == "pruned":
            assert 1 <= len(record["folds"]) < 3 and trial.intermediate_values
    assert study.records[study.winner()["trial"]]["state"] == "complete"


def test_a_killed_driver_goes_on_with_what_ran_and_repeats_nothing(tmp_path: Path) -> None:
    study = book(tmp_path)
    first = study.next()
    assert first is not None and judge(study, first)
    second = study.next()
    assert second is not None
    study.fold_done(second["id"], "1", {"uar": 0.5, "angular_error_deg": 9.0}, 1.0)
    third = study.next()
    assert third is not None
    again = book(tmp_path)  # the driver is gone, and nothing was closed
    assert again.left() == 5
    assert [again.next(), again.next()] == [
        second | {"mean": {"uar": 0.5, "angular_error_deg": 9.0}, "seconds": 1.0},
        third,
    ]
    # Folds that are reported again, from their records, count once.
    assert not again.fold_done(second["id"], "1", {"uar": 0.1, "angular_error_deg": 9.0}, 1.0)
    for record in (second, third):
        judge(again, record)
    finish(again)
    assert len(loaded(tmp_path).trials) == 6
    assert again.records[second["id"]]["folds"]["1"]["uar"] == 0.5
    assert len({record["id"] for record in again.records.values()}) == 6


def test_a_driver_killed_before_it_told_optuna_tells_it_later(tmp_path: Path) -> None:
    study = book(tmp_path)
    record = study.next()
    assert record is not None
    done = record | {"state": "complete", "folds": {fold: {"uar": 0.5} for fold in FOLDS}, "mean": {"uar": 0.5}}
    (tmp_path / "trials" / record["id"] / "trial.json").write_text(json.dumps(done))
    again = book(tmp_path)
    assert loaded(tmp_path).trials[0].value == 0.5
    assert again.left() == 5


def test_suggestions_are_the_same_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = book(tmp_path / "whole", startup_trials=2)
    finish(whole)
    for _ in range(6):
        broken = book(tmp_path / "broken", startup_trials=2)
        record = broken.next()
        assert record is not None and judge(broken, record)
    assert whole.records.keys() == broken.records.keys()


def test_a_configuration_suggested_twice_is_not_run_twice(tmp_path: Path) -> None:
    config = StudyConfig(trials=8, grace_folds=3)
    study = Study(tmp_path, {"kind": Choice(values=("a", "b"))}, FOLDS, config)
    run = 0
    while (record := study.next()) is not None:
        run += 1
        for fold in FOLDS:
            study.fold_done(record["id"], fold, {"uar": 0.5}, 1.0)
    assert run == 2
    assert [trial.value for trial in loaded(tmp_path).trials] == [0.5] * 8


def test_start_points_come_first(tmp_path: Path) -> None:
    study = book(tmp_path, start_points=({"alpha": 1.0, "depth": 2, "kind": "b"}, {"alpha": 2.0}))
    first, second = study.next(), study.next()
    assert first is not None and first["params"] == {"alpha": 1.0, "depth": 2, "kind": "b"}
    assert second is not None and second["params"]["alpha"] == 2.0


def test_a_failed_trial_is_kept_with_its_error_and_the_study_goes_on(tmp_path: Path) -> None:
    study = book(tmp_path, trials=2)
    record = study.next()
    assert record is not None
    study.failed(record["id"], "out of memory")
    assert study.records[record["id"]]["error"] == "out of memory"
    finish(study)
    assert [trial.state for trial in loaded(tmp_path).trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_study_in_which_all_fails_says_why(tmp_path: Path) -> None:
    study = book(tmp_path, trials=1)
    record = study.next()
    assert record is not None
    study.failed(record["id"], "out of memory")
    with pytest.raises(StudyError, match="out of memory"):
        study.winner()


class Killed(BaseException):
    """The driver's death."""


@pytest.mark.parametrize("write", [2, 8, 13, 15, 17, 21])
def test_killed_at_any_write_it_ends_with_the_same_trials(
    write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path) -> set[str]:
        study = book(folder, trials=2, start_points=({"alpha": 1.0},))
        finish(study)
        assert [trial.state for trial in loaded(folder).trials] == [TrialState.COMPLETE] * 2
        return set(study.records)

    left = [10**9]

    def counted(function: Any) -> Any:
        def write_or_die(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return function(*arguments, **options)

        return write_or_die

    # Everything that Optuna and we bring to the disk, in the middle of a suggestion too.
    for name in ("create_new_trial", "set_trial_param", "set_trial_user_attr", "set_trial_intermediate_value"):
        monkeypatch.setattr(_CachedStorage, name, counted(getattr(_CachedStorage, name)))
    monkeypatch.setattr(_CachedStorage, "set_trial_state_values", counted(_CachedStorage.set_trial_state_values))
    monkeypatch.setattr("mien.platform.study.write_whole", counted(write_whole))

    whole = run(tmp_path / "whole")
    assert 10**9 - left[0] > 21
    left[0] = write
    with pytest.raises(Killed):
        run(tmp_path / "killed")
    assert run(tmp_path / "killed") == whole


def test_two_objectives_make_a_front_and_its_knee_wins(tmp_path: Path) -> None:
    study = book(tmp_path, trials=8, objective=("uar", "angular_error_deg"))
    while (record := study.next()) is not None:
        alpha = record["params"]["alpha"]
        for fold in FOLDS:
            study.fold_done(record["id"], fold, {"uar": alpha / (1 + alpha), "angular_error_deg": 5 + alpha}, 1.0)
    winner = study.winner()
    # More alpha is always better for one and worse for the other, so all are on the front.
    assert len(winner["front"]) == 8
    alphas = sorted(record["params"]["alpha"] for record in study.records.values())
    assert alphas[0] < winner["params"]["alpha"] < alphas[-1]
    assert len(loaded(tmp_path).best_trials) == 8


def test_an_objective_that_no_fold_has_is_an_error(tmp_path: Path) -> None:
    study = book(tmp_path)
    record = study.next()
    assert record is not None
    with pytest.raises(StudyError, match="has no uar"):
        study.fold_done(record["id"], "1", {"war": 0.5}, 1.0)


def test_a_range_must_have_ends_in_order() -> None:
    with pytest.raises(ValueError, match="low must be below high"):
        Range(low=0, high=1, log=True)


def weights(study: Study, record: dict[str, Any]) -> Path:
    folder = study.folder / "trials" / record["id"] / "fold_1" / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("keep", ["front", "all"])
def test_only_trials_that_may_still_win_keep_their_weights_unless_all_are_to(tmp_path: Path, keep: str) -> None:
    study = book(tmp_path, keep=keep)
    places: dict[str, Path] = {}
    while (record := study.next()) is not None:
        places[record["id"]] = weights(study, record)
        assert judge(study, record)
        best = max((one for one in study.records.values()), key=score)
        kept = {identity for identity, place in places.items() if place.exists()}
        assert kept == ({best["id"]} if keep == "front" else set(places))
    assert places[study.winner()["trial"]].exists()


def test_a_front_keeps_the_weights_of_all_that_stand_on_it(tmp_path: Path) -> None:
    study = book(tmp_path, objective=("uar", "angular_error_deg"), trials=3)
    places = {}
    for uar, degrees in ((0.9, 20.0), (0.5, 10.0), (0.4, 15.0)):
        record = study.next()
        assert record is not None
        places[uar] = weights(study, record)
        for fold in FOLDS:
            study.fold_done(record["id"], fold, {"uar": uar, "angular_error_deg": degrees}, 1.0)
    assert {uar for uar, place in places.items() if place.exists()} == {0.9, 0.5}


def test_weights_that_a_lost_process_left_behind_go_with_the_winner(tmp_path: Path) -> None:
    study = book(tmp_path, trials=2)
    finish(study)
    winner = study.winner()["trial"]
    late = {record["id"]: weights(study, record) for record in study.records.values()}
    book(tmp_path, trials=2).winner()
    assert [identity for identity, place in late.items() if place.exists()] == [winner]
