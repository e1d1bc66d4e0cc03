"""A pretrained backbone at another size, length, depth or region: what its config becomes, and its weights.

Blocks are taken from the first on. Positions, learned or of the fixed table, are stretched over the new grid of tubes,
bicubic in space and linear in time, so that a place keeps its position; so are region tokens, linearly. Source: BEiT
and VideoMAE (arXiv:2203.12602) for positions. The published system leaves region tokens of other regions newly drawn
and reads the fixed table by the new index, so that all positions but those of the first row change their meaning.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from mien.models.backbone import BackboneConfig
from mien.models.patches import stretch

ENCODER = "backbone.encoder."


class AdaptConfig(BaseModel, frozen=True, extra="forbid"):
    """What is to differ from the pretrained backbone; null: as it is there."""

    frames: int | None = Field(None, description="frames of a clip; positions are stretched", gt=0)
    size: int | None = Field(None, description="height and width of a clip in pixels; positions are stretched", gt=0)
    depth: int | None = Field(None, description="blocks: the first of those there, or all and new ones after", gt=0)
    region: tuple[int, int, int] | None = Field(None, description="tubes of a region; region tokens are stretched")


class Adapted(NamedTuple):
    """Weights for another backbone: those taken, and by name what was stretched, left in the file or is missing."""

    state: dict[str, Tensor]
    changed: dict[str, str]
    left: dict[str, str]
    fresh: dict[str, str]


def adapted_config(source: BackboneConfig, config: AdaptConfig) -> BackboneConfig:
    """Return the backbone that `config` makes of a pretrained one. Raises ValueError where that cannot be."""
    if config.region is not None and source.region is None:
        raise ValueError(f"adapt.region needs an encoder with regions; {source.encoder.name!r} has none, leave it out")
    known = config.model_dump(exclude_none=True)
    tubes = source.tubes.model_dump() | {name: known[name] for name in ("frames", "size") if name in known}
    encoder = source.encoder.model_dump() | {name: known[name] for name in ("depth", "region") if name in known}
    target = BackboneConfig.model_validate({"tubes": tubes, "encoder": encoder})
    learned_at = source.table_grid or source.tubes.grid
    if not target.fixed_positions or learned_at == target.tubes.grid:
        return target
    return target.model_copy(update={"table_grid": learned_at})


def adapt(state: Mapping[str, Tensor], names: Iterable[str], source: BackboneConfig, target: BackboneConfig) -> Adapted:
    """Return weights of the backbone `source` (keys as ours) for `target`, whose task has the parameters `names`."""
    taken, changed, left = dict(state), {}, {}
    here, there = target.encoder.depth, source.encoder.depth
    for name in state:
        if here <= _block(name) < there:
            left[name] = f"of blocks after the model's {here}"
            del taken[name]
    fresh = {name: f"of blocks after the file's {there}" for name in names if _block(name) >= there}

    def stretch_to(name: str, old: tuple[int, int, int], new: tuple[int, int, int], kept: int = 0) -> None:
        if name not in taken or old == new:
            return
        rows = taken[name].reshape(-1, taken[name].shape[-1])
        body = stretch(rows[kept:], old, new, smooth=not name.endswith("region_tokens"))
        shape = (*taken[name].shape[:-2], -1, rows.shape[-1])
        taken[name] = torch.cat([rows[:kept], body]).reshape(shape)
        changed[name] = f"stretched from {_times(old)} to {_times(new)}"

    (t, h, w), (t2, h2, w2) = source.tubes.grid, target.tubes.grid
    if source.region and target.region:
        a, b = source.region, target.region
        old, new = (t // a[0], h // a[1], w // a[2]), (t2 // b[0], h2 // b[1], w2 // b[2])
        stretch_to(f"{ENCODER}region_tokens", old, new)
    if source.encoder.name == "mamba":
        stretch_to(f"{ENCODER}pos_embed", (1, h, w), (1, h2, w2), kept=int(source.encoder.cls))
        stretch_to(f"{ENCODER}temporal_pos_embedding", (t, 1, 1), (t2, 1, 1))
    if target.table_grid is not None:
        changed["positions of the fixed table"] = (
            f"stretched from {_times(target.table_grid)} to {_times((t2, h2, w2))}"
        )
    return Adapted(taken, changed, left, fresh)


def _block(name: str) -> int:
    """Return the block that a parameter of the backbone lies in; -1 for one in none."""
    found = re.match(rf"{re.escape(ENCODER)}blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _times(grid: tuple[int, int, int]) -> str:
    return "x".join(map(str, grid))
