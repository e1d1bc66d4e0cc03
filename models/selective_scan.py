"""The selective scan, the recurrence inside a Mamba mixer: one interface, four ways to compute it.

    s_t = exp(delta_t A) s_{t-1} + delta_t B_t u_t     y_t = (C_t . s_t + D u_t) silu(z_t), the gate where there is one

`selective_scan` takes mamba-ssm's kernel on CUDA where that is installed, else the chunked form, which is plain
PyTorch; while a model is exported, a loop that a graph can hold. `sequential_scan` is the recurrence as it is written,
for tests. Signature and meaning are those of mamba-ssm's `selective_scan_fn`, and so are the letters in the scan's
files: d inner channels, n numbers of state that each carries, l tokens, g groups of channels that share B and C.
Source: Gu and Dao, Mamba (arXiv:2312.00752), section 3 and its appendix on recomputation.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.chunked_scan import ChunkedScan, state_dtype
from mien.models.exported_scan import exported_scan


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """Scan u (b, d, l) along l; return y (b, d, l) in u's type, and the last state (b, d, n) when asked.

    delta is (b, d, l), A real (d, n), B and C (d, n), (b, n, l) or (b, g, n, l) where g groups share the d channels in
    their order, D (d), z (b, d, l), delta_bias (d), which is added to delta before softplus. States are float32,
    or float64 for float64, whatever autocast says. No gradient flows through the last state. A fixed B or C (d, n) is
    handled as d groups and takes more time and memory. Raises ValueError for other shapes.
    """
    check(u, delta, A, B, C, D, z, delta_bias)
    kernel = fused() if u.is_cuda and u.dtype != torch.float64 else None
    if kernel is not None:
        given = as_kernels_take(u, delta, A, B, C, D, z, delta_bias)
        return kernel(*given, delta_softplus=delta_softplus, return_last_state=return_last_state)
    B, C = grouped(B, C, u)
    if torch.compiler.is_exporting() and not return_last_state:
        return exported_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    y, last = ChunkedScan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (y, last) if return_last_state else y


def sequential_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """Do what `selective_scan` does, one step after another, as the recurrence is written; for tests."""
    check(u, delta, A, B, C, D, z, delta_bias)
    dtype = state_dtype(u)
    B, C = (x.to(dtype).repeat_interleave(u.shape[1] // x.shape[1], dim=1) for x in grouped(B, C, u))
    x, dt, decay = u.to(dtype), delta.to(dtype), A.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    state = x.new_zeros(*u.shape[:2], A.shape[1])
    rows = []
    for x_t, dt_t, B_t, C_t in zip(x.unbind(2), dt.unbind(2), B.unbind(3), C.unbind(3), strict=True):
        state = torch.exp(dt_t[..., None] * decay) * state + (dt_t * x_t)[..., None] * B_t
        rows.append((state * C_t).sum(dim=2))
    y = torch.stack(rows, dim=2)
    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return (y.to(u.dtype), state.detach()) if return_last_state else y.to(u.dtype)


@cache
def fused() -> Callable[..., Any] | None:
    """Return mamba-ssm's scan for CUDA, or None where it is not installed; print once which it is."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        print(
            f"selective scan on CUDA: plain PyTorch, since mamba-ssm cannot be imported ({error}); "
            "pip install --no-build-isolation -r requirements-gpu.txt is many times faster"
        )
        return None
    print("selective scan on CUDA: mamba-ssm's kernel")
    return selective_scan_fn


def as_kernels_take(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> list[Tensor | None]:
    """Return a scan's inputs in the types of mamba-ssm's kernel: u's for what has a length, float32 for the rest."""
    if min(B.ndim, C.ndim) > 2:
        B, C = grouped(B, C, u)
    of_steps = {"delta": delta, "z": z}
    of_channels = {"A": A, "D": D, "delta_bias": delta_bias}
    for name, x in (("B", B), ("C", C)):
        (of_channels if x.ndim == 2 else of_steps)[name] = x
    given = {name: None if x is None else x.to(u.dtype) for name, x in of_steps.items()}
    given |= {name: None if x is None else x.float() for name, x in of_channels.items()}
    return [u, *(given[name] for name in ("delta", "A", "B", "C", "D", "z", "delta_bias"))]


def check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise ValueError where a shape or a type does not fit the others."""
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(f"u must be (b, d, l), none of them 0, but it is {tuple(u.shape)}")
    if A.ndim != 2 or A.is_complex():
        raise ValueError(f"A must be real and (d, n), but it is {A.dtype} {tuple(A.shape)}")
    b, d, length = u.shape
    n = A.shape[1]
    wanted = {"delta": (delta, (b, d, length)), "A": (A, (d, n)), "D": (D, (d,)), "z": (z, (b, d, length))}
    for name, (value, shape) in (wanted | {"delta_bias": (delta_bias, (d,))}).items():
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(
                f"{name} must have the shape {shape} beside u {(b, d, length)}, but it is {(*value.shape,)}"
            )
    for name, value in (("B", B), ("C", C)):
        groups = value.shape[1] if value.ndim == 4 else 1
        allowed = {2: (d, n), 3: (b, n, length), 4: (b, groups, n, length)}.get(value.ndim)
        if tuple(value.shape) != allowed or not groups or d % groups:
            raise ValueError(
                f"{name} must be (d, n), (b, n, l) or (b, g, n, l) where g divides d, with (b, d, n, l) = "
                f"{(b, d, n, length)}, but it is {tuple(value.shape)}"
            )


def grouped(B: Tensor, C: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return B and C as (b, g, n, l) with the same g; raises ValueError where neither's groups divide the other's."""
    b, _, length = u.shape
    fixed = [x.ndim == 2 for x in (B, C)]
    B, C = (
        x[None, :, :, None].expand(b, -1, -1, length) if x.ndim == 2 else x[:, None] if x.ndim == 3 else x
        for x in (B, C)
    )
    groups = max(B.shape[1], C.shape[1])
    if groups % B.shape[1] or groups % C.shape[1]:
        raise ValueError(
            f"the groups of B and C must be equal or divide one another, but they are {B.shape[1]} and {C.shape[1]}"
        )
    assert not any(fixed) or groups == u.shape[1]
    B, C = (x if x.shape[1] == groups else x.repeat_interleave(groups // x.shape[1], dim=1) for x in (B, C))
    return B, C
