"""Training steps of the published sizes against this machine's matrix products, in one run.

    python experiments/benchmarks/step.py [--output FILE.json] [key=value ...]

A step is forward, loss, backward and optimiser, in bf16 autocast. Its floating-point operations are counted by
PyTorch's FLOP counter, attention included, and its rate is compared with the rate of one large bf16 matrix product
measured in turn with it, so that the shared machine's moods fall on both. The ratio is what counts; times only inform.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, Field
from torch.utils.flop_counter import FlopCounterMode

from mien.models.backbone import Task
from mien.models.expression import Expression, ExpressionConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.platform import optim
from mien.platform.config import dump, parse, run_program
from mien.platform.storage import write_whole


class StepConfig(BaseModel, frozen=True, extra="forbid"):
    """What is measured, and how often."""

    batch_size: int = Field(4, description="clips of a step", gt=0)
    rounds: int = Field(
        5, description="turns of product, fine-tuning step, pretraining step; medians are printed", gt=0
    )
    product: int = Field(4096, description="rows and columns of the square bf16 product", gt=0)
    threads: int | None = Field(None, description="torch threads; null: torch's own choice", gt=0)
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


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long `work` takes, to the end of what it queued on the device."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(StepConfig, argv, __doc__)
    config = call.config
    if call.dry_run:
        print(dump(config))
        return
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    left, right = (torch.randn(config.product, config.product, device=device, dtype=torch.bfloat16) for _ in "lr")
    tubes = config.task.backbone.tubes
    batch = {
        "clip": torch.randint(256, (config.batch_size, tubes.frames, tubes.size, tubes.size, 3), dtype=torch.uint8),
        "label": torch.arange(config.batch_size) % config.task.num_classes,
        "draw": torch.arange(config.batch_size),
    }
    batch = {name: value.to(device) for name, value in batch.items()}
    steps = {
        "finetune": make_step(Expression(config.task).to(device).train(), batch, device),
        "pretrain": make_step(MaskedAutoencoder(config.mae).to(device).train(), batch, device),
    }
    operations = {"product": 2.0 * config.product**3}
    for name, step in steps.items():
        step()  # the optimiser makes its moments
        with FlopCounterMode(display=False) as counter:
            step()
        operations[name] = float(counter.get_total_flops())
    work: dict[str, Callable[[], object]] = {"product": lambda: left @ right, **steps}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(config.rounds + 1):
        for name, one in work.items():
            times[name].append(seconds(one, device))
    rates = {name: operations[name] / statistics.median(times[name][1:]) for name in work}
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "batch_size": config.batch_size,
        "product_gflops": rates["product"] / 1e9,
        **{f"{name}_step_seconds": statistics.median(times[name][1:]) for name in steps},
        **{f"{name}_step_gflop": operations[name] / 1e9 for name in steps},
        **{f"{name}_share_of_product": rates[name] / rates["product"] for name in steps},
    }
    print(json.dumps(result, indent=1))
    if call.output:
        call.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(call.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
