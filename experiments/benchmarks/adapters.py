"""What adapters cost against training everything: a step's time, what is trained and AdamW's state, in one run.

    python experiments/benchmarks/adapters.py [--output FILE.json] [key=value ...]

Every way (everything, adapters of each rank, the head alone) takes a step in turn, so that the machine's moods fall on
all of them; the ratio of the shortest times is what counts.
"""

import json
from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field

from mien.experiments.benchmarks.step import seconds
from mien.models.expression import Expression, ExpressionConfig
from mien.models.lora import LoraConfig
from mien.platform import optim
from mien.platform.config import dump, parse, run_program
from mien.platform.progress import table
from mien.platform.storage import write_whole


class AdaptersConfig(BaseModel, frozen=True, extra="forbid"):
    """What is measured, and how often."""

    batch_size: int = Field(2, description="clips of a step", gt=0)
    rounds: int = Field(5, description="turns; the shortest time of each way counts", gt=0)
    ranks: tuple[int, ...] = Field((8, 32), description="ranks of adapters")
    task: ExpressionConfig = Field(ExpressionConfig(), description="what is fine-tuned")


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(AdaptersConfig, argv, __doc__)
    config = call.config
    if call.dry_run:
        print(dump(config))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tubes = config.task.backbone.tubes
    shape = (config.batch_size, tubes.frames, tubes.size, tubes.size, 3)
    batch = {
        "clip": torch.randint(256, shape, dtype=torch.uint8, device=device),
        "label": torch.arange(config.batch_size, device=device) % config.task.num_classes,
    }
    ways = {"everything": None, **{f"rank {rank}": LoraConfig(rank=rank) for rank in config.ranks}}
    ways["head alone"] = LoraConfig(rank=0)
    made = {}
    for name, lora in ways.items():
        task = Expression(config.task.model_copy(update={"lora": lora})).to(device).train()
        made[name] = task, optim.build(task, optim.OptimConfig(lr=1e-6))

    def step(task: Expression, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = task(batch)["loss"]
        loss.backward()
        optimiser.step()

    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(config.rounds + 1):  # in the first, the optimiser makes its moments
        for name, (task, optimiser) in made.items():
            times[name].append(seconds(lambda task=task, optimiser=optimiser: step(task, optimiser), device))  # type: ignore[misc]
    whole = min(times["everything"][1:])
    rows = []
    for name, (task, optimiser) in made.items():
        tensors = [value for state in optimiser.state.values() for value in state.values()]
        rows.append(
            {
                "trained": name,
                "parameters": sum(parameter.numel() for parameter in task.parameters()),
                "of which trained": sum(p.numel() for p in task.parameters() if p.requires_grad),
                "time of a step": round(min(times[name][1:]) / whole, 3),
                "AdamW's state, MiB": round(sum(value.nbytes for value in tensors) / 2**20, 1),
            }
        )
    table(rows, f"a step that trains everything takes {whole:.2f} s on {device.type}")
    if call.output:
        call.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(call.output, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
