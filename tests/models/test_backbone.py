"""A backbone goes from one task to another whole or not at all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mien.models.backbone import BackboneConfig, Task, for_each_row, weighted_mean
from mien.models.expression import Expression, ExpressionConfig
from mien.models.loading import load_backbone
from mien.models.mae import MaeConfig, MaskedAutoencoder


@pytest.fixture
def pretrained(small: Callable[..., BackboneConfig]) -> MaskedAutoencoder:
    torch.manual_seed(1)
    decoder = {"width": 24, "depth": 1, "heads": 2}
    return MaskedAutoencoder(
        MaeConfig.model_validate({"backbone": small(), "decoder": decoder, "mask": {"ratio": 0.75}})
    )


def finetuned(backbone: BackboneConfig, **settings: Any) -> Expression:
    return Expression(ExpressionConfig(backbone=backbone, **settings))


def same(first: Task, second: Task) -> bool:
    one, two = first.backbone.state_dict(), second.backbone.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_fine_tuning_takes_the_backbone_and_names_the_rest(
    pretrained: MaskedAutoencoder, small: Callable[..., BackboneConfig]
) -> None:
    task = finetuned(small(drop_path=0.1))
    report = load_backbone(task, pretrained.state_dict())
    assert same(task, pretrained)
    assert set(report.fresh) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert {"mask_token", "encoder_to_decoder.weight", "norm.weight", "decoder.head.bias"} <= set(report.left)
    assert len(report.matched) + len(report.left) == len(pretrained.state_dict())
    assert "parameters loaded" in str(report) and "mask_token" in str(report) and "fc_norm.weight" in str(report)


def test_the_final_norm_is_taken_when_asked(
    pretrained: MaskedAutoencoder, small: Callable[..., BackboneConfig]
) -> None:
    torch.nn.init.normal_(pretrained.norm.weight)
    task = finetuned(small())
    report = load_backbone(task, pretrained.state_dict(), norm="pretrained")
    assert torch.equal(task.fc_norm.weight, pretrained.norm.weight)
    assert set(report.fresh) == {"head.weight", "head.bias"} and "norm.weight" not in report.left


def test_a_final_norm_that_is_not_there_is_refused(small: Callable[..., BackboneConfig]) -> None:
    with pytest.raises(ValueError, match="comes from an autoencoder"):
        load_backbone(finetuned(small()), finetuned(small()).state_dict(), norm="pretrained")


def test_another_fine_tuned_task_gives_its_backbone_too(small: Callable[..., BackboneConfig]) -> None:
    first, second = finetuned(small(), num_classes=5), finetuned(small(), num_classes=3)
    report = load_backbone(second, first.state_dict())
    assert same(first, second) and "head.weight" in report.left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, r"not in the file: backbone\.encoder\.blocks\.2\."),
        ({"depth": 1}, r"unknown to the model: backbone\.encoder\.blocks\.1\."),
        ({"region": (2, 2, 2)}, r"region_tokens: \(4, 32\) in the file, \(8, 32\) in the model"),
        ({"width": 48}, r"other shapes: backbone\.embed\.bias: \(32,\) in the file, \(48,\) in the model"),
        ({"third": "self"}, r"unknown to the model: .*third_attn_norm1"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(
    change: dict[str, Any], message: str, pretrained: MaskedAutoencoder, small: Callable[..., BackboneConfig]
) -> None:
    task = finetuned(small(**change))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_backbone(task, pretrained.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_of_the_learned_tokens_the_mask_token_is_in_the_first_layer_and_the_regions_in_the_last(
    pretrained: MaskedAutoencoder,
) -> None:
    layers = pretrained.parameter_layers()
    assert layers["mask_token"] == layers["backbone.embed.weight"] == 0
    rest = ("backbone.encoder.region_tokens", "encoder_to_decoder.weight", "decoder.blocks.0.mlp.fc1.weight")
    assert {layers[name] for name in rest} == {pretrained.num_layers + 1}


def test_values_are_of_rows_or_of_their_clips() -> None:
    values = torch.arange(12).view(2, 3, 2)
    assert torch.equal(for_each_row(values, "gaze", torch.Size((2, 3)), (2,)), values.view(6, 2))
    assert for_each_row(torch.tensor([4, 5]), "label", torch.Size((2, 3))).tolist() == [4, 4, 4, 5, 5, 5]
    assert for_each_row(torch.tensor([4, 5]), "label", torch.Size((2,))).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("found", "rows", "tail", "message"),
    [
        ((2, 3), (2,), (), r"label must have the shape \(2,\), one for each clip, but it is \(2, 3\); .*set per_frame"),
        ((6,), (2, 3), (), r"\(2,\), one for each clip, or \(2, 3\), one for each frame, but it is \(6,\); give each"),
        ((2, 1), (2, 3), (), r"but it is \(2, 1\)"),
        ((1, 3), (2, 3), (), r"but it is \(1, 3\)"),
        ((3, 2), (2, 3), (), r"but it is \(3, 2\)"),
        ((1,), (2,), (), r"but it is \(1,\)"),
        ((1, 8, 2), (1,), (2,), r"\(1, 2\), one for each clip, but it is \(1, 8, 2\)"),
        ((2, 3), (2, 3), (2,), r"\(2, 2\), one for each clip, or \(2, 3, 2\), one for each frame, but it is \(2, 3\)"),
    ],
)
def test_values_of_another_shape_are_refused(
    found: tuple[int, ...], rows: tuple[int, ...], tail: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        for_each_row(torch.zeros(found), "label", torch.Size(rows), tail)


def test_the_weighted_mean_of_nothing_is_0() -> None:
    assert weighted_mean(torch.tensor([1.0, 2.0]), torch.zeros(2)).item() == 0
    assert weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([0.2, 0.1])).item() == pytest.approx(2)
