"""Which task published weights were trained for: told by the names and shapes of their heads and decoder.

One linear head of two rows is gaze (no published set has two classes), of any other number expression; `reg` and `cls`
are both; `pitch` and `yaw` are bins, 90 and 90 of the published head, twice as many of yaw of ours. Source: the
checkpoints of MAE-DFER and the Facial-Foundation-Model project.
"""

from collections.abc import Mapping
from typing import Any

from mien.models.combined import CombinedConfig
from mien.models.decoder import DecoderConfig
from mien.models.expression import ExpressionConfig
from mien.models.file_names import Entries
from mien.models.gaze import L2CS_BINS, GazeConfig
from mien.models.loading import blocks_of

HEAD_WIDTH = 64  # channels of an attention head in every published model


def task_of(state: Entries, settings: Mapping[str, Any]) -> ExpressionConfig | GazeConfig | CombinedConfig:
    """Return the config of the task whose heads are in `state` (published names), with further `settings`.

    Raises ValueError where there is no head that we know.
    """
    for name in state:  # of a head that lost its weight, the bias is still there
        if name.startswith("head.") and name.endswith(".bias"):
            state.sizes(name.removesuffix("bias") + "weight", 2)
    if "head.cls.weight" in state:
        return CombinedConfig(**settings, num_classes=len(state["head.cls.weight"]), **_gaze(state, "head.reg"))
    if "head.pitch.weight" in state or ("head.weight" in state and len(state["head.weight"]) == 2):
        return GazeConfig(**settings, **_gaze(state, "head"))
    if "head.weight" in state:
        return ExpressionConfig(**settings, num_classes=len(state["head.weight"]))
    if any(name.startswith("decoder.") for name in state):
        token = state.names.likely("mask_token")
        raise ValueError(f"not in the file: {token}, of a pretraining, whose decoder is there; it is damaged")
    heads = [state.names.likely(name) for name in state if name.startswith("head")]
    raise ValueError(
        "these weights have neither a decoder nor a head that we know (head, head.cls and head.reg, head.pitch and "
        f"head.yaw); their heads: {', '.join(heads) or 'none'}"
    )


def decoder_of(state: Entries) -> DecoderConfig:
    """Return the config of the decoder in a pretraining's `state` (published names): of joint or state-space blocks.

    Raises ValueError where what tells it is missing.
    """
    width, at = state.sizes("mask_token", 3)[-1], "decoder.blocks.0."
    if any(name.startswith(f"{at}mixer.") for name in state):
        return DecoderConfig(block="mamba", width=width, depth=blocks_of(state, "decoder.blocks"))
    ratio = state.sizes(f"{at}mlp.fc1.weight", 2)[0] // width
    depth = blocks_of(state, "decoder.blocks")
    return DecoderConfig(width=width, depth=depth, heads=width // HEAD_WIDTH, mlp_ratio=ratio)


def _gaze(state: Entries, at: str) -> dict[str, Any]:
    """Return the settings of the gaze head under a name."""
    if f"{at}.pitch.weight" not in state:
        return {}
    heads = [f"{at}.{angle}.weight" for angle in ("pitch", "yaw")]
    pitch, yaw = (len(state[name]) for name in heads)
    if pitch == yaw == L2CS_BINS:
        return {"gaze_head": "l2cs", "bin_deg": 2.0, "bin_edges": True}
    if yaw == 2 * pitch:
        return {"gaze_head": "binned", "bin_deg": 180 / pitch}
    names = " and ".join(map(state.names.likely, heads))
    raise ValueError(
        f"bins must be {L2CS_BINS} of either angle, or twice as many of yaw as of pitch; got {pitch}, {yaw} in {names}"
    )
