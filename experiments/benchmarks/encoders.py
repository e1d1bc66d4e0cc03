"""Encoders side by side on the synthetic world: the same recipe, clips, steps and batches; only rates may be their own.

    python experiments/benchmarks/encoders.py [--output DIR] [seeds=3] [arms=[lgi_former,mamba]] [key=value ...]

Every encoder is pretrained as a masked autoencoder, fine-tuned on one fold and judged on the test clips of people whom
nothing has seen; a seed is the seed of weights, clips and split, and each seed tests other people. The recipe is
`experiments/configs/encoders.yaml`. Every run is a run folder below DIR: the same command goes on where it stopped.
`DIR/encoders.json` holds the figures of every seed, each encoder's size, seconds, and its distance from the first.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, model_validator

from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments import pretrain
from mien.experiments.benchmarks.learning import judge, spread
from mien.experiments.finetune import FinetuneConfig
from mien.experiments.prepare import LABELLED, UNLABELLED, prepare_world
from mien.experiments.pretrain import PretrainConfig
from mien.models import tasks
from mien.models.backbone import EncoderConfig
from mien.platform import config as settings
from mien.platform.config import run_program, with_overrides
from mien.platform.progress import table
from mien.platform.storage import write_whole

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "encoders.yaml"


class EncodersConfig(BaseModel, frozen=True, extra="forbid"):
    """The encoders, the world and the trainings that all share."""

    arms: tuple[str, ...] | None = Field(None, description="names of the encoders that are tried; null: all")
    encoders: dict[str, EncoderConfig] = Field({}, description="encoders by the names they are shown with")
    rates: dict[str, dict[str, Any]] = Field(
        {}, description="fine-tuning settings of an encoder's own, chosen on validation out of the demo study's space"
    )
    seeds: int = Field(3, ge=1, description="seeds, 0 and up; at most one for each fold is of use")
    world: WorldConfig = WorldConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()

    @model_validator(mode="after")
    def _known(self) -> "EncodersConfig":
        if unknown := sorted(({*(self.arms or ()), *self.rates}) - self.encoders.keys()):
            raise ValueError(f"arms and rates name encoders, {sorted(self.encoders)}, but got {unknown}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The encoders that are tried, in order."""
        return self.arms or tuple(self.encoders)


def run(config: EncodersConfig, name: str, seed: int, output: Path) -> dict[str, float]:
    """Pretrain, fine-tune and test one encoder with one seed; what is done already is only read."""
    folder = output / name / f"seed_{seed}"
    encoder = settings.plain(config.encoders[name])
    shared = {"data.manifest": str(output / "data" / UNLABELLED), "loop.seed": seed}
    pretraining = with_overrides(config.pretrain, shared | {"task.backbone.encoder": encoder})
    times = [time.perf_counter()]
    pretrain.pretrain(pretraining, folder / "pretrain")
    times.append(time.perf_counter())
    finetuning = with_overrides(
        config.finetune,
        {
            "data.manifest": str(output / "data" / LABELLED),
            "data.fold": seed % 5 + 1,
            "data.split.seed": seed,
            "loop.seed": seed,
            "pretrained": str(folder / "pretrain"),
        }
        | config.rates.get(name, {}),
    )
    scores = judge(finetuning, folder / "finetune")
    times.append(time.perf_counter())
    with torch.device("meta"):
        task = tasks.build(finetuning.task.model_copy(update={"backbone": pretraining.task.backbone}))
    scores["million_parameters"] = sum(parameter.numel() for parameter in task.parameters()) / 1e6
    record = folder / "seconds.json"
    if not record.is_file():  # a run that was interrupted counts from where it went on
        seconds = {"pretrain_seconds": times[1] - times[0], "finetune_seconds": times[2] - times[1]}
        write_whole(record, json.dumps(seconds) + "\n")
    return scores | json.loads(record.read_text(encoding="utf-8"))


def compare(config: EncodersConfig, output: Path) -> dict[str, Any]:
    """Do all runs that are left to do; return each encoder's figures over the seeds, and what it lacks to the first."""
    prepare_world(config.world, output / "data")
    # Seed by seed, so that an interrupted comparison has the same seeds of every encoder.
    runs = {(name, seed): run(config, name, seed, output) for seed in range(config.seeds) for name in config.names}
    found: dict[str, Any] = {}
    for name in config.names:
        of_seeds = [runs[name, seed] for seed in range(config.seeds)]
        found[name] = {key: spread([scores[key] for scores in of_seeds]) for key in of_seeds[0]}
        behind = [
            runs[config.names[0], seed]["test/uar"] - runs[name, seed]["test/uar"] for seed in range(config.seeds)
        ]
        found[name]["test/uar behind the first"] = spread(behind)
    return found


def show(found: dict[str, Any]) -> None:
    """Print each encoder's figures: the mean, and every seed's UAR."""
    table(
        [
            {"encoder": name}
            | {key: f"{figure['mean']:.3f}" for key, figure in figures.items() if "constant" not in key}
            | {"seeds": " ".join(f"{uar:.3f}" for uar in figures["test/uar"]["seeds"])}
            for name, figures in found.items()
        ]
    )


def main(argv: Sequence[str]) -> None:
    """Read the command line, do the runs and print what came out."""
    call = settings.parse(EncodersConfig, ["--config", str(RECIPE), *argv], __doc__)
    config, output = call.config, (call.output or Path("output/benchmarks/encoders")).absolute()
    if call.dry_run:
        print(settings.dump(config))
        print(f"{len(config.names) * config.seeds} pretrainings and fine-tuning runs in {output}")
        return
    found = compare(config, output)
    show(found)
    write_whole(output / "encoders.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
