"""The product of tokens with a layer's weights, trained in bf16 on a CPU in less time than PyTorch's own takes.

PyTorch adds the bias in a pass of its own, sums its gradient in another, and hands oneDNN the weights' gradient as a
product with a transposed factor, which runs at half the rate of a plain one. Here the bias goes into the product, its
gradient is a product with ones, and the narrower factor is transposed before, which is soon done: of rows of 512
numbers, not of 2,048. The gradients are the same but for their rounding. Anywhere else it is `F.linear`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WIDE = 2  # times as wide as the other must a factor be, so that transposing the other pays
MANY = 256  # rows from which the gradients' layouts pay
ONES = 16  # rows of ones: oneDNN takes products with fewer rows in a slower kernel


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x (..., k) times weight (n, k), transposed, plus bias (n,): (..., n), under autocast in its type."""
    if not _pays(x):
        return F.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        half = (None if y is None else y.to(torch.bfloat16) for y in (x, weight, bias))
        return _Linear.apply(*half)


def _pays(x: Tensor) -> bool:
    """Say whether the product is one of a training step in bf16 on a CPU, and PyTorch runs it as it is written."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and torch.backends.mkldnn.is_available()
    )


class _Linear(torch.autograd.Function):
    """The product of bf16 tensors on a CPU, with gradients of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, of_rows = x.flatten(0, -2), gradient.flatten(0, -2).contiguous()
        of_x, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_x = (of_rows @ weight).view_as(x)
        if ctx.needs_input_grad[1]:
            of_weight = transposed_product(of_rows, rows)
        if ctx.needs_input_grad[2]:
            of_bias = (of_rows.new_ones(ONES, len(rows)) @ of_rows)[0]
        return of_x, of_weight, of_bias


def transposed_product(x: Tensor, y: Tensor) -> Tensor:
    """Return the product (n, k) of x (m, n), transposed, with y (m, k)."""
    (m, n), k = x.shape, y.shape[1]
    if m >= MANY and k >= WIDE * n:
        return x.mT.contiguous() @ y
    if m >= MANY and n >= WIDE * k:
        return (y.mT.contiguous() @ x).mT.contiguous()
    return x.mT @ y
