"""The training loop: one for pretraining, expression, gaze and both.

A task is a module whose `forward(batch)` returns a dict of scalars with a `loss`. `train` is a generator: it takes one
optimiser step, yields its record and waits, so whoever drives it logs, saves, validates or stops between two steps.

Every step seeds torch from (seed, step, rank), and schedules are functions of the step. So a run that stopped and went
on is the run that never stopped, and a checkpoint needs no state of a random generator.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mien.platform.compiling import Compile
from mien.platform.optim import OptimConfig, build, clip_by_share, lr_at, set_rates, weight_decay_at

Precision = Literal["fp32", "bf16", "fp16"]
Batch = Mapping[str, Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LoopConfig(BaseModel, frozen=True, extra="forbid"):
    """Length, batch, precision and rhythm of a training run."""

    epochs: int = Field(100, description="times the training clips are gone through", gt=0)
    steps: int | None = Field(None, description="optimiser steps, in place of epochs", gt=0)
    batch_size: int = Field(96, description="clips of one optimiser step, over all workers", gt=0)
    accumulate: int = Field(1, description="pieces a worker's share of the batch is computed in, to save memory", gt=0)
    activation_checkpointing: bool = Field(
        False,
        description="keep only what goes into each block, and run it again in the backward pass: the same gradients, "
        "for more time and far less memory (experiments/benchmarks/step_memory.py prints the price)",
    )
    compile: Compile = Field(
        "off",
        description="torch.compile for each block: on, or auto, which is on a GPU alone; a run goes on to the bit as "
        "it began, compiled or not (experiments/benchmarks/step.py compares them)",
    )
    precision: Precision = Field("bf16", description="autocast type; fp16 adds a gradient scaler")
    clip_grad: float | None = Field(None, description="largest norm of the gradient; null: not clipped", gt=0)
    clip_grad_share: float | None = Field(
        None,
        description="largest norm of a unit's gradient as a share of the norm of its weights (0.01 to 0.1 are usual): "
        "a spike in one layer leaves the others as they are; null: not clipped so",
        gt=0,
    )
    ema_decay: float | None = Field(None, description="decay of the weights' moving average; null: none", gt=0, lt=1)
    log_every: int = Field(10, description="steps from one logged record to the next", gt=0)
    checkpoint_every: int = Field(500, description="steps from one checkpoint to the next", gt=0)
    save_in_background: bool = Field(
        True,
        description="checkpoints are written while training goes on, from a copy of weights, averages and optimiser "
        "state in the machine's memory; false: training waits (experiments/benchmarks/checkpoints.py prints how long)",
    )
    record_clips: bool = Field(
        False, description="write the manifest lines that every step learned from to clips/, 7 bytes a clip"
    )
    seed: int = Field(0, description="seed of initial weights, clips, masks and dropout", ge=0)

    @property
    def clips_at_once(self) -> int:
        """Most clips that one process computes at a time: what is known to fit, so validation takes no more."""
        return math.ceil(self.batch_size / self.accumulate)

    def steps_per_epoch(self, num_clips: int) -> int:
        """Return the optimiser steps that an epoch of `num_clips` clips counts in the schedules."""
        return max(num_clips // self.batch_size, 1)

    def total_steps(self, num_clips: int) -> int:
        """Return the optimiser steps of the whole run."""
        return self.steps or self.epochs * self.steps_per_epoch(num_clips)


class NonFiniteError(ValueError):
    """The loss or its gradient is no number any more."""


@dataclass
class LoopState:
    """What goes on from step to step beside the weights; `checkpoint.py` keeps it."""

    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: dict[str, Tensor] | None  # the moving average of weights_of(task)
    step: int = 0  # optimiser steps taken
    skipped: int = 0  # of these, how many the fp16 scaler left out


def start(task: nn.Module, config: LoopConfig, optim: OptimConfig) -> LoopState:
    """Return the state of a run before its first step; give the task itself, on its device, not wrapped."""
    recompute_blocks(task, config.activation_checkpointing)
    ema = None
    if config.ema_decay is not None:
        ema = {name: value.clone() for name, value in weights_of(task).items()}
    scaler = torch.amp.GradScaler(device_of(task).type, enabled=config.precision == "fp16")
    return LoopState(build(task, optim), scaler, ema)


def recompute_blocks(task: nn.Module, recompute: bool) -> None:
    """Set the `recompute` of all parts that have one. Raises ValueError where it is asked of a task without any."""
    parts = [part for part in task.modules() if hasattr(part, "recompute")]
    if recompute and not parts:
        raise ValueError(
            f"loop.activation_checkpointing runs blocks again, but {type(task).__name__} has no part with `recompute` "
            "(models/blocks.py); turn it off"
        )
    for part in parts:
        part.recompute = recompute  # type: ignore[assignment]


def train(
    task: nn.Module,
    state: LoopState,
    batches: Iterable[Batch],
    config: LoopConfig,
    optim: OptimConfig,
    *,
    num_clips: int,
    rank: int = 0,
) -> Iterator[dict[str, float]]:
    """Take the steps from `state.step` to the last, one a batch, and yield a record after each.

    `batches` holds this worker's share of each global batch and begins at `state.step`; `num_clips` is the number of
    training clips. `task` may be wrapped in DistributedDataParallel. A record has `step` (taken so far, so 1 after the
    first), the means of the task's scalars over the batch and the workers, `lr`, `weight_decay`, `grad_norm` (before
    clipping; absent if the step was skipped), `skipped` (so far), `seconds` and its part `wait_seconds` for the batch.
    Raises NonFiniteError; the weights are then spoilt and not to be saved.
    """
    total, per_epoch = config.total_steps(num_clips), config.steps_per_epoch(num_clips)
    device, last_loss = device_of(task), math.nan
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    weight = clips_weight(rank, config.batch_size)
    stream = iter(batches)
    while state.step < total:
        began = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            raise RuntimeError(f"the stream of clips ended after {state.step} of {total} steps")
        waited = time.perf_counter() - began
        lr = lr_at(state.step, total, per_epoch, optim, config.batch_size)
        weight_decay = weight_decay_at(state.step, total, optim)
        set_rates(state.optimiser, lr, weight_decay)
        torch.manual_seed(step_seed(config.seed, state.step, rank))
        task.train()
        state.optimiser.zero_grad()
        scalars = forward_backward(task, batch, state.scaler, config, device, weight)
        state.scaler.unscale_(state.optimiser)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients)
        if config.clip_grad is not None:
            clip_grads_with_norm_(parameters, config.clip_grad, norm)
        if config.clip_grad_share is not None:
            clip_by_share(parameters, config.clip_grad_share)
        state.scaler.step(state.optimiser)
        state.scaler.update()
        if state.ema is not None and config.ema_decay is not None:
            follow(state.ema, weights_of(unwrapped(task)), ema_decay_at(state.step, config.ema_decay))
        # The one wait for the device: by now it has the whole step in its queue.
        *values, grad_norm = torch.stack([*workers_mean(list(scalars.values())), norm]).tolist()
        means = dict(zip(scalars, values, strict=True))
        state.step += 1
        overflow = not math.isfinite(grad_norm)
        # An overflow is the fp16 scaler's way to find its scale; anywhere else, or with no scale left, it is the end.
        hopeless = overflow and not (state.scaler.is_enabled() and state.scaler.get_scale() >= 1)
        if hopeless or not math.isfinite(means["loss"]):
            raise NonFiniteError(
                f"the loss must be finite, but step {state.step} gave {means['loss']} (gradient norm {grad_norm}) at "
                f"learning rate {lr:.3g} in {config.precision} (last finite loss: {last_loss:.4g}); the last "
                "checkpoint is older. Try a lower optim.lr, a longer warm-up, loop.clip_grad=1 or loop.precision=fp32"
            )
        state.skipped += overflow
        last_loss = means["loss"]
        record = {"step": state.step, **means, "lr": lr, "weight_decay": weight_decay, "skipped": state.skipped}
        if not overflow:
            record["grad_norm"] = grad_norm
        yield record | {"seconds": time.perf_counter() - began, "wait_seconds": waited}


def forward_backward(
    task: nn.Module,
    batch: Batch,
    scaler: torch.amp.GradScaler,
    config: LoopConfig,
    device: torch.device,
    weight: float = 1,
) -> dict[str, Tensor]:
    """Leave the gradient of the batch's mean loss in the task, piece by piece, and return the means of its scalars.

    A piece counts by its share of the clips, so the pieces add up to the whole where a scalar is a mean over clips. All
    is multiplied by `weight`, with which the workers' mean is that over their clips.
    """
    clips = len(next(iter(batch.values())))
    if clips == 0:
        raise ValueError("a batch must hold a clip, but none of this worker's could be read; see dropped.jsonl")
    pieces = min(config.accumulate, clips)
    split = {name: value.tensor_split(pieces) for name, value in batch.items()}
    totals: dict[str, Tensor] = {}
    for index in range(pieces):
        piece = {name: values[index].to(device, non_blocking=True) for name, values in split.items()}
        share = weight * len(next(iter(piece.values()))) / clips
        last = index == pieces - 1
        with nullcontext() if last or not isinstance(task, DistributedDataParallel) else task.no_sync():
            with autocast(device, config.precision):
                scalars: dict[str, Tensor] = task(piece)
            scaler.scale(scalars["loss"] * share).backward()
        for name, value in scalars.items():
            totals[name] = totals.get(name, 0) + value.detach().float() * share
    return totals


def workers_mean(scalars: list[Tensor]) -> list[Tensor]:
    """Return each scalar's mean over the workers; every worker calls this with as many."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return scalars
    stacked = torch.stack(scalars)
    distributed.all_reduce(stacked)
    return list((stacked / distributed.get_world_size()).unbind())


