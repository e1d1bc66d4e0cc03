"""The decoder of a masked autoencoder: a few blocks over visible and hidden tokens, and the hidden ones' pixels.

Its blocks are joint ones, as in MAE-DFER (arXiv:2307.02227) and VideoMAE (arXiv:2203.12602), or bidirectional
state-space ones, as the Facial-Foundation-Model project pairs with VideoMamba's encoder. A scan's neighbours are those
before and behind it, so those blocks read the tokens in raster order; there, all visible ones came before all hidden.
"""

from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from mien.models.attention import Block, Norm, check_heads, drop_path_rates
from mien.models.blocks import Blocks
from mien.models.mamba import MambaBlock, MambaConfig
from mien.models.patches import gather


class DecoderConfig(BaseModel, frozen=True, extra="forbid"):
    """Kind and sizes of the decoder."""

    block: Literal["joint", "mamba"] = Field(
        "joint", description="attention and MLP, or a bidirectional state-space mixer, without heads and mlp_ratio"
    )
    width: int = Field(384, description="channels of a token", gt=0)
    depth: int = Field(4, description="blocks", gt=0)
    heads: int = Field(6, description="attention heads; must divide width", gt=0)
    mlp_ratio: int = Field(4, description="hidden channels of the MLP, in widths", gt=0)
    drop_path: float = Field(0.0, description="stochastic depth of the last block, rising from 0", ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "DecoderConfig":
        if self.block == "joint":
            check_heads(self.width, self.heads)
        return self


class Decoder(nn.Module):
    """Blocks over all tokens, and a projection of the last ones to pixels."""

    def __init__(self, config: DecoderConfig, tube_pixels: int) -> None:
        super().__init__()
        self.scans = config.block == "mamba"
        rates = drop_path_rates(config.drop_path, config.depth)
        mixer = MambaConfig(width=config.width, depth=config.depth)
        self.blocks = Blocks(
            MambaBlock(mixer, rate) if self.scans else Block(config.width, config.heads, config.mlp_ratio, rate)
            for rate in rates
        )
        self.norm = Norm(config.width)
        self.head = nn.Linear(config.width, tube_pixels)

    def forward(self, x: Tensor, num_hidden: int, places: Tensor | None = None) -> Tensor:
        """Map tokens (b, n, d) to the pixels of the last `num_hidden` of them (b, k, tube_pixels).

        A scan takes them in the order of their `places` (b, n), or as they stand.
        """
        if self.scans:  # what goes from block to block is float32, as in the encoder of such blocks
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.scans and places is not None:
            order = places.argsort(dim=1)
            x = gather(self.blocks(gather(x, order)), order.argsort(dim=1))
        else:
            x = self.blocks(x)
        return self.head(self.norm(x[:, -num_hidden:]))
