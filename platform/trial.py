"""A trial in the cluster: an actor that shows its configuration, and a task for each fold that shows which one it is.

Ray's dashboard has no tab for trials but lists actors and tasks by name, so a study is found there: the actor is
`trial 0007 alpha=0.31 lr=0.002`, its work `trial 0007 alpha=0.31 lr=0.002 fold 3/5`. The actor only waits; each fold's
task holds the trial's device and CPUs, in a process of its own. So a device's memory is free again after every fold,
and the actor needs neither PyTorch nor the study. A task whose process is lost is not repeated by itself: the trial has
failed, and Tune starts it again.

A fold saves its state when its node is to be drained. It saves it and ends when its process gets SIGTERM, as it does
from `ray stop`, or the driver has written the file `stop`; the same fold then goes on from that step.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray._private.state import state  # what Ray Train asks for nodes that are to be drained
from ray.exceptions import RayTaskError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mien.platform import gauges
from mien.platform.interrupt import TOLD, Notice, Terminated, on_sigterm
from mien.platform.storage import write_whole

if TYPE_CHECKING:  # the actor needs no PyTorch
    from mien.platform.study import StudyConfig

PREFIX = "scores/"  # of the fold's scores among what Tune adds to a result
# What a fold's task has that only waits for its workers. A share of a CPU, however small, would leave no whole one for
# the last of them on a node that is full.
WAITING = {"memory": 2**20}
LISTEN_SECONDS = 1.0
DRAIN_SECONDS = 5.0  # between two looks for a node's end, which ask the head
STOPPED = "stopped"  # in a result: the fold has not ended
NAMED = 2  # searched settings in a trial's name; trial.json has all


class Trial(tune.Trainable):
    """One configuration: each step judges a fold; the driver stops it after the last one or when it is pruned."""

    def setup(
        self,
        config: dict[str, Any],
        work: Sequence[ray.ObjectRef] = (),
        folds: Sequence[str] = (),
        folder: str = "",
        resources: Mapping[str, float] | None = None,
        trainer: Mapping[str, Any] | None = None,
        stop: str = "",
    ) -> None:
        """Begin before the first fold; `work` holds a reference to (judge, context), which only the folds open.

        `stop` is a file: once the driver has written it, folds save their state and end.
        """
        (self.work,), self.folds, self.folder, self.resources = work, folds, Path(folder), dict(resources or {})
        self.trainer, self.stop_file = trainer, stop
        self.number = 0

    def step(self) -> dict[str, Any]:
        """Judge the next fold; return its scores. One that was judged before gives what is in its folder.

        One that was told to stop is `stopped` and comes again.
        """
        began, fold, group = time.monotonic(), self.folds[self.number], get_current_placement_group()
        assert group is not None, "Tune gives every trial a placement group"
        if Path(self.stop_file).exists():
            return {"fold": fold, STOPPED: True, "fold_seconds": 0.0}
        self.number += 1
        task = ray.remote(judge_fold).options(
            name=f"{self!r} fold {told(fold, self.number, len(self.folds))}",
            num_cpus=self.resources.get("CPU", 0),
            num_gpus=self.resources.get("GPU", 0),
            memory=self.resources.get("memory", 0),
            max_retries=0,
            # What the fold itself starts has resources of its own.
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=False),
        )
        name = f"{self.folder.name} {self!r}"
        try:
            scores = ray.get(
                task.remote([self.work], self.config, fold, str(self.folder), name, self.trainer, self.stop_file)
            )
        except RayTaskError as error:
            raise error.cause from None  # what the fold raised, as if it had been raised here
        if scores is None:
            self.number -= 1
            return {"fold": fold, STOPPED: True, "fold_seconds": time.monotonic() - began}
        numbers = {f"{PREFIX}{key}": float(value) for key, value in scores.items()}
        return {"fold": fold, **numbers, "fold_seconds": time.monotonic() - began}

    def __repr__(self) -> str:
        return named(self.config["number"], self.config["params"])


def judge_fold(
    work: Sequence[ray.ObjectRef],
    config: dict[str, Any],
    fold: str,
    folder: str,
    name: str,
    trainer: Mapping[str, Any] | None,
    stop: str,
) -> dict[str, float] | None:
    """Judge one fold of a configuration, here or on workers, saying so in this task's log.

    Returns its scores, or None after it was told to stop, with its state saved.
    """
    place = Path(folder) / "trials" / config["id"] / f"fold_{fold}"
    gauges.belong(study=Path(folder).name, trial=f"{config['number']:04}")
    print(f"{name} fold {fold}: in {place}, {config['params']}", flush=True)
    began, ended = time.monotonic(), threading.Event()
    TOLD.asked = TOLD.save = TOLD.terminated = False  # a process may have judged another fold before
    listener = threading.Thread(target=listen, args=(Path(stop), ended), daemon=True)
    with on_sigterm(TOLD.stop):
        listener.start()
        try:
            if trainer is None:
                judge, context = ray.get(work[0])
                scores = dict(judge(config["params"], fold, place, context))
            else:
                scores = judge_together(work, config["params"], fold, place, trainer, name)
        except Terminated:
            print(f"{name} fold {fold}: told to stop; took {time.monotonic() - began:.0f} s", flush=True)
            return None
        finally:
            ended.set()
            listener.join(DRAIN_SECONDS)  # else its signal could reach the process when nothing hears it any more
    told = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
    print(f"{name} fold {fold}: {told}; took {time.monotonic() - began:.0f} s", flush=True)
    return scores


def listen(stop: Path, ended: threading.Event) -> None:
    """Hear of the driver's wish to stop, and that this node will be taken away, until the fold has ended."""
    here, notice, asked = ray.get_runtime_context().get_node_id(), Notice(), 0.0
    while not ended.wait(LISTEN_SECONDS):
        if stop.exists():
            os.kill(os.getpid(), signal.SIGTERM)  # whoever trains here, this task or its workers, hears of it so
            ended.wait(DRAIN_SECONDS)
        elif time.monotonic() - asked > DRAIN_SECONDS:
            asked = time.monotonic()
            if (deadline := state.get_draining_nodes().get(here)) is not None:
                notice.hear(here, deadline)


