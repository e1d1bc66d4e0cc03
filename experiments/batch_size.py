"""Find how many clips fit into a device and how fast they are, before a run ends out of memory.

    python experiments/batch_size.py finetune --config experiments/configs/finetune_dfew.yaml --output output/fit
    python experiments/batch_size.py pretrain --config experiments/configs/pretrain_lgi_base.yaml --output output/fit

The first word names the program whose settings follow; no clips are read. Steps of the run itself are taken on noise,
1 clip, 2, 4 and so on, each size in a process of its own, as long as the growth so far says that the next one fits.
It prints what every size takes and its clips a second, then the settings to run with and why, and what the rule of the
learning rate makes of another batch. On a CPU the limit is what is free now, also within a control group (container);
`fit.memory_gib=` plans for another machine. Writes batch_size.json; ends with 2 where not even one clip fits.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from mien.experiments.finetune import FinetuneConfig, completed
from mien.experiments.pretrain import PretrainConfig
from mien.models import tasks
from mien.models.backbone import Task
from mien.platform import capacity
from mien.platform.capacity import EndedError, Tried, alone
from mien.platform.config import ConfigError, dump, parse, plain, rebuild, run_program
from mien.platform.optim import told_rate
from mien.platform.progress import table
from mien.platform.storage import readable, write_whole
from mien.platform.training import device_here

GIB = 2**30


class FitConfig(BaseModel, frozen=True, extra="forbid"):
    """How far is looked."""

    memory_gib: float | None = Field(None, description="memory to plan for, GiB; null: what is free here now", gt=0)
    share: float = Field(
        0.9, description="of the memory that may be filled; the rest is for reading clips and fragments", gt=0, le=1
    )
    most: int = Field(1024, description="most clips at a time that are tried", gt=0)
    patience_seconds: float = Field(180, description="a size that would take longer to try is foretold instead", gt=0)


class FinetuneFit(FinetuneConfig, frozen=True, extra="forbid"):
    """A fine-tuning, and how far is looked for what fits."""

    fit: FitConfig = FitConfig()


class PretrainFit(PretrainConfig, frozen=True, extra="forbid"):
    """A pretraining, and how far is looked for what fits."""

    fit: FitConfig = FitConfig()


KINDS: dict[str, Any] = {"finetune": FinetuneFit, "pretrain": PretrainFit}


def workers_of(config: FinetuneFit | PretrainFit) -> int:
    """Return on how many devices a step is taken: the most, where nodes may be lost."""
    if isinstance(config, FinetuneFit):
        return 1
    workers = config.trainer.workers
    return workers if isinstance(workers, int) else max(workers)


def free() -> int:
    """Return what is free; in a process of its own, since asking a GPU takes some of it for good."""
    return capacity.free_bytes(device_here())


def measure(program: str, settings: dict[str, Any], clips: int, limit: int) -> Tried:
    """Take a run's steps on `clips` clips of noise; in a process of its own."""
    config = rebuild(KINDS[program], settings)
    tubes = config.task.backbone.tubes
    views = config.data.sampling.num_samples if program == "pretrain" else 1
    count = clips * views
    device = device_here()
    torch.manual_seed(0)
    batch = {
        "clip": torch.randint(256, (count, tubes.frames, tubes.size, tubes.size, 3), dtype=torch.uint8),
        "draw": torch.arange(count),
        "label": torch.zeros(count, dtype=torch.int64),
        "gaze": torch.zeros(count, 2),
    }

    def make() -> Task:
        return tasks.build(config.task).to(device)

    return capacity.step_memory(make, batch, clips, config.loop, config.optim, workers_of(config), limit)


def find(program: str, config: FinetuneFit | PretrainFit) -> tuple[list[Tried], int]:
    """Try sizes, telling of each, and return what came of them and the limit in bytes."""
    fit = config.fit
    whole = round(fit.memory_gib * GIB) if fit.memory_gib else alone(free)
    limit = round(fit.share * whole)
    print(f"limit {readable(limit)}: {fit.share:g} of {readable(whole)} {'asked for' if fit.memory_gib else 'free'}")

    def tried(clips: int) -> Tried:
        try:
            found = alone(measure, program, plain(config), clips, limit)
        except EndedError as error:
            found = Tried(clips, failed=str(error))
        words = found.failed or f"{readable(found.bytes)}, {found.rate:.3g} clips/s"
        print(f"{clips:>6} at a time: {words}", flush=True)
        return found

    return capacity.search(tried, limit, fit.most, fit.patience_seconds), limit


