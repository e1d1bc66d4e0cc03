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
CACHED_SCORES = 1 << 21  # measured; four times as many take almost twice as long
INIT_STD = 0.02


class Norm(nn.LayerNorm):
    """LayerNorm that keeps the type of its input under autocast too; its statistics are float32 all the same."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


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


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Return scaled dot-product attention of q (b, n, d) to k and v (b, m, d): fused, but plain to train on a CPU.

    A CPU's fused kernel has a slow backward pass; written out, a few heads at a time so that the scores stay in cache,
    training takes two thirds of the time with the keys of a clip and a quarter with those of a region. Without a
    backward pass the fused one is faster, takes less memory, and is what can be exported for any number of clips.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        q, k, v = (rearrange(x, "b n (h e) -> b h n e", h=heads) for x in (q, k, v))
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n e -> b n (h e)")
    each = max(1, CACHED_SCORES // (q.shape[1] * k.shape[1]))
    q, k, v = (rearrange(x, "b n (h e) -> (b h) n e", h=heads) for x in (q * (q.shape[2] // heads) ** -0.5, k, v))
    parts = zip(q.split(each), k.split(each), v.split(each), strict=True)
    y = torch.cat([torch.bmm(torch.bmm(q, k.mT).softmax(-1), v) for q, k, v in parts])
    return rearrange(y, "(b h) n e -> b n (h e)", h=heads)


def is_few(k: Tensor, x: Tensor, heads: int) -> bool:
    """Say whether the keys (b, m, d) are so few that tokens (b, n, d) need no queries of their own.

    For each token 2 heads m d products then do for the 2 d d of queries and outputs: taken where that is at most half.
    """
    return k.shape[1] < x.shape[1] and 2 * heads * k.shape[1] <= x.shape[2]


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless the channels of a token can be shared out to the heads."""
    if width % heads:
        raise ValueError(f"heads must divide width, but {heads} does not divide {width}; change one")


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
        kv_bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        k, v = F.linear(x if context is None else context, self.kv.weight, kv_bias).chunk(2, dim=-1)
        if is_few(k, x, self.heads):
            return self._read_few(x, k, v)
        return self.proj(attend(F.linear(x, self.q.weight, self.q_bias), k, v, self.heads))

    def _read_few(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from many tokens x (b, n, d) to few k and v (b, m, d), with far fewer products.

        The query weights are applied to the keys and the output weights to the values, once for each head, so that no
        product of d x d remains for the tokens themselves.
        """
        heads, m = self.heads, k.shape[1]
        k, v = (rearrange(y, "b m (h e) -> h (b m) e", h=heads) for y in (k * (x.shape[2] // heads) ** -0.5, v))
        bias = rearrange((k * self.q_bias.view(heads, 1, -1).to(k.dtype)).sum(-1), "h (b m) -> b (h m) 1", m=m)
        keys = torch.bmm(k, self.q.weight.unflatten(0, (heads, -1)))
        values = torch.bmm(v, rearrange(self.proj.weight, "c (h e) -> h e c", h=heads))
        values = values + (self.proj.bias / heads).to(values.dtype)  # a head's weights add up to 1
        keys, values = (rearrange(y, "h (b m) c -> b (h m) c", m=m) for y in (keys, values))
        # Laid out so that the tokens and their gradients are never transposed; the few scores are, for the softmax.
        scores = (torch.bmm(x, keys.mT).mT.contiguous() + bias).unflatten(1, (heads, m))
        return torch.bmm(scores.softmax(dim=2).flatten(1, 2).mT.contiguous(), values)


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
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def initialise(module: nn.Module, scheme: Literal["normal", "xavier"]) -> None:
    """Draw every linear layer anew; biases become 0. Convolutions and norms keep what PyTorch gave them.

    A joint block's query, key and value weights count as one matrix under Xavier's rule, as they were published. A part
    with layers that are drawn otherwise has a method `redraw`, which is called after all that.
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
        redraw = getattr(part, "redraw", None)
        if redraw is not None:
            redraw()
