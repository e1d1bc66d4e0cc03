"""The product of tokens with weights is PyTorch's own, with the same gradients, wherever it is computed otherwise."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models import linear as module
from mien.models.linear import linear, transposed_product

SHAPES = [(300, 16, 64), (300, 64, 16), (300, 24, 24), (5, 16, 64)]  # rows, width in, width out


def tensors(rows: int, narrow: int, wide: int) -> list[Tensor]:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, rows // 3 or 1, narrow), torch.randn(wide, narrow), torch.randn(wide)
    return [value.requires_grad_() for value in (x, weight, bias)]


def gradients(inputs: list[Tensor], output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((output.float() * torch.sin(torch.arange(output.shape[-1]))).sum(), inputs))


@pytest.mark.parametrize("shape", SHAPES)
def test_in_a_bf16_step_value_and_gradients_are_those_of_rounded_numbers(shape: tuple[int, int, int]) -> None:
    inputs = tensors(*shape)
    rounded = [value.detach().bfloat16().double().requires_grad_() for value in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        assert module._pays(inputs[0])
        found = linear(*inputs)
    assert found.dtype == torch.bfloat16
    exact = F.linear(*rounded)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-6)
    for mine, theirs in zip(gradients(inputs, found), gradients(rounded, exact), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() < 2**-7 * theirs.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_transposed_product_is_the_same_in_every_layout(shape: tuple[int, int, int]) -> None:
    rows, left, right = shape
    x, y = torch.randn(rows, left).double(), torch.randn(rows, right).double()
    product = transposed_product(x, y)
    assert product.is_contiguous()
    torch.testing.assert_close(product, x.mT @ y)


def test_outside_a_bf16_step_on_a_cpu_it_is_pytorchs() -> None:
    inputs = tensors(6, 4, 8)
    assert torch.equal(linear(*inputs), F.linear(*inputs))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not module._pays(inputs[0])
        assert torch.equal(linear(*inputs), F.linear(*inputs))
    with torch.autocast("cpu", torch.float16):
        assert not module._pays(inputs[0])


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    x, weight, bias = tensors(300, 16, 64)
    weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        linear(x, weight, bias).sum().backward()
    assert x.grad is not None and bias.grad is not None and weight.grad is None
    with torch.autocast("cpu", torch.bfloat16):
        linear(x.detach(), weight.requires_grad_()).sum().backward()
    assert weight.grad is not None
