"""alpha weighs the classes and nothing else; each part counts what it has labels for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mien.models.backbone import BackboneConfig
from mien.models.combined import Combined, CombinedConfig
from mien.models.expression import class_loss
from mien.models.gaze import gaze_loss

Batch = dict[str, Tensor]


@pytest.fixture
def make(small: Callable[..., BackboneConfig]) -> Callable[..., Combined]:
    def build(**settings: Any) -> Combined:
        torch.manual_seed(0)
        return Combined(CombinedConfig.model_validate({"backbone": small(), "num_classes": 5} | settings))

    return build


@pytest.mark.parametrize(("alpha", "gaze_weight"), [(1, 1), (0, 1), (0.25, 2), (3, 0.5)])
def test_the_loss_is_alpha_times_classes_plus_the_weighted_gaze(
    alpha: float, gaze_weight: float, make: Callable[..., Combined], batch: Batch
) -> None:
    task = make(alpha=alpha, gaze_weight=gaze_weight)
    out = task(batch)
    features = task.features(batch)
    classes = class_loss(task.class_head(features), batch, 0)
    gaze = gaze_loss(task.gaze_head, features, batch)
    torch.testing.assert_close(out["class_loss"], classes)
    torch.testing.assert_close(out["gaze_loss"], gaze)
    torch.testing.assert_close(out["loss"], alpha * classes + gaze_weight * gaze)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_the_spread_weighs_gaze_and_leaves_classes_alone(
    scale: float | None, make: Callable[..., Combined], batch: Batch
) -> None:
    told = batch | {"gaze_spread": torch.tensor([0.0, 0.0, 1.0, 0.1])}
    task = make(spread_scale_deg=scale)
    with torch.no_grad():  # a new head answers almost nothing, whatever the clip
        task.gaze_head.weight.normal_()
    out, plain = task(told), task(batch)
    assert torch.equal(out["class_loss"], plain["class_loss"])
    assert (out["gaze_loss"] != plain["gaze_loss"]).item() == (scale is not None)


def gradients(task: Combined, batch: Batch) -> dict[str, float]:
    task.zero_grad()
    task(batch)["loss"].backward()
    return {name: p.grad.abs().max().item() for name, p in task.named_parameters() if p.grad is not None}


def test_alpha_0_trains_gaze_alone(make: Callable[..., Combined], batch: Batch) -> None:
    found = gradients(make(alpha=0), batch)
    assert found["gaze_head.weight"] > 0 and "class_head.weight" not in found


def test_gaze_weight_0_trains_the_classes_alone_on_mixed_clips_too(make: Callable[..., Combined], batch: Batch) -> None:
    mixed = batch | {"partner_label": batch["label"].flip(0), "partner_weight": torch.full((4,), 0.5)}
    task = make(gaze_weight=0)
    found = gradients(task, mixed)
    assert found["class_head.weight"] > 0 and "gaze_head.weight" not in found
    assert set(task(mixed)) == {"loss", "class_loss"}
    with pytest.raises(ValueError, match="gaze_weight to 0"):
        make()(mixed)


def test_a_part_without_labels_is_0_and_leaves_the_other_alone(make: Callable[..., Combined], batch: Batch) -> None:
    task = make()
    both = task(batch)
    no_class = task(batch | {"label": torch.full((4,), -1)})
    assert no_class["class_loss"].item() == 0
    torch.testing.assert_close(no_class["loss"], both["gaze_loss"])
    no_gaze = task(batch | {"gaze": torch.full((4, 2), torch.nan)})
    assert no_gaze["gaze_loss"].item() == 0
    torch.testing.assert_close(no_gaze["loss"], both["class_loss"])


def test_a_batch_without_any_label_teaches_nothing(make: Callable[..., Combined], batch: Batch) -> None:
    nothing = batch | {"label": torch.full((4,), -1), "gaze": torch.full((4, 2), torch.nan)}
    found = gradients(make(), nothing)
    assert found and max(found.values()) == 0


def test_frames_bear_labels_of_their_own_in_both_parts(make: Callable[..., Combined], batch: Batch) -> None:
    task = make(pool="patch", per_frame=True, head_scale=1.0, gaze_head_scale=1.0)
    alike = batch | {"label": batch["label"][:, None].expand(-1, 8), "gaze": batch["gaze"][:, None].expand(-1, 8, -1)}
    of_clips, of_frames = task(batch), task(alike)
    assert all(torch.equal(of_frames[key], of_clips[key]) for key in of_clips)
    changed = {key: value.clone() for key, value in alike.items()}
    changed["label"][0, 3], changed["gaze"][0, 3] = 4, torch.nan
    other = task(changed)
    assert all(not torch.equal(other[key], of_clips[key]) for key in of_clips)
    whole = make()
    for key, message in (("label", r"\(4,\), .* \(4, 8\); .*set per_frame"), ("gaze", r"\(4, 2\), .* \(4, 8, 2\)")):
        with pytest.raises(ValueError, match=message):
            whole(batch | {key: alike[key]})


def test_prediction_has_both_parts(make: Callable[..., Combined], batch: Batch) -> None:
    out = make(gaze_head="binned").predict(batch)
    assert out["probabilities"].shape == (4, 5) and out["gaze"].shape == (4, 2)
    torch.testing.assert_close(out["probabilities"].sum(dim=1), torch.ones(4))


@pytest.mark.parametrize("name", ["alpha", "gaze_weight"])
def test_negative_weights_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}\n  Input should be greater than or equal to 0"):
        CombinedConfig.model_validate({name: -0.5})
