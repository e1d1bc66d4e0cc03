"""LGI-Former: local attention in each region, global attention among messengers, injection back into the regions.

The grid of tubes is cut into regions of (t, h, w) tubes. Each region has one messenger, a learned token. A block runs
four stages, all residual and pre-norm: (1) tokens and messenger of a region attend to one another; (2) the messengers
of a clip attend to one another; (3) every token reads the messengers; (4) an MLP on everything. Messengers (b, r, d)
and tokens (b, r, s, d) are two tensors throughout and nothing is written in place. Source: MAE-DFER
(arXiv:2307.02227), section on LGI-Former, with the ablated variants of its code. Differs from it in grouping kept
tokens by the region their position lies in, where the original goes by their order in the list.
"""

import math
from typing import Literal

import torch
from einops import rearrange
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from mien.models.attention import INIT_STD, Attention, DropPath, Mlp, Norm, check_heads, drop_path_rates
from mien.models.blocks import Blocks
from mien.models.patches import gather


class LgiFormerConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and variants of the LGI-Former."""

    name: Literal["lgi_former"] = Field("lgi_former", description="the local-global interaction encoder")
    width: int = Field(512, description="channels of a token", gt=0)
    depth: int = Field(16, description="blocks", gt=0)
    heads: int = Field(8, description="attention heads; must divide width", gt=0)
    mlp_ratio: int = Field(4, description="hidden channels of the MLP, in widths", gt=0)
    region: tuple[int, int, int] = Field((2, 5, 10), description="tubes of a region along time, height and width")
    first: Literal["self", "cross"] = Field(
        "self", description="stage 1: all tokens of a region attend (self), or its messenger reads them (cross)"
    )
    second: bool = Field(True, description="stage 2: messengers attend to one another")
    third: Literal["cross", "self", "none"] = Field(
        "cross", description="stage 3: tokens read all messengers (cross), or attend in their region (self), or not"
    )
    sharing: Literal["none", "first_third", "all"] = Field(
        "none", description="stages that use the attention of stage 1; norms stay separate"
    )
    drop_path: float = Field(0.0, description="stochastic depth of the last block, rising from 0", ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> "LgiFormerConfig":
        check_heads(self.width, self.heads)
        if min(self.region) < 1:
            raise ValueError(f"a region holds at least one tube along each axis, but got {self.region}")
        return self

    def check_grid(self, grid: tuple[int, int, int]) -> None:
        """Raise ValueError unless regions fill the grid of tubes (t, h, w)."""
        if any(size % part for size, part in zip(grid, self.region, strict=True)):
            raise ValueError(
                f"region must divide the grid of tubes along time, height and width, but {self.region} does not "
                f"divide {grid}; choose a divisor along each axis"
            )


class LgiBlock(nn.Module):
    """The four stages; parameters bear the names of the published checkpoints."""

    def __init__(self, config: LgiFormerConfig, drop_path: float) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.first_attn_norm0 = Norm(width)
        if config.first == "cross":
            self.first_attn_norm1 = Norm(width)
        self.first_attn = Attention(width, heads)
        if config.second:
            self.second_attn_norm0 = Norm(width)
            if config.sharing != "all":
                self.second_attn = Attention(width, heads)
        if config.third != "none":
            self.third_attn_norm0 = Norm(width)
            if config.third == "cross":
                self.third_attn_norm1 = Norm(width)
            if config.sharing == "none":
                self.third_attn = Attention(width, heads)
        self.norm2 = Norm(width)
        self.mlp = Mlp(width, config.mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, messengers: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map messengers (b, r, d) and tokens (b, r, s, d) to the same shapes."""
        config = self.config
        if config.first == "self":
            messengers, tokens = self._together(messengers, tokens, self.first_attn_norm0, self.first_attn)
        else:
            queries = rearrange(self.first_attn_norm0(messengers), "b r d -> (b r) 1 d")
            read = self.first_attn(queries, self.first_attn_norm1(tokens).flatten(0, 1))
            messengers = messengers + self.drop_path(read.view_as(messengers), dims=2)
        if config.second:
            second = self.first_attn if config.sharing == "all" else self.second_attn
            messengers = messengers + self.drop_path(second(self.second_attn_norm0(messengers)))
        if config.third != "none":
            third = self.third_attn if config.sharing == "none" else self.first_attn
        if config.third == "cross":
            queries = self.third_attn_norm0(tokens).flatten(1, 2)
            injected = third(queries, self.third_attn_norm1(messengers))
            tokens = tokens + self.drop_path(injected).view_as(tokens)
        elif config.third == "self":
            messengers, tokens = self._together(messengers, tokens, self.third_attn_norm0, third)
        return self._together(messengers, tokens, self.norm2, self.mlp)

    def _together(
        self, messengers: Tensor, tokens: Tensor, norm: nn.Module, branch: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Run a residual branch on each region's messenger and tokens as one sequence; whole regions are dropped."""
        both = torch.cat([norm(messengers)[:, :, None], norm(tokens)], dim=2)
        update = branch(both.flatten(0, 1)).view_as(both)
        of_messengers, of_tokens = self.drop_path(update, dims=2).split([1, tokens.shape[2]], dim=2)
        return messengers + of_messengers[:, :, 0], tokens + of_tokens


class LgiFormer(nn.Module):
    """LGI blocks over the tokens of a clip, all of them or equally many in each region."""

    region_of: Tensor

    def __init__(self, config: LgiFormerConfig, grid: tuple[int, int, int]) -> None:
        super().__init__()
        config.check_grid(grid)
        t, h, w = config.region
        self.counts = {"nt": grid[0] // t, "nh": grid[1] // h, "nw": grid[2] // w}
        self.sizes = {"t": t, "h": h, "w": w}
        self.num_regions = math.prod(self.counts.values())
        self.region_tokens = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(self.num_regions, config.width), std=INIT_STD)
        )
        self.blocks = Blocks(LgiBlock(config, rate) for rate in drop_path_rates(config.drop_path, config.depth))
        regions = torch.arange(self.num_regions)[None, :, None, None].expand(-1, -1, math.prod(config.region), -1)
        self.register_buffer("region_of", self._ungroup(regions).flatten(), persistent=False)

    def encode(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode tokens (b, n, d) standing at `keep` (b, n), or at all positions in raster order.

        Returns the tokens in the order given and the messengers (b, r, d). Raises ValueError where the kept tokens
        are not equally many in all regions.
        """
        if keep is None:
            tokens = self.in_regions(x)
        else:
            order = self.region_order(keep)
            tokens = gather(x, order).unflatten(1, (self.num_regions, -1))
        messengers, tokens = self.blocks(self.region_tokens.to(x.dtype).expand(x.shape[0], -1, -1), tokens)
        if keep is None:
            return self._ungroup(tokens), messengers
        return gather(tokens.flatten(1, 2), order.argsort(dim=1)), messengers

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode tokens (b, n, d) to (b, n, d) in the same order; see `encode`."""
        return self.encode(x, keep)[0]

    def region_order(self, keep: Tensor) -> Tensor:
        """Return where in `keep` (b, k) the tokens stand, region after region: (b, k), order kept in a region."""
        region = self.region_of[keep]
        counts = torch.zeros(len(keep), self.num_regions, dtype=torch.int64, device=keep.device)
        counts.scatter_add_(1, region, torch.ones_like(region))
        if (counts != counts[:, :1]).any():
            uneven = counts[(counts != counts[:, :1]).any(dim=1)][0].tolist()
            raise ValueError(
                f"LGI-Former needs equally many kept tokens in each region, but a clip keeps {uneven}; "
                f"use a window mask whose window is the region's (h, w) = {(self.sizes['h'], self.sizes['w'])}"
            )
        return region.argsort(dim=1, stable=True)

    def in_regions(self, x: Tensor) -> Tensor:
        """Return all tokens (b, n, d) region by region: (b, r, s, d)."""
        return rearrange(x, "b (nt t nh h nw w) d -> b (nt nh nw) (t h w) d", **self.counts, **self.sizes)

    def _ungroup(self, tokens: Tensor) -> Tensor:
        """Bring the tokens (b, r, s, d) of whole regions back to raster order (b, n, d)."""
        return rearrange(tokens, "b (nt nh nw) (t h w) d -> b (nt t nh h nw w) d", **self.counts, **self.sizes)
