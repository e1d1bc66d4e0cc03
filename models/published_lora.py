"""Published adapters: their names, and their scales, which stand in no file.

`first_attn.lora_q.lora_A` there is `first_attn.q.lora_A` here. A published encoder adds its adapters 0.5 times in the
first 8 blocks and 16 times in the other 8, so weights that go out are brought to those scales, and weights that come
in to the task's own. Source: layers of the Facial-Foundation-Model project.
"""

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from mien.models.backbone import FeatureTask, Task
from mien.models.file_names import FileNames
from mien.models.lora import LoraConfig, block_of, is_adapter, merged

SCALES = (0.5,) * 8 + (16.0,) * 8


def published_name(name: str) -> str:
    """Return the published name of an adapter's parameter, and any other name as it is."""
    return re.sub(r"\.(\w+)\.(lora_[AB])$", r".lora_\1.\2", name)


def adapters_of(state: Mapping[str, Tensor], depth: int) -> LoraConfig | None:
    """Return what adapters the published weights of `depth` blocks hold, or None."""
    layers = sorted(name for name in state if name.endswith(".lora_A"))
    if not layers:
        return None
    targets = dict.fromkeys(name.split(".")[-2].removeprefix("lora_") for name in layers)
    return LoraConfig(rank=len(state[layers[0]]), block_scales=scales(depth), targets=tuple(sorted(targets)))


def without_adapters(state: Mapping[str, Tensor], depth: int, names: FileNames) -> dict[str, Tensor]:
    """Return published weights with their adapters added to the weights; `names` are the file's, for messages."""
    own = {re.sub(r"\.lora_(\w+)\.(lora_[AB])$", r".\1.\2", name): value for name, value in state.items()}
    return merged(own, LoraConfig(block_scales=scales(depth)), lambda name: names.likely(published_name(name)))


def rescaled(state: Mapping[str, Tensor], task: Task, to: Literal["published", "own"]) -> dict[str, Tensor]:
    """Return weights (names ours) whose adapters add as much by the published scales, or by the task's own."""
    changed = dict(state)
    if isinstance(task, FeatureTask) and task.lora is not None and any(map(is_adapter, state)):
        published = scales(task.num_layers)
        for name in state:
            if name.endswith(".lora_B") and block_of(name) < len(published):  # of later blocks nothing is taken
                ratio = task.lora.scale(block_of(name)) / published[block_of(name)]
                changed[name] = state[name] * (ratio if to == "published" else 1 / ratio)
    return changed


def scales(depth: int) -> tuple[float, ...]:
    """Return how often a published encoder adds each block's adapters. Raises ValueError for more than 16 blocks."""
    if depth > len(SCALES):
        raise ValueError(
            f"published adapters have scales for {len(SCALES)} blocks, but there are {depth}; merge the adapters "
            "into the weights, or make the encoder less deep"
        )
    return SCALES[:depth]
