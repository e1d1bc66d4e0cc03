"""Small backbones and batches, and the reference's deterministic tensors."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mien.models.backbone import BackboneConfig, Task
from mien.models.published import load, save

TUBES = {"frames": 8, "size": 32, "patch": 8, "tubelet": 2}  # a grid of 4 x 4 x 4
SMALL: dict[str, dict[str, Any]] = {
    "lgi_former": {"name": "lgi_former", "width": 32, "depth": 2, "heads": 2, "region": (2, 2, 4)},
    "vit": {"name": "vit", "width": 32, "depth": 2, "heads": 2},
    "mamba": {"name": "mamba", "width": 32, "depth": 2},
}


@pytest.fixture(scope="session")
def small() -> Callable[..., BackboneConfig]:
    """Return a function that makes a small backbone's config: the encoder's name and changes to its settings."""

    def make(name: str = "lgi_former", tubes: dict[str, Any] | None = None, **changes: Any) -> BackboneConfig:
        return BackboneConfig.model_validate({"tubes": TUBES | (tubes or {}), "encoder": SMALL[name] | changes})

    return make


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Return four clips, of which one lacks a class and one a gaze."""
    generator = torch.Generator().manual_seed(0)
    return {
        "clip": torch.randint(0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8, generator=generator),
        "draw": torch.tensor([3, 1 << 62, 0, 12345]),
        "label": torch.tensor([0, 2, -1, 1]),
        "gaze": torch.tensor([[0.1, 0.2], [torch.nan, torch.nan], [-0.5, 3.1], [0.3, -3.1]]),
    }


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """Return the module that draws the reference's weights, clips and masks by name."""
    path = Path(__file__).parents[1] / "reference" / "deterministic.py"
    spec = importlib.util.spec_from_file_location("deterministic", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def filled(reference: ModuleType) -> Callable[[Task], Task]:
    """Return a function that gives a task the reference's weights, drawn by their published names."""

    def fill(task: Task) -> Task:
        shapes = {name: tuple(value.shape) for name, value in save(task).items()}
        load(task, {name: torch.from_numpy(reference.parameter(name, shape)) for name, shape in shapes.items()})
        return task

    return fill


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the full-size models last."""
    items.sort(key=lambda item: item.path.name in ("test_golden.py", "test_training.py"))
