"""Weights into a task: all of them or none, with a report of what was loaded, left and newly drawn."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mien.models.adaptation import adapt
from mien.models.backbone import BackboneConfig, FeatureTask, Task
from mien.models.file_names import Filed
from mien.models.lora import is_adapter


@dataclass(frozen=True)
class Report:
    """What became of a file's weights: those loaded, and by name with why those stretched, left out or left new.

    Names are the task's, but for what was `left`: the file's.
    """

    matched: tuple[str, ...]
    left: Mapping[str, str]
    fresh: Mapping[str, str]
    changed: Mapping[str, str] = field(default_factory=dict)
    filed: Filed = field(default_factory=Filed)

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} parameters loaded"]
        for title, names, filed in (
            ("resized", self.changed, self.filed),
            ("left in the file", self.left, Filed()),
            ("not in the file, newly drawn", self.fresh, self.filed),
        ):
            for why in dict.fromkeys(names.values()):
                listed = filed.told(name for name, reason in names.items() if reason == why)
                lines.append(f"{len(listed)} {title} ({why}): {', '.join(listed[:4])}{' …' if listed[4:] else ''}")
        return "\n".join(lines)


def load_strictly(
    task: Task,
    state: Mapping[str, Tensor],
    left: Mapping[str, str],
    fresh: Mapping[str, str],
    source: BackboneConfig | None = None,
    filed: Filed | None = None,
) -> Report:
    """Load `state`, whose keys are the task's own, but for the listed `fresh` ones. Raises ValueError otherwise.

    Messages name what is wrong as `filed` has it; `left` is by the file's names. Weights of another backbone `source`
    are adapted to the task's. New adapters need not be in the file. Of a backbone that adapters keep frozen, what is
    newly drawn is trained all the same: frozen, it would stay noise.
    """
    own, filed = task.state_dict(), filed or Filed()
    adapted = adapt(state, own, source or task.backbone.config, task.backbone.config)
    state = adapted.state
    left = {**left, **{filed.names.get(name, name): why for name, why in adapted.left.items()}}
    adapters = {
        name: "adapters, which add nothing yet"
        for name in own
        if is_adapter(name) and not any(f"{name[:-1]}{half}" in state for half in "AB")  # of half a one, a half is lost
    }
    fresh = {**adapters, **adapted.fresh, **fresh}
    missing = filed.told(sorted(own.keys() - state.keys() - fresh.keys()))
    unknown = sorted(filed.grouped(state.keys() - own.keys()))
    kinds = (
        ("not in the file", missing),
        ("unknown to the model", unknown),
        ("other shapes", filed.misshapen(state, own)),
    )
    wrong = [f"{kind}: {'; '.join(names[:8])}{' …' if names[8:] else ''}" for kind, names in kinds if names]
    if wrong:
        raise ValueError(
            f"the weights do not fit the model; {'; '.join(wrong)}; build the model with the config that the weights "
            "were trained with"
        )
    task.load_state_dict(dict(state), strict=False)
    for name, parameter in task.named_parameters():
        if name in fresh and name.startswith("backbone."):
            parameter.requires_grad_(True)
    return Report(tuple(sorted(state)), left, fresh, adapted.changed, filed)


def load_backbone(
    task: Task,
    state: Mapping[str, Tensor],
    norm: Literal["new", "pretrained"] = "new",
    source: BackboneConfig | None = None,
) -> Report:
    """Load the backbone of another task's state dict (keys as ours) into `task`; everything else stays as it is.

    An autoencoder takes all of another one. The published system starts with a new pooled norm (but where the first
    token stands for all); norm="pretrained" takes the autoencoder's final one. `source` is the backbone of the weights
    where it is to be adapted. Raises ValueError where names or shapes do not fit.
    """
    if not isinstance(task, FeatureTask) and "mask_token" in state:
        return load_strictly(task, state, {}, {}, source)
    taken = {name: value for name, value in state.items() if name.startswith("backbone.")}
    moved: dict[str, str] = {}
    if not isinstance(task, FeatureTask):
        norm = "new"
    elif task.first_token and "norm.weight" in state:
        norm = "pretrained"
    if norm == "pretrained":
        if "norm.weight" not in state:
            raise ValueError("the final norm comes from an autoencoder, but these weights have none; take a new norm")
        moved = {name.replace("norm.", "fc_norm.", 1): name for name in state if name.startswith("norm.")}
        taken |= {ours: state[name] for ours, name in moved.items()}
    left = {
        name: "belongs to the task it was trained for"
        for name in state
        if name not in taken and name not in moved.values()
    }
    fresh = {
        name: "belongs to this task"
        for name in task.state_dict()
        if not name.startswith("backbone.") and name not in taken
    }
    return load_strictly(task, taken, left, fresh, source, Filed(moved))


def blocks_of(state: Mapping[str, Tensor], blocks: str = "blocks") -> int:
    """Return how many blocks stand under a name."""
    return 1 + max(int(match[1]) for name in state if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name)))
