"""What published weights are: the config of the model that they fill, told by their names and shapes."""

import math
import re
from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from mien.models import published_mamba
from mien.models.backbone import BackboneConfig
from mien.models.combined import CombinedConfig
from mien.models.expression import ExpressionConfig
from mien.models.lgi_former import LgiFormerConfig
from mien.models.mae import DecoderConfig, MaeConfig
from mien.models.masking import MaskConfig
from mien.models.patches import TubesConfig
from mien.models.published import STAGES, blocks_of, unwrapped
from mien.models.vit import VitConfig

HEAD_WIDTH = 64  # channels of an attention head in every published model


def describe(
    state: Mapping[str, Tensor],
    frames: int = 16,
    size: int = 160,
    region: tuple[int, int, int] | None = None,
) -> MaeConfig | ExpressionConfig | CombinedConfig:
    """Infer the config of published weights from names and shapes, for clips of `frames` and `size` pixels.

    Taken as published, since weights do not tell: heads 64 wide, pooling of regions where there are any, window masks
    where there are regions and else tube masks. `region` is needed where several fit the number of region tokens.
    Raises ValueError where the weights are of no known model, or no region fits.
    """
    state = {re.sub(r"^(encoder|backbone)\.", "", unwrapped(name)): value for name, value in state.items()}
    if published_mamba.FILTER in state and published_mamba.is_mamba(state):
        return published_mamba.describe(state, frames, size)
    if "patch_embed.proj.weight" not in state or not any(name.startswith("blocks.0.") for name in state):
        raise ValueError(f"these are no weights of a known video model; their names begin with {sorted(state)[:4]}")
    width, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    tubes = TubesConfig(frames=frames, size=size, patch=patch, tubelet=tubelet)
    sizes = {
        "width": width,
        "depth": blocks_of(state, "blocks"),
        "heads": width // HEAD_WIDTH,
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) // width,
    }
    encoder: LgiFormerConfig | VitConfig = VitConfig(**sizes)
    if "lg_region_tokens" in state:
        same = [stage for stage in STAGES if _equal(state, stage)]
        third_norms = (("cross", "third_attn_norm1"), ("self", "third_attn_norm0"))
        encoder = LgiFormerConfig(
            **sizes,
            region=region or _region(len(state["lg_region_tokens"]), tubes),
            first="cross" if "blocks.0.first_attn_norm1.weight" in state else "self",
            second="blocks.0.second_attn_norm0.weight" in state,
            third=next((kind for kind, norm in third_norms if f"blocks.0.{norm}.weight" in state), "none"),
            sharing="all" if "second_attn" in same else "first_third" if same else "none",
        )
    backbone = BackboneConfig(tubes=tubes, encoder=encoder)
    if "mask_token" in state:
        narrow = state["mask_token"].shape[-1]
        decoder = DecoderConfig(
            width=narrow,
            depth=blocks_of(state, "decoder.blocks"),
            heads=narrow // HEAD_WIDTH,
            mlp_ratio=len(state["decoder.blocks.0.mlp.fc1.weight"]) // narrow,
        )
        mask = MaskConfig(kind="tube" if isinstance(encoder, VitConfig) else "window")
        return MaeConfig(backbone=backbone, mask=mask, decoder=decoder, published_positions=True)
    pool = "patch" if isinstance(encoder, VitConfig) else "region"
    if "head.cls.weight" in state:
        return CombinedConfig(backbone=backbone, pool=pool, num_classes=len(state["head.cls.weight"]))
    if "head.weight" in state:
        return ExpressionConfig(backbone=backbone, pool=pool, num_classes=len(state["head.weight"]))
    raise ValueError("these weights have neither a decoder nor a head of one or two linear layers that we know")


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
