"""A world of ten people in frames of 32 pixels, recipes of models that learn it in seconds, and a few finished runs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mien.experiments import finetune, prepare, pretrain
from mien.platform import checkpoint

ROOT = Path(__file__).resolve().parents[2]
WORLD = {
    "size": 32, "frames": 4, "difficulty": 0.0, "identities": 10, "clips_per_identity": 7,
    "unlabelled_identities": 4, "videos_per_identity": 2, "video_frames": 8,
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "lgi_former": {"name": "lgi_former", "width": 32, "depth": 1, "heads": 2, "region": [2, 2, 4]},
    "vit": {"name": "vit", "width": 32, "depth": 1, "heads": 2},
    "mamba": {"name": "mamba", "width": 32, "depth": 1},
}
BACKBONE = {"tubes": {"frames": 4, "size": 32, "patch": 8, "tubelet": 2}, "encoder": ENCODERS["lgi_former"]}
OPTIM = {"lr": 1e-3, "scale_lr": False, "warmup_steps": 2}
LOOP = {"steps": 6, "batch_size": 8, "precision": "fp32", "log_every": 1, "checkpoint_every": 2}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the manifests of labelled clips and unlabelled videos."""
    folder = tmp_path_factory.mktemp("world")
    prepare.main(["synthetic", "--output", str(folder), *(f"{key}={value}" for key, value in WORLD.items())])
    return folder


@pytest.fixture(scope="session")
def recipes(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the recipe of every program that takes one, by the program's name."""
    data = {
        "manifest": str(world / "manifest.parquet"),
        "split": {"validation_ratio": 0.2},
        "augment": {"kind": "none"},
    }
    data["sampling"] = {"stride": 1, "segments": 1}
    fine = {
        "data": data,
        "task": {"name": "combined", "pool": "all", "backbone": BACKBONE},
        "optim": OPTIM,
        "loop": LOOP,
    }
    trees: dict[str, Any] = {
        "pretrain": {
            "data": {
                "manifest": str(world / "unlabelled.parquet"),
                "sampling": {"rule": "pretrain", "stride": 1},
                "augment": {"kind": "none"},
            },
            "stream": {"task_cpus": 0.5},
            "task": {
                "backbone": BACKBONE,
                "mask": {"kind": "window", "ratio": 0.75},
                "decoder": {"width": 16, "depth": 1, "heads": 1},
            },
            "optim": OPTIM,
            "loop": LOOP,
            "trainer": {"cpus_per_worker": 0.5},
            "cluster": {"num_cpus": 1, "object_store_gib": 0.1},
        },
        "finetune": fine,
        "tune_dfew": {
            "manifests": [data["manifest"]],
            "folds": [1, 2],
            "space": {"task.alpha": {"name": "range", "low": 0.1, "high": 10, "log": True}},
            "finetune": fine,
            "study": {"trials": 2, "grace_folds": 2, "concurrency": 1, "cpus_per_trial": 0.5},
        },
    }
    # The demo's three stand in a folder of their own.
    study = {"trials": 1, "cpus_per_trial": 0.5}
    trees |= {"demo/world": WORLD, "demo/pretrain": trees["pretrain"]}
    of_pretrained = fine | {"task": {"name": "combined", "pool": "all"}}
    trees["demo/study"] = trees["tune_dfew"] | {"folds": [1], "study": study, "finetune": of_pretrained}
    trees["encoders"] = {"encoders": ENCODERS}
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "demo").mkdir()
    for name, tree in trees.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return {name: folder / f"{name}.yaml" for name in trees}


@pytest.fixture(scope="session")
def pretrained(ray_cluster: None, recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a pretraining that nothing disturbed."""
    folder = tmp_path_factory.mktemp("pretrained") / "pretrain"
    pretrain.main(["--config", str(recipes["pretrain"]), "--output", str(folder)])
    return folder


@pytest.fixture(scope="session")
def finetuned(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a fine-tuning from scratch that nothing disturbed; to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    finetune.main(["--config", str(recipes["finetune"]), "--output", str(folder)])
    return folder


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, torch.Tensor]]:
    """Return a function that reads the newest weights of a run folder."""
    return checkpoint.weights


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Return a function that starts a program as a shell does, in an empty folder; output and errors come together."""

    def start(name: str, *words: str, prefix: str = "") -> "subprocess.Popen[str]":
        call = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *words]
        return subprocess.Popen(
            ["sh", "-c", f'{prefix} exec "$@"', "sh", *call] if prefix else call,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=tmp_path,
        )

    return start
