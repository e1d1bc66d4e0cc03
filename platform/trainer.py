"""A worker function on N workers, by Ray Train.

The worker builds its task and calls `run_training`; here it learns who it is and registers its checkpoints. The run
folder is the truth: Ray's own folder below it, `ray/`, holds pointers to our checkpoints and is made anew by every
driver, so a driver that was killed leaves nothing that could be read wrongly. A worker or node that is lost makes Ray
start all workers again, and they begin at the newest checkpoint; an error of ours (a ValueError, a full disk) ends the
run at once, in its own words. SIGTERM makes the workers save their state before the program ends (`worker.py`).

With `workers=[1, 4]` a lost node costs its workers only, and more are started when there is room; each start begins at
the newest checkpoint. What is learned stays the same: the batch is the global one whatever their number, in the same
order, and so are the schedules. Only what a worker draws by itself (dropout, masks) follows its number.

On a machine of two CPUs one worker takes one and a data task the other; `fit` refuses what would leave none.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from pydantic import BaseModel, Field, model_validator
from ray._private.state import jobs, state  # the public lists need a dashboard
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]

from mien.platform import checkpoint, cluster
from mien.platform.interrupt import Interrupt, Terminated, on_sigterm
from mien.platform.progress import progress
from mien.platform.run import config_hash
from mien.platform.storage import storing
from mien.platform.watchdog import Watchdog
from mien.platform.worker import FAILURE, STOP, Here, Reach, Worker, WorkerError, here, serve

__all__ = ["Here", "Worker", "WorkerError", "here"]  # what programs take from here beside `fit`

# Type checkers see version 1 of Ray Train here; its version 2 is what runs.
RunConfig: Any = ray.train.RunConfig
ScalingConfig: Any = ray.train.ScalingConfig
TorchTrainer: Any = ray.train.torch.TorchTrainer
ENDING_SECONDS = 10  # that a controller which was killed is waited for
POLL_SECONDS = 0.5


class TrainerConfig(BaseModel, frozen=True, extra="forbid"):
    """The workers of a training run."""

    workers: int | tuple[int, int] = Field(
        1,
        description="processes that share each batch, one device each; [1, 4]: as many as there is room for, fewer "
        "when a node is lost and more when one comes. loop.batch_size, their order and the learning rate stay as they "
        "are: a worker takes its part of the batch, and its gradient counts by its clips",
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray counts for a worker; data tasks need some too")
    gpu: bool | None = Field(None, description="whether a worker takes a GPU; null: if the cluster has any")
    max_failures: int = Field(2, ge=0, description="times that lost workers are started again")
    resize_seconds: float = Field(60.0, gt=0, description="from one look for room for more workers to the next")
    grace_seconds: float = Field(60.0, gt=0, description="that workers have to save their state after SIGTERM")
    start_seconds: float = Field(300.0, gt=0, description="longest wait for the workers to start; then an error")
    silence_seconds: float = Field(
        1800.0, gt=0, description="longest time without a step, sheets and probes between two included; then an error"
    )
    network: str | None = Field(
        None, description="network interface between hosts (eth0), where gloo or NCCL picks a wrong one"
    )

    @model_validator(mode="after")
    def _some_workers(self) -> "TrainerConfig":
        if not 1 <= self.fewest <= self.most:
            raise ValueError(f"workers must be 1 or more, or [fewest, most], but got {self.workers}")
        return self

    @property
    def fewest(self) -> int:
        """Workers that a run goes on with."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """Workers that a run takes."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class TrainerError(ValueError):
    """The workers could not be started or were lost too often."""


def takes_gpus(trainer: TrainerConfig) -> bool:
    """Return whether the workers take a GPU each on the connected cluster."""
    return ray.cluster_resources().get("GPU", 0) > 0 if trainer.gpu is None else trainer.gpu


def fit(
    worker: Worker,
    config: dict[str, Any],
    trainer: TrainerConfig,
    output: Path,
    *,
    total_steps: int | None = None,
    data_cpus: float = 1.0,
    label: str = "training",
) -> None:
    """Run `worker(config)` on every worker of the connected cluster until it returns, and show how it advances.

    `config` is plain data and `output` the run folder, which all nodes see; progress is read from its records.
    `data_cpus` are those of one data task of the workers' streams, 0 if they have none. Raises ClusterError if they
    cannot all run, WorkerError with the words of a worker's ValueError or StorageError, and else TrainerError.
    """
    gpu = takes_gpus(trainer)
    cluster.check_workers(
        workers=_possible(trainer, gpu),
        cpus_per_worker=trainer.cpus_per_worker,
        gpus_per_worker=float(gpu),
        data_cpus=data_cpus,
    )
    output = output.absolute()
    folder = output / "ray" / f"{output.name}-{config_hash(config)}"
    with storing(output):
        shutil.rmtree(output / "ray", ignore_errors=True)
        folder.mkdir(parents=True)
    network = {key: trainer.network for key in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if trainer.network}
    made = TorchTrainer(
        _guarded(worker, folder, trainer.silence_seconds),
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=trainer.workers,
            elastic_resize_monitor_interval_s=trainer.resize_seconds,
            use_gpu=gpu,
            resources_per_worker={"CPU": trainer.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=trainer.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=[Reach(output.name)],
            worker_runtime_env={"env_vars": network} if network else None,
        ),
    )
    failed, asked = None, Interrupt()
    said: dict[str, str] = {}

    def stop() -> None:
        asked.asked = True
        print("\nSIGTERM: the workers save their state", file=sys.stderr, flush=True)
        (folder / STOP).touch()

    _end_orphans()
    future = _started(made)
    try:
        with on_sigterm(stop):
            said = _follow(future, output, folder, trainer, total_steps, label, asked).return_value or {}
    except ray.train.TrainingFailedError as error:
        failed = error
    except (KeyboardInterrupt, TrainerError):
        _end_controller()
        wait([future], timeout=ENDING_SECONDS)
        raise
    if asked.asked and (failed is not None or "stopped" in said):
        raise Terminated
    if (folder / FAILURE).is_file():
        said = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
    if "error" in said:
        raise WorkerError(said["error"])
    if failed is not None:
        raise TrainerError(
            f"training stopped after {trainer.max_failures} new start(s) of its workers (trainer.max_failures); the "
            f"same command goes on from the newest checkpoint in {output}. The last error:\n{failed}"
        ) from failed


