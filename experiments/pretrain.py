"""Pretrain a masked autoencoder on unlabelled face videos: Ray Data streams clips to the workers of Ray Train.

    python experiments/pretrain.py --config experiments/configs/pretrain_lgi_base.yaml --output output/pretrain \\
        data.manifest=output/voxceleb2/manifest.parquet

The same command in the same folder goes on from the newest checkpoint, in the middle of an epoch too, and ends with the
weights of a run that never stopped. `reconstructions/` in the run folder shows what the model paints, as it learns, and
`probe.manifest=output/dfew/manifest.parquet probe.fold=1` how well frozen features tell the classes of a labelled set.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field

from mien.data_pipelines import clips, reading
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.blocks import bytes_on_their_way
from mien.data_pipelines.clips import StreamConfig
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.fingerprint import Fingerprint, fingerprint
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.mixing import separated
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.experiments.doctor import load_pretrained, pretrained_backbone, trained_on
from mien.experiments.probe import ProbeConfig, measure, open_probe
from mien.models.loading import Report
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.platform import checkpoint, cluster, pictures, trainer
from mien.platform.cluster import ClusterConfig
from mien.platform.config import ConfigError, dump, parse, plain, rebuild, run_program
from mien.platform.loop import LoopConfig
from mien.platform.optim import OptimConfig, told_decay, told_rate
from mien.platform.preflight import FORCE, preflight
from mien.platform.progress import table
from mien.platform.run import Run, interruptible
from mien.platform.shortcomings import Needs
from mien.platform.sizes import sizes
from mien.platform.storage import write_whole
from mien.platform.trainer import TrainerConfig
from mien.platform.training import check_schedule, run_training


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """Which videos, and how clips are read from them."""

    manifest: str = Field("output/voxceleb2/manifest.parquet", description="manifest made by prepare.py; labels unused")
    root: str | None = Field(None, description="folder of the videos, where it has moved since prepare.py")
    sampling: SamplingConfig = SamplingConfig(rule="pretrain")
    augment: AugmentConfig = AugmentConfig(kind="pretrain")


class PretrainProbeConfig(ProbeConfig, frozen=True, extra="forbid"):
    """A probe that is repeated while pretraining goes on."""

    every_epochs: int = Field(5, description="epochs from one probe to the next; one comes before the first", gt=0)


class PretrainConfig(BaseModel, frozen=True, extra="forbid"):
    """One pretraining run."""

    data: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig()
    task: MaeConfig = MaeConfig()
    pretrained: str | None = Field(
        None, description="run folder, checkpoint or published file whose weights pretraining goes on from; null: none"
    )
    optim: OptimConfig = OptimConfig(lr=3e-4, min_lr=1e-5, betas=(0.9, 0.95))
    loop: LoopConfig = LoopConfig(batch_size=160, checkpoint_every=1000)
    trainer: TrainerConfig = TrainerConfig()
    cluster: ClusterConfig = ClusterConfig()
    sheet_clips: int = Field(4, description="clips on a sheet of reconstructions; 0: no sheets", ge=0)
    sheet_every: int | None = Field(
        None, description="steps from one sheet to the next; null: one with each checkpoint", gt=0
    )
    probe: PretrainProbeConfig | None = Field(
        None,
        description="labelled clips on which linear and nearest-neighbour classifiers show, as pretraining goes on, "
        "what frozen features know: needs probe.manifest; null: none",
    )


def open_data(config: PretrainConfig) -> tuple[Manifest, ReadConfig]:
    """Return the manifest and how its clips are read: as long and as large as the model takes them."""
    manifest = Manifest.read(config.data.manifest, config.data.root)
    tubes = config.task.backbone.tubes
    read = reading.for_model(
        config.data.sampling, config.data.augment, frames=tubes.frames, size=tubes.size, root=manifest.root
    )
    return manifest, read


def inputs(config: PretrainConfig, manifest: Manifest, read: ReadConfig) -> dict[str, Fingerprint]:
    """Return the fingerprint of what is trained on, as the run folder and the checkpoints keep it."""
    parts = {"train": len(manifest)}
    found = {"trained_on": fingerprint(manifest, read=read, parts=parts, path=config.data.manifest)}
    return found if config.pretrained is None else found | {"pretrained_on": trained_on(config.pretrained)}


def make_task(config: PretrainConfig, begins: bool) -> tuple[MaskedAutoencoder, Report | None]:
    """Return the autoencoder, with the weights that it goes on from where the run begins, and what they gave.

    Raises ValueError where those are of another encoder, or their fixed positions of another grid.
    """
    torch.manual_seed(config.loop.seed)
    task, here = MaskedAutoencoder(config.task), config.task.backbone
    if config.pretrained is None or not begins:
        return task, None
    there = pretrained_backbone(config.pretrained, here)
    if there.encoder.name != here.encoder.name:
        raise ConfigError(
            f"pretrained holds the encoder {there.encoder.name}, but task.backbone.encoder is {here.encoder.name}; "
            "pretrain the same one"
        )
    grids = [backbone.table_grid or backbone.tubes.grid for backbone in (there, here)]
    if here.fixed_positions and grids[0] != grids[1]:
        raise ConfigError(
            f"the fixed positions of {config.pretrained} are those of {grids[0]} tubes, but here there are {grids[1]}; "
            f"set task.backbone.table_grid={list(grids[0])}, and they are stretched"
        )
    return task, load_pretrained(task, config.pretrained, "pretrained", there)


def worker(settings: dict[str, Any]) -> None:
    """Train on one of Ray Train's workers; `settings` holds the config as plain data and the run folder."""
    config, output = rebuild(PretrainConfig, settings["config"]), Path(settings["output"])
    here = trainer.here()
    run = Run(output)
    manifest, read = open_data(config)
    task = make_task(config, begins=checkpoint.newest(output / "checkpoints") is None)[0].to(here.device)

    def batches(start_step: int) -> Iterator[dict[str, torch.Tensor]]:
        stream = clips.stream(
            manifest,
            range(len(manifest)),
            read,
            config.stream,
            seed=config.loop.seed,
            batch_size=config.loop.batch_size,
            rank=here.rank,
            world_size=here.world,
            start_step=start_step,
            steps=config.loop.total_steps(len(manifest)) - start_step,
        )
        for batch, dropped in stream:
            for record in dropped:
                run.dropped(record)
            yield separated(batch, config.data.sampling.num_samples)

    total, epoch = config.loop.total_steps(len(manifest)), config.loop.steps_per_epoch(len(manifest))
    tubes = config.task.backbone.tubes
    probe = config.probe and open_probe(config.probe, frames=tubes.frames, size=tubes.size)

    def watch(step: int) -> None:
        if here.rank:
            return
        if config.probe and probe and (step % (config.probe.every_epochs * epoch) == 0 or step == total):
            run.log({"step": step, **measure(task, probe, here.device, config.loop.precision)}, split="probe")
        sheets = config.sheet_every or config.loop.checkpoint_every
        if config.sheet_clips and step and (step % sheets == 0 or step == total):
            draw_sheet(task, manifest, read, config.sheet_clips, output / "reconstructions" / f"step_{step:08d}.png")

    with run:
        run_training(
            task,
            batches,
            config.optim,
            config.loop,
            run,
            num_clips=len(manifest),
            about={
                "task": plain(config.task),
                "fingerprint": manifest.fingerprint(),
                "inputs": inputs(config, manifest, read),
            },
            rank=here.rank,
            world=here.world,
            commit=here.commit,
            watch=watch,
            interrupt=here.interrupt,
        )


