"""Adapters add nothing at first, are all that is trained beside the head, and vanish into plain weights."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mien.models.backbone import BackboneConfig
from mien.models.expression import Expression, ExpressionConfig
from mien.models.loading import load_backbone
from mien.models.lora import LoraConfig, LoraLinear, add_adapters, merged

ADAPTERS = ("lora_A", "lora_B")
HEAD = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}


def made(backbone: BackboneConfig, **lora: Any) -> Expression:
    torch.manual_seed(0)
    pool = "region" if backbone.region else "patch"
    settings = {"backbone": backbone, "pool": pool, "lora": lora or None}
    return Expression(ExpressionConfig.model_validate(settings))


def shaken(task: Expression) -> Expression:
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.2)
    return task.eval()


def trained(task: Expression) -> set[str]:
    return {name for name, parameter in task.named_parameters() if parameter.requires_grad}


TARGETS = {"lgi_former": ("q", "kv"), "vit": ("q", "kv", "blocks.*.mlp.fc?"), "mamba": ("in_proj", "x_proj", "dt_proj")}


@pytest.mark.parametrize("encoder", TARGETS)
def test_new_adapters_change_nothing_and_merged_ones_are_plain_weights_to_the_bit(
    encoder: str, small: Callable[..., BackboneConfig], batch: dict[str, Tensor]
) -> None:
    plain, adapted = made(small(encoder)), made(small(encoder), rank=3, targets=TARGETS[encoder])
    assert torch.equal(plain.features(batch), adapted.features(batch))
    assert torch.equal(plain.head.weight, adapted.head.weight)
    shaken(adapted)
    assert adapted.lora is not None
    plain.load_state_dict(merged(adapted.state_dict(), adapted.lora))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            assert torch.equal(plain.eval().features(batch), adapted.features(batch))
    adapted.load_state_dict(adapted.state_dict() | {n: v * 0 for n, v in adapted.state_dict().items() if "lora_B" in n})
    assert not torch.allclose(plain.features(batch), adapted.features(batch), atol=1e-3)


def test_a_layer_with_an_adapter_is_its_formula_forward_and_backward() -> None:
    torch.manual_seed(0)
    task = nn.Module()
    task.encoder = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(5, 4)}) for _ in range(2)])})
    add_adapters(task, LoraConfig(rank=2, block_scales=(0.5, 16.0), targets=("q",)), 2)
    for block, scale in enumerate((0.5, 16.0)):
        layer = task.encoder["blocks"][block]["q"].double()
        nn.init.normal_(layer.lora_B)
        x = torch.randn(3, 5, dtype=torch.float64)
        parts = {name: value.detach().clone().requires_grad_() for name, value in layer.named_parameters()}
        by_hand = x @ parts["weight"].T + parts["bias"] + scale * (x @ parts["lora_A"].T) @ parts["lora_B"].T
        assert torch.allclose(layer(x), by_hand, atol=1e-12)
        layer(x).square().sum().backward()
        by_hand.square().sum().backward()
        for name in ADAPTERS:
            assert torch.allclose(layer.get_parameter(name).grad, parts[name].grad, atol=1e-9)
        assert layer._parameters["weight"].grad is None


def test_adapters_norm_and_head_learn_and_all_else_stays(
    small: Callable[..., BackboneConfig], batch: dict[str, Tensor]
) -> None:
    task = made(small(), rank=2)
    assert {name for name in trained(task) if not name.endswith(ADAPTERS)} == HEAD
    # three attentions, of two layers with two matrices each, in two blocks
    assert len(trained(task)) == 3 * 2 * 2 * 2 + len(HEAD)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    optimiser = torch.optim.AdamW((p for p in task.parameters() if p.requires_grad), lr=0.1)
    for _ in range(2):  # A gets its first gradient when B is no longer zero
        optimiser.zero_grad()
        task(batch)["loss"].backward()
        optimiser.step()
    moved = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    unread = {name for name in trained(task) if "blocks.1.third_attn" in name}  # the last tokens are not pooled
    assert moved == trained(task) - {name for name in unread if name.endswith("lora_B")}
    layers = task.parameter_layers()
    assert [layers[f"backbone.encoder.blocks.{block}.first_attn.q.lora_A"] for block in (0, 1)] == [1, 2]


def test_patterns_thaw_what_they_name_and_rank_0_is_a_linear_probe(small: Callable[..., BackboneConfig]) -> None:
    assert trained(made(small(), rank=0)) == HEAD
    thawed = trained(made(small(), rank=0, thawed=("*norm*", "encoder.region_tokens"))) - HEAD
    assert "backbone.encoder.region_tokens" in thawed and len(thawed) == 1 + 2 * 5 * 2
    assert all("norm" in name or name.endswith("region_tokens") for name in thawed)
    everything = made(small(), rank=2, frozen=False)
    assert trained(everything) == {name for name, _ in everything.named_parameters()}


def test_shared_attention_gets_one_adapter(small: Callable[..., BackboneConfig]) -> None:
    task = made(small(sharing="all"), rank=2)
    assert sum(isinstance(module, LoraLinear) for module in task.modules()) == 2 * 2
    assert all(".first_attn." in name for name in trained(task) - HEAD)


def test_dropout_hides_inputs_in_training_alone(small: Callable[..., BackboneConfig], batch: dict[str, Tensor]) -> None:
    task = shaken(made(small(), rank=2, dropout=0.5))
    layer = task.backbone.encoder.blocks[0].first_attn.q
    assert torch.equal(layer.weight, layer.weight)
    whole = layer.weight - layer._parameters["weight"]
    layer.train()
    mean = torch.stack([layer.weight - layer._parameters["weight"] for _ in range(4000)]).mean(0)
    assert torch.allclose(mean, whole, atol=0.05 * whole.abs().max().item() + 0.01)
    delta = layer.weight - layer._parameters["weight"]
    assert 0 < (delta.abs().sum(0) == 0).sum() < delta.shape[1]


def test_a_model_with_adapters_is_copied_and_pickled(
    small: Callable[..., BackboneConfig], batch: dict[str, Tensor]
) -> None:
    task = shaken(made(small(), rank=2))
    for twin in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert torch.equal(twin.features(batch), task.features(batch)) and trained(twin) == trained(task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "targets": ("qv",)}, r"lora\.targets: 'qv' fits none of these: blocks\.\*\.first_attn\.kv"),
        ({"rank": 2, "thawed": ("nrm*",)}, r"lora\.thawed: 'nrm\*' fits none of these: embed\.bias"),
        ({"rank": 2, "block_scales": (1.0,)}, r"one number for each of the 2 blocks, but holds 1"),
    ],
)
def test_what_fits_nothing_is_refused(
    settings: dict[str, Any], message: str, small: Callable[..., BackboneConfig]
) -> None:
    with pytest.raises(ValueError, match=message):
        made(small(), **settings)


def test_blocks_that_no_file_has_are_trained_in_a_frozen_backbone(small: Callable[..., BackboneConfig]) -> None:
    source, deeper = made(small(depth=1)), made(small(depth=2), rank=2)
    report = load_backbone(deeper, source.state_dict(), source=source.backbone.config)
    new = {name for name in report.fresh if name.startswith("backbone.encoder.blocks.1.")}
    assert new and new <= trained(deeper)
    assert not any("lora" not in name for name in trained(deeper) if name.startswith("backbone.encoder.blocks.0."))
