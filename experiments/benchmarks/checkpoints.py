"""How long training stands still for a checkpoint of the published size: written before it goes on, or meanwhile.

    python experiments/benchmarks/checkpoints.py [--output DIR] [key=value ...]

Takes real optimiser steps of the recipe's pretraining model on drawn clips, saves its weights and AdamW's state in both
ways in turns, and says what the step waited, how long writing took, and how much longer steps took while a checkpoint
was written beside them: where no CPU is to spare, writing takes its time from the steps. The copy that is written from
is as large as a checkpoint. That both ways leave the same files is tried, tensor by tensor, on a state that training
goes on from.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from safetensors.torch import load_file

from mien.experiments.pretrain import PretrainConfig
from mien.models.mae import MaskedAutoencoder
from mien.platform import checkpoint
from mien.platform.config import dump, load, parse, run_program
from mien.platform.loop import LoopConfig, start, train
from mien.platform.progress import progress, table
from mien.platform.saving import Saver
from mien.platform.storage import free_bytes, readable, write_whole
from mien.platform.training import device_here

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "pretrain_lgi_base.yaml"
WAYS = {"before going on": False, "in the background": True}


class CheckpointsConfig(BaseModel, frozen=True, extra="forbid"):
    """What is trained, and how often it is saved."""

    recipe: str = Field(str(RECIPE), description="recipe of a pretraining")
    batch_size: int = Field(1, ge=1, description="clips of a step")
    rounds: int = Field(4, ge=1, description="checkpoints in each way, in turns")
    steps_between: int = Field(4, ge=2, description="steps from one checkpoint to the next")
    precision: str = Field("bf16", description="autocast type of the steps")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average, saved as well; null: none"
    )
    seed: int = Field(0, ge=0, description="seed of weights and clips")


def measure(config: CheckpointsConfig, output: Path) -> dict[str, Any]:
    """Train and save; return the seconds of each way, medians over its checkpoints."""
    recipe = load(PretrainConfig, Path(config.recipe), {})
    torch.manual_seed(config.seed)
    device = device_here()
    task = MaskedAutoencoder(recipe.task).to(device)
    total = 1 + 2 * config.rounds * config.steps_between
    loop = LoopConfig.model_validate(
        {"steps": total, "batch_size": config.batch_size, "precision": config.precision, "ema_decay": config.ema_decay}
    )
    optim = recipe.optim.model_copy(update={"warmup_steps": 0})
    state = start(task, loop, optim)
    tubes = recipe.task.backbone.tubes

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.batch_size, tubes.frames, tubes.size, tubes.size, 3)
        while True:
            clip = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            yield {"clip": clip, "draw": torch.randint(0, 2**40, (config.batch_size,), generator=generator)}

    savers = {way: Saver(output / way.replace(" ", "_"), {}, background=value) for way, value in WAYS.items()}
    seconds: dict[str, dict[str, list[float]]] = {way: {"waits": [], "writes": [], "beside": []} for way in WAYS}
    quiet: list[float] = []
    with progress("steps", total, "steps") as bar:
        running = train(task, state, batches(), loop, optim, num_clips=total * config.batch_size)
        next(running)  # the optimiser has no state before its first step
        nbytes = checkpoint.snapshot(task, state, copy=False).nbytes
        if free_bytes(output) < 6 * nbytes:
            raise ValueError(f"three checkpoints of each way need {readable(6 * nbytes)}, but {output} has less free")
        bar.advance()
        for number in range(2 * config.rounds):
            way = list(WAYS)[number % 2]
            saver, spent = savers[way], seconds[way]
            began = time.perf_counter()
            saver.save(task, state)
            spent["waits"].append(time.perf_counter() - began)
            for _ in range(config.steps_between):
                busy = saver.busy()
                record = next(running)
                if WAYS[way]:
                    (spent["beside"] if busy and saver.busy() else quiet).append(record["seconds"])
                else:
                    quiet.append(record["seconds"])
                bar.advance()
            saver.wait()
            spent["writes"].append(saver.seconds)
    step = statistics.median(quiet)
    found: dict[str, Any] = {
        "device": str(device),
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
        "checkpoint_bytes": nbytes,
        "step_seconds": step,
    }
    for way, spent in seconds.items():
        found[way] = {name: statistics.median(values) for name, values in spent.items() if values} | {"all": spent}
    beside = seconds["in the background"]["beside"]
    found["wait_ratio"] = found["in the background"]["waits"] / found["before going on"]["waits"]
    found["beside_ratio"] = statistics.median(beside) / step if beside else None
    found["cpus"] = len(os.sched_getaffinity(0))
    return found


def compare(config: CheckpointsConfig, output: Path) -> bool:
    """Save one state in both ways while it is trained on; return whether the files hold the same."""
    recipe = load(PretrainConfig, Path(config.recipe), {})
    torch.manual_seed(config.seed)
    task = MaskedAutoencoder(recipe.task).to(device_here())
    loop = LoopConfig(steps=2, batch_size=1, precision="bf16")
    optim = recipe.optim.model_copy(update={"warmup_steps": 0})
    state = start(task, loop, optim)
    tubes = recipe.task.backbone.tubes
    batch = {
        "clip": torch.zeros(1, tubes.frames, tubes.size, tubes.size, 3, dtype=torch.uint8),
        "draw": torch.zeros(1, dtype=torch.int64),
    }
    running = train(task, state, [batch] * 2, loop, optim, num_clips=2)
    next(running)
    for way, background in WAYS.items():
        with Saver(output / "same" / way.replace(" ", "_"), {}, background=background) as saver:
            saver.save(task, state)
            if background:
                next(running)  # spoils what was not copied
    one, other = (next((output / "same" / way.replace(" ", "_")).glob("step_*")) for way in WAYS)
    weights = [load_file(path / "weights.safetensors") for path in (one, other)]
    loops = [torch.load(path / "loop.pt", weights_only=True) for path in (one, other)]
    return equal(*weights) and equal(*loops)


def equal(one: Any, other: Any) -> bool:
    """Return whether two trees of plain data hold the same numbers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(CheckpointsConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output = (call.output or Path("output/benchmarks/checkpoints")).absolute()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    found = measure(call.config, output)
    write_whole(output / "checkpoints.json", json.dumps(found, indent=1) + "\n")
    found["same_files"] = compare(call.config, output)
    named = {"training waits": "waits", "it is there after": "writes"}
    table(
        [
            {"a checkpoint is written": way} | {name: f"{found[way][key]:.2f} s" for name, key in named.items()}
            for way in WAYS
        ]
    )
    beside = found["beside_ratio"]
    print(
        f"{found['parameters']:,} parameters, {readable(found['checkpoint_bytes'])} a checkpoint: training waits "
        f"{found['wait_ratio']:.0%} of the time that it did. A step takes {found['step_seconds']:.2f} s"
        + (f", and {beside:.2f} times that while one is written beside it" if beside else "")
        + f" ({found['cpus']} CPUs). The files hold the same: {found['same_files']}"
    )
    for folder in ("same", *(way.replace(" ", "_") for way in WAYS)):
        shutil.rmtree(output / folder)
    write_whole(output / "checkpoints.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
