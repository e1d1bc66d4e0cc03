"""What published weights are: the config of the model that they fill, told by their names and shapes."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mien.models import published_mamba
from mien.models.backbone import BackboneConfig
from mien.models.file_names import Entries, FileNames
from mien.models.lgi_former import LgiFormerConfig
from mien.models.loading import blocks_of
from mien.models.mae import MaeConfig
from mien.models.masking import MaskConfig
from mien.models.patches import TubesConfig
from mien.models.published import STAGES, bare
from mien.models.published_heads import HEAD_WIDTH, decoder_of, task_of
from mien.models.published_lora import adapters_of
from mien.models.tasks import AnyConfig
from mien.models.vit import VitConfig

POOLS = {"region": "region", "org": "patch", "all": "all"}  # by the published name of what is pooled


def describe(
    state: Mapping[str, Tensor],
    frames: int = 16,
    size: int = 160,
    region: tuple[int, int, int] | None = None,
    pool: str | None = None,
    per_frame: bool = False,
    mask_ratio: float = MaskConfig().ratio,
    tubelet: int | None = None,
) -> AnyConfig:
    """Infer the config of published weights from names and shapes, for clips of `frames` and `size` pixels.

    Taken as published, since weights do not tell: heads 64 wide, `pool` regions where there are any, window masks where
    there are regions and else tube masks, bins of 2 degrees, the scales of adapters. `region` is needed where several
    fit the number of region tokens; filters of single frames are to be inflated to `tubelet`. Raises ValueError where
    the weights are of no known model, or no region fits.
    """
    state = Entries({bare(name): value for name, value in state.items()}, FileNames(state, bare))
    if published_mamba.is_mamba(state):
        return published_mamba.describe(state, frames, size, tubelet, per_frame, mask_ratio)
    if not any(name.startswith("blocks.0.") for name in state):
        names = sorted(state.names.there.values())
        raise ValueError(f"these are no weights of a known video model; their names begin with {names[:4]}")
    width, _, long, patch, _ = state.sizes("patch_embed.proj.weight", 5)
    if width % HEAD_WIDTH:
        raise ValueError(
            f"published models have heads of {HEAD_WIDTH} channels, but {width} channels are no multiple; give the "
            "config that the weights were trained with"
        )
    tubes = TubesConfig(frames=frames, size=size, patch=patch, tubelet=long)
    sizes = {
        "width": width,
        "depth": blocks_of(state, "blocks"),
        "heads": width // HEAD_WIDTH,
        "mlp_ratio": state.sizes("blocks.0.mlp.fc1.weight", 2)[0] // width,
    }
    encoder: LgiFormerConfig | VitConfig = VitConfig(**sizes)
    if any(name.startswith("blocks.0.first_attn.") for name in state):
        same = [stage for stage in STAGES if _equal(state, stage)]
        there = {name.split(".")[2] for name in state if name.startswith("blocks.0.")}
        encoder = LgiFormerConfig(
            **sizes,
            region=region or _region(state.sizes("lg_region_tokens", 2)[0], tubes),
            first="cross" if "first_attn_norm1" in there else "self",
            second="second_attn_norm0" in there,
            third="cross" if "third_attn_norm1" in there else "self" if "third_attn_norm0" in there else "none",
            sharing="all" if "second_attn" in same else "first_third" if same else "none",
        )
    backbone = BackboneConfig(tubes=tubes, encoder=encoder)
    if "mask_token" in state:
        mask = MaskConfig(kind="tube" if isinstance(encoder, VitConfig) else "window", ratio=mask_ratio)
        return MaeConfig(backbone=backbone, mask=mask, decoder=decoder_of(state), published_positions=True)
    settings = {
        "backbone": backbone,
        "pool": pool or ("region" if backbone.region else "patch"),
        "first_token": "norm.weight" in state and "fc_norm.weight" not in state,
        "per_frame": per_frame,
        "published_frames": per_frame and backbone.region is not None,
        "lora": adapters_of(state, encoder.depth),
    }
    return task_of(state, settings)


def told(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `describe`'s settings that a published file's `args` tell; what is not as expected is left."""
    found: dict[str, Any] = {}
    for name, key in (("frames", "num_frames"), ("size", "input_size")):
        if isinstance(args.get(key), int):
            found[name] = args[key]
    if isinstance(args.get("mask_ratio"), float):
        found["mask_ratio"] = args["mask_ratio"]
    region = args.get("lg_region_size")
    if isinstance(region, list | tuple) and len(region) == 3 and args.get("attn_type") == "local_global":
        found["region"] = tuple(region)
        if args.get("lg_classify_token_type") in POOLS:
            found["pool"] = POOLS[args["lg_classify_token_type"]]
    if args.get("keep_temporal_dim") is True:
        found |= {"per_frame": True, "pool": "patch"}
    return found


def _equal(state: Mapping[str, Tensor], stage: str) -> bool:
    """Say whether a stage's attention is the first stage's, in every block."""
    names = [name for name in state if f".{stage}." in name]
    return bool(names) and all(torch.equal(state[name], state[name.replace(stage, "first_attn")]) for name in names)


def _region(count: int, tubes: TubesConfig) -> tuple[int, int, int]:
    """Return the region of which `count` fill the grid; all published ones are two tubes long and of full width."""
    t, h, w = tubes.grid
    fitting = [
        (rt, rh, rw)
        for rt, rh, rw in product(range(1, t + 1), range(1, h + 1), range(1, w + 1))
        if t % rt == h % rh == w % rw == 0 and math.prod((t // rt, h // rh, w // rw)) == count
    ]
    usual = [region for region in fitting if region[0] == 2 and region[2] == w]
    if len(usual) == 1 or len(fitting) == 1:
        return (usual or fitting)[0]
    raise ValueError(
        f"{count} regions fill the grid {tubes.grid} with any of these: {fitting}; say which by region=(t, h, w), "
        "or correct frames and size if the list is empty"
    )
