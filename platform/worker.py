"""What runs in each of Ray Train's worker processes: who it is, what it is told from outside, how it ends.

A worker is told to save its state when its node is to be drained (Ray knows the deadline: `ray drain-node`, or what a
cloud says before it takes a spot machine back) and when its process gets SIGTERM, which then ends it; Ray starts the
workers again where there is room. It is told to save and stop by a file that the driver writes. One worker that hears
of it is enough: `run_training` makes all of them act after the same step.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.v2._internal.execution.callback import WorkerGroupCallback  # reaches the workers' main threads
from ray.train.v2._internal.execution.context import get_train_context  # the public word is a wait for all workers

from mien.platform import gauges
from mien.platform.interrupt import TOLD, Interrupt, Notice
from mien.platform.storage import StorageError, write_whole
from mien.platform.watchdog import Pulse, forget

Worker = Callable[[dict[str, Any]], None]
FAILURE = "failure.json"
STOP = "stop"  # the driver's file
LISTEN_SECONDS = 1.0
LEAVE_SECONDS = 60.0  # that a process which got SIGTERM has for its checkpoint
COMMIT_SECONDS = 60.0


class WorkerError(ValueError):
    """What a worker raised for a user to put right; starting again would not help."""


@dataclass(frozen=True)
class Here:
    """Who a worker is, and what it is told."""

    rank: int
    world: int
    device: torch.device
    folder: Path
    interrupt: Interrupt

    def told(self) -> dict[str, Any]:
        """Return what `run_training` is to know of it."""
        return {"rank": self.rank, "world": self.world, "commit": self.commit, "interrupt": self.interrupt}

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
    """Return who this worker is; to be called in a worker of `trainer.fit`."""
    context = ray.train.get_context()
    folder = Path(context.get_storage().experiment_fs_path)
    return Here(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), folder, TOLD)


def serve(worker: Worker, config: dict[str, Any], folder: Path, silence_seconds: float) -> dict[str, str]:
    """Run the worker, telling that it was started; return what no new start would put right, or that it was stopped."""
    context, failure = ray.train.get_context(), folder / FAILURE
    if failure.is_file():
        raise WorkerError(json.loads(failure.read_text(encoding="utf-8"))["error"])
    if (folder / STOP).exists():
        return {"stopped": "before it began"}
    ended = threading.Event()
    if context.get_world_rank() == 0:
        forget(folder, context.get_world_size())
    pulse = Pulse(folder, context.get_world_rank(), silence_seconds)
    threading.Thread(target=listen, args=(folder, ended, pulse), daemon=True).start()
    try:
        write_whole(folder / f"started_{context.get_world_rank()}", "")
        worker(config)
    except KeyboardInterrupt:  # by `Interrupt`, with the state kept
        return {"stopped": "after a checkpoint"}
    except (ValueError, StorageError) as error:
        # Of one worker the words can be the result, which needs no place on a disk that may be full. Others would
        # wait for this one in vain, so among several it has to fail, and Ray starts them all to hear it again.
        if context.get_world_size() == 1:
            return {"error": str(error)}
        write_whole(failure, json.dumps({"error": str(error)}) + "\n")
        raise
    finally:
        ended.set()
    return {}


def listen(folder: Path, ended: threading.Event, pulse: Pulse) -> None:
    """Hear of the driver's wish to stop and of the end of a worker's node, and see that steps go on, until the end."""
    notice = Notice()
    while not ended.wait(LISTEN_SECONDS):
        pulse.look(TOLD.steps)
        if (folder / STOP).exists():
            TOLD.stop()
        info = get_train_context().preemption_context.preemption_info
        if info is not None:
            notice.hear(", ".join(info.preempted_node_ids), info.deadline_ms)


class Reach(WorkerGroupCallback):
    """Lets SIGTERM reach each worker's process, only its main thread can, and counts how often they were started."""

    def __init__(self, run: str) -> None:
        self.run, self.started = run, False

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray in its controller, before the training starts."""
        worker_group.execute(save_on_sigterm)
        if self.started:
            gauges.count("restarts", run=self.run)
        self.started = True


def save_on_sigterm() -> None:
    """Make SIGTERM save the state of the run before it ends this process, in its main thread."""
    before = signal.getsignal(signal.SIGTERM)

    def told(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)  # a second one ends it at once
        TOLD.save = True
        print("SIGTERM: saving, then this worker ends", flush=True)
        threading.Thread(target=leave, daemon=True).start()

    signal.signal(signal.SIGTERM, told)


def leave() -> None:
    """End this process once its state is saved; what Ray would do first could wait for the other workers."""
    until = time.monotonic() + LEAVE_SECONDS
    while TOLD.save and time.monotonic() < until:
        time.sleep(0.05)
    os._exit(143)
