"""What can be trained: every task by name, and the union of their configs."""

from typing import Annotated, Any

from pydantic import Field

from mien.models.backbone import Task
from mien.models.combined import Combined, CombinedConfig
from mien.models.expression import Expression, ExpressionConfig
from mien.models.gaze import Gaze, GazeConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder

AnyConfig = MaeConfig | ExpressionConfig | GazeConfig | CombinedConfig
TaskConfig = Annotated[AnyConfig, Field(discriminator="name")]
TASKS: dict[str, Any] = {
    "mae": MaskedAutoencoder,
    "expression": Expression,
    "gaze": Gaze,
    "combined": Combined,
}


def build(config: AnyConfig) -> Task:
    """Make the task a config names, with newly drawn weights (from torch's global generator)."""
    return TASKS[config.name](config)


def labels_of(config: AnyConfig) -> set[str]:
    """Return which labels of a clip a task learns from: "label" (its class), "gaze", both or none."""
    if config.name == "combined":
        return {name for name, weight in (("label", config.alpha), ("gaze", config.gaze_weight)) if weight > 0}
    return {"mae": set(), "expression": {"label"}, "gaze": {"gaze"}}[config.name]
