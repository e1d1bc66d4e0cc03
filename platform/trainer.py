"""A worker function on N workers, by Ray Train.

The worker builds its task and calls `run_training`; here it learns who it is and registers its checkpoints. The run
folder is the truth: Ray's own folder below it, `ray/`, holds pointers to our checkpoints and is made anew by every
driver, so a driver that was killed leaves nothing that could be read wrongly. A worker or node that is lost makes Ray
start all workers again, and they begin at the newest checkpoint; an error of ours (a ValueError, a full disk) ends the
run at once, in its own words.

On a machine of two CPUs one worker takes one and a data task the other; `fit` refuses what would leave none.
"""

import json
import os
import shutil
import signal
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
import torch
from pydantic import BaseModel, Field
from ray._private.state import actors  # the public list of actors needs a dashboard

from mien.platform import checkpoint, cluster
from mien.platform.progress import progress
from mien.platform.run import config_hash
from mien.platform.storage import StorageError, storing, write_whole

# Type checkers see version 1 of Ray Train here; its version 2 is what runs.
RunConfig: Any = ray.train.RunConfig
TorchTrainer: Any = ray.train.torch.TorchTrainer
Worker = Callable[[dict[str, Any]], None]
FAILURE = "failure.json"
ENDING_SECONDS = 10  # that a controller which was killed is waited for
POLL_SECONDS = 0.5
COMMIT_SECONDS = 60.0


class TrainerConfig(BaseModel, frozen=True, extra="forbid"):
    """The workers of a training run."""

    workers: int = Field(1, ge=1, description="processes that share each batch, one device each")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray counts for a worker; data tasks need some too")
    gpu: bool | None = Field(None, description="whether a worker takes a GPU; null: if the cluster has any")
    max_failures: int = Field(2, ge=0, description="times that lost workers are started again")
    start_seconds: float = Field(300.0, gt=0, description="longest wait for the workers to start; then an error")
    network: str | None = Field(
        None, description="network interface between hosts (eth0), where gloo or NCCL picks a wrong one"
    )


class TrainerError(ValueError):
    """The workers could not be started or were lost too often."""


class WorkerError(ValueError):
    """What a worker raised for a user to put right; starting again would not help."""


@dataclass(frozen=True)
class Here:
    """Who a worker is."""

    rank: int
    world: int
    device: torch.device
    folder: Path

    def commit(self, path: Path) -> None:
        """Register a checkpoint with Ray before going on; every worker calls it after each checkpoint."""
        step = int(path.name.removeprefix("step_"))
        pointer = None
        if self.rank == 0:
            folder = self.folder / path.name
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "pointer.json", json.dumps({"checkpoint": str(path)}) + "\n")
            pointer = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, pointer, checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD)
        if self.rank == 0:
            ray.train.get_all_reported_checkpoints(
                consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED, timeout_s=COMMIT_SECONDS
            )


def here() -> Here:
    """Return who this worker is; to be called in a worker of `fit`."""
    context = ray.train.get_context()
    folder = Path(context.get_storage().experiment_fs_path)
    return Here(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), folder)


def fit(
    worker: Worker,
    config: dict[str, Any],
    trainer: TrainerConfig,
    output: Path,
    *,
    total_steps: int,
    data_cpus: float = 1.0,
    label: str = "training",
) -> None:
    """Run `worker(config)` on every worker of the connected cluster until it returns, and show how it advances.

    `config` is plain data and `output` the run folder, which all nodes see; progress is read from its records.
    `data_cpus` are those of one data task of the workers' streams, 0 if they have none. Raises ClusterError if they
    cannot all run, WorkerError with the words of a worker's ValueError or StorageError, and TrainerError for
    anything else.
    """
    gpu = ray.cluster_resources().get("GPU", 0) > 0 if trainer.gpu is None else trainer.gpu
    cluster.check_workers(
        workers=trainer.workers,
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
        _guarded(worker, folder),
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=trainer.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": trainer.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=trainer.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": network} if network else None,
        ),
    )
    failed = None
    said: str | None = None
    future = _started(made)
    try:
        said = _follow(future, output, folder, trainer, total_steps, label).return_value
    except ray.train.TrainingFailedError as error:
        failed = error
    except KeyboardInterrupt:
        _end_controller()
        wait([future], timeout=ENDING_SECONDS)
        raise
    if (folder / FAILURE).is_file():
        said = json.loads((folder / FAILURE).read_text(encoding="utf-8"))["error"]
    if said is not None:
        raise WorkerError(said)
    if failed is not None:
        raise TrainerError(
            f"training stopped after {trainer.max_failures} new start(s) of its workers (trainer.max_failures); the "
            f"same command goes on from the newest checkpoint in {output}. The last error:\n{failed}"
        ) from failed


def _guarded(worker: Worker, folder: Path) -> Callable[[dict[str, Any]], str | None]:
    """Return the worker, telling that it was started and what it raised that no new start would put right."""

    def run(config: dict[str, Any]) -> str | None:
        context, failure = ray.train.get_context(), folder / FAILURE
        if failure.is_file():
            raise WorkerError(json.loads(failure.read_text(encoding="utf-8"))["error"])
        try:
            write_whole(folder / f"started_{context.get_world_rank()}", "")
            worker(config)
        except (ValueError, StorageError) as error:
            # Of one worker the words can be the result, which needs no place on a disk that may be full. Others would
            # wait for this one in vain, so among several it has to fail, and Ray starts them all to hear it again.
            if context.get_world_size() == 1:
                return str(error)
            write_whole(failure, json.dumps({"error": str(error)}) + "\n")
            raise
        return None

    return run


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
    """Kill this job's controller, which runs on this node, so that the thread which waits for it comes out of Ray.

    Whoever still waits inside Ray when it is shut down ends the whole process, at once and with exit code 1.
    """
    here = ray.get_runtime_context()
    for actor in actors().values():
        ours = actor["JobID"] == here.get_job_id() and actor["Address"]["NodeID"] == here.get_node_id()
        if ours and actor["State"] == "ALIVE" and "TrainController" in actor["ActorClassName"]:
            with suppress(ProcessLookupError):
                os.kill(actor["Pid"], signal.SIGKILL)


def _follow(
    future: "Future[Any]", output: Path, folder: Path, trainer: TrainerConfig, total_steps: int, label: str
) -> Any:
    """Wait for the result, showing the records that rank 0 writes; raise what ended the run."""
    began, started, tail = time.monotonic(), False, Tail(output / "metrics.jsonl")
    there = checkpoint.steps(output / "checkpoints")
    with progress(label, total_steps, "steps", done=int(there[-1].name.removeprefix("step_")) if there else 0) as bar:
        while not future.done():
            started = started or len(list(folder.glob("started_*"))) >= trainer.workers
            if not started and time.monotonic() - began > trainer.start_seconds:
                raise TrainerError(
                    f"{trainer.workers} worker(s) must start within trainer.start_seconds={trainer.start_seconds:g}, "
                    f"but {len(list(folder.glob('started_*')))} did. Something else may hold the cluster: it has "
                    f"{cluster.describe()}, of which {ray.available_resources().get('CPU', 0):g} CPUs and "
                    f"{ray.available_resources().get('GPU', 0):g} GPUs are free"
                )
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
