"""The joint space-time encoder: every token attends to every other. Source: VideoMAE (arXiv:2203.12602)."""

from typing import Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from mien.models.attention import Block, check_heads, drop_path_rates
from mien.models.blocks import Blocks


class VitConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of the joint encoder."""

    name: Literal["vit"] = Field("vit", description="the joint space-time encoder")
    width: int = Field(768, description="channels of a token", gt=0)
    depth: int = Field(12, description="blocks", gt=0)
    heads: int = Field(12, description="attention heads; must divide width", gt=0)
    mlp_ratio: int = Field(4, description="hidden channels of the MLP, in widths", gt=0)
    drop_path: float = Field(0.0, description="stochastic depth of the last block, rising from 0", ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> "VitConfig":
        check_heads(self.width, self.heads)
        return self

    def check_grid(self, grid: tuple[int, int, int]) -> None:
        """Accept any grid of tubes (t, h, w)."""


class Vit(nn.Module):
    """Pre-norm blocks over all tokens of a clip."""

    def __init__(self, config: VitConfig, grid: tuple[int, int, int]) -> None:
        super().__init__()
        config.check_grid(grid)
        self.blocks = Blocks(
            Block(config.width, config.heads, config.mlp_ratio, rate)
            for rate in drop_path_rates(config.drop_path, config.depth)
        )

    def encode(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, None]:
        """Encode tokens (b, n, d); their positions `keep` are not needed, and there are no messengers."""
        return self.blocks(x), None

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode tokens (b, n, d) to (b, n, d) in the same order."""
        return self.encode(x, keep)[0]