def advice(tried: Sequence[Tried], limit: int, config: FinetuneFit | PretrainFit) -> tuple[dict[str, Any], list[str]]:
    """Return what to run with, as settings, and why in sentences. Raises ConfigError where not even one clip fits."""
    top = capacity.largest(tried)
    if top is None:
        saving = "" if config.loop.activation_checkpointing else "loop.activation_checkpointing=true, "
        raise ConfigError(
            f"not even one clip at a time fits into {readable(limit)} ({tried[0].failed}); try {saving}"
            "loop.precision=bf16, a smaller task.backbone.encoder (width, depth), fewer task.backbone.tubes.frames, or "
            "a device with more memory"
        )
    line, good, workers = capacity.growth(tried), capacity.fastest(tried), workers_of(config)
    foretold = max(min(line.most(limit), config.fit.most), top.clips) if not any(one.failed for one in tried) else 0
    share = math.ceil(config.loop.batch_size / workers)
    fits = share <= top.clips
    pieces = 1 if fits else math.ceil(share / good.clips)
    settings = {"loop.batch_size": config.loop.batch_size, "loop.accumulate": pieces}
    said = [
        f"{top.clips} clips at a time fit and were tried ({readable(top.bytes)}); each adds {readable(line.clip)}"
        + (f"; {foretold} would fit by that, but were not tried" if foretold > top.clips else ""),
        f"{good.clips} at a time are as fast as more: {good.rate:.3g} clips a second",
        f"run with loop.batch_size={config.loop.batch_size} loop.accumulate={pieces}: "
        + (
            f"a worker's share of {share} fits as it is"
            if fits
            else f"a worker's share of {share} is computed in {pieces} pieces, with the same gradients"
        ),
        f"the batch stays, and with it the rate: {told_rate(config.optim, config.loop.batch_size)}",
    ]
    other = workers * top.clips
    if other != config.loop.batch_size:
        settings["largest without pieces"] = other
        rate = told_rate(config.optim, other)
        said.append(f"the largest batch in one piece, loop.batch_size={other}, is another training: {rate}")
    if not fits and not config.loop.activation_checkpointing:
        said.append("loop.activation_checkpointing=true lets more clips fit, for more time: try this program with it")
    return settings, said


def main(argv: Sequence[str]) -> None:
    """Read the command line, try sizes and say what to run with."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nSettings: batch_size.py finetune --help, batch_size.py pretrain --help")
        return
    program = argv[0]
    if program not in KINDS:
        raise ConfigError(f"the first word must be finetune or pretrain, whose settings follow; got {program!r}")
    call = parse(KINDS[program], argv[1:], __doc__)
    config = call.config
    assert isinstance(config, FinetuneFit | PretrainFit)
    if isinstance(config, FinetuneFit):
        known = completed(config)
        assert isinstance(known, FinetuneFit)
        config = known
    if call.dry_run:
        print(dump(config))
        return
    tried, limit = find(program, config)
    settings, said = advice(tried, limit, config)
    rows = [
        {"clips": one.clips, "memory": readable(one.bytes) if one.bytes else None, "clips/s": one.rate}
        | {"": one.failed or "fits"}
        for one in tried
    ]
    table(rows)
    print("\n".join(f"- {line}" for line in said))
    output = call.output or Path("output/batch_size")
    output.mkdir(parents=True, exist_ok=True)
    told = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "limit_bytes": limit,
        "tried": [{"clips": one.clips, "bytes": one.bytes, "clips_a_second": one.rate, "failed": one.failed}
                  for one in tried],
        "settings": settings,
        "why": said,
    }  # fmt: skip
    write_whole(output / "batch_size.json", json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
