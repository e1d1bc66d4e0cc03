"""Attention is the same in all its ways; stochastic depth drops what it should; weights start as published."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.models import attention
from mien.models.attention import Attention, Block, DropPath, Norm, drop_path_rates, initialise


def plainly(module: Attention, x: Tensor, context: Tensor) -> Tensor:
    """Attention spelled out for one query and one head at a time."""
    size = x.shape[-1] // module.heads
    key_weight, value_weight = module.kv.weight.chunk(2)
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for head in range(module.heads):
            part = slice(head * size, (head + 1) * size)
            q = x[b] @ module.q.weight[part].T + module.q_bias[part]
            k = context[b] @ key_weight[part].T
            v = context[b] @ value_weight[part].T + module.v_bias[part]
            out[b, :, part] = (q @ k.T / math.sqrt(size)).softmax(-1) @ v
    return out @ module.proj.weight.T + module.proj.bias


@pytest.fixture
def module() -> Attention:
    torch.manual_seed(0)
    module = Attention(32, 4)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("m", [None, 2, 4, 5, 40])
def test_attention_is_the_textbooks(module: Attention, m: int | None) -> None:
    x = torch.randn(3, 7, 32)
    context = None if m is None else torch.randn(3, m, 32)
    torch.testing.assert_close(module(x, context), plainly(module, x, x if context is None else context))


def test_few_keys_take_the_short_way_and_have_the_same_gradients(
    module: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, context = torch.randn(3, 20, 32), torch.randn(3, 2, 32)
    calls = []
    short = Attention._read_few

    def counted(self: Attention, *args: Tensor) -> Tensor:
        calls.append(1)
        return short(self, *args)

    monkeypatch.setattr(Attention, "_read_few", counted)
    gradients = []
    for few in (True, False):
        if not few:
            monkeypatch.setattr(attention, "is_few", lambda *_: False)
        module.zero_grad()
        module(x, context).square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert len(calls) == 1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cached", [1, 100, 1 << 21])
def test_fused_and_plain_attention_agree(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CACHED_SCORES", cached)
    q, k, v = (torch.randn(2, n, 32) for n in (5, 9, 9))
    heads = [x.view(2, -1, 4, 8).transpose(1, 2) for x in (q, k, v)]
    fused = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.attend(q, k, v, heads=4), fused)


def test_norm_keeps_the_type_of_its_input_and_float32_statistics() -> None:
    norm = Norm(16)
    x = 1000 + torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.float32
        half = norm(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), norm(x.bfloat16().float()), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dims", [1, 2])
def test_stochastic_depth_drops_whole_clips_or_regions_and_keeps_the_mean(dims: int) -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(200, 20, 3, 5), dims=dims)
    whole = y.flatten(dims)
    assert (whole == whole[..., :1]).all()
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.1)
    if dims == 2:
        assert (y[:, 0, 0, 0] != y[:, 1, 0, 0]).any()
    assert torch.equal(drop.eval()(y), y)


def test_drop_path_rises_from_nothing() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0]


def spread(weight: Tensor) -> tuple[float, float]:
    return weight.std().item(), weight.abs().max().item()


def test_initial_weights_are_normal_for_fine_tuning() -> None:
    torch.manual_seed(0)
    block = Block(128, 2, 4)
    initialise(block, "normal")
    for weight in (block.attn.q.weight, block.attn.kv.weight, block.mlp.fc1.weight):
        std, largest = spread(weight)
        assert std == pytest.approx(0.02, rel=0.05)
        assert largest > 0.06  # not cut at two deviations
    assert block.mlp.fc1.bias.abs().max() == block.attn.proj.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("pick", "bound"),
    [
        (lambda block: block.attn.q.weight, math.sqrt(6 / (4 * 128))),
        (lambda block: block.attn.kv.weight, math.sqrt(6 / (4 * 128))),
        (lambda block: block.attn.proj.weight, math.sqrt(6 / (2 * 128))),
        (lambda block: block.mlp.fc1.weight, math.sqrt(6 / (5 * 128))),
    ],
    ids=["q", "kv", "proj", "fc1"],
)
def test_initial_weights_are_xaviers_for_pretraining(pick: Callable[[Block], Tensor], bound: float) -> None:
    block = Block(128, 2, 4)
    initialise(block, "xavier")
    std, largest = spread(pick(block))
    assert bound * 0.99 < largest <= bound
    assert std == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_an_attention_outside_joint_blocks_has_query_and_key_value_weights_apart() -> None:
    module = Attention(128, 2)
    initialise(module, "xavier")
    assert spread(module.q.weight)[1] == pytest.approx(math.sqrt(6 / (2 * 128)), rel=0.01)
    assert spread(module.kv.weight)[1] == pytest.approx(math.sqrt(6 / (3 * 128)), rel=0.01)
