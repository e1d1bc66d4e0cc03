"""Training steps of the published sizes against this machine's matrix products, in one run.

    python experiments/benchmarks/step.py [--output FILE.json] [key=value ...]

A step is forward, loss, backward and optimiser, in bf16 autocast. Its floating-point operations are counted by
PyTorch's FLOP counter, attention included, and its rate is compared with the rate of one large bf16 matrix product
measured in turn with it, so that the shared machine's moods fall on both. The ratio is what counts; times only inform.
Beside it stands how fast the step's own products run alone, back to back: the ceiling of a step with these products.
`profile=true` prints where the time goes. On a GPU:

    step.py batch_sizes='[32, 64, 128]' product=8192 arms='[eager, compiled]' profile=true --output FILE.json
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch.profiler import ProfilerActivity, profile

from mien.experiments.benchmarks.products import alone, operations
from mien.models import tasks
from mien.models.backbone import Task
from mien.models.expression import ExpressionConfig
from mien.models.mae import MaeConfig
from mien.platform import optim
from mien.platform.compiling import compile_blocks
from mien.platform.config import dump, parse, run_program
from mien.platform.progress import table
from mien.platform.storage import write_whole
from mien.platform.training import device_here

Arm = Literal["eager", "compiled"]
Clock = Literal["wall", "processor"]
Work = Callable[[], object]
ROWS = 25  # of a profile


class StepConfig(BaseModel, frozen=True, extra="forbid"):
    """What is measured, and how often."""

    batch_sizes: tuple[int, ...] = Field((4,), description="clips of a step", min_length=1)
    arms: tuple[Arm, ...] = Field(
        ("eager",), description="as loop.compile=off has it, and compiled (minutes)", min_length=1
    )
    rounds: int = Field(5, description="turns of the product and of every step; medians are printed", gt=0)
    product: int = Field(4096, description="rows and columns of the square bf16 product", gt=0)
    threads: int | None = Field(None, description="torch threads; null: torch's own choice", gt=0)
    clock: Clock = Field(
        "wall", description="wall, or the processor time of this process: on a CPU that others use too, with threads=1"
    )
    profile: bool = Field(False, description="print the operators that a step's time goes to")
    task: ExpressionConfig = Field(ExpressionConfig(), description="what is fine-tuned")
    mae: MaeConfig = Field(MaeConfig(), description="what is pretrained")


def make_step(task: Task, batch: dict[str, torch.Tensor], device: torch.device) -> Callable[[], None]:
    """Return one training step of a task on a batch."""
    optimiser = optim.build(task, optim.OptimConfig(lr=1e-6))

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = task(batch)["loss"]
        loss.backward()
        optimiser.step()

    return step


def seconds(work: Work, device: torch.device, clock: Clock = "wall") -> float:
    """Return how long `work` takes, to the end of what it queued on the device."""
    now = time.perf_counter if clock == "wall" else time.process_time
    began = now()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - began


def medians(work: dict[str, Work], rounds: int, device: torch.device, clock: Clock) -> dict[str, float]:
    """Return the median seconds of each work, all taken in turn; a first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, one in work.items():
            times[name].append(seconds(one, device, clock))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def step_of(config: StepConfig, name: str, arm: Arm, clips: int, device: torch.device) -> Work:
    """Return the training step of a task on random clips."""
    wanted = config.task if name == "finetune" else config.mae
    torch.manual_seed(0)
    tubes = wanted.backbone.tubes
    batch = {
        "clip": torch.randint(256, (clips, tubes.frames, tubes.size, tubes.size, 3), dtype=torch.uint8),
        "label": torch.arange(clips) % config.task.num_classes,
        "draw": torch.arange(clips),
    }
    task = tasks.build(wanted).to(device).train()
    if arm == "compiled":
        print(f"{name}: {compile_blocks(task, 'on')}", flush=True)
    return make_step(task, {key: value.to(device) for key, value in batch.items()}, device)


def measure(config: StepConfig, name: str, clips: int, square: Work, device: torch.device) -> dict[str, Any]:
    """Return the figures of one task at one batch size, its arms, its own products and the square product in turn."""
    eager = step_of(config, name, "eager", clips, device)
    eager()  # the optimiser makes its moments
    work = {"product": square, "own products": alone(eager)}
    counted = {"product": 2.0 * config.product**3, "own products": operations(work["own products"])}
    whole, first = operations(eager), {}
    for arm in config.arms:
        work[arm] = eager if arm == "eager" else step_of(config, name, arm, clips, device)
        counted[arm] = whole
        first[arm] = seconds(work[arm], device, "wall")
    took = medians(work, config.rounds, device, config.clock)
    rate = {each: counted[each] / took[each] for each in work}
    found: dict[str, Any] = {
        "gflop": whole / 1e9,
        "product_gflops": rate["product"] / 1e9,
        "own_products_share_of_product": rate["own products"] / rate["product"],
        "own_products_share_of_operations": counted["own products"] / whole,
    }
    for arm in config.arms:
        found[arm] = {
            "first_seconds": first[arm],
            "seconds": took[arm],
            "share_of_product": rate[arm] / rate["product"],
            "own_products_share_of_time": took["own products"] / took[arm],
        }
        if config.profile:
            found[arm]["profile"] = profiled(work[arm], device)
    return found


def profiled(work: Work, device: torch.device) -> list[dict[str, Any]]:
    """Return the operators that took longest by themselves, with their calls, milliseconds and share of all."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        work()
        if cuda:
            torch.cuda.synchronize()
    events = seen.key_averages()
    times = {event.key: event.self_device_time_total if cuda else event.self_cpu_time_total for event in events}
    calls = {event.key: event.count for event in events}
    total = sum(times.values())
    return [
        {"operator": name, "calls": calls[name], "ms": round(took / 1e3, 2), "share": round(took / total, 4)}
        for name, took in sorted(times.items(), key=lambda each: -each[1])[:ROWS]
    ]


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(StepConfig, argv, __doc__)
    config = call.config
    if call.dry_run:
        print(dump(config))
        return
    if config.threads:
        torch.set_num_threads(config.threads)
    device = device_here()
    cuda = device.type == "cuda"
    left, right = (torch.randn(config.product, config.product, device=device, dtype=torch.bfloat16) for _ in "lr")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "clock": config.clock,
        "steps": [
            {"task": name, "batch_size": clips} | measure(config, name, clips, lambda: left @ right, device)
            for clips in config.batch_sizes
            for name in ("finetune", "pretrain")
        ],
    }
    for step in result["steps"]:
        for arm in config.arms:
            rows = step[arm].get("profile")
            if rows:
                table(rows, title=f"{step['task']}, batch {step['batch_size']}, {arm}")
    rows = [
        {"step": step["task"], "batch": step["batch_size"], "arm": arm, "seconds": round(step[arm]["seconds"], 3)}
        | {"share of product": f"{step[arm]['share_of_product']:.1%}"}
        | {"its products alone, of product": f"{step['own_products_share_of_product']:.1%}"}
        | {"its products alone, of its time": f"{step[arm]['own_products_share_of_time']:.1%}"}
        for step in result["steps"]
        for arm in config.arms
    ]
    table(rows, title=f"{result['device']}, product of {config.product}")
    if call.output:
        call.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(call.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