def judge_together(
    work: Sequence[ray.ObjectRef],
    params: dict[str, Any],
    fold: str,
    place: Path,
    settings: Mapping[str, Any],
    label: str,
) -> dict[str, float]:
    """Judge one fold on several workers; each calls the judge, and the first one's scores count."""
    from mien.platform import trainer  # only a trial of several workers needs it, and PyTorch with it

    answer = place / "ray" / "scores.json"  # in what each start makes anew

    def worker(config: dict[str, Any]) -> None:
        judge, context = ray.get(work[0])
        at = trainer.here()
        scores = judge(config["params"], config["fold"], place, context, at)
        if at.rank == 0:
            write_whole(answer, json.dumps({key: float(value) for key, value in scores.items()}))

    config = trainer.TrainerConfig.model_validate(dict(settings))
    trainer.fit(worker, {"params": params, "fold": fold}, config, place, data_cpus=0, label=label)
    found: dict[str, float] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def named(number: int, params: Mapping[str, Any]) -> str:
    """Return a trial's name: its number and its first settings, such as `trial 0007 alpha=0.31 lr=0.002`."""
    first = list(params.items())[:NAMED]
    values = (f"{value:.3g}" if isinstance(value, float) else str(value) for _, value in first)
    keys = (key.rpartition(".")[2] for key, _ in first)
    return " ".join([f"trial {number:04}", *(f"{key}={value}" for key, value in zip(keys, values, strict=True))])


def told(fold: str, number: int, count: int) -> str:
    """Return which fold it is of how many: `3/5`, or `dfew_3 (3/10)` where it is not called by its number."""
    return f"{number}/{count}" if fold == str(number) else f"{fold} ({number}/{count})"


def trainable(
    judge: Any, context: Any, folds: Sequence[str], folder: Path, config: "StudyConfig", stop: Path
) -> type[Trial]:
    """Return what Tune starts once a trial; `judge` and `context` travel by Ray's object store."""
    resources = {"CPU": config.cpus_per_trial} | ({"GPU": config.gpus_per_trial} if config.gpus_per_trial else {})
    trainer = None
    if config.workers_per_trial > 1:
        trainer = {
            "workers": config.workers_per_trial,
            "cpus_per_worker": config.cpus_per_trial,
            "gpu": config.gpus_per_trial > 0,
            "max_failures": config.retries,
            "grace_seconds": config.grace_seconds,
        }
        resources = dict(WAITING)
    made = tune.with_parameters(
        Trial,
        work=[ray.put((judge, context))],
        folds=list(folds),
        folder=str(folder),
        resources=resources,
        trainer=trainer,
        stop=str(stop),
    )
    # The first bundle is the actor's, and empty: the fold's task takes what is there.
    made = tune.with_resources(made, tune.PlacementGroupFactory([{}, resources]))
    made.__name__ = made.__qualname__ = Trial.__name__  # the dashboard's column of classes
    return made
