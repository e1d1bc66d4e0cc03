"""The only attention, MLP, normalisation, stochastic depth and pre-norm block, and how they are initialised.

Queries and values have a learned bias, keys none (softmax would cancel it). Source: BEiT (arXiv:2106.08254), VideoMAE
and MAE-DFER; initial values as MAE-DFER (fine-tuning: normal; pretraining: Xavier).
"""

import math
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
INIT_STD = 0.02


class Norm(nn.LayerNorm):
    """LayerNorm that, under autocast, hands on what the next product takes, so that it is rounded once."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; statistics are float32."""
        y = super().forward(x)
        device = x.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y


class DropPath(nn.Module):
    """Stochastic depth: in training, a branch is dropped with probability `rate` and scaled up where it is not."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, dims: int = 1) -> Tensor:
        """Draw once for each index of the first `dims` axes (1: whole clips, 2: whole regions)."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(x.shape[:dims] + (1,) * (x.ndim - dims)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of heads (b, h, n, d): fused on an accelerator, plain on a CPU.

    On a CPU the fused kernel's backward pass in bfloat16 takes four times as long as the three products written out.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


class Attention(nn.Module):
    """Multi-head attention from tokens to themselves or to a context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend from x (b, n, d) to context (b, m, d), or to x itself."""
        q = F.linear(x, self.q.weight, self.q_bias)
        kv_bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        kv = F.linear(x if context is None else context, self.kv.weight, kv_bias)
        k, v = rearrange(kv, "b n (two h d) -> two b h n d", two=2, h=self.heads)
        y = attend(rearrange(q, "b n (h d) -> b h n d", h=self.heads), k, v)
        return self.proj(rearrange(y, "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., d) to (..., d)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """The pre-norm block of a joint space-time encoder, and of every decoder."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = Norm(width)
        self.attn = Attention(width, heads)
        self.norm2 = Norm(width)
        self.mlp = Mlp(width, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (b, n, d) to (b, n, d)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Return the rate of each block, rising evenly from 0 to `rate`."""
    return torch.linspace(0, rate, depth).tolist()


def initialise(module: nn.Module, scheme: Literal["normal", "xavier"]) -> None:
    """Draw every linear layer anew; biases become 0. Convolutions and norms keep what PyTorch gave them.

    A joint block's query, key and value weights count as one matrix under Xavier's rule, as they were published.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            if scheme == "normal":
                nn.init.trunc_normal_(part.weight, std=INIT_STD, a=-2, b=2)
            else:
                nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if scheme == "xavier" and isinstance(part, Block):
            width = part.attn.q.in_features
            bound = math.sqrt(6 / (width + 3 * width))
            nn.init.uniform_(part.attn.q.weight, -bound, bound)
            nn.init.uniform_(part.attn.kv.weight, -bound, bound)