def clips_weight(rank: int, batch_size: int) -> float:
    """Return by how much a worker's part of the batch is larger than the mean part: 1 where it divides evenly."""
    world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    return ((rank + 1) * batch_size // world - rank * batch_size // world) * world / batch_size


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a forward pass runs in the given precision."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return 63 bits that depend on the three numbers alone, today and on every machine."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def ema_decay_at(step: int, decay: float) -> float:
    """Return the average's decay at a step from 0: short at first, or initial weights would fill it for 1/(1-decay)."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def follow(ema: dict[str, Tensor], live: dict[str, Tensor], decay: float) -> None:
    """Move the averages towards the live weights; what is not a float is taken over."""
    floats = [name for name, value in ema.items() if value.is_floating_point()]
    torch._foreach_lerp_([ema[name] for name in floats], [live[name] for name in floats], 1 - decay)
    for name in ema.keys() - floats:
        ema[name].copy_(live[name])


@contextmanager
def averaged(task: nn.Module, state: LoopState) -> Iterator[None]:
    """Lend the task its averaged weights, for validation; without an average it keeps its own."""
    live = weights_of(unwrapped(task)) if state.ema is not None else {}
    kept = {name: value.clone() for name, value in live.items()}
    try:
        copy_weights(state.ema or {}, live)
        yield
    finally:
        copy_weights(kept, live)


@torch.no_grad()
def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Write tensors into others of the same names and shapes."""
    for name, value in source.items():
        target[name].copy_(value)


def weights_of(task: nn.Module) -> dict[str, Tensor]:
    """Return a task's parameters and saved buffers by name, without gradient; shared ones once, under their first name.

    A state_dict lists a shared tensor under all its names, which a file would hold as often.
    """
    saved = task.state_dict().keys()
    both: list[tuple[str, Tensor]] = [*task.named_parameters(), *task.named_buffers()]
    return {name: value.detach() for name, value in both if name in saved}


def unwrapped(task: nn.Module) -> nn.Module:
    """Return the task inside DistributedDataParallel, or the task."""
    return task.module if isinstance(task, DistributedDataParallel) else task


def device_of(task: nn.Module) -> torch.device:
    """Return the device of a task's parameters."""
    return next(task.parameters()).device
