"""A training run in its folder: restore, loop, log, checkpoint; with one process or many, with or without Ray.

The run folder is the truth. A run begins at its newest whole checkpoint, so whoever starts it again, after a crash, a
kill or Ctrl-C, goes on with the same steps on the same clips and ends with the same weights.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mien.platform import checkpoint, gauges
from mien.platform.compiling import compile_blocks
from mien.platform.interrupt import Interrupt
from mien.platform.loop import Batch, LoopConfig, LoopState, device_of, start, train
from mien.platform.optim import OptimConfig, lr_at
from mien.platform.progress import progress
from mien.platform.run import Run
from mien.platform.saving import Saver
from mien.platform.used import Used


def device_here() -> torch.device:
    """Return the device that a run in this process uses."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def speed(record: Mapping[str, float], batch_size: int, task: nn.Module) -> dict[str, float]:
    """Return what a step's record says of the device, for gauges: clips a second, share of waiting, memory."""
    seconds = record["seconds"]
    found = {"clips_per_second": batch_size / seconds, "wait_ratio": record["wait_seconds"] / seconds}
    if device_of(task).type == "cuda":
        found["gpu_memory_bytes"] = torch.cuda.max_memory_reserved(device_of(task))
    return found


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
    (with `about`, plain data that says what the model is) and progress. `commit` is called by every rank for each
    checkpoint that is on the disk, with its path: of one that is written in the background, when the next is due.
    `watch` is called with 0 before the first step, and after each before its checkpoint, so that what it logs of a step
    that was not saved comes again. What `interrupt` asks of one rank, all do after the same step. Raises what it says,
    with the state kept, after it asked to stop.
    """
    state = start(task, config, optim)
    newest = checkpoint.newest(run.checkpoints)
    if newest is not None:
        checkpoint.restore(newest, task, state)
    told = compile_blocks(task, config.compile)
    if rank == 0 and config.compile != "off":
        print(told, flush=True)
    used = Used(run.output, rank) if config.record_clips else None
    if rank == 0:
        run.truncate_after(state.step or -1, state.step * config.batch_size)  # what was watched at 0 comes again too
        Used.truncate_after(run.output, state.step)
        if state.step:
            print(f"going on from {newest}", flush=True)
    if watch is not None and state.step == 0:
        watch(0)
    total = config.total_steps(num_clips)
    wrapped = DistributedDataParallel(task) if world > 1 else task
    stream = batches(state.step) if state.step < total else ()
    written: Path | None = None  # a checkpoint that is perhaps still being written, and not yet committed
    with (
        progress(label, total, "steps", done=state.step, quiet=rank > 0) as bar,
        Saver(run.checkpoints, about, background=config.save_in_background) as saver,
    ):
        clips = used.noted(stream) if used else stream
        for record in train(wrapped, state, clips, config, optim, num_clips=num_clips, rank=rank):
            step, last = state.step, state.step == total
            asked = agreed(interrupt, task, world)
            if interrupt is not None:
                interrupt.steps += 1
            if used:
                used.write(step)
            if rank == 0:
                saver.check()
                bar.advance(loss=record["loss"], lr=record["lr"])
                if step == 1 or step % config.log_every == 0 or last:
                    run.log(record)
                    gauges.show(speed(record, config.batch_size, task), run=run.output.name)
            if watch is not None:
                watch(step)
            if step % config.checkpoint_every == 0 or last or asked.asked or asked.save:
                if rank == 0:
                    saver.save(task, state)  # waits until `written` is
                if commit is not None and written is not None:
                    commit(written)
                written = run.checkpoints / f"step_{step:08d}"
                if last or asked.asked or asked.save or not config.save_in_background:
                    if rank == 0:
                        saver.wait()
                    if commit is not None:
                        commit(written)
                    written = None
            if interrupt is not None:
                interrupt.save = interrupt.save and not asked.save
            if asked.asked and not last:
                raise asked.error()
    return state


def agreed(interrupt: Interrupt | None, task: nn.Module, world: int) -> Interrupt:
    """Return what any of the workers was asked for; all call this after each step, if any does."""
    if interrupt is None:
        return Interrupt()
    here = Interrupt(interrupt.asked, interrupt.save, interrupt.terminated)
    if world == 1:
        return here
    wishes = torch.tensor([here.asked, here.save, here.terminated], dtype=torch.int32, device=device_of(task))
    distributed.all_reduce(wishes, distributed.ReduceOp.MAX)
    return Interrupt(*(bool(wish) for wish in wishes.tolist()))
