"""The peak memory of a training step a clip, and what activation checkpointing saves of it and costs in time.

    python experiments/benchmarks/step_memory.py [--output FILE.json] [key=value ...]

A step is that of the training loop: forward, loss, backward and AdamW, in bf16 autocast. On CUDA the peak is the
allocator's (`max_memory_allocated`), on a CPU the largest sum of what PyTorch's profiler saw allocated and not yet
freed: the same thing, exact and without what the system's own allocator keeps. Two batch sizes tell what a clip takes
from what any step takes (weights and moments are counted apart); of small ones the gradients, which come last, hide the
clips. Times are medians of rounds taken in turn, and their ratio is the price. Another encoder:
`task.backbone.encoder.name=vit task.pool=patch mae.backbone.encoder.name=vit mae.mask.kind=tube`.
"""

import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pydantic import BaseModel, Field, model_validator
from torch.profiler import ProfilerActivity, profile

from mien.models import tasks
from mien.models.expression import ExpressionConfig
from mien.models.mae import MaeConfig
from mien.platform.config import dump, parse, run_program
from mien.platform.loop import LoopConfig, LoopState, start, train
from mien.platform.optim import OptimConfig
from mien.platform.progress import table
from mien.platform.storage import write_whole
from mien.platform.training import device_here

MIB = 2**20
RATE = OptimConfig(lr=1e-6, scale_lr=False, warmup_steps=1)


class StepMemoryConfig(BaseModel, frozen=True, extra="forbid"):
    """What is measured, and how often."""

    batch_sizes: tuple[int, int] = Field((4, 16), description="clips of the two steps whose difference tells a clip's")
    timed_clips: int = Field(4, description="clips of the steps that are timed", gt=0)
    rounds: int = Field(3, description="turns of timed steps, with and without; medians are compared", gt=0)
    threads: int | None = Field(None, description="torch threads; null: torch's own choice", gt=0)
    task: ExpressionConfig = Field(ExpressionConfig(), description="what is fine-tuned")
    mae: MaeConfig = Field(MaeConfig(), description="what is pretrained")

    @model_validator(mode="after")
    def _differ(self) -> "StepMemoryConfig":
        if not 0 < self.batch_sizes[0] < self.batch_sizes[1]:
            raise ValueError(f"batch_sizes must rise from 1 or more, but they are {self.batch_sizes}")
        return self


def batch_of(config: ExpressionConfig | MaeConfig, clips: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return random clips with classes and masks."""
    tubes = config.backbone.tubes
    batch = {
        "clip": torch.randint(256, (clips, tubes.frames, tubes.size, tubes.size, 3), dtype=torch.uint8),
        "label": torch.zeros(clips, dtype=torch.int64),
        "draw": torch.arange(clips),
    }
    return {name: value.to(device) for name, value in batch.items()}


def steps(
    config: ExpressionConfig | MaeConfig, clips: int, saving: bool, device: torch.device
) -> tuple[LoopState, Iterator[Any]]:
    """Return the state of a training and its steps, one taken at each `next`; the first makes the moments."""
    torch.manual_seed(0)
    task = tasks.build(config).to(device)
    loop = LoopConfig(steps=10**9, batch_size=clips, activation_checkpointing=saving)
    state = start(task, loop, RATE)
    batches = itertools.repeat(batch_of(config, clips, device))
    return state, train(task, state, batches, loop, RATE, num_clips=clips)


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Return the most that a step allocates beyond what is there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def without_gradients(state: LoopState, step: Callable[[], object]) -> Callable[[], object]:
    """Return a step that begins without gradients, as each does after it has cleared those of the one before."""
    state.optimiser.zero_grad()
    return step


def measure(config: ExpressionConfig | MaeConfig, asked: StepMemoryConfig) -> dict[str, Any]:
    """Return the figures of one task, with all activations kept and with blocks run again."""
    device, sizes = device_here(), asked.batch_sizes
    found: dict[str, Any] = {}
    for saving in (False, True):
        peaks = []
        for clips in sizes:
            state, training = steps(config, clips, saving, device)
            next(training)
            peaks.append(peak_bytes(without_gradients(state, lambda training=training: next(training)), device))  # type: ignore[misc]
        moments = sum(value.nbytes for entry in state.optimiser.state.values() for value in entry.values())
        each = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
        found["run again" if saving else "kept"] = {
            "mib_a_clip": each / MIB,
            "mib_of_any_step": (peaks[0] - sizes[0] * each) / MIB,
            "mib_of_moments": moments / MIB,
            "peak_mib": {str(clips): peak / MIB for clips, peak in zip(sizes, peaks, strict=True)},
        }
        del state, training
        gc.collect()
    times: dict[str, list[float]] = {"kept": [], "run again": []}
    trainings = {name: steps(config, asked.timed_clips, name == "run again", device)[1] for name in times}
    for _ in range(asked.rounds + 1):
        for name, training in trainings.items():
            began = time.perf_counter()
            next(training)  # waits for the device: it reads the loss
            times[name].append(time.perf_counter() - began)
    for name, taken in times.items():
        found[name]["step_seconds"] = statistics.median(taken[1:])
    kept, again = found["kept"], found["run again"]
    return found | {
        "memory_a_clip_divided_by": kept["mib_a_clip"] / again["mib_a_clip"],
        "peak_divided_by": kept["peak_mib"][str(sizes[1])] / again["peak_mib"][str(sizes[1])],
        "time_multiplied_by": again["step_seconds"] / kept["step_seconds"],
    }


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(StepMemoryConfig, argv, __doc__)
    config = call.config
    if call.dry_run:
        print(dump(config))
        return
    if config.threads:
        torch.set_num_threads(config.threads)
    device = device_here()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "finetune": measure(config.task, config),
        "pretrain": measure(config.mae, config),
    }
    rows = [
        {"step": name, "activations": which, "MiB a clip": figures["mib_a_clip"]}
        | {f"MiB of {clips} clips": peak for clips, peak in figures["peak_mib"].items()}
        | {"seconds": figures["step_seconds"]}
        for name in ("finetune", "pretrain")
        for which, figures in result[name].items()
        if isinstance(figures, dict)
    ]
    table(rows, f"{result['device']}, timed steps of {config.timed_clips} clips")
    for name in ("finetune", "pretrain"):
        price = result[name]
        print(
            f"{name}: activation checkpointing takes {price['time_multiplied_by']:.2f} times the time and "
            f"1/{price['memory_a_clip_divided_by']:.1f} of the memory a clip, 1/{price['peak_divided_by']:.1f} of that "
            f"of {config.batch_sizes[1]}"
        )
    print(json.dumps(result, indent=1))
    if call.output:
        call.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(call.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
