"""Clips and tubes: how a clip is cut into tokens, where each token stands, and the embedding of tubes.

A tube is `tubelet` frames by `patch` x `patch` pixels. Tokens stand in raster order, index = (t * h + row) * w + column
on the grid of tubes; inside a tube the order is frame, row, column, channel (channel fastest). Source: VideoMAE
(arXiv:2203.12602) and MAE-DFER (arXiv:2307.02227), sections on tube embedding.
"""

import torch
from einops import rearrange
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CHANNELS = 3


class TubesConfig(BaseModel, frozen=True, extra="forbid"):
    """The clip a model takes and the tubes it is cut into."""

    frames: int = Field(16, description="frames of a clip", gt=0)
    size: int = Field(160, description="height and width of a clip in pixels", gt=0)
    patch: int = Field(16, description="height and width of a tube in pixels", gt=0)
    tubelet: int = Field(2, description="frames of a tube", gt=0)

    @model_validator(mode="after")
    def _divides(self) -> "TubesConfig":
        if self.frames % self.tubelet or self.size % self.patch:
            raise ValueError(
                f"tubes must fill the clip: tubelet {self.tubelet} must divide frames {self.frames} and patch "
                f"{self.patch} must divide size {self.size}; change one of them"
            )
        return self

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubes along time, height and width."""
        side = self.size // self.patch
        return self.frames // self.tubelet, side, side

    @property
    def num_tokens(self) -> int:
        """Tubes of a clip."""
        t, h, w = self.grid
        return t * h * w

    @property
    def tube_pixels(self) -> int:
        """Numbers in a tube, channels included."""
        return self.tubelet * self.patch**2 * CHANNELS


def check_clip(clip: Tensor, tubes: TubesConfig) -> None:
    """Raise ValueError unless `clip` (b, t, h, w, c) has the frames and size the model was built for."""
    want = (tubes.frames, tubes.size, tubes.size, CHANNELS)
    if clip.ndim != 5 or tuple(clip.shape[1:]) != want:
        raise ValueError(
            f"the model takes clips (b, t, h, w, c) of t, h, w, c = {want}, but got the shape {tuple(clip.shape)}; "
            "sample and resize to the model's tubes.frames and tubes.size"
        )


def standardise_pixels(pixels: Tensor) -> Tensor:
    """Bring pixels (..., c), uint8 or float in 0..255, to float32 with ImageNet's mean 0 and deviation 1."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device)
    std = torch.tensor(IMAGENET_STD, device=pixels.device)
    return pixels.float().mul(1 / (255 * std)).sub_(mean / std)


def standardise(clip: Tensor) -> Tensor:
    """Return a clip (b, t, h, w, c) in 0..255 as the standardised float32 (b, c, t, h, w) an encoder takes."""
    return rearrange(standardise_pixels(clip), "b t h w c -> b c t h w")


def to_tubes(x: Tensor, tubes: TubesConfig) -> Tensor:
    """Cut x (b, c, t, h, w) into tubes (b, n, tube_pixels) in raster order."""
    return rearrange(
        x,
        "b c (t p0) (h p1) (w p2) -> b (t h w) (p0 p1 p2 c)",
        p0=tubes.tubelet,
        p1=tubes.patch,
        p2=tubes.patch,
    )


def from_tubes(x: Tensor, tubes: TubesConfig) -> Tensor:
    """Put tubes (b, n, tube_pixels) in raster order back together: (b, c, t, h, w)."""
    t, h, w = tubes.grid
    return rearrange(
        x,
        "b (t h w) (p0 p1 p2 c) -> b c (t p0) (h p1) (w p2)",
        t=t,
        h=h,
        w=w,
        p0=tubes.tubelet,
        p1=tubes.patch,
        p2=tubes.patch,
    )


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Return the tokens (b, k, d) of x (b, n, d) that stand at index (b, k)."""
    rows = index + torch.arange(len(x), device=index.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


def position_table(n: int, d: int) -> Tensor:
    """Return the fixed table (n, d) float32: sines in even and cosines in odd channels, over the flattened index."""
    channel = torch.arange(d, dtype=torch.float64)
    angle = torch.arange(n, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / d)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def stretch(x: Tensor, old: tuple[int, int, int], new: tuple[int, int, int], smooth: bool = True) -> Tensor:
    """Return rows (n', d) for a grid (t, h, w) made of the rows (n, d) of another; smooth: bicubic in space.

    The edges of both grids meet, and values between rows are interpolated.
    """
    t, h, w = old
    maps = rearrange(x, "(t h w) d -> t d h w", t=t, h=h, w=w)
    if (h, w) != new[1:]:
        maps = F.interpolate(maps, size=new[1:], mode="bicubic" if smooth else "bilinear", align_corners=False)
    lines = rearrange(maps, "t d h w -> (h w) d t")
    if t != new[0]:
        lines = F.interpolate(lines, size=new[0], mode="linear", align_corners=False)
    return rearrange(lines, "(h w) d t -> (t h w) d", h=new[1])


class TubeEmbedding(nn.Conv3d):
    """The embedding of tubes: a convolution whose kernel is its stride, applied as one product to the tubes given."""

    def __init__(self, tubes: TubesConfig, width: int) -> None:
        kernel = (tubes.tubelet, tubes.patch, tubes.patch)
        super().__init__(CHANNELS, width, kernel, stride=kernel)

    def forward(self, tubes: Tensor) -> Tensor:
        """Embed standardised tubes (b, k, tube_pixels) as (b, k, d)."""
        return F.linear(tubes, rearrange(self.weight, "d c p0 p1 p2 -> d (p0 p1 p2 c)"), self.bias)
