"""The bidirectional state-space encoder: every token is read by a scan forwards and one backwards, in linear time.

Tokens stand in raster order, all patches of a tube's time before the next (spatial first), with a class token at the
front. A block is residual + mixer(norm(residual)), the residual in float32; there is no MLP. Only what is kept is
scanned, in the same order; the class token always is. Parameters bear the names of the published checkpoints. Source:
VideoMamba (Li et al., arXiv:2403.06977), its mixer after Vim (arXiv:2401.09417), Mamba (arXiv:2312.00752). Both scans
run as one, its channels in two groups, and their sum is gated once, which is the same as gating each.
"""

import math
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mien.models.attention import INIT_STD, DropPath, drop_path_rates
from mien.models.blocks import Blocks
from mien.models.chunked_scan import state_dtype
from mien.models.patches import gather
from mien.models.selective_scan import selective_scan

NORM_EPS = 1e-5
DT_RANGE = (0.001, 0.1)  # the time steps that a mixer begins with
DT_FLOOR = 1e-4


class MambaConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes and variants of the state-space encoder."""

    name: Literal["mamba"] = Field("mamba", description="the bidirectional state-space encoder")
    width: int = Field(512, description="channels of a token; published: tiny 192, small 384, middle 576, 512", gt=0)
    depth: int = Field(32, description="blocks; published: tiny and small 24, middle and 512 32", gt=0)
    state: int = Field(16, description="numbers of state that each inner channel carries", gt=0)
    conv: int = Field(4, description="tokens that the causal convolution before each scan sees", gt=0)
    expand: int = Field(2, description="inner channels, in widths", gt=0)
    cls: bool = Field(True, description="a class token at the front of the scan; pool 'region' reads it")
    positions: Literal["learned", "table"] = Field(
        "learned", description="learned for each patch and each time, added up; or the fixed table of other encoders"
    )
    init: Literal["mamba", "published"] = Field(
        "mamba", description="time steps begin in 0.001 to 0.1, as Mamba has it; VideoMamba's draw overwrote that"
    )
    published_layers: bool = Field(
        False, description="layer decay as published by accident: all blocks and times count with the head"
    )
    drop_path: float = Field(0.0, description="stochastic depth of the last block, rising from 0", ge=0, lt=1)

    def check_grid(self, grid: tuple[int, int, int]) -> None:
        """Accept any grid of tubes (t, h, w)."""


class CausalConv(torch.autograd.Function):
    """Each channel's convolution with its last tokens. PyTorch's own takes 20 times as long to train on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve x (b, l, d) with weight (d, 1, k) and bias (d), in the type of x."""
        ctx.save_for_backward(x, weight, bias)
        taps = weight[:, 0].T.flip(0).to(x.dtype)
        y = torch.addcmul(bias.to(x.dtype), x, taps[0])
        for ago in range(1, min(len(taps), x.shape[1])):
            y[:, ago:].addcmul_(x[:, :-ago], taps[ago])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, weight and bias."""
        x, weight, bias = ctx.saved_tensors
        taps = weight[:, 0].T.flip(0).to(x.dtype)
        dx = dy * taps[0]
        dtaps = torch.zeros_like(taps, dtype=torch.float32 if x.dtype.itemsize < 4 else x.dtype)
        dtaps[0] = (dy * x).sum((0, 1), dtype=dtaps.dtype)
        for ago in range(1, min(len(taps), x.shape[1])):
            dx[:, :-ago].addcmul_(dy[:, ago:], taps[ago])
            dtaps[ago] = (dy[:, ago:] * x[:, :-ago]).sum((0, 1), dtype=dtaps.dtype)
        dbias = dy.sum((0, 1), dtype=dtaps.dtype)
        return dx, dtaps.flip(0).T[:, None].to(weight.dtype), dbias.to(bias.dtype)


