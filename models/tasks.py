"""What can be trained: every task by name, and the union of their configs."""

from typing import Annotated, Any

from pydantic import Field

from mien.models.backbone import Task
from mien.models.combined import Combined, CombinedConfig
from mien.models.expression import Expression, ExpressionConfig
from mien.models.gaze import Gaze, GazeConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder

TaskConfig = Annotated[MaeConfig | ExpressionConfig | GazeConfig | CombinedConfig, Field(discriminator="name")]
TASKS: dict[str, Any] = {
    "mae": MaskedAutoencoder,
    "expression": Expression,
    "gaze": Gaze,
    "combined": Combined,
}


def build(config: MaeConfig | ExpressionConfig | GazeConfig | CombinedConfig) -> Task:
    """Make the task a config names, with newly drawn weights (from torch's global generator)."""
    return TASKS[config.name](config)
