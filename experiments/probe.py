"""What an encoder knows without fine-tuning: classifiers on frozen features, beside one that learned nothing.

    python experiments/probe.py output/pretrain manifest=output/dfew/manifest.parquet fold=1 --output output/probed

The first word is a run folder, one of its checkpoints or a published file. A logistic regression and the nearest
neighbours learn from train clips and are judged on validation, which holds other people where they are known; test
clips stay closed. It prints the UAR of both with 95 % intervals over people, writes probe.json, and takes no more than
`max_clips` of either part.
Pretraining does the same as it goes on: `probe.manifest=` and `probe.every_epochs=` of pretrain.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field

from mien.data_pipelines import reading, splits
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.data_pipelines.splits import SplitConfig
from mien.experiments.doctor import filled, open_weights
from mien.models import tasks
from mien.models.backbone import Task
from mien.platform import linear_probe
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.loop import Precision
from mien.platform.progress import table
from mien.platform.storage import write_whole
from mien.platform.training import device_here

BATCH = 16  # clips encoded at a time


class ProbeConfig(BaseModel, frozen=True, extra="forbid"):
    """Which labelled clips show what frozen features know."""

    manifest: str = Field(description="manifest of labelled clips made by prepare.py")
    root: str | None = Field(None, description="folder of the clips, where it has moved since prepare.py")
    fold: int | None = Field(None, description="fold whose test clips stay closed; null: the set has no folds", ge=1)
    split: SplitConfig = SplitConfig(validation_ratio=0.3)
    sampling: SamplingConfig = SamplingConfig(segments=1)
    max_clips: int = Field(1000, description="most clips learned from, and most judged, drawn by class", gt=1)
    neighbours: int = Field(10, description="nearest neighbours that vote", gt=0)
    threads: int = Field(1, description="threads that decode", ge=1)


class ProbeFileConfig(ProbeConfig, frozen=True, extra="forbid"):
    """Whose features are looked at."""

    file: str = Field("output/pretrain", description="file or folder of weights; may be given as the first word")
    precision: Precision = Field("bf16", description="autocast type")
    random: bool = Field(True, description="compare with the same encoder before it learned anything")


class Probe(NamedTuple):
    """The labelled clips of a probe, and how they are read."""

    manifest: Manifest
    train: np.ndarray
    val: np.ndarray
    read: ReadConfig
    config: ProbeConfig


def open_probe(config: ProbeConfig, *, frames: int, size: int) -> Probe:
    """Split the labelled clips by persons. Raises ConfigError where there are no classes to tell apart."""
    manifest = Manifest.read(config.manifest, config.root)
    labelled = np.array([label is not None for label in manifest.column("label")])
    if len(manifest.classes) < 2 or not labelled.any():
        raise ConfigError(f"a probe tells classes apart, but {config.manifest} names none; give a labelled manifest")
    split = splits.split(manifest, config.fold, config.split)
    parts = []
    for rows in (split.train, split.val):
        known = rows[labelled[rows]]
        if not len(known):
            raise ConfigError(
                f"a probe learns from labelled clips and is judged on others, but of {config.manifest} one of the two "
                f"parts has none (fold {config.fold}); give another fold or split.validation_ratio"
            )
        share = min(config.max_clips / len(known), 1.0)
        parts.append(splits.fewer_labels(manifest, known, share, config.split.seed))
    plain = AugmentConfig(kind="none")
    read = reading.for_model(config.sampling, plain, frames=frames, size=size, root=manifest.root)
    return Probe(manifest, parts[0], parts[1], read, config)


def measure(task: Task, probe: Probe, device: torch.device, precision: Precision) -> dict[str, float]:
    """Return `uar_linear` and `uar_knn` of a task's features, with their intervals; the task stays as it is."""
    labels = np.array([-1 if label is None else label for label in probe.manifest.column("label")])
    parts = []
    for rows in (probe.train, probe.val):
        views = reading.local_views(probe.manifest, rows, BATCH, probe.read, threads=probe.config.threads)
        seen, x = linear_probe.features(task, views, device, precision)
        parts.append((x, labels[seen]))
    subjects = [probe.manifest.column("subject")[row] for row in seen]
    people = None if None in subjects else np.unique(np.array(subjects, dtype=str), return_inverse=True)[1]
    return linear_probe.probe(parts[0], parts[1], probe.config.neighbours, people)


def main(argv: Sequence[str]) -> None:
    """Read the command line and probe."""
    call = parse(ProbeFileConfig, argv, __doc__, first="file")
    config = call.config
    weights = open_weights(config.file)
    tubes = weights.config.backbone.tubes
    probe = open_probe(config, frames=tubes.frames, size=tubes.size)
    chance = 1 / len(probe.manifest.classes)
    print(f"{len(probe.train):,} clips to learn from, {len(probe.val):,} of other {probe_group(probe)} to judge")
    if call.dry_run:
        print(dump(config))
        return
    device = device_here()
    torch.manual_seed(0)
    found = {"pretrained": measure(filled(weights).to(device), probe, device, config.precision)}
    if config.random:
        found["random"] = measure(tasks.build(weights.config).to(device), probe, device, config.precision)
    table([{"encoder": name, **shown(numbers), "chance": f"{chance:.3f}"} for name, numbers in found.items()])
    output = call.output or Path("output/probed")
    output.mkdir(parents=True, exist_ok=True)
    about = {"file": config.file, "manifest": config.manifest, "fingerprint": probe.manifest.fingerprint()}
    sizes = {"num_train_clips": len(probe.train), "num_clips": len(probe.val), "chance": chance}
    write_whole(output / "probe.json", json.dumps(about | sizes | found, indent=1) + "\n")


def shown(numbers: dict[str, float]) -> dict[str, str]:
    """Return a probe's scores with their intervals, for a table."""
    names = {"linear": "uar_linear", "neighbours": "uar_knn"}
    return {
        f"UAR, {words}": f"{numbers[name]:.3f} [{numbers[f'{name}_low']:.3f}, {numbers[f'{name}_high']:.3f}]"
        for words, name in names.items()
    }


def probe_group(probe: Probe) -> str:
    """Return what keeps the two parts apart, in words."""
    return "people" if None not in probe.manifest.column("subject") else "files"


if __name__ == "__main__":
    run_program(main)
