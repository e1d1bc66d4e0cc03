"""A training run in its folder: restore, loop, log, checkpoint; with one process or many, with or without Ray.

The run folder is the truth. A run begins at its newest whole checkpoint, so whoever starts it again, after a crash, a
kill or Ctrl-C, goes on with the same steps on the same clips and ends with the same weights.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mien.platform import checkpoint
from mien.platform.loop import Batch, LoopConfig, LoopState, start, train
from mien.platform.optim import OptimConfig, lr_at
from mien.platform.progress import progress
from mien.platform.run import Interrupt, Run


def device_here() -> torch.device:
    """Return the device that a run in this process uses."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_schedule(optim: OptimConfig, config: LoopConfig, num_clips: int, *, ema: bool = False) -> None:
    """Raise ValueError for a schedule that cannot be, while there is no run folder that belongs to it.

    With `ema` the moving average of the weights is to be judged, so there must be one.
    """
    if ema and config.ema_decay is None:
        raise ValueError("evaluate_ema judges the weights' moving average, but there is none: set loop.ema_decay=0.999")
    lr_at(0, config.total_steps(num_clips), config.steps_per_epoch(num_clips), optim, config.batch_size)


def run_training(
    task: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    optim: OptimConfig,
    config: LoopConfig,
    run: Run,
    *,
    num_clips: int,
    about: Mapping[str, Any],
    rank: int = 0,
    world: int = 1,
    label: str = "training",
    commit: Callable[[Path], None] | None = None,
    watch: Callable[[int], None] | None = None,
    interrupt: Interrupt | None = None,
) -> LoopState:
    """Train `task`, on its device and not wrapped, to its last step; return the state, its weights in place.

    `batches(step)` gives this worker's share of every global batch from a step on. Rank 0 writes: records, checkpoints
    (with `about`, plain data that says what the model is) and progress. `commit` is called by every rank after each
    checkpoint, with its path; `watch` with 0 before the first step, and after each before its checkpoint, so that what
    it logs of a step that was not saved comes again. Raises KeyboardInterrupt, with the state kept, after `interrupt`
    was asked.
    """
    state = start(task, config, optim)
    newest = checkpoint.newest(run.checkpoints)
    if newest is not None:
        checkpoint.restore(newest, task, state)
    if rank == 0:
        run.truncate_after(state.step or -1, state.step * config.batch_size)  # what was watched at 0 comes again too
        if state.step:
            print(f"going on from {newest}", flush=True)
    if watch is not None and state.step == 0:
        watch(0)
    total = config.total_steps(num_clips)
    wrapped = DistributedDataParallel(task) if world > 1 else task
    stream = batches(state.step) if state.step < total else ()
    with progress(label, total, "steps", done=state.step, quiet=rank > 0) as bar:
        for record in train(wrapped, state, stream, config, optim, num_clips=num_clips, rank=rank):
            step, last = state.step, state.step == total
            stopping = interrupt is not None and interrupt.asked
            if rank == 0:
                bar.advance(loss=record["loss"], lr=record["lr"])
                if step == 1 or step % config.log_every == 0 or last:
                    run.log(record)
            if watch is not None:
                watch(step)
            if step % config.checkpoint_every == 0 or last or stopping:
                if rank == 0:
                    checkpoint.save(run.checkpoints, step, task, state, about)
                if commit is not None:
                    commit(run.checkpoints / f"step_{step:08d}")
            if stopping and not last:
                raise KeyboardInterrupt
    return state