def draw_sheet(task: MaskedAutoencoder, manifest: Manifest, read: ReadConfig, count: int, file: Path) -> None:
    """Draw the same clips each time: what went in, what was visible, what was painted, and motion."""
    chosen = np.linspace(0, len(manifest) - 1, min(count, len(manifest))).astype(int).tolist()
    views = []
    for row in chosen:
        try:
            views.append(reading.read_views(manifest.row(row), row, read)[0])
        except DecodeError:  # dropped.jsonl tells of it when training meets it; here its line is missing
            continue
    if not views:
        return
    device = next(task.parameters()).device
    batch = {
        "clip": torch.from_numpy(np.stack([view["clip"] for view in views])).to(device),
        "draw": torch.arange(len(views), device=device),
    }
    painted = task.reconstruct(batch)
    # Two clips side by side, a line for each kind of picture, so that one looks down from what was to what was painted.
    pairs = [range(first, min(first + 2, len(views))) for first in range(0, len(views), 2)]
    # The first frame of a group has no motion, and a strip of empty frames shows nothing.
    moving = np.arange(read.sampling.frames) % task.config.target.group > 0
    shown = {
        name: clip[:, moving] if name.startswith("motion") else clip
        for name, clip in ((name, values.cpu().numpy()) for name, values in painted.items())
    }
    rows = [[pictures.strip(shown[name][clip]) for clip in pair] for pair in pairs for name in shown]
    pictures.save(file, pictures.grid(rows, labels=[name.replace("_", " ") for _ in pairs for name in shown]))


