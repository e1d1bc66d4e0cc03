"""A study on a Ray cluster: Ray Tune runs the trials, the book of the study (`study.py`) decides which and how long.

A trial (`trial.py`) judges fold after fold, each a task on one device or a share of it. Ray Tune asks our searcher for
configurations and our scheduler whether to go on; both only pass the question to the book, whose state is on disk. So
a driver that was killed needs nothing of Tune's own state (which is pickled): the same command opens the book again,
trials that were running go on from their last fold, and inside a fold from its checkpoint. SIGTERM lets the folds save
one first (`ray job stop` kills after RAY_JOB_STOP_WAIT_TIME_S, 3 seconds). A disk that is full stops the study and
leaves the trials that met it running, so they go on as well.
"""

import errno
import itertools
import logging
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from ray import tune
from ray.tune import Callback, TuneError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from sqlalchemy.exc import SQLAlchemyError

from mien.platform import cluster, gauges
from mien.platform.interrupt import Terminated, end_now, on_sigterm
from mien.platform.space import Space
from mien.platform.storage import StorageError, explain, free_bytes, storing
from mien.platform.study import Record, Study, StudyConfig, StudyError
from mien.platform.trial import PREFIX, STOPPED, trainable

# judge(params, fold, folder, context) -> scores; called in the trial's process, and again with the same folder after a
# loss, where it must go on from what it left there and give the same scores. With study.workers_per_trial each worker
# calls judge(params, fold, folder, context, here), and the first one's scores count.
Judge = Callable[..., Mapping[str, float]]
FULL_BYTES = 2**18  # free space below which a database that fails has met a full disk
FRAMES = re.compile(r"(?m)^  File .*\n(?:    .*\n)*")  # of a stack in an error's text


def run_study(
    judge: Judge,
    space: Space,
    folds: Sequence[str],
    config: StudyConfig,
    output: Path,
    context: Any = None,
    on_change: Callable[[list[Record]], None] | None = None,
) -> Record:
    """Run the study in `output`, or what is left of it, on the connected cluster; return its winner.

    `folds` are names, judged in this order; `context` goes to every trial by Ray's object store. `on_change` hears all
    records whenever one changes. `output` must be seen by all nodes. Raises StudyError when no trial was completed, and
    StorageError when the disk is full.
    """
    output = output.absolute()
    with database_on(output):
        book = Study(output, space, folds, config, on_change)
        run_trials(judge, book, context)
        return book.winner()


