"""The selective scan as a program that leaves Python can hold it: one step, and the order to repeat it.

The chunked form chooses its chunks by the batch and writes in place, which a graph for any batch cannot say, and all
steps written out would be a graph of a hundred thousand nodes. torch.export keeps this one as a loop, and ONNX as its
operator Scan.
"""

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F

from mien.models.chunked_scan import state_dtype


def exported_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
) -> Tensor:
    """Return y (b, d, l) as `selective_scan` does for B and C (b, g, n, l); forwards only, to be exported."""
    dtype, groups = state_dtype(u), B.shape[1]
    x, dt = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if softplus:
        dt = F.softplus(dt)
    # Steps first; a group's channels beside one another: (l, b, g, e) and, of B and C, (l, b, g, n).
    rates = A.to(dtype).unflatten(0, (groups, -1))
    steps = [y.permute(2, 0, 1).unflatten(2, (groups, -1)).contiguous() for y in (dt, dt * x)]
    reads = [y.to(dtype).permute(3, 0, 1, 2).contiguous() for y in (B, C)]

    def step(state: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        dt, dtx, B, C = inputs
        state = torch.exp(dt[..., None] * rates) * state + dtx[..., None] * B[:, :, None]
        return state, (state * C[:, :, None]).sum(-1)

    begin = torch.zeros(u.shape[0], *rates.shape, dtype=dtype, device=u.device)
    y = scan(step, begin, (*steps, *reads))[1].flatten(2).permute(1, 2, 0)
    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype)
