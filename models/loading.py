"""Weights into a task: all of them or none, with a report of what was loaded, left and newly drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mien.models.backbone import FeatureTask


@dataclass(frozen=True)
class Report:
    """What became of a file's weights: parameters loaded, entries left out and parameters left new, each with why."""

    matched: tuple[str, ...]
    left: Mapping[str, str]
    fresh: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} parameters loaded"]
        for title, names in (("left in the file", self.left), ("not in the file, newly drawn", self.fresh)):
            for why in dict.fromkeys(names.values()):
                listed = [name for name, reason in names.items() if reason == why]
                lines.append(f"{len(listed)} {title} ({why}): {', '.join(listed[:4])}{' …' if listed[4:] else ''}")
        return "\n".join(lines)


def load_strictly(
    task: nn.Module, state: Mapping[str, Tensor], left: Mapping[str, str], fresh: Mapping[str, str]
) -> Report:
    """Load `state`, whose keys are the task's own, but for the listed `fresh` ones. Raises ValueError otherwise."""
    own = task.state_dict()
    missing = sorted(own.keys() - state.keys() - fresh.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    for problem, names in (("not in the file", missing), ("unknown to the model", unknown), ("other shapes", shapes)):
        if names:
            raise ValueError(
                f"the weights do not fit the model; {problem}: {'; '.join(names[:8])}{' …' if names[8:] else ''}; "
                "build the model with the config that the weights were trained with"
            )
    task.load_state_dict(dict(state), strict=False)
    return Report(tuple(sorted(state)), dict(left), dict(fresh))


def load_backbone(task: FeatureTask, state: Mapping[str, Tensor], norm: Literal["new", "pretrained"] = "new") -> Report:
    """Load the backbone of another task's state dict (keys as ours) into `task`; everything else stays as it is.

    The published system starts with a new pooled norm; norm="pretrained" takes the autoencoder's final one. Raises
    ValueError where names or shapes do not fit.
    """
    taken = {name: value for name, value in state.items() if name.startswith("backbone.")}
    if norm == "pretrained":
        if "norm.weight" not in state:
            raise ValueError("the final norm comes from an autoencoder, but these weights have none; take a new norm")
        taken |= {name.replace("norm.", "fc_norm.", 1): state[name] for name in state if name.startswith("norm.")}
    left = {
        name: "belongs to the task it was trained for"
        for name in state
        if name not in taken and not (norm == "pretrained" and name.startswith("norm."))
    }
    fresh = {
        name: "belongs to this task"
        for name in task.state_dict()
        if not name.startswith("backbone.") and name not in taken
    }
    return load_strictly(task, taken, left, fresh)
