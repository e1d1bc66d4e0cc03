"""Whether the stream of clips keeps a training device busy, and whether memory stays flat while it does.

    python experiments/benchmarks/feed.py [--output DIR] [key=value ...]

First the bare reading function decodes on as many processes as data tasks will run, which is all these cores can give.
Then the same clips come through Ray Data to a worker of Ray Train and the loop of every training run. Its step is a
stand-in for a GPU: it sleeps, leaving the CPU free, for as long as a batch takes at `pace` of the bare rate. What
counts is the share of time that the loop waits for clips after the first block, and the memory of all processes, from
the first fifth of the run to the last. The bare rate is measured again at the end, so that a change of the machine's
mood during the run is seen. `DIR/feed.json` holds the figures.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import nn

from mien.data_pipelines import clips, reading, sampling
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.blocks import StreamConfig, clips_per_block
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments.benchmarks.memory import Memory, flatness
from mien.experiments.prepare import UNLABELLED, prepare_world
from mien.platform import cluster, trainer
from mien.platform.cluster import ClusterConfig
from mien.platform.config import dump, parse, plain, rebuild, run_program
from mien.platform.loop import LoopConfig
from mien.platform.optim import OptimConfig
from mien.platform.run import Run, records
from mien.platform.storage import write_whole
from mien.platform.trainer import TrainerConfig
from mien.platform.training import run_training

WORLD = WorldConfig(identities=0, unlabelled_identities=20, videos_per_identity=10, video_frames=96, size=160)


class FeedConfig(BaseModel, frozen=True, extra="forbid"):
    """What is streamed, and how fast it is asked for."""

    clips: int = Field(5000, description="clips that the loop takes", gt=0)
    batch_size: int = Field(16, description="clips of a step", gt=0)
    pace: float = Field(0.8, description="clips a second that the device asks for, as a share of the bare rate", gt=0)
    rate_clips: int = Field(200, description="clips that each process decodes to measure the bare rate", gt=0)
    sample_seconds: float = Field(1.0, description="seconds from one look at the memory to the next", gt=0)
    world: WorldConfig = Field(WORLD, description="the videos: rendered once, VoxCeleb2's layout")
    read: ReadConfig = Field(
        ReadConfig(sampling=SamplingConfig(rule="pretrain"), augment=AugmentConfig(kind="pretrain")),
        description="how clips are read from them: as for pretraining, 16 frames of 160 pixels, stride 4",
    )
    stream: StreamConfig = StreamConfig()
    trainer: TrainerConfig = TrainerConfig()
    cluster: ClusterConfig = ClusterConfig(object_store_gib=1.5)


class Device(nn.Module):
    """A task whose forward pass takes a given time and no CPU."""

    def __init__(self, clip_seconds: float) -> None:
        super().__init__()
        self.clip_seconds = clip_seconds
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a loss after the time that the batch would take."""
        time.sleep(len(batch["clip"]) * self.clip_seconds)
        return {"loss": self.weight.square().sum()}

    def parameter_layers(self) -> dict[str, int]:
        """Return the layer of every parameter."""
        return {"weight": 0}

    num_layers = 1

    def undecayed(self) -> set[str]:
        """Return the parameters that are not decayed."""
        return {"weight"}


def open_data(config: FeedConfig, world: Path) -> tuple[Manifest, ReadConfig]:
    """Return the rendered videos and how they are read."""
    manifest = Manifest.read(world / UNLABELLED)
    return manifest, config.read.model_copy(update={"root": manifest.root})


def decode(config: FeedConfig, world: Path, first: int) -> float:
    """Read `rate_clips` clips of the stream from a position on; return how long it took. Runs in a bare process."""
    manifest, read = open_data(config, world)
    places = sampling.stream(range(len(manifest)), 0, first, first + config.rate_clips)
    began = time.perf_counter()
    for _, row, draw in places.items():
        reading.read_train(manifest.row(row), row, draw, read)
    return time.perf_counter() - began


def bare_rate(config: FeedConfig, world: Path, processes: int) -> float:
    """Return the clips a second that so many processes decode side by side, without Ray."""
    with get_context("spawn").Pool(processes) as pool:
        warm = config.model_copy(update={"rate_clips": 4})
        pool.starmap(decode, [(warm, world, 0)] * processes, chunksize=1)
        work = [(config, world, number * config.rate_clips) for number in range(processes)]
        return sum(config.rate_clips / seconds for seconds in pool.starmap(decode, work, chunksize=1))


