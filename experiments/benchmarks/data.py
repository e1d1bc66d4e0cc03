"""How fast clips are read from each layout, what augmentation and streaming cost, and which layout to take.

    python experiments/benchmarks/data.py [--output DIR] [manifest=YOURS.parquet] [key=value ...]

Without a manifest the clips are rendered. They are written in every layout, and then, in one run:

- read in this process from the page cache, clip by clip in turn: decoding alone, which is the limit, and the whole path
  of training and evaluation. What counts is CPU time of the process, all its threads, so other work on the machine
  disturbs little: clips a second and core, and each path as a share of decoding alone;
- loaded from the disk, the files dropped from the page cache before (`posix_fadvise`): clips a second by the clock;
- streamed by one data task at a time of Ray Data and, in turn with it, by one worker of PyTorch's DataLoader around
  the same functions: clips a second by the clock, after the first batch.

`DIR/data.json` holds the figures.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch.utils.data import DataLoader, IterableDataset

from mien.data_pipelines import clips, decode, reading, sampling
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.blocks import StreamConfig
from mien.data_pipelines.manifest import Manifest, located
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments.benchmarks.layouts import build_all, files_of, forget
from mien.experiments.prepare import UNLABELLED, prepare_world
from mien.platform import cluster
from mien.platform.cluster import ClusterConfig
from mien.platform.config import dump, parse, run_program
from mien.platform.progress import progress
from mien.platform.storage import write_whole

WORLD = WorldConfig(identities=0, unlabelled_identities=16, videos_per_identity=3, video_frames=128, size=224)
PATHS = {"decoding": None, "evaluation": "none", "pretraining": "pretrain", "fine-tuning": "finetune"}


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """What is read, and how often."""

    manifest: str | None = Field(None, description="clips to measure; null: videos of the rendered world")
    clips: int = Field(48, ge=1, description="clips of the manifest that are written in each layout")
    rounds: int = Field(6, ge=1, description="times that each clip is read in each way, always other frames")
    jpeg_side: int = Field(256, ge=16, description="pixels of a side in the JPEG layouts")
    jpeg_quality: int = Field(95, ge=1, le=100, description="JPEG quality there")
    read: ReadConfig = Field(
        ReadConfig(sampling=SamplingConfig(rule="finetune", stride=4)), description="frames of a clip, and their size"
    )
    cold_rounds: int = Field(5, ge=1, description="times that each layout is loaded from the disk")
    stream_clips: int = Field(768, ge=0, description="clips of a stream in each round; 0 = no streams")
    stream_rounds: int = Field(3, ge=1, description="turns of DataLoader and Ray Data; medians are printed")
    batch_size: int = Field(32, ge=1, description="clips of a batch of the streams")
    stream: StreamConfig = Field(
        StreamConfig(block_clips=64, block_mib=96), description="Ray Data's blocks: 64 clips of 16x160² are 75 MiB"
    )
    world: WorldConfig = Field(WORLD, description="the videos that are rendered without a manifest")


class Loader(IterableDataset[dict[str, Any]]):
    """Batches of the training stream, made by the functions that Ray's data tasks call."""

    def __init__(self, manifest: Manifest, read: ReadConfig, batch_size: int, start_step: int, steps: int) -> None:
        self.wanted = manifest, range(len(manifest)), batch_size, 0, read, start_step, steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch, _ in reading.local_batches(*self.wanted):
            yield {name: torch.from_numpy(values) for name, values in batch.items()}


def path_config(config: DataConfig, manifest: Manifest, kind: str) -> ReadConfig:
    """Return how a path reads the clips of a layout."""
    augment = AugmentConfig.model_validate({"kind": kind})
    return config.read.model_copy(update={"root": manifest.root, "augment": augment})


def cpu_seconds(config: DataConfig, layouts: dict[str, Manifest]) -> dict[str, dict[str, float]]:
    """Return the CPU seconds of a clip, by layout and path; every clip goes through all of them before the next."""
    spent = {layout: dict.fromkeys(PATHS, 0.0) for layout in layouts}
    some = next(iter(layouts.values()))
    reads = {
        layout: {kind: path_config(config, manifest, kind) for kind in PATHS.values() if kind is not None}
        for layout, manifest in layouts.items()
    }
    with progress("reading", config.rounds * len(some), "clips") as bar:
        for draw in range(-1, config.rounds):  # the first turn warms the page cache
            for line in range(len(some)):
                bar.advance(draw >= 0)
                for layout, manifest in layouts.items():
                    row = manifest.row(line)
                    rng = np.random.default_rng([draw + 1, 0])  # the frames that read_train takes
                    frames = row["start"] + sampling.train_indices(row["frames"], config.read.sampling, rng)
                    where, size = located(manifest.root, row["path"]), (row["height"], row["width"])
                    for path, kind in PATHS.items():
                        began = time.process_time()
                        if kind is None:
                            decode.read(where, frames, size)
                        else:
                            reading.read_train(row, line, draw + 1, reads[layout][kind])
                        if draw >= 0:
                            spent[layout][path] += time.process_time() - began
    return {
        layout: {path: s / config.rounds / len(some) for path, s in paths.items()} for layout, paths in spent.items()
    }


def cold_rates(config: DataConfig, layouts: dict[str, Manifest]) -> dict[str, float]:
    """Return the clips a second that are loaded, not decoded, from the disk: the median of turns over all layouts."""
    files = {layout: files_of(manifest) for layout, manifest in layouts.items()}
    rates: dict[str, list[float]] = {layout: [] for layout in layouts}
    for _ in range(config.cold_rounds):
        for layout, manifest in layouts.items():
            forget(files[layout])
            began = time.perf_counter()
            for row in manifest.rows():
                decode.load(located(manifest.root, row["path"]), row["start"], row["frames"])
            rates[layout].append(len(manifest) / (time.perf_counter() - began))
    return {layout: statistics.median(found) for layout, found in rates.items()}


