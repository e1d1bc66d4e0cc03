"""How many CPU cores and how much disk keep GPUs busy while pretraining, from what is measured and what is assumed.

    python experiments/benchmarks/data.py --output output/benchmarks/data
    python experiments/benchmarks/cores.py data=output/benchmarks/data/data.json [--output FILE.json] [key=value ...]

Measured, by `data.py` on this machine's cores: clips a second and core for the whole path of a pretraining clip, and
MiB a clip, in each layout. Counted: the floating-point operations of a pretraining step a clip, by PyTorch's counter.
Assumed, because there is no such GPU here: the peak of the GPU and the share of it that training reaches. A worker on
that GPU is then simulated: it takes uint8 clips at that pace, and so many cores must decode for it; a node is `workers`
of them. Slower or faster cores than these change the numbers in proportion.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch.utils.flop_counter import FlopCounterMode

from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.progress import table
from mien.platform.storage import write_whole

PATH = "pretraining"  # of data.py's
LAYOUTS = {"mp4": "mp4", "mp4, re-keyed": "re-keyed", "JPEG shards": "packed"}


class CoresConfig(BaseModel, frozen=True, extra="forbid"):
    """What the GPUs do, and what the cores were measured at."""

    data: str = Field("output/benchmarks/data/data.json", description="figures of data.py")
    peak_tflops: float = Field(989, gt=0, description="dense bf16 peak of a GPU (H100 SXM: 989, A100: 312)")
    share: tuple[float, ...] = Field(
        (0.2, 0.4), description="shares of the peak that training reaches: assumed, and a table for each"
    )
    workers: tuple[int, ...] = Field((1, 8), description="GPUs that are fed")
    clips: int = Field(1_092_009, gt=0, description="clips of the set on the disk (VoxCeleb2 has 1,092,009)")
    mae: MaeConfig = Field(MaeConfig(), description="what is pretrained: the published size")


def gflop_a_clip(config: MaeConfig) -> float:
    """Return the floating-point operations of a training step a clip, forward and backward, in units of 10^9."""
    tubes = config.backbone.tubes
    with torch.device("cpu"):
        task = MaskedAutoencoder(config)
        shape = (1, tubes.frames, tubes.size, tubes.size, 3)
        batch = {"clip": torch.zeros(shape, dtype=torch.uint8), "draw": torch.zeros(1, dtype=torch.int64)}
    with FlopCounterMode(display=False) as counter:
        task(batch)["loss"].backward()
    return float(counter.get_total_flops()) / 1e9


def rows(config: CoresConfig, figures: dict[str, Any], gflop: float) -> list[dict[str, Any]]:
    """Return the cores that decode and the disk, for each number of GPUs and share of their peak."""
    found = []
    for share in config.share:
        pace = share * config.peak_tflops * 1000 / gflop
        for workers in config.workers:
            row: dict[str, Any] = {
                "GPUs": workers,
                "of the peak": f"{share:.0%}",
                "clips a second": round(workers * pace),
            }
            for layout, name in LAYOUTS.items():
                speed = figures["layouts"][layout]["clips_a_cpu_second"][PATH]
                row[f"cores, {name}"] = math.ceil(workers * pace / speed)
            found.append(row)
    return found


def disk(config: CoresConfig, figures: dict[str, Any]) -> dict[str, float]:
    """Return the TB of the whole set in each layout."""
    sizes = {name: figures["layouts"][layout]["mib_a_clip"] for layout, name in LAYOUTS.items()}
    return {name: round(size * config.clips * 2**20 / 1e12, 2) for name, size in sizes.items()}


def main(argv: Sequence[str]) -> None:
    """Read the command line, count and print."""
    call = parse(CoresConfig, argv, __doc__)
    config = call.config
    if call.dry_run:
        print(dump(config))
        return
    file = Path(config.data)
    if not file.is_file():
        raise ConfigError(f"data must be a file that data.py has written, but {file.absolute()} is not there")
    figures = json.loads(file.read_text(encoding="utf-8"))
    gflop = gflop_a_clip(config.mae)
    found: dict[str, Any] = {
        "gflop_a_clip": round(gflop, 1),
        "rows": rows(config, figures, gflop),
        "disk_tb": disk(config, figures),
    }
    print(f"{gflop:.1f} GFLOP a clip; clips are {figures['frames']}, {figures['clips']} were measured")
    table(found["rows"])
    print(f"disk for {config.clips:,} clips as long as those measured, TB: {found['disk_tb']}")
    if call.output:
        call.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(call.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
