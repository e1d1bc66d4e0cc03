"""VideoMamba's published weights, of images or of clips of any size and length, for a backbone of ours.

Keys are ours but for `layers` and `norm_f`. A filter of images is inflated over time, learned positions are stretched.
Files of the Facial-Foundation-Model project name the final norm `fc_norm` as well, and where they hold no positions
they were trained with a fixed table. Source: VideoMamba (arXiv:2403.06977) and its checkpoints.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mien.models.backbone import BackboneConfig
from mien.models.file_names import Entries, FileNames
from mien.models.loading import blocks_of
from mien.models.mae import MaeConfig
from mien.models.mamba import MambaConfig
from mien.models.masking import MaskConfig
from mien.models.patches import TubesConfig, position_table
from mien.models.published_heads import decoder_of, task_of
from mien.models.tasks import AnyConfig

FILTER, POSITIONS, TIMES = "patch_embed.proj.weight", "pos_embed", "temporal_pos_embedding"


class Fitted(NamedTuple):
    """Published weights for a backbone, the backbone whose positions they hold, and what was changed or is missing."""

    state: dict[str, Tensor]
    source: BackboneConfig
    changed: dict[str, str]
    fresh: dict[str, str]


def published_name(name: str) -> str:
    """Return the published name for one that has the prefixes of a published name already."""
    name = re.sub(r"^(encoder\.)?blocks\.", r"\1layers.", name)
    return re.sub(r"^fc_norm\.", "norm_f.", name)


def fitted(
    state: Mapping[str, Tensor],
    backbone: BackboneConfig,
    inflation: Literal["centre", "mean"] = "centre",
    unread: bool = False,
    names: FileNames | None = None,
) -> Fitted:
    """Return published weights (names without prefix) with the filter inflated, and what their positions belong to.

    inflation "centre" puts a filter of images at the middle of a tube's frames, "mean" spreads it over them. The facial
    project never reads what its last mixer gives, and never trains it: of its files (told by `fc_norm`, or `unread`)
    that mixer begins with giving nothing. Raises ValueError, with the file's `names`, where positions are not those of
    a square frame.
    """
    taken, tubes = Entries(state, names), backbone.tubes
    changed: dict[str, str] = {}
    fresh: dict[str, str] = {}
    facial = [name for name in taken if name.startswith("fc_norm.")]
    for name in facial:
        final = name.replace("fc_norm.", "norm_f.")
        value, unread = taken.pop(name), True
        if not torch.equal(taken.setdefault(final, value), value):
            both = " and ".join(map(taken.names.likely, (final, name)))
            raise ValueError(f"{both} are one norm as published, but the file's differ")
    last = f"layers.{blocks_of(taken, 'layers') - 1}.mixer.out_proj.weight"
    if unread and last in taken:
        taken[last] = torch.zeros_like(taken[last])
        changed[last] = "set to 0, since the project that trained these leaves its last mixer out"
    kernel = taken[FILTER] if len(taken.sizes(FILTER, 4, 5)) == 5 else taken[FILTER][:, :, None]
    of_frames = kernel.shape[2] == 1
    if of_frames and tubes.tubelet > 1:
        still = kernel
        kernel = still.repeat(1, 1, tubes.tubelet, 1, 1) / tubes.tubelet
        if inflation == "centre":
            kernel = torch.zeros_like(kernel)
            kernel[:, :, tubes.tubelet // 2] = still[:, :, 0]
        changed[FILTER] = f"inflated from one frame to {tubes.tubelet} ({inflation})"
    taken[FILTER] = kernel
    if backbone.fixed_positions:
        return Fitted(taken, backbone, changed, fresh)
    cls = int("cls_token" in taken)
    if POSITIONS not in taken and facial:
        taken[POSITIONS] = position_table(tubes.grid[1] * tubes.grid[2] + cls, kernel.shape[0])[None]
        changed[POSITIONS] = "not in the file: the fixed table that such files were trained with"
    rows = taken.sizes(POSITIONS, 3)[1] - cls
    side = math.isqrt(rows)
    if side**2 != rows:
        positions, token = map(taken.names.likely, (POSITIONS, "cls_token"))
        lost = "" if cls else f", and no {token}"
        raise ValueError(
            f"the positions must be those of a square frame, but the file has {rows} of them in {positions}{lost}"
        )
    frames = tubes.frames
    if TIMES in taken or not of_frames:
        frames = taken.sizes(TIMES, 3)[1] * tubes.tubelet
    else:
        fresh[f"backbone.encoder.{TIMES}"] = "images have no times"
    source = backbone.model_copy(
        update={"tubes": tubes.model_copy(update={"frames": frames, "size": side * tubes.patch})}
    )
    return Fitted(taken, source, changed, fresh)


def is_mamba(state: Mapping[str, Tensor]) -> bool:
    """Say whether these are the weights of a bidirectional state-space encoder, by their names without prefix."""
    return any(name.startswith("layers.0.mixer.") for name in state)


def describe(
    state: Entries,
    frames: int,
    size: int,
    tubelet: int | None = None,
    per_frame: bool = False,
    mask_ratio: float = MaskConfig().ratio,
) -> AnyConfig:
    """Infer the config of VideoMamba's weights (names without prefix) for clips of `frames` and `size` pixels.

    A filter of one frame is to be inflated to `tubelet`. The class token stands for a clip, but where there is an
    `fc_norm` the mean of all patches. The masks of a pretraining are the project's: equal shares of the upper and the
    lower half. Raises ValueError where there is neither a head nor a decoder.
    """
    kernel, rates = state.sizes(FILTER, 4, 5), state.sizes("layers.0.mixer.A_log", 2)
    width, long = kernel[0], kernel[2] if len(kernel) == 5 else 1
    encoder = MambaConfig(
        width=width,
        depth=blocks_of(state, "layers"),
        state=rates[1],
        conv=state.sizes("layers.0.mixer.conv1d.weight", 3)[-1],
        expand=rates[0] // width,
        cls="cls_token" in state,
    )
    long = tubelet or 1 if long == 1 else long
    tubes = TubesConfig(frames=frames, size=size, patch=kernel[-1], tubelet=long)
    backbone = BackboneConfig(tubes=tubes, encoder=encoder)
    if "mask_token" in state:
        _, h, w = tubes.grid
        mask = MaskConfig(ratio=mask_ratio, window=(h // 2 if h % 2 == 0 else h, w))
        return MaeConfig(backbone=backbone, mask=mask, decoder=decoder_of(state), published_positions=True)
    pooled = "region" if encoder.cls and "fc_norm.weight" not in state and not per_frame else "patch"
    settings: dict[str, Any] = {"backbone": backbone, "pool": pooled, "per_frame": per_frame}
    return task_of(state, settings)
