"""The jobs that `chaos.py` disturbs: tiny ones, whose time goes into starting and reading, not into learning."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments import prepare
from mien.platform.run import records
from mien.platform.storage import write_whole

WORLD = WorldConfig(
    size=64,
    frames=8,
    difficulty=0.0,
    identities=10,
    clips_per_identity=7,
    unlabelled_identities=8,
    videos_per_identity=4,
    video_frames=16,
)
BACKBONE = {
    "tubes": {"frames": 8, "size": 64, "patch": 16, "tubelet": 2},
    "encoder": {"name": "lgi_former", "width": 64, "depth": 2, "heads": 2, "region": [2, 2, 4]},
}
OPTIM = {"lr": 1e-3, "scale_lr": False, "warmup_steps": 2}


@dataclass
class Job:
    """A program, how far it has come, and where it writes."""

    words: list[str]
    output: Path
    done: Callable[[], int]
    total: int


def loop(steps: int, batch_size: int, checkpoint_every: int) -> dict[str, Any]:
    """Return the settings of a loop with an account of its clips."""
    rhythm = {"log_every": 1, "checkpoint_every": checkpoint_every, "record_clips": True}
    return {"steps": steps, "batch_size": batch_size, "precision": "fp32", **rhythm}


def pretraining(folder: Path, world: Path, steps: int, workers: int, checkpoint_every: int, address: str) -> Job:
    """Return a pretraining in `folder`."""
    recipe = {
        "data": {
            "manifest": str(world / prepare.UNLABELLED),
            "sampling": {"rule": "pretrain", "stride": 1},
            "augment": {"kind": "pretrain"},
        },
        # Short blocks, so that tasks are at work all the time.
        "stream": {"task_cpus": 0.5, "block_clips": 4, "ahead_blocks": 4, "segment_blocks": 16},
        "task": {"backbone": BACKBONE, "mask": {"ratio": 0.75}, "decoder": {"width": 32, "depth": 1, "heads": 2}},
        "optim": OPTIM,
        "loop": loop(steps, 8, checkpoint_every),
        "trainer": {"workers": workers, "cpus_per_worker": 0.5, "max_failures": 1000},
        "cluster": {"address": address},
        "sheet_clips": 0,
    }
    file = write_recipe(folder, recipe)
    output = folder / "run"

    def done() -> int:
        return max((line["step"] for line in records(output / "metrics.jsonl")), default=0)

    return Job(["pretrain.py", "--config", str(file), "--output", str(output)], output, done, steps)


def search(folder: Path, world: Path, steps: int, trials: int, checkpoint_every: int, address: str) -> Job:
    """Return a study in `folder`; what it tries does not depend on the order in which its trials end."""
    folds = [1, 2]
    recipe = {
        "manifests": [str(world / prepare.LABELLED)],
        "folds": folds,
        "space": {
            "task.alpha": {"name": "range", "low": 0.1, "high": 10, "log": True},
            "optim.lr": {"name": "range", "low": 1e-4, "high": 1e-2, "log": True},
        },
        "finetune": {
            "data": {
                "sampling": {"stride": 1, "segments": 1},
                "augment": {"kind": "none"},
                "split": {"validation_ratio": 0.2},
            },
            "task": {"name": "combined", "pool": "all", "backbone": BACKBONE},
            "optim": OPTIM,
            "loop": loop(steps, 8, checkpoint_every),
        },
        "study": {
            "trials": trials,
            "startup_trials": trials,
            "grace_folds": len(folds),
            "concurrency": 2,
            "cpus_per_trial": 0.5,
            "retries": 1000,
        },
        "cluster": {"address": address},
    }
    file = write_recipe(folder, recipe)
    output = folder / "study"

    def done() -> int:
        runs = output.glob("trials/*/fold_*/metrics.jsonl")
        return sum(max((line["step"] for line in records(path)), default=0) for path in runs)

    words = ["tune_dfew.py", "--config", str(file), "--output", str(output)]
    return Job(words, output, done, trials * len(folds) * steps)


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    """Write a program's settings."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    write_whole(file, yaml.safe_dump(recipe))
    return file
