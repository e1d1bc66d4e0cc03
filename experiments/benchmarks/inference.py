"""Clips a second of single-view evaluation, from uint8 clips to answers, in every way a trained model can be run.

    python experiments/benchmarks/inference.py [--output FILE.json] [run=output/dfew_fold1] [key=value ...]

Ways: eager float32 and bf16 autocast, both also compiled (where a C++ compiler or Triton is), and the program
of export.py in float32; on a CPU, where requirements-export.txt is installed, also ONNX Runtime. All take turns in
one run at every batch size; what counts are the ratios to eager float32 and the largest difference from its answers.
Without `run=` the model is `task`, newly drawn: its speed is that of a trained one. Another encoder:
`task.backbone.encoder.name=vit`. What a way cannot do is said, and it is left out.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.export.passes import move_to_device_pass

from mien.experiments.doctor import load
from mien.experiments.export import Answering, exported, onnx_program, write_onnx
from mien.models import tasks
from mien.models.backbone import Task
from mien.models.combined import CombinedConfig
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.loop import autocast
from mien.platform.progress import table
from mien.platform.storage import write_whole
from mien.platform.training import device_here

Answers = dict[str, Tensor]
Way = Callable[[Tensor], Answers]


class InferenceConfig(BaseModel, frozen=True, extra="forbid"):
    """What is measured, and how often."""

    run: str | None = Field(None, description="run folder, checkpoint or published file; null: `task`, newly drawn")
    batch_sizes: tuple[int, ...] = Field((1, 8), description="clips at a time")
    rounds: int = Field(5, description="turns of all ways; medians are compared", gt=0)
    threads: int | None = Field(None, description="torch threads; null: torch's own choice", gt=0)
    compile: bool = Field(True, description="measure compiled models too, which takes minutes to make")
    task: CombinedConfig = Field(CombinedConfig(), description="the model, without `run`")


def ways_of(
    task: Task, config: InferenceConfig, device: torch.device, folder: Path
) -> tuple[dict[str, Way], list[str]]:
    """Return the ways to run a task on its device, and what cannot be done, in sentences."""
    model, left_out = Answering(task), []

    def eager(clip: Tensor) -> Answers:
        return model(clip)

    def bf16(of: Way) -> Way:
        def run(clip: Tensor) -> Answers:
            with autocast(device, "bf16"):
                return of(clip)

        return run

    ways: dict[str, Way] = {"eager fp32": eager, "eager bf16": bf16(eager)}
    if config.compile:
        compiled = torch.compile(model, dynamic=False)
        try:
            compiled(clips_of(task, 1, device))
        except torch._dynamo.exc.BackendCompilerFailed as error:
            left_out.append(f"compiled: {str(error).strip().splitlines()[0]}")
        else:
            ways |= {"compiled fp32": compiled, "compiled bf16": bf16(torch.compile(Answering(task), dynamic=False))}
    program = exported(copy.deepcopy(task).cpu())
    if device.type == "cuda":
        program = move_to_device_pass(program, device)
    ways["exported fp32"] = program.module()
    if device.type == "cpu":
        file, names = folder / "model.onnx", list(eager(clips_of(task, 1, device)))
        try:
            write_onnx(program, names, file)
            ways["ONNX Runtime fp32"] = onnx_program(file, names, config.threads or torch.get_num_threads())
        except ConfigError as error:
            left_out.append(f"ONNX Runtime: {error}")
    return ways, left_out


def clips_of(task: Task, count: int, device: torch.device) -> Tensor:
    """Return random clips uint8 (b, t, h, w, c)."""
    tubes = task.backbone.config.tubes
    drawn = torch.Generator().manual_seed(0)
    shape = (count, tubes.frames, tubes.size, tubes.size, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=drawn).to(device)


@torch.no_grad()
def measure(config: InferenceConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each batch size and way, and what was left out."""
    device = device_here()
    torch.manual_seed(0)
    task = (load(config.run) if config.run else tasks.build(config.task)).to(device).eval()
    rows = []
    with TemporaryDirectory() as folder:
        ways, left_out = ways_of(task, config, device, Path(folder))
        for size in config.batch_sizes:
            clips = clips_of(task, size, device)
            answers = {name: way(clips) for name, way in ways.items()}  # and compiles what is compiled for this size
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(config.rounds):
                for name, way in ways.items():
                    began = time.perf_counter()
                    way(clips)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    times[name].append(time.perf_counter() - began)
            medians = {name: statistics.median(taken) for name, taken in times.items()}
            true = answers["eager fp32"]
            for name, seconds in medians.items():
                off = {what: (answers[name][what] - value).abs().max().item() for what, value in true.items()}
                ratio = medians["eager fp32"] / seconds
                row = {"clips": size, "way": name, "clips/s": size / seconds, "over eager fp32": ratio}
                rows.append(row | {f"{what} off by": value for what, value in off.items()})
    return rows, left_out


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(InferenceConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    if call.config.threads:
        torch.set_num_threads(call.config.threads)
    rows, left_out = measure(call.config)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
    table(rows, device)
    print("".join(f"left out: {line}\n" for line in left_out), end="")
    if call.output:
        call.output.parent.mkdir(parents=True, exist_ok=True)
        found = {"device": device, "ways": rows, "left_out": left_out}
        write_whole(call.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
