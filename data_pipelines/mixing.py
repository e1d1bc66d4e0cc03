"""What is done to a whole batch: mixup and CutMix, every clip with the one at its mirrored place; clips set apart.

Sources: mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), with the settings of MAE-DFER's fine-tuning: one draw for
the whole batch, one box for all frames, and the weight corrected where the box is cut off by the border.
"""

import math

import numpy as np
import torch
from pydantic import BaseModel, Field

Batch = dict[str, torch.Tensor]


class MixingConfig(BaseModel, frozen=True, extra="forbid"):
    """How often and how strongly clips of a batch are mixed. Off for gaze, which cannot be mixed."""

    mixup: float = Field(0.8, ge=0, description="alpha of mixup's Beta distribution; 0 = never mixup")
    cutmix: float = Field(1.0, ge=0, description="alpha of CutMix's Beta distribution; 0 = never CutMix")
    probability: float = Field(1.0, ge=0, le=1, description="chance that a batch is mixed at all")
    switch: float = Field(0.5, ge=0, le=1, description="chance of CutMix where both are possible")

    @property
    def enabled(self) -> bool:
        """Whether any batch is ever mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def mix(batch: Batch, seed: int, config: MixingConfig) -> Batch:
    """Return a new batch with `partner_label` (b,) int64 and `partner_weight` (b,) float32, the partner's share.

    After mixup `clip` is float32 on the scale 0..255; CutMix keeps its type. A mixed clip's class is unknown (-1) where
    either part's is, and its gaze is always unknown.
    """
    rng = np.random.default_rng(seed)
    clip, label = batch["clip"], batch["label"]
    cut = rng.random() < (config.switch if config.mixup and config.cutmix else float(config.cutmix > 0))
    alpha = config.cutmix if cut else config.mixup
    if alpha == 0 or rng.random() >= config.probability:
        return {**batch, "partner_label": label, "partner_weight": torch.zeros(len(label), device=label.device)}
    kept = float(rng.beta(alpha, alpha))
    if cut:
        height, width = clip.shape[2:4]
        share = math.sqrt(1 - kept)
        top, bottom = _span(rng, height, share)
        left, right = _span(rng, width, share)
        mixed = clip.clone()
        mixed[:, :, top:bottom, left:right] = clip.flip(0)[:, :, top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = clip.to(torch.float32, copy=True)
        mixed = mixed.lerp_(mixed.flip(0), 1 - kept)
    partner = label.flip(0)
    unknown = (label < 0) | (partner < 0)
    return {
        **batch,
        "clip": mixed,
        "label": label.masked_fill(unknown, -1),
        "gaze": torch.full_like(batch["gaze"], math.nan),
        "partner_label": partner.masked_fill(unknown, -1),
        "partner_weight": torch.full((len(label),), 1 - kept, device=label.device),
    }


def _span(rng: np.random.Generator, side: int, share: float) -> tuple[int, int]:
    """Return where the box begins and ends on one side: `share` of it about a random middle, cut off at the border."""
    half, middle = int(side * share) // 2, int(rng.integers(side))
    return max(middle - half, 0), min(middle + half, side)


def separated(batch: Batch, num_samples: int) -> Batch:
    """Return a batch whose clips hold `num_samples` clips one after another (b, k * t, ...) as one of b * k clips.

    What is said of the videos, their draw included, is said of each of their clips: so they share one mask.
    """
    if num_samples == 1:
        return batch
    apart = {name: value.repeat_interleave(num_samples, dim=0) for name, value in batch.items() if name != "clip"}
    return {"clip": batch["clip"].unflatten(1, (num_samples, -1)).flatten(0, 1)} | apart
