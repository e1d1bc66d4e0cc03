"""A study: configurations judged over folds, their records, and what Optuna is told of them.

A trial is one configuration over all folds. After each fold its running mean goes to Optuna, whose successive halving
(ASHA: Li et al. 2020) may prune it; a fold's scores are the same whoever else runs, so partial means are honest. The
state is two things on disk, `study.db` (Optuna's own tools open it) and `trials/<id>/trial.json`, and every change is
written before the next. So a study that was killed is opened again and goes on; nothing is unpickled.

A trial's id is a hash of its configuration and seed. A configuration that Optuna suggests twice is not run twice: the
second one is told what the first one got.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import TrialState
from pydantic import BaseModel, Field

from mien.platform import pareto
from mien.platform.run import Run
from mien.platform.space import Space
from mien.platform.storage import storing, write_whole
from mien.platform.study_storage import OnlyWriter

Objective = Literal["uar", "war", "angular_error_deg"]
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "uar": "maximize",
    "war": "maximize",
    "angular_error_deg": "minimize",
}
Record = dict[str, Any]


class StudyConfig(BaseModel, frozen=True, extra="forbid"):
    """How many configurations are judged, by what, and with which resources."""

    trials: int = Field(20, ge=1, description="configurations, those pruned and failed included")
    objective: Objective | tuple[Objective, ...] = Field(
        "uar", description="validation score to optimise, the mean over folds; two make a Pareto front"
    )
    grace_folds: int = Field(1, ge=1, description="folds before a trial may be pruned")
    reduction_factor: int = Field(3, ge=2, description="one in so many goes on at each rung of successive halving")
    startup_trials: int = Field(10, ge=0, description="random configurations before the sampler (TPE) learns from them")
    start_points: tuple[dict[str, Any], ...] = Field((), description="configurations tried first; may be partial")
    seed: int = Field(0, ge=0, description="seed of the sampler")
    concurrency: int | None = Field(None, ge=1, description="trials at a time; null: as many as the cluster holds")
    cpus_per_trial: float = Field(1, gt=0, description="CPUs of a trial, of each of its workers")
    gpus_per_trial: float = Field(0, ge=0, description="GPUs of a trial, of each worker; a fraction shares one")
    workers_per_trial: int = Field(
        1,
        ge=1,
        description="processes that share each batch of a trial, one device each, where one is too small or too slow; "
        "more than 1 takes some 20 seconds a fold to start, and needs Ray's dashboard (cluster.dashboard=true)",
    )
    keep: Literal["front", "all"] = Field(
        "front",
        description="whose weights are kept: those of trials that may still win (the winner or its front), or all",
    )
    retries: int = Field(1, ge=0, description="times that a trial goes on after its process was lost")
    grace_seconds: float = Field(60.0, gt=0, description="that folds have to save their state after SIGTERM")

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives as a tuple, also where there is one."""
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)


class StudyError(ValueError):
    """A study that cannot go on or has no result."""