def _guarded(worker: Worker, folder: Path, silence_seconds: float) -> Callable[[dict[str, Any]], dict[str, str]]:
    """Return the worker in what tells it and us what happens."""

    def run(config: dict[str, Any]) -> dict[str, str]:
        return serve(worker, config, folder, silence_seconds)

    return run


def _possible(trainer: TrainerConfig, gpu: bool) -> int:
    """Return how many workers Ray would start now."""
    for count in range(trainer.most, trainer.fewest, -1):
        resources = {"cpus_per_worker": trainer.cpus_per_worker, "gpus_per_worker": float(gpu)}
        if not cluster.worker_shortage(cluster.nodes(), workers=count, data_cpus=0, **resources):
            return count
    return trainer.fewest


def _started(made: Any) -> "Future[Any]":
    """Fit in a thread, because in the main one Ray would take Ctrl-C for itself."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(made.fit())
        except Exception as error:  # noqa: BLE001  (raised again by `result`, in the main thread)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _end_controller() -> None:
    """Kill this process's controller, and no other trial's, so that the thread which waits for it comes out of Ray.

    Whoever still waits inside Ray when it is shut down ends the whole process, at once and with exit code 1.
    """
    here = ray.get_runtime_context().get_worker_id()
    _end_actors("TrainController", lambda actor: actor.owner_address.worker_id.hex() == here)


def _end_orphans() -> None:
    """End what watched over the placement groups of drivers that were killed.

    It outlives its driver to free what that had reserved, asks the dashboard whether the controller is dead, and stays
    for ever where there is none. What a dead job had reserved, Ray itself has taken back by now.
    """
    dead = {job["JobID"] for job in jobs() if job["IsDead"]}
    _end_actors("PlacementGroupCleaner", lambda actor: actor.job_id.hex() in dead)


def _end_actors(kind: str, ours: Callable[[Any], bool]) -> None:
    """Kill those actors of a class that are on this node and ours."""
    here = ray.get_runtime_context().get_node_id()
    for actor in map(ActorTableData.FromString, state._connect_and_get_accessor().get_actor_table(None, "ALIVE")):
        if kind in actor.class_name and actor.address.node_id.hex() == here and ours(actor):
            with suppress(ProcessLookupError):
                os.kill(actor.pid, signal.SIGKILL)


def _follow(
    future: "Future[Any]",
    output: Path,
    folder: Path,
    trainer: TrainerConfig,
    total_steps: int | None,
    label: str,
    asked: Interrupt,
) -> Any:
    """Wait for the result, showing the records that rank 0 writes; raise what ended the run.

    Once it was `asked` to stop, raises KeyboardInterrupt after `trainer.grace_seconds`.
    """
    until: float | None = None
    began, started, tail = time.monotonic(), False, Tail(output / "metrics.jsonl")
    dog = Watchdog(folder, trainer.silence_seconds)
    there = checkpoint.steps(output / "checkpoints")
    with progress(label, total_steps, "steps", done=int(there[-1].name.removeprefix("step_")) if there else 0) as bar:
        while not future.done():
            started = started or len(list(folder.glob("started_*"))) >= trainer.fewest
            if not started and time.monotonic() - began > trainer.start_seconds:
                raise TrainerError(
                    f"{trainer.fewest} worker(s) must start within trainer.start_seconds={trainer.start_seconds:g}, "
                    f"but {len(list(folder.glob('started_*')))} did. Something else may hold the cluster: it has "
                    f"{cluster.describe()}, of which {ray.available_resources().get('CPU', 0):g} CPUs and "
                    f"{ray.available_resources().get('GPU', 0):g} GPUs are free"
                )
            if said := dog.silence():
                raise TrainerError(f"{said}. The same command goes on from the newest checkpoint in {output}")
            if asked.asked:
                until = until or time.monotonic() + trainer.grace_seconds
                if time.monotonic() > until:
                    raise Terminated
            wait([future], timeout=POLL_SECONDS)
            if started:
                for record in tail.records()[-1:]:
                    bar.advance(record["step"] - bar.done, loss=record.get("train/loss"), lr=record.get("train/lr"))
    return future.result()


@dataclass
class Tail:
    """Reads what is appended to a JSON-lines file; a file that took its place, as after a resume, is read anew."""

    path: Path
    inode: int = 0
    offset: int = 0

    def records(self) -> list[dict[str, Any]]:
        """Return the whole lines that are new."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            self.inode, self.offset = inode, self.offset if inode == self.inode else 0
            file.seek(self.offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self.offset += len(whole) + len(end)
        return [json.loads(line) for line in whole.splitlines()]