def worker(settings: dict[str, Any]) -> None:
    """Take every batch of the stream and let the device work on it; runs in Ray Train."""
    config, output = rebuild(FeedConfig, settings["config"]), Path(settings["output"])
    manifest, read = open_data(config, Path(settings["world"]))
    here, run = trainer.here(), Run(output)
    loop = loop_config(config)
    stream = clips.stream(
        manifest,
        range(len(manifest)),
        read,
        config.stream,
        seed=0,
        batch_size=config.batch_size,
        rank=here.rank,
        world_size=here.world,
        steps=loop.total_steps(len(manifest)),
    )
    with run:
        run_training(
            Device(settings["clip_seconds"]),
            lambda _: (batch for batch, _ in stream),
            OptimConfig(),
            loop,
            run,
            num_clips=len(manifest),
            about={},
            rank=here.rank,
            world=here.world,
            commit=here.commit,
        )


def loop_config(config: FeedConfig) -> LoopConfig:
    """Return the loop's settings: every step is logged, and no checkpoint disturbs."""
    steps = math.ceil(config.clips / config.batch_size)
    return LoopConfig(steps=steps, batch_size=config.batch_size, log_every=1, checkpoint_every=steps, precision="fp32")


def feed(config: FeedConfig, output: Path) -> dict[str, Any]:
    """Measure in the folder `output`; return the figures."""
    world, run = output / "data", output / "run"
    prepare_world(config.world, world)
    shutil.rmtree(run, ignore_errors=True)  # a run that has ended would not begin again
    cpus = config.cluster.num_cpus or os.cpu_count() or 1
    decoders = int((cpus - config.trainer.most * config.trainer.cpus_per_worker) / config.stream.task_cpus)
    before = bare_rate(config, world, max(decoders, 1))
    clip_seconds = config.trainer.most / (config.pace * before)
    print(f"bare: {before:.1f} clips/s on {decoders} process(es); the device takes one every {clip_seconds:.4f} s")
    loop = loop_config(config)
    settings = {"config": plain(config), "world": str(world), "output": str(run), "clip_seconds": clip_seconds}
    Run.start(run, settings, seed=0).close()
    looking = Memory(run / "metrics.jsonl", config.sample_seconds)
    looking.start()
    with cluster.connect(config.cluster):
        trainer.fit(
            worker,
            settings,
            config.trainer,
            run,
            total_steps=loop.steps or 0,
            data_cpus=config.stream.task_cpus,
            label="feeding",
        )
        looking.end()
    after = bare_rate(config, world, max(decoders, 1))
    return figures(config, records(run / "metrics.jsonl"), looking.samples, before, after, decoders)


def figures(
    config: FeedConfig,
    steps: Sequence[dict[str, Any]],
    samples: Sequence[dict[str, float]],
    before: float,
    after: float,
    decoders: int,
) -> dict[str, Any]:
    """Return what is worth knowing of a run's records."""
    read = config.read
    share = config.batch_size // config.trainer.most
    block = clips_per_block(share, read.sampling.frames * read.size**2 * 3, config.stream)
    steady = steps[math.ceil(block / share) :]
    seconds, waits = ([step[f"train/{name}"] for step in steady] for name in ("seconds", "wait_seconds"))
    return {
        "clips": len(steps) * config.batch_size,
        "frames_size": f"{read.sampling.frames}x{read.size}",
        "decoders": decoders,
        "bare_clips_a_second": {"before": before, "after": after},
        "asked_share": {"of_before": config.pace, "of_after": config.pace * before / after},
        "stream_clips_a_second": config.batch_size * len(steady) / sum(seconds),
        "first_batch_seconds": steps[0]["train/wait_seconds"],
        "block_clips": block,
        "wait_share_after_first_block": sum(waits) / sum(seconds),
        "longest_waits_seconds": sorted(waits)[-5:],
        "memory_mib": flatness(samples, len(steps)),
    }


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(FeedConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output = (call.output or Path("output/benchmarks/feed")).absolute()
    found = feed(call.config, output)
    print(json.dumps(found, indent=1))
    write_whole(output / "feed.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