def streamed(config: DataConfig, manifest: Manifest) -> dict[str, list[float]]:
    """Return the clips a second of DataLoader and Ray Data in each round, with a process each that decodes."""
    read = path_config(config, manifest, "finetune")
    steps = max(2, config.stream_clips // config.batch_size)
    rates: dict[str, list[float]] = {"DataLoader": [], "Ray Data": []}
    with cluster.connect(ClusterConfig(num_cpus=1, object_store_gib=1.0)), progress("streaming", unit="rounds") as bar:
        for turn in range(config.stream_rounds):
            own = Loader(manifest, read, config.batch_size, turn * steps, steps)
            loader = DataLoader(own, batch_size=None, num_workers=1, prefetch_factor=4, multiprocessing_context="spawn")
            rates["DataLoader"].append(config.batch_size * rate(iter(loader)))
            stream = clips.stream(
                manifest,
                range(len(manifest)),
                read,
                config.stream,
                seed=0,
                batch_size=config.batch_size,
                start_step=turn * steps,
                steps=steps,
            )
            rates["Ray Data"].append(config.batch_size * rate(stream))
            bar.advance()
    return rates


def rate(batches: Iterator[Any]) -> float:
    """Return the batches a second after the first one, all of them taken as they come."""
    next(batches)
    began = time.perf_counter()
    return sum(1 for _ in batches) / (time.perf_counter() - began)


def measure(config: DataConfig, output: Path) -> dict[str, Any]:
    """Measure in the folder `output`; return the figures."""
    if config.manifest is None:
        prepare_world(config.world, output / "data")
    source = Manifest.read(config.manifest or output / "data" / UNLABELLED)
    source = source.take(range(min(len(source), config.clips)))
    layouts = build_all(source, config.manifest is not None, config.jpeg_side, config.jpeg_quality, output / "layouts")
    spent = cpu_seconds(config, layouts)
    cold = cold_rates(config, layouts)
    found: dict[str, Any] = {"clips": len(source), "frames": f"{config.read.sampling.frames}x{config.read.size}²"}
    found["layouts"] = {
        layout: {
            "mib_a_clip": sum(file.stat().st_size for file in files_of(manifest)) / 2**20 / len(manifest),
            "files": len(files_of(manifest)),
            "clips_a_cpu_second": {path: 1 / seconds for path, seconds in spent[layout].items()},
            "share_of_decoding": {path: spent[layout]["decoding"] / seconds for path, seconds in spent[layout].items()},
            "cold_clips_a_second": cold[layout],
        }
        for layout, manifest in layouts.items()
    }
    if config.stream_clips:
        rates = streamed(config, layouts["JPEG folders"])
        medians = {name: statistics.median(values) for name, values in rates.items()}
        found["streams"] = {"rounds": rates, **medians, "ratio": medians["Ray Data"] / medians["DataLoader"]}
    return found


def told(found: dict[str, Any]) -> str:
    """Return the figures as a table, and what they recommend."""
    layouts = found["layouts"]
    lines = [f"{'':16}{'MiB':>7}{'files':>7}   " + "".join(f"{path:>18}" for path in PATHS) + f"{'cold':>9}"]
    for layout, figures in layouts.items():
        paths = "".join(
            f"{figures['clips_a_cpu_second'][path]:>11.1f} {figures['share_of_decoding'][path]:>5.0%} "
            for path in PATHS
        )
        about = f"{layout:16}{figures['mib_a_clip']:>7.2f}{figures['files']:>7}   "
        lines.append(f"{about}{paths}{figures['cold_clips_a_second']:>9.0f}")
    lines.append("MiB a clip; clips a second and core, share of decoding alone; cold: clips a second from the disk")
    if "streams" in found:
        streams = found["streams"]
        lines.append(
            f"one process, fine-tuning from JPEG folders: Ray Data {streams['Ray Data']:.1f} clips/s, DataLoader "
            f"{streams['DataLoader']:.1f}: {streams['ratio']:.0%}"
        )
    return "\n".join([*lines, recommended(layouts)])


def recommended(layouts: dict[str, dict[str, Any]]) -> str:
    """Return which layout to take, from the training speed and the size of each."""
    speed = {layout: figures["clips_a_cpu_second"]["fine-tuning"] for layout, figures in layouts.items()}
    size = {layout: figures["mib_a_clip"] for layout, figures in layouts.items()}
    now = next(iter(layouts))
    # Within a tenth of the fastest, few files count for more: they travel and are read cold at the disk's own rate.
    fast = [layout for layout in layouts if speed[layout] > 0.9 * max(speed.values())]
    best = min(fast, key=lambda layout: layouts[layout]["files"])
    small = min(
        (x for x in layouts if size[x] < 2 * size[now]), key=lambda x: (-round(speed[x] / speed[now], 1), size[x])
    )

    def against(layout: str) -> str:
        return f"{layout} ({speed[layout] / speed[now]:.1f} x the speed, {size[layout] / size[now]:.1f} x the size)"

    text = f"against {now}: take {against(best)} where the disk holds it"
    return text if small == best else f"{text}; else {against(small)}" if small != now else f"{text}; else leave it"


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(DataConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output = (call.output or Path("output/benchmarks/data")).absolute()
    found = measure(call.config, output)
    print(told(found))
    write_whole(output / "data.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
