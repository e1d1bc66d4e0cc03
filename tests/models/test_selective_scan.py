"""The scan in its chunked form against the recurrence as written, in float64; the CUDA kernel where there is one."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mien.models import chunked_scan
from mien.models.selective_scan import as_kernels_take, fused, selective_scan, sequential_scan

b, d, n = 2, 6, 3
FORMS = {"plain": (b, n, 0), "grouped": (b, 2, n, 0), "a group a channel": (b, d, n, 0), "fixed": (d, n)}


def drawn(
    length: int, B: str = "plain", C: str = "plain", dtype: torch.dtype = torch.float64, delta: float = 0.0
) -> list[Tensor]:
    """Return u, delta, A, B, C, D, z and delta_bias; delta is drawn around a value."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    forms = [draw(*(size or length for size in FORMS[form])) for form in (B, C)]
    A = -torch.arange(1.0, n + 1).repeat(d, 1) * (0.5 + torch.rand(d, 1, generator=generator))
    values = [draw(b, d, length), draw(b, d, length) / 2 + delta, A, *forms, draw(d), draw(b, d, length), draw(d) / 4]
    return [value.to(dtype) for value in values]


def tracked(values: list[Tensor]) -> list[Tensor]:
    return [value.detach().clone().requires_grad_() for value in values]