class Mixer(nn.Module):
    """Mamba's mixer in both directions: in_proj and out_proj are shared, all else is each direction's own (`_b`)."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.inner, self.rank = config.expand * config.width, math.ceil(config.width / 16)
        self.in_proj = nn.Linear(config.width, 2 * self.inner, bias=False)
        self.out_proj = nn.Linear(self.inner, config.width, bias=False)
        rates = repeat(torch.arange(1.0, config.state + 1).log(), "n -> d n", d=self.inner)
        self.A_log, self.A_b_log = (nn.Parameter(rates.clone()) for _ in range(2))
        self.D, self.D_b = (nn.Parameter(torch.ones(self.inner)) for _ in range(2))
        self.conv1d, self.conv1d_b = (
            nn.Conv1d(self.inner, self.inner, config.conv, groups=self.inner) for _ in range(2)
        )
        self.x_proj, self.x_proj_b = (nn.Linear(self.inner, self.rank + 2 * config.state, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (nn.Linear(self.rank, self.inner) for _ in range(2))
        self.redraw()

    def redraw(self) -> None:
        """Draw what is not drawn like any other linear layer; `initialise` calls it after those."""
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(self.config.depth)
            if self.config.init == "published":
                return
            low, high = (math.log(x) for x in DT_RANGE)
            for layer in (self.dt_proj, self.dt_proj_b):
                layer.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
                dt = torch.empty_like(layer.bias).uniform_(low, high).exp().clamp(min=DT_FLOOR)
                layer.bias.copy_(dt + (-torch.expm1(-dt)).log())  # softplus of it is dt

    def forward(self, x: Tensor) -> Tensor:
        """Map x (b, l, d) to (b, l, d)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        weight, bias = (self._both(f"conv1d{{}}.{part}") for part in ("weight", "bias"))
        u = F.silu(CausalConv.apply(torch.cat([x, x.flip(1)], dim=2), weight, bias))
        ahead, back = u.chunk(2, dim=2)
        reads = self._reads(ahead, self.x_proj, self.dt_proj), self._reads(back, self.x_proj_b, self.dt_proj_b)
        delta, B, C = zip(*reads, strict=True)
        y = selective_scan(
            u.mT,
            torch.cat(delta, dim=2).mT,
            -self._both("A{}_log").to(state_dtype(self.A_log)).exp(),
            rearrange(torch.stack(B), "g b l n -> b g n l"),
            rearrange(torch.stack(C), "g b l n -> b g n l"),
            self._both("D{}"),
            delta_bias=self._both("dt_proj{}.bias"),
            delta_softplus=True,
        ).mT
        forwards, backwards = y.chunk(2, dim=2)
        return self.out_proj((forwards + backwards.flip(1)) * F.silu(z))

    def _reads(self, u: Tensor, x_proj: nn.Linear, dt_proj: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a direction's scan takes from its tokens u (b, l, d): delta (b, l, d), B and C (b, l, n)."""
        dt, B, C = x_proj(u).split([self.rank, self.config.state, self.config.state], dim=2)
        return F.linear(dt, dt_proj.weight), B, C  # the bias of dt_proj is added in the scan, in float32

    def _both(self, name: str) -> Tensor:
        """Return a parameter of the forward and the backward direction as one; in its name `{}` stands for `_b`."""
        return torch.cat([self.get_parameter(name.format("")), self.get_parameter(name.format("_b"))])


class MambaBlock(nn.Module):
    """A pre-norm mixer; there is no MLP."""

    def __init__(self, config: MambaConfig, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=NORM_EPS)
        self.mixer = Mixer(config)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (b, n, d) to (b, n, d)."""
        return x + self.drop_path(self.mixer(self.norm(x)))


class Mamba(nn.Module):
    """Class token, positions and blocks over the tokens of a clip, all of them or those kept."""

    def __init__(self, config: MambaConfig, grid: tuple[int, int, int]) -> None:
        super().__init__()
        config.check_grid(grid)
        self.config, self.patches = config, grid[1] * grid[2]
        if config.cls:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        if config.positions == "learned":
            rows = torch.empty(1, self.patches + config.cls, config.width)  # the class token's own is the first
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(rows, std=INIT_STD))
            self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, grid[0], config.width))
        self.blocks = Blocks(MambaBlock(config, rate) for rate in drop_path_rates(config.drop_path, config.depth))

    def encode(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode tokens (b, n, d) standing at `keep` (b, n), or at all positions in raster order.

        They are scanned in raster order, and returned in the order given, with the class token (b, 1, d) or None.
        """
        order = None
        if keep is not None:
            order = keep.argsort(dim=1)
            x, keep = gather(x, order), keep.gather(1, order)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        learned = self.config.positions == "learned"
        if learned:
            x = x + self._positions(keep)
        if self.config.cls:
            first = self.cls_token + self.pos_embed[:, :1] if learned else self.cls_token
            x = torch.cat([first.expand(x.shape[0], -1, -1), x], dim=1)
        first, x = self.blocks(x).tensor_split([int(self.config.cls)], dim=1)
        return x if order is None else gather(x, order.argsort(dim=1)), first if self.config.cls else None

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode tokens (b, n, d) to (b, n, d) in the same order; see `encode`."""
        return self.encode(x, keep)[0]

    def _positions(self, keep: Tensor | None) -> Tensor:
        """Return the learned positions of `keep` (b, n), or of all."""
        of_patch, of_time = self.pos_embed[0, self.config.cls :], self.temporal_pos_embedding[0]
        if keep is None:
            return (of_time[:, None] + of_patch).flatten(0, 1)
        return of_patch[keep % self.patches] + of_time[keep // self.patches]