class Study:
    """The driver's book of a study; only the driver writes in it."""

    def __init__(
        self,
        folder: Path,
        space: Space,
        folds: Sequence[str],
        config: StudyConfig,
        on_change: Callable[[list[Record]], None] | None = None,
    ) -> None:
        """Open the study in `folder`, or make it; `folds` are the names of what a trial is judged on, in order."""
        self.folder, self.folds, self.config = folder, list(folds), config
        self.distributions = {key: entry.distribution() for key, entry in space.items()}
        self._on_change = on_change
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with storing(folder):
            (folder / "trials").mkdir(parents=True, exist_ok=True)
        self.optuna = optuna.create_study(
            storage=OnlyWriter(f"sqlite:///{folder.absolute() / 'study.db'}"),
            study_name=folder.absolute().name,
            directions=[DIRECTIONS[name] for name in config.objectives],
            pruner=optuna.pruners.SuccessiveHalvingPruner(config.grace_folds, config.reduction_factor, 0),
            load_if_exists=True,
        )
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            self.optuna.set_metric_names(list(config.objectives))  # as optuna-dashboard calls its axes
        for point in config.start_points:
            self.optuna.enqueue_trial(point, skip_if_exists=True)
        self.records: dict[str, Record] = {}
        for path in sorted((folder / "trials").glob("*/trial.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            self.records[record["id"]] = record
        self._running: set[str] = set()
        self._holding = set(self.records)  # whose weights may be there
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            record = self.records.get(trial.user_attrs.get("id", ""))
            if record is not None and record["state"] != "running":  # killed between our record and telling Optuna
                self._tell(trial.number, record)

    def left(self) -> int:
        """Return how many trials are still to be run or to be finished."""
        begun = self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return max(self.config.trials - self._asked(), 0) + len(begun)

    def next(self) -> Record | None:
        """Return the record of the next trial to run, first of those a killed driver left; None when all are given."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            record = self.records.get(trial.user_attrs.get("id", ""))
            if record is None:  # killed while Optuna answered, perhaps after half of the answer
                record = self._record(self._suggest(optuna.trial.Trial(self.optuna, trial._trial_id)))
            if record["id"] not in self._running:
                return self._begin(record)
        while self._asked() < self.config.trials:
            asked = self._suggest(self.optuna.ask())
            same = self.records.get(self._id(asked.params))
            if same is None:
                return self._begin(self._record(asked))
            self._tell(asked.number, same)
        return None

    def fold_done(self, identity: str, fold: str, scores: Mapping[str, float], seconds: float) -> bool:
        """Write down a fold's scores; return whether the trial has ended, because it is complete or is pruned."""
        record = self.records[identity]
        if fold not in record["folds"]:
            record["folds"][fold] = dict(scores)
            record["seconds"] += seconds
            names = [name for name in scores if all(name in other for other in record["folds"].values())]
            done = list(record["folds"].values())
            record["mean"] = {name: sum(other[name] for other in done) / len(done) for name in names}
            absent = [name for name in self.config.objectives if name not in record["mean"]]
            if absent:
                raise StudyError(f"the objective must be a score of every fold, but {fold} has no {', '.join(absent)}")
            if len(self.config.objectives) == 1:
                told = self.optuna.get_trials(deepcopy=False)[record["number"]]
                trial = optuna.trial.Trial(self.optuna, told._trial_id)
                if len(done) not in told.intermediate_values:  # else killed between telling Optuna and our record
                    trial.report(record["mean"][self.config.objectives[0]], step=len(done))
                if len(done) < len(self.folds) and trial.should_prune():
                    return self._end(record, "pruned")
            if len(done) == len(self.folds):
                return self._end(record, "complete")
            self._write(record)
        return bool(record["state"] != "running")

    def failed(self, identity: str, error: str) -> None:
        """Write down that a trial raised an error."""
        record = self.records[identity]
        if record["state"] == "running":
            self._end(record | {"error": error}, "failed")

    def winner(self) -> Record:
        """Write and return winner.json: the complete trial with the best mean or, of a front, its knee.

        The knee is the trial nearest to the best of every objective, each scaled to the range it has on the front.
        """
        if not self._points():
            errors = sorted({str(record["error"]) for record in self.records.values() if record["error"]})
            raise StudyError(f"no trial of {self.folder} was completed; errors: {'; '.join(errors) or 'none'}")
        names, points = self.config.objectives, self._points()
        best = self.records[pareto.knee(points)]
        result = {
            "trial": best["id"],
            "params": best["params"],
            "objective": list(names) if len(names) > 1 else names[0],
            "value": [best["mean"][name] for name in names] if len(names) > 1 else best["mean"][names[0]],
            "front": pareto.front(points),
        }
        write_whole(self.folder / "winner.json", json.dumps(result, indent=1) + "\n")
        if self.config.keep == "front":
            self._holding = set(self.records)  # what a pruned trial's process wrote in its last moment goes too
            self._clear()
        return result

    def _points(self) -> dict[str, list[float]]:
        """Return what each complete trial reached, larger better, by its id.

        In the order of their numbers, so that of equals the first wins, also after a restart.
        """
        signs = {name: 1.0 if DIRECTIONS[name] == "maximize" else -1.0 for name in self.config.objectives}
        return {
            record["id"]: [sign * record["mean"][name] for name, sign in signs.items()]
            for record in self._in_order()
            if record["state"] == "complete"
        }

    def _clear(self) -> None:
        """Remove the weights of ended trials that cannot win any more; their records and predictions stay."""
        ended = {identity for identity in self._holding if self.records[identity]["state"] != "running"}
        best = pareto.front({identity: point for identity, point in self._points().items() if identity in ended})
        for identity in ended.difference(best):
            for weights in (self.folder / "trials" / identity).glob("fold_*/checkpoints"):
                shutil.rmtree(weights, ignore_errors=True)
            self._holding.discard(identity)

    def _asked(self) -> int:
        trials = self.optuna.get_trials(deepcopy=False)
        return sum(trial.state != TrialState.WAITING for trial in trials)

    def _suggest(self, trial: optuna.trial.Trial) -> optuna.trial.Trial:
        """Give a trial every parameter that it does not have yet, and its id."""
        for name, distribution in self.distributions.items():
            # A new generator each time: a suggestion then follows from the trials before, also after a restart.
            seed = hashlib.blake2b(f"{self.config.seed} {trial.number} {name}".encode(), digest_size=4).digest()
            self.optuna.sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.config.startup_trials, seed=int.from_bytes(seed, "big")
            )
            trial._suggest(name, distribution)
        trial.set_user_attr("id", self._id(trial.params))
        return trial

    def _id(self, params: Mapping[str, Any]) -> str:
        text = json.dumps([dict(sorted(params.items())), self.config.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def _record(self, trial: optuna.trial.Trial | optuna.trial.FrozenTrial) -> Record:
        return {
            "id": self._id(trial.params),
            "number": trial.number,
            "params": dict(trial.params),
            "state": "running",
            "folds": {},
            "mean": {},
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "ended": None,
            "seconds": 0.0,
            "error": None,
        }

    def _begin(self, record: Record) -> Record:
        self._running.add(record["id"])
        self._holding.add(record["id"])
        self._write(record)
        return record

    def _end(self, record: Record, state: str) -> bool:
        record = record | {"state": state, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
        self._write(record)
        self._tell(record["number"], record)
        with Run(self.folder / "trials" / record["id"]) as run:
            run.hparams(record["params"], record["mean"])
        if self.config.keep == "front":
            self._clear()
        return True

    def _write(self, record: Record) -> None:
        self.records[record["id"]] = record
        folder = self.folder / "trials" / record["id"]
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "trial.json", json.dumps(record, indent=1) + "\n")
        if self._on_change is not None:
            self._on_change(self._in_order())

    def _in_order(self) -> list[Record]:
        return sorted(self.records.values(), key=lambda record: record["number"])

    def _tell(self, number: int, record: Record) -> None:
        """Tell Optuna how a trial ended; of one that repeats a running one, that it failed."""
        if record["state"] == "complete":
            self.optuna.tell(number, [record["mean"][name] for name in self.config.objectives])
        else:
            self.optuna.tell(number, state=TrialState.PRUNED if record["state"] == "pruned" else TrialState.FAIL)
