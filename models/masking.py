"""Which tubes a masked autoencoder sees: masks repeated over time, equal shares per region, symmetry of the face.

A mask is the kept positions (b, k) in raster order. Each clip's mask is a function of its own draw alone, computed in
integers on whatever device the draws are, so that the same draw gives the same mask everywhere. Source: VideoMAE
(tube masks), MAE-DFER (a window mask whose window is the encoder's region; one-sided visibility as an option).
"""

from typing import Literal

import torch
from einops import rearrange, repeat
from pydantic import BaseModel, Field, model_validator
from torch import Tensor


class MaskConfig(BaseModel, frozen=True, extra="forbid"):
    """Kind and share of the mask."""

    kind: Literal["window", "tube"] = Field(
        "window", description="equal shares in each window of patches, or drawn over the whole frame (tube)"
    )
    ratio: float = Field(0.9, description="share of patches hidden, rounded down per window", gt=0, lt=1)
    window: tuple[int, int] | None = Field(
        None, description="patches of a window along height and width; null: the encoder's region, or the whole frame"
    )
    symmetry: Literal["none", "global", "local"] = Field(
        "none", description="visible patches in one half of the face only: the same for all windows, or drawn for each"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MaskConfig":
        if self.symmetry != "none" and (self.kind != "window" or self.ratio <= 0.5):
            raise ValueError(
                f"symmetry needs kind 'window' and ratio above 0.5, but got {self.kind!r} and {self.ratio}; "
                "set symmetry to 'none' or change them"
            )
        if self.kind == "tube" and self.window is not None:
            raise ValueError(f"a tube mask has no window, but got {self.window}; leave it out or set kind to 'window'")
        return self


def num_hidden(ratio: float, patches: int) -> int:
    """Return how many patches of a window are hidden; as published, the share of the whole product, rounded down."""
    return int(ratio * patches)


def window_of(config: MaskConfig, grid: tuple[int, int, int], region: tuple[int, int, int] | None) -> tuple[int, int]:
    """Return the mask's window (h, w) in patches; `region` is the encoder's, None if it has no regions.

    Raises ValueError where the window does not fit the grid, the region or the ratio.
    """
    _, h, w = grid
    if config.kind == "tube":
        wh, ww = h, w
    elif config.window is not None:
        wh, ww = config.window
    else:
        wh, ww = (h, w) if region is None else region[1:]
    if region is not None and (wh, ww) != tuple(region[1:]):
        raise ValueError(
            f"an encoder of regions needs as many visible tubes in each, so the mask's window must be its region's "
            f"(h, w) = {tuple(region[1:])}, but it is {(wh, ww)}; set mask.kind to 'window' and leave mask.window out"
        )
    if min(wh, ww) < 1 or h % wh or w % ww:
        raise ValueError(f"the mask's window must divide the frame of {(h, w)} patches, but it is {(wh, ww)}")
    if config.symmetry != "none" and (ww != w or ww % 2):
        raise ValueError(
            f"symmetry needs a window as wide as the frame ({w} patches) and of even width, but it is {ww} wide"
        )
    if num_hidden(config.ratio, wh * ww) == 0:
        raise ValueError(
            f"a mask must hide something, but {config.ratio} of the {wh * ww} patches of a window is less than one; "
            "raise mask.ratio or take larger windows"
        )
    return wh, ww


def draw_keep(
    config: MaskConfig, grid: tuple[int, int, int], region: tuple[int, int, int] | None, draws: Tensor
) -> Tensor:
    """Return the kept positions (b, k) int64 in raster order, one mask for each of the draws (b,) int64."""
    t, h, w = grid
    wh, ww = window_of(config, grid, region)
    patches = torch.arange(h * w, device=draws.device)
    scores = hashed(hashed(draws)[:, None] + patches).view(-1, h, w)
    if config.symmetry != "none":
        windows = torch.arange(h // wh, device=draws.device) * (config.symmetry == "local")
        side = hashed(hashed(~draws)[:, None] + windows) % 2
        half = torch.arange(w, device=draws.device) // (w // 2)
        other = side.repeat_interleave(wh, dim=1)[:, :, None] != half
        scores = scores.masked_fill(other, torch.iinfo(torch.int64).max)
    scores = rearrange(scores, "b (nh wh) (nw ww) -> b nh nw (wh ww)", wh=wh, ww=ww)
    ranks = scores.argsort(dim=-1, stable=True).argsort(dim=-1)
    shown = wh * ww - num_hidden(config.ratio, wh * ww)
    mask = repeat(ranks >= shown, "b nh nw (wh ww) -> b (t nh wh nw ww)", t=t, wh=wh, ww=ww)
    num_kept = t * (h // wh) * (w // ww) * shown
    return mask.to(torch.int8).argsort(dim=1, stable=True)[:, :num_kept]


def complement(keep: Tensor, n: int) -> Tensor:
    """Return the positions 0..n-1 that are not in keep (b, k), in raster order: (b, n - k)."""
    kept = torch.zeros(len(keep), n, dtype=torch.int8, device=keep.device).scatter_(1, keep, 1)
    return kept.argsort(dim=1, stable=True)[:, : n - keep.shape[1]]


def hashed(x: Tensor) -> Tensor:
    """Scramble int64 into 0..2^63-1 (the finaliser of SplitMix64, Steele et al. 2014, on wrapping integers)."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio's odd neighbour
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -7723592293110705685  # 0x94D049BB133111EB
    return (x ^ (x >> 31 & (1 << 33) - 1)) & torch.iinfo(torch.int64).max
