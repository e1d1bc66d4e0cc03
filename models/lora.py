"""Low-rank adapters: a frozen linear layer learns a small product that is added to its weight.

The weight in use is W + scale * B A, with A (rank, in) drawn as any linear layer and B (out, rank) zero, so a model
with new adapters is the model without. They are added to the weight, not to the output: so they work wherever a weight
is used, and merging them gives the same numbers to the bit. Source: LoRA (arXiv:2106.09685); rank, targets and scales
of the Facial-Foundation-Model project. Dropout hides inputs of A from a whole step, as arXiv:2404.09610 does.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn


class LoraConfig(BaseModel, frozen=True, extra="forbid"):
    """Which layers of the encoder get adapters, and what is trained beside them."""

    rank: int = Field(8, description="rank of an adapter; 0: no adapters, so with frozen the head alone learns", ge=0)
    alpha: float = Field(8.0, description="an adapter is added alpha / rank times", gt=0)
    block_scales: tuple[float, ...] | None = Field(
        None, description="times it is added in each block, in place of alpha / rank; published: 8 x 0.5, then 8 x 16"
    )
    dropout: float = Field(
        0.0, description="share of a layer's inputs that its adapter does not see in a step", ge=0, lt=1
    )
    targets: tuple[str, ...] = Field(
        ("q", "kv"),
        description="linear layers with adapters, by the last part of their name or a pattern of all of it "
        "('blocks.*.mlp.fc1'); of mamba: in_proj, x_proj, out_proj",
    )
    frozen: bool = Field(True, description="the backbone keeps its weights; false: it is trained beside the adapters")
    thawed: tuple[str, ...] = Field(
        (),
        description="patterns of backbone parameters trained all the same ('*norm*', '*bias', 'encoder.blocks.15.*')",
    )

    def scale(self, block: int) -> float:
        """Return how often a block's adapters are added."""
        return self.alpha / self.rank if self.block_scales is None else self.block_scales[block]


class LoraLinear(nn.Linear):
    """A linear layer with an adapter; its parameters are `weight` (the frozen one), `bias`, `lora_A` and `lora_B`."""

    scale: float
    dropout: float
    lora_A: Tensor
    lora_B: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight in use (out, in)."""
        down = self.lora_A
        if self.training and self.dropout > 0:
            kept = down.new_empty(down.shape[1]).bernoulli_(1 - self.dropout)
            down = down * (kept / (1 - self.dropout))
        frozen = self._parameters["weight"]
        assert frozen is not None
        return with_adapter(frozen, down, self.lora_B, self.scale)


def with_adapter(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Return weight (out, in) + scale * up (out, r) down (r, in), in the weight's own precision."""
    with torch.autocast(weight.device.type, enabled=False):
        return torch.addmm(weight, up, down, alpha=scale)


def add_adapters(backbone: nn.Module, config: LoraConfig, depth: int) -> None:
    """Give the encoder's chosen layers adapters and freeze what is not to be trained, in place.

    Raises ValueError for a pattern that names nothing, and for scales that are not one a block.
    """
    if config.block_scales is not None and len(config.block_scales) != depth:
        raise ValueError(
            f"lora.block_scales must hold one number for each of the {depth} blocks, but holds "
            f"{len(config.block_scales)}; or leave it out and set lora.alpha"
        )
    if config.frozen:
        named = dict(backbone.named_parameters())
        thawed = matching(named, config.thawed, "lora.thawed")
        for name, parameter in named.items():
            parameter.requires_grad_(name in thawed)
    if config.rank == 0:
        return
    layers = {name: layer for name, layer in backbone.encoder.named_modules() if type(layer) is nn.Linear}  # type: ignore[union-attr]
    for name in matching(layers, config.targets, "lora.targets"):
        layer = layers[name]
        layer.__class__ = LoraLinear  # in place: its weight keeps its name, and whoever holds the layer has the adapter
        assert isinstance(layer, LoraLinear)
        layer.scale, layer.dropout = config.scale(block_of(name)), config.dropout
        layer.lora_A = nn.Parameter(torch.empty(config.rank, layer.in_features))
        layer.lora_B = nn.Parameter(torch.zeros(layer.out_features, config.rank))
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))


def merged(state: Mapping[str, Tensor], config: LoraConfig, told: Callable[[str], str] = str) -> dict[str, Tensor]:
    """Return a task's weights with its adapters added to them: those of the same model without adapters.

    Raises ValueError, with names as they are `told`, where a part of an adapter is missing or misshapen.
    """
    plain = {name: value for name, value in state.items() if not is_adapter(name)}
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in state if is_adapter(name)):
        names = [f"{layer}.{part}" for part in ("weight", "lora_A", "lora_B")]
        for name in names:
            if name not in state:
                raise ValueError(f"not in the file: {told(name)}, of an adapter of which the other parts are there")
        weight, down, up = (state[name] for name in names)
        if [*weight.shape, len(down)] != [len(up), *down.shape[1:], *up.shape[1:]]:
            shapes = ", ".join(f"{told(name)} {tuple(state[name].shape)}" for name in names)
            raise ValueError(
                f"other shapes: an adapter (r, in), (out, r) is added to a weight (out, in), but: {shapes}"
            )
        plain[names[0]] = with_adapter(weight, down, up, config.scale(block_of(layer)))
    return plain


def is_adapter(name: str) -> bool:
    """Say whether a parameter belongs to an adapter."""
    return name.endswith((".lora_A", ".lora_B"))


def block_of(name: str) -> int:
    """Return the block that a layer's name lies in."""
    found = re.search(r"\bblocks\.(\d+)\b", name)
    assert found, f"adapters stand in blocks, but {name} in none"
    return int(found[1])


def matching(names: Iterable[str], patterns: Iterable[str], setting: str) -> set[str]:
    """Return the names that a pattern fits, whole or by their last part. Raises ValueError for one that fits none."""
    names, found = list(names), set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern) or name.rpartition(".")[2] == pattern}
        if not fitting:
            kinds = sorted({re.sub(r"\d+", "*", name) for name in names})
            raise ValueError(f"{setting}: {pattern!r} fits none of these: {', '.join(kinds)}; name one or more of them")
        found |= fitting
    return found