def run_trials(judge: Judge, book: Study, context: Any) -> None:
    """Run the trials that are left of a study."""
    config, output = book.config, book.folder
    if left := book.left():
        at_once = concurrency(config)
        sessions = output / "tune"
        names = (f"session_{number:03d}" for number in itertools.count(1))
        name = next(name for name in names if not (sessions / name).exists())  # none whose `stop` is there
        stopping = Stopping(sessions / name / "stop", config.grace_seconds)
        tuner = tune.Tuner(
            trainable(judge, context, book.folds, output, config, stopping.file),
            tune_config=tune.TuneConfig(
                search_alg=Asker(book, stopping),
                scheduler=Pruner(book, stopping),
                num_samples=left,
                max_concurrent_trials=at_once,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(sessions),
                failure_config=tune.FailureConfig(max_failures=config.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a fold keeps its own
                callbacks=[Mourner(book, stopping)],
                verbose=0,
            ),
        )
        # What a trial raised is in its record; Tune would print it here with its whole stack, twice.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        try:
            with on_sigterm(stopping.ask):
                tuner.fit()
            if stopping.asked and book.left():
                raise Terminated
        except TuneError as error:  # of ours, raised in a callback, Tune keeps the words and a stack
            cause = error.__context__
            while cause is not None and not isinstance(cause, StorageError | StudyError):
                cause = cause.__context__
            raise cause or error from None


def concurrency(config: StudyConfig) -> int:
    """Return how many trials run at a time; raises ClusterError where none can."""
    workers = config.workers_per_trial
    fits = partial(
        cluster.trials_at_once,
        cpus_per_trial=config.cpus_per_trial,
        gpus_per_trial=config.gpus_per_trial,
        workers=workers,
    )
    if workers == 1:
        return config.concurrency or fits()
    # What a trial's workers take is not known to Tune, which would start trials that wait for one another.
    cluster.check_dashboard()
    if config.gpus_per_trial not in (0, 1):
        raise StudyError(
            f"a worker of a trial has a GPU or none, but study.gpus_per_trial={config.gpus_per_trial:g} with "
            f"workers_per_trial={workers}; set it to 0 or 1"
        )
    return min(config.concurrency or fits(), fits())


@contextmanager
def database_on(folder: Path) -> Iterator[None]:
    """Turn what Optuna's database says of a disk that is full, or fails, into a StorageError."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        code = errno.ENOSPC if free_bytes(folder) < FULL_BYTES else errno.EIO
        raise StorageError(code, explain(folder, OSError(code, str(error).splitlines()[0]), None)) from error


class Unsaved:
    """What Tune may pickle with its own state but never needs back: the book is on disk."""

    book: Study
    stopping: "Stopping"

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Asker(Unsaved, Searcher):
    """Gives Tune the book's next configuration."""

    def __init__(self, book: Study, stopping: "Stopping") -> None:
        super().__init__(metric="fold_seconds", mode="min")
        self.book, self.stopping = book, stopping

    def suggest(self, trial_id: str) -> Any:
        """Return the next configuration, or that there is none."""
        record = None if self.stopping.asked else self.book.next()
        return Searcher.FINISHED if record is None else {name: record[name] for name in ("id", "number", "params")}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the scheduler has told the book."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the book is on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the book is on disk."""


class Pruner(Unsaved, FIFOScheduler):
    """Tells the book each fold's scores, and Tune whether the trial goes on."""

    def __init__(self, book: Study, stopping: "Stopping") -> None:
        super().__init__()
        self.book, self.stopping = book, stopping

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Return STOP once the trial is complete or pruned, or the study is to stop."""
        if result.get(STOPPED):
            return TrialScheduler.STOP if self.stopping.asked else TrialScheduler.CONTINUE
        scores = {name[len(PREFIX) :]: value for name, value in result.items() if name.startswith(PREFIX)}
        ended = self.book.fold_done(trial.config["id"], result["fold"], scores, result["fold_seconds"])
        show_gauges(self.book, trial.config["id"])
        return TrialScheduler.STOP if ended or self.stopping.asked else TrialScheduler.CONTINUE


class Mourner(Unsaved, Callback):
    """Writes down what a trial raised, once Tune will not try it again, and counts how often it did."""

    def __init__(self, book: Study, stopping: "Stopping") -> None:
        self.book, self.stopping = book, stopping

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End the study when its folds have had their time to save."""
        self.stopping.check()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Count that a trial is started again."""
        gauges.count("restarts", study=self.book.folder.name, trial=f"{trial.config['number']:04}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Keep the words of the error that Tune wrote to the trial's own file; a disk that is full ends the study."""
        file = Path(trial.error_file) if trial.error_file else None
        words = said(file.read_text(encoding="utf-8")) if file and file.is_file() else ""
        kind, _, message = words.partition(": ")
        if kind.endswith(f".{StorageError.__name__}"):
            raise StorageError(errno.EIO, message)
        if self.stopping.asked:  # with a machine that shuts down, processes are lost; the trial goes on like the others
            return
        self.book.failed(trial.config["id"], words or "its process was lost; see Ray's logs")
        show_gauges(self.book, trial.config["id"])


class Stopping:
    """SIGTERM to a study: running folds save their state and end, no other begins, and Tune comes to its end."""

    def __init__(self, file: Path, grace_seconds: float) -> None:
        self.file, self.grace_seconds = file, grace_seconds
        self.asked, self.until = False, math.inf

    def ask(self) -> None:
        """Tell the folds; asked again, end at once."""
        if self.asked:
            end_now()
        self.asked, self.until = True, time.monotonic() + self.grace_seconds
        with storing(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch()
        print("\nSIGTERM: the folds save their state", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Raise Terminated when the time is over."""
        if time.monotonic() > self.until:
            end_now()


def show_gauges(book: Study, identity: str) -> None:
    """Set the gauges of a trial to its record, and those of its study."""
    study, record = book.folder.name, book.records[identity]
    means = {f"trial_{name}": value for name, value in record["mean"].items()}
    gauges.show(means | {"trial_folds": len(record["folds"])}, study=study, trial=f"{record['number']:04}")
    states = Counter(other["state"] for other in book.records.values())
    for state in ("running", "complete", "pruned", "failed"):
        gauges.show({"trials": states[state]}, study=study, state=state)


def said(text: str) -> str:
    """Return what stands after the last stack of an error's text: its kind and words, of several lines perhaps."""
    return FRAMES.split(text)[-1].strip()