def error(found: Tensor, true: Tensor) -> float:
    return ((found.double() - true.double()).norm() / true.double().norm()).item()


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks of three steps."""
    monkeypatch.setattr(chunked_scan, "LONGEST", 3)
    monkeypatch.setattr(chunked_scan, "SHORTEST", 3)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9, 11])
@pytest.mark.parametrize(("B", "C"), [(form, form) for form in FORMS] + [("fixed", "grouped"), ("grouped", "plain")])
def test_every_length_and_form_gives_the_recurrence(length: int, B: str, C: str, short_chunks: None) -> None:
    values = drawn(length, B, C)
    for softplus in (True, False):
        y, last = selective_scan(*values, softplus, True)
        true, true_last = sequential_scan(*values, softplus, True)
        torch.testing.assert_close(y, true)
        torch.testing.assert_close(last, true_last)


@pytest.mark.parametrize(("B", "C"), [("plain", "plain"), ("grouped", "grouped"), ("fixed", "plain")])
@pytest.mark.parametrize("given", [True, False])
def test_gradients_are_those_of_finite_differences(B: str, C: str, given: bool, short_chunks: None) -> None:
    values = tracked(drawn(7, B, C, delta=-1.0 if given else 1.0))
    optional = values[5:] if given else [None, None, None]
    assert gradcheck(lambda *x: selective_scan(*x, *([] if given else optional), given), values[: 8 if given else 5])


@pytest.mark.parametrize("delta", [-6.0, -1.0, 3.0, 30.0])
def test_float32_holds_over_8192_steps_whatever_delta(delta: float) -> None:
    values = drawn(8192, delta=delta)
    single, double = tracked([value.float() for value in values]), tracked(values)
    weight = torch.randn(b, d, 8192, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, true = selective_scan(*single, True), sequential_scan(*double, True)
    assert error(found, true) < 1e-5
    grads = zip(
        torch.autograd.grad((found * weight).sum(), single),
        torch.autograd.grad((true * weight).sum(), double),
        strict=True,
    )
    assert max(error(one, other) for one, other in grads) < 1e-4


def test_a_step_that_forgets_everything_is_finite() -> None:
    values = tracked([value.float() for value in drawn(40, delta=1000.0)])
    y = selective_scan(*values, True)
    assert y.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(y.sum(), values))


def test_states_are_float32_under_autocast_and_for_half_inputs() -> None:
    values = drawn(300, dtype=torch.float32, delta=-2.0)
    plain = selective_scan(*values, True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selective_scan(*values, True), plain)
        leaves = tracked(values)
        selective_scan(*leaves, True).sum().backward()
    others = tracked(values)
    selective_scan(*others, True).sum().backward()
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(leaves, others, strict=True))
    half = [value.bfloat16() if i in (0, 1, 3, 4, 6) else value for i, value in enumerate(values)]
    y, last = selective_scan(*half, True, True)
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32
    rounded = [value.float() for value in half]
    assert error(y, selective_scan(*rounded, True)) < 2e-3  # the output's own rounding
    torch.testing.assert_close(last, selective_scan(*rounded, True, True)[1])


def test_inputs_that_lie_otherwise_in_memory_give_the_same() -> None:
    values = drawn(20, "grouped", "grouped")
    turned = [value.transpose(-1, -2).contiguous().transpose(-1, -2) if value.ndim > 2 else value for value in values]
    one, other = tracked(values), tracked(turned)
    assert other[0].stride()[-1] != 1
    for found, true in zip(
        torch.autograd.grad(selective_scan(*one, True).sum(), one),
        torch.autograd.grad(selective_scan(*other, True).sum(), other),
        strict=True,
    ):
        torch.testing.assert_close(found, true)


def test_no_gradient_flows_through_the_last_state() -> None:
    _, last = selective_scan(*tracked(drawn(5)), True, True)
    assert not last.requires_grad


def saved_bytes(length: int) -> int:
    """Return what a scan keeps for its backward pass beyond its inputs."""
    values = tracked(drawn(length))
    inputs = {value.untyped_storage().data_ptr() for value in values}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(*values, True)
    return sum(size for pointer, size in kept.items() if pointer not in inputs)


def test_what_is_kept_for_the_backward_pass_is_far_less_than_the_states() -> None:
    assert saved_bytes(4096) < 4096 * b * d * n * 8 / 20


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (b, d), r"u must be \(b, d, l\)"),
        (1, (b, d, 4), r"delta must have the shape \(2, 6, 5\)"),
        (2, (d, n, 1), r"A must be real and \(d, n\)"),
        (3, (b, n, 4), r"B must be \(d, n\), \(b, n, l\) or \(b, g, n, l\)"),
        (4, (b, 4, n, 5), r"C must be .* where g divides d"),
        (5, (1,), r"D must have the shape \(6,\)"),
        (6, (1, d, 5), r"z must have the shape"),
        (7, (d, 1), r"delta_bias must have the shape \(6,\)"),
    ],
)
def test_other_shapes_are_refused(index: int, shape: tuple[int, ...], message: str) -> None:
    values = drawn(5)
    values[index] = torch.zeros(shape, dtype=torch.float64)
    for scan in (selective_scan, sequential_scan):
        with pytest.raises(ValueError, match=message):
            scan(*values)


def test_complex_rates_and_groups_that_do_not_match_are_refused() -> None:
    values = drawn(5, "grouped")
    with pytest.raises(ValueError, match="must be real"):
        selective_scan(values[0], values[1], values[2] * 1j, *values[3:])
    values[4] = torch.zeros(b, 3, n, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="divide one another, but they are 2 and 3"):
        selective_scan(*values)


@pytest.fixture
def unknown() -> Iterator[None]:
    """Ask anew whether the kernel is there, before and after."""
    fused.cache_clear()
    yield
    fused.cache_clear()


def test_one_line_says_which_scan_cuda_takes(
    unknown: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    assert fused() is None and fused() is None
    assert capsys.readouterr().out.count("plain PyTorch, since mamba-ssm cannot be imported") == 1
    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    modules: list[Any] = [ModuleType(name) for name in names]
    modules[-1].selective_scan_fn = sequential_scan
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    fused.cache_clear()
    assert fused() is sequential_scan
    assert capsys.readouterr().out == "selective scan on CUDA: mamba-ssm's kernel\n"


@pytest.mark.parametrize(("B", "C"), [("plain", "grouped"), ("fixed", "plain"), ("grouped", "grouped")])
def test_the_kernel_is_given_the_types_and_groups_it_takes(B: str, C: str) -> None:
    values = drawn(20, B, C, dtype=torch.float32)
    values[0] = values[0].bfloat16()
    given = as_kernels_take(*values)
    for name, x in zip(("u", "delta", "A", "B", "C", "D", "z", "delta_bias"), given, strict=True):
        assert x is not None
        assert x.dtype == (torch.bfloat16 if x.ndim > 2 else torch.float32), name
    if "fixed" not in (B, C):
        assert given[3].shape == given[4].shape  # type: ignore[union-attr]
    assert error(sequential_scan(*given, True), sequential_scan(*values, True)) < 0.02
    assert as_kernels_take(*values[:5], None, None, None)[5:] == [None] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", [False, True], ids=["plain PyTorch", "mamba-ssm's kernel"])
def test_cuda_gives_the_recurrence(kernel: bool, unknown: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel and fused() is None:
        pytest.skip("mamba-ssm is not installed: requirements-gpu.txt")
    if not kernel:
        monkeypatch.setattr("mien.models.selective_scan.fused", lambda: None)
    values = drawn(801, "grouped", "grouped", delta=-2.0)
    single, double = tracked([value.float().cuda() for value in values]), tracked(values)
    found, true = selective_scan(*single, True), sequential_scan(*double, True)
    assert error(found.cpu(), true) < 1e-5
    grads = zip(torch.autograd.grad(found.sum(), single), torch.autograd.grad(true.sum(), double), strict=True)
    assert max(error(one.cpu(), other) for one, other in grads) < 1e-4