def needs(config: PretrainConfig, read: ReadConfig, output: Path) -> Needs:
    """Return what the run asks of the connected cluster."""
    workers, share = config.trainer.most, math.ceil(config.loop.batch_size / config.trainer.most)
    kept = len(checkpoint.steps(output / "checkpoints"))
    with torch.device("meta"):
        weights = sum(weight.nbytes for weight in MaskedAutoencoder(config.task).parameters())
    return Needs(
        output,
        workers=config.trainer.fewest,
        cpus_per_worker=config.trainer.cpus_per_worker,
        gpus_per_worker=float(trainer.takes_gpus(config.trainer)),
        data_cpus=config.stream.task_cpus,
        stream_bytes=bytes_on_their_way(config.stream, workers, share, read.clip_bytes),
        # Weights, two moments and perhaps an average; two checkpoints are kept while the next is written.
        checkpoint_bytes=max(3 - kept, 1) * weights * (3 + (config.loop.ema_decay is not None)),
    )


def pretrain(config: PretrainConfig, output: Path, *, force: bool = False) -> None:
    """Pretrain in a run folder on the cluster that the config names; a finished folder is left as it is.

    `force` goes on where the cluster would not do.
    """
    output = output.absolute()
    # What is wrong is said before there is a folder, which belongs to one config.
    manifest, read = open_data(config)
    check_schedule(config.optim, config.loop, len(manifest))
    with torch.device("meta"):
        decay = told_decay(MaskedAutoencoder(config.task), config.optim)
    if config.probe:
        open_probe(config.probe, frames=read.sampling.frames, size=read.size)
    clips.Share.of(0, config.trainer.most, config.loop.seed, config.loop.batch_size)
    newest = checkpoint.newest(output / "checkpoints")
    if config.pretrained is not None and newest is None:
        print(f"{config.pretrained}: {make_task(config, begins=True)[1]}", flush=True)
    with Run.start(output, config, seed=config.loop.seed):
        write_whole(output / "inputs.json", json.dumps(inputs(config, manifest, read), indent=1) + "\n")
        total = config.loop.total_steps(len(manifest))
        if newest is not None and checkpoint.number(newest) >= total:
            print(f"{output}: finished, {total:,} steps")
            return
        if newest is not None:
            print(f"going on from {newest}", flush=True)
        print(told_rate(config.optim, config.loop.batch_size))
        if decay:
            print(f"weight decay {decay}")
        about = {"pretraining": output.name, "dataset": manifest.name, "storage": str(output)}
        with cluster.connect(config.cluster, about):
            preflight(needs(config, read, output), force=force)
            trainer.fit(
                worker,
                {"config": plain(config), "output": str(output)},
                config.trainer,
                output,
                total_steps=total,
                data_cpus=config.stream.task_cpus,
                label="pretraining",
            )


def main(argv: Sequence[str]) -> None:
    """Read the command line and pretrain."""
    call = parse(PretrainConfig, argv, __doc__, flags=FORCE)
    config, output = call.config, call.output or Path("output/pretrain")
    if call.dry_run:
        manifest, _ = open_data(config)
        check_schedule(config.optim, config.loop, len(manifest))
        tubes = config.task.backbone.tubes
        print(dump(config))
        clip = torch.zeros(1, tubes.frames, tubes.size, tubes.size, 3, dtype=torch.uint8)
        found = sizes(MaskedAutoencoder(config.task), clip, tubes.num_tokens, len(manifest), config.loop, config.optim)
        table([{"size": name, "value": value} for name, value in found.items()])
        return
    with interruptible(Run(output)):
        pretrain(config, output, force="force" in call.flags)


if __name__ == "__main__":
    run_program(main)
