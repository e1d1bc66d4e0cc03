"""The selective scan in plain PyTorch, a few steps at a time, with a backward pass of its own.

Autograd would keep the states of all steps, (b, d, n, l) numbers several times over. Here only the state before each
chunk is kept, and the backward pass computes a chunk's states anew before it runs through them in reverse. A chunk's
numbers are laid out (k, b, g, n, e): k its steps, g groups, n numbers of state, e channels of a group. So a step is one
fused multiply-add of contiguous memory that the cache still holds; sums over n or over channels are small matrix
products. Nothing is divided and no logarithms are summed, so that a step that forgets everything (large delta) is as
exact as one that forgets nothing.
Source: Gu and Dao, Mamba (arXiv:2312.00752), section 3.3: recomputation.
"""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_NUMBERS = 1 << 20  # states of a chunk; measured: half takes a tenth longer, twice as many no less
SHORTEST, LONGEST = 8, 64  # steps of a chunk: shorter ones keep too many states, longer ones gain nothing


def state_dtype(u: Tensor) -> torch.dtype:
    """Return the type of the states: float32, or float64 for inputs of float64."""
    return torch.promote_types(u.dtype, torch.float32)


class Chunks:
    """The inputs of a scan chunk by chunk, and the buffers that all chunks share."""

    def __init__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor | None, softplus: bool):
        b, d, length = u.shape
        groups, n = B.shape[1:3]
        self.u, self.delta, self.softplus, self.groups, self.dtype = u, delta, softplus, groups, state_dtype(u)
        self.A = rearrange(A.to(self.dtype), "(g e) n -> g n e", g=groups).contiguous()
        self.bias = None if delta_bias is None else self.each_channel(delta_bias)
        steps = min(max(CHUNK_NUMBERS // (b * d * n), SHORTEST), LONGEST, length)
        self.parts = [slice(start, min(start + steps, length)) for start in range(0, length, steps)]
        self.shape = (b, groups, n, d // groups)
        self.decay = self.A.new_empty(steps, *self.shape)
        self.states = self.A.new_empty(steps + 1, *self.shape)  # the first is the one before the chunk
        self.decay_rows, self.state_rows = self.decay.unbind(), self.states.unbind()

    def each_channel(self, x: Tensor) -> Tensor:
        """Return what each channel has (d) as (g, 1, e)."""
        return x.to(self.dtype).view(self.groups, 1, -1)

    def of_channels(self, x: Tensor, part: slice) -> Tensor:
        """Return a part of x (b, d, l) as (k, b, g, 1, e)."""
        rows = x[:, :, part].permute(2, 0, 1).to(self.dtype, memory_format=torch.contiguous_format)
        return rows.view(*rows.shape[:2], self.groups, 1, -1)

    def of_groups(self, x: Tensor, part: slice) -> Tensor:
        """Return a part of x (b, g, n, l) as (k, b, g, n, 1)."""
        rows = x[..., part].permute(3, 0, 1, 2).to(self.dtype, memory_format=torch.contiguous_format)
        return rows[..., None]

    def time_step(self, part: slice) -> tuple[Tensor, Tensor]:
        """Return delta before and after softplus, (k, b, g, 1, e)."""
        raw = self.of_channels(self.delta, part)
        raw = raw if self.bias is None else raw + self.bias
        return raw, F.softplus(raw) if self.softplus else raw

    def run(self, start: Tensor, dt: Tensor, dtx: Tensor, B: Tensor) -> Tensor:
        """Fill the chunk's decays and states from the state before it; return the states after its steps."""
        k = len(dt)
        torch.mul(dt, self.A, out=self.decay[:k]).exp_()
        torch.mul(dtx, B, out=self.states[1 : k + 1])
        state = self.state_rows[0].copy_(start)
        for decay, following in zip(self.decay_rows[:k], self.state_rows[1 : k + 1], strict=True):
            state = following.addcmul_(decay, state)
        return self.states[1 : k + 1]


class ChunkedScan(torch.autograd.Function):
    """`selective_scan` of B and C (b, g, n, l): y (b, d, l), and the last state (b, d, n), which has no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        softplus: bool,
    ) -> tuple[Tensor, Tensor]:
        """Scan, and keep the inputs and the state before each chunk."""
        with torch.autocast(u.device.type, enabled=False):
            chunks = Chunks(u, delta, A, B, delta_bias, softplus)
            y = torch.empty_like(u)
            starts = chunks.A.new_zeros(len(chunks.parts) + 1, *chunks.shape)
            for part, start, following in zip(chunks.parts, starts, starts[1:], strict=False):
                x, dt = chunks.of_channels(u, part), chunks.time_step(part)[1]
                states = chunks.run(start, dt, dt * x, chunks.of_groups(B, part))
                following.copy_(states[-1])
                row = chunks.of_groups(C, part).mT @ states
                if D is not None:
                    row.addcmul_(x, chunks.each_channel(D))
                if z is not None:
                    row.mul_(F.silu(chunks.of_channels(z, part)))
                y[:, :, part] = row.flatten(2).permute(1, 2, 0)
            last = rearrange(starts[-1], "b g n e -> b (g e) n")
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, starts)
        ctx.softplus = softplus
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; every chunk's states are computed anew, from the last chunk to the first."""
        u, delta, A, B, C, D, z, delta_bias, starts = ctx.saved_tensors
        with torch.autocast(u.device.type, enabled=False):
            chunks = Chunks(u, delta, A, B, delta_bias, ctx.softplus)
            du, ddelta, dB, dC = (torch.empty_like(x) for x in (u, delta, B, C))
            dz = None if z is None else torch.empty_like(z)
            dA = chunks.A.new_zeros(chunks.shape)
            dbias, dD = (chunks.A.new_zeros(len(chunks.A), 1, chunks.shape[-1]) for _ in range(2))
            grads = torch.empty_like(chunks.decay)
            grad_rows = grads.unbind()
            later = torch.zeros_like(dA)  # the gradient that the chunk's last state has from the steps after it
            for part, start in zip(reversed(chunks.parts), reversed(starts[:-1].unbind()), strict=True):
                x, (raw, dt) = chunks.of_channels(u, part), chunks.time_step(part)
                rows_B, rows_C = chunks.of_groups(B, part), chunks.of_groups(C, part)
                k, dtx = len(x), dt * x
                states = chunks.run(start, dt, dtx, rows_B)
                dout = chunks.of_channels(dy, part)
                if z is not None and dz is not None:
                    gate = chunks.of_channels(z, part)
                    row = rows_C.mT @ states
                    row = row if D is None else row.addcmul_(x, chunks.each_channel(D))
                    sigmoid = gate.sigmoid()
                    slope = sigmoid * (1 + gate * (1 - sigmoid))
                    put(dz, part, row.mul_(dout).mul_(slope).flatten(2).permute(1, 2, 0))
                    dout = dout * gate.mul(sigmoid)
                put(dC, part, (states @ dout.mT)[..., 0].permute(1, 2, 3, 0))

                torch.mul(dout, rows_C, out=grads[:k])
                state = grad_rows[k - 1].add_(later)
                for decay, before in zip(chunks.decay_rows[k - 1 : 0 : -1], grad_rows[k - 2 :: -1], strict=False):
                    state = before.addcmul_(decay, state)
                put(dB, part, (grads[:k] @ dtx.mT)[..., 0].permute(1, 2, 3, 0))
                ddtx = rows_B.mT @ grads[:k]
                dx, ddt = ddtx * dt, ddtx * x
                if D is not None:
                    dx.addcmul_(dout, chunks.each_channel(D))
                    dD += (dout * x).sum((0, 1))
                put(du, part, dx.flatten(2).permute(1, 2, 0))

                of_decay = grads[:k].mul_(chunks.decay[:k])
                later.copy_(of_decay[0])
                of_decay.mul_(chunks.states[:k])  # now the gradient of delta * A
                for i, rates in enumerate(chunks.A.split(1, dim=1)):
                    ddt.addcmul_(of_decay[..., i : i + 1, :], rates)
                of_chunk = torch.zeros_like(dA)  # sums of sums: a long clip's rounding does not add up
                for row, step in zip(grad_rows[:k], dt.unbind(), strict=True):
                    of_chunk.addcmul_(row, step)
                dA += of_chunk
                if ctx.softplus:
                    ddt.mul_(raw.sigmoid())
                dbias += ddt.sum((0, 1))
                put(ddelta, part, ddt.flatten(2).permute(1, 2, 0))
        of_A = rearrange(dA.sum(0), "g n e -> (g e) n").to(A.dtype)
        of_D = None if D is None else dD.flatten().to(D.dtype)
        of_bias = None if delta_bias is None else dbias.flatten().to(delta_bias.dtype)
        return du, ddelta, of_A, dB, dC, of_D, dz, of_bias, None


def put(whole: Tensor, part: slice, value: Tensor) -> None:
    """Write a part of the last axis."""
    whole[..., part] = value
