"""The class loss counts what is labelled, smooths as published, and shares mixed clips out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.backbone import BackboneConfig
from mien.models.expression import Expression, ExpressionConfig, class_loss, class_probabilities

LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def make(small: Callable[..., BackboneConfig]) -> Callable[..., Expression]:
    def build(name: str = "lgi_former", **settings: Any) -> Expression:
        torch.manual_seed(0)
        return Expression(ExpressionConfig.model_validate({"backbone": small(name), "num_classes": 5} | settings))

    return build


def test_the_loss_is_cross_entropy_with_smoothed_labels() -> None:
    label = torch.tensor([0, 4, 2, 2])
    expected = F.cross_entropy(LOGITS, label, label_smoothing=0.1)
    torch.testing.assert_close(class_loss(LOGITS, {"label": label}, 0.1), expected)


def test_unlabelled_clips_do_not_count() -> None:
    label = torch.tensor([0, -1, 2, -1])
    torch.testing.assert_close(class_loss(LOGITS, {"label": label}, 0), F.cross_entropy(LOGITS[::2], label[::2]))


def test_without_any_label_the_loss_is_0_and_so_are_its_gradients() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = class_loss(logits, {"label": torch.full((4,), -1)}, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and logits.grad.abs().max() == 0


def test_mixed_labels_are_a_soft_target() -> None:
    label, partner = torch.tensor([0, 4, 2, 2]), torch.tensor([2, 2, 4, 0])
    weight = torch.tensor([0.3, 0.0, 1.0, 0.5])
    hot = F.one_hot(label, 5) * (1 - weight[:, None]) + F.one_hot(partner, 5) * weight[:, None]
    expected = F.cross_entropy(LOGITS, hot, label_smoothing=0.1)
    batch = {"label": label, "partner_label": partner, "partner_weight": weight}
    torch.testing.assert_close(class_loss(LOGITS, batch, 0.1), expected)


def test_of_a_mixed_clip_only_the_labelled_part_counts() -> None:
    batch = {
        "label": torch.tensor([0, -1, 2, -1]),
        "partner_label": torch.tensor([-1, 2, -1, -1]),
        "partner_weight": torch.tensor([0.25, 0.25, 1.0, 0.5]),
    }
    each = F.cross_entropy(LOGITS[:2], torch.tensor([0, 2]), reduction="none")
    torch.testing.assert_close(class_loss(LOGITS, batch, 0), 0.75 * each[0] + 0.25 * each[1])


def test_each_frame_bears_the_clips_label() -> None:
    logits = torch.randn(4, 3, 5)
    label = torch.tensor([0, -1, 2, 1])
    known = label >= 0
    expected = F.cross_entropy(logits[known].flatten(0, 1), label[known].repeat_interleave(3))
    torch.testing.assert_close(class_loss(logits, {"label": label}, 0), expected)
    out = class_probabilities(logits)
    torch.testing.assert_close(out["probabilities"], logits.softmax(-1).mean(dim=1))
    torch.testing.assert_close(out["frame_probabilities"], logits.softmax(-1))


def test_a_frame_bears_its_own_label_where_it_has_one() -> None:
    logits = torch.randn(4, 3, 5)
    of_clips = torch.tensor([0, -1, 2, 1])
    alike = of_clips[:, None].expand(-1, 3)
    assert torch.equal(class_loss(logits, {"label": alike}, 0.1), class_loss(logits, {"label": of_clips}, 0.1))
    of_frames = torch.tensor([[0, 1, -1], [-1, -1, -1], [2, 2, 3], [4, -1, 0]])
    known = of_frames >= 0
    expected = F.cross_entropy(logits[known], of_frames[known], label_smoothing=0.1)
    torch.testing.assert_close(class_loss(logits, {"label": of_frames}, 0.1), expected)


def test_mixed_frames_share_their_own_labels_out() -> None:
    logits = torch.randn(2, 3, 5)
    label, partner = torch.tensor([[0, 1, 2], [3, 4, -1]]), torch.tensor([[3, 4, -1], [0, 1, 2]])
    weight = torch.tensor([0.25, 0.75])
    each = [F.cross_entropy(logits.mT, x.clamp(min=0), reduction="none") * (x >= 0) for x in (label, partner)]
    counts = (label >= 0) * (1 - weight[:, None]) + (partner >= 0) * weight[:, None]
    expected = (each[0] * (1 - weight[:, None]) + each[1] * weight[:, None]).sum() / counts.sum()
    batch = {"label": label, "partner_label": partner, "partner_weight": weight}
    torch.testing.assert_close(class_loss(logits, batch, 0), expected)


@pytest.mark.parametrize("key", ["label", "partner_label", "partner_weight"])
def test_labels_of_another_shape_are_refused(key: str) -> None:
    batch = {"label": torch.zeros(4, dtype=torch.int64), "partner_label": torch.zeros(4, dtype=torch.int64)}
    batch |= {"partner_weight": torch.zeros(4)} | {key: torch.zeros(4, 2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=rf"{key} must have the shape \(4,\), one for each clip, but it is \(4, 2\)"):
        class_loss(LOGITS, batch, 0)
    with pytest.raises(ValueError, match=rf"{key} .*or \(4, 3\), one for each frame, but it is \(4, 2\)"):
        class_loss(torch.randn(4, 3, 5), batch, 0)


@pytest.mark.parametrize("pool", ["region", "patch", "all"])
def test_features_are_the_normed_mean_of_the_tokens_asked_for(
    pool: str, make: Callable[..., Expression], batch: dict[str, Tensor]
) -> None:
    task = make(pool=pool).eval()
    clip = (
        batch["clip"]
        .double()
        .div(255)
        .sub(torch.tensor([0.485, 0.456, 0.406]))
        .div(torch.tensor([0.229, 0.224, 0.225]))
    )
    patches, messengers = task.backbone(clip.permute(0, 4, 1, 2, 3).float())
    tokens = {"region": messengers, "patch": patches, "all": torch.cat([messengers, patches], dim=1)}[pool]
    expected = F.layer_norm(tokens.mean(dim=1), (32,), task.fc_norm.weight, task.fc_norm.bias, 1e-6)
    torch.testing.assert_close(task.features(batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "pooled"), [("lgi_former", "region"), ("vit", "patch"), ("mamba", "patch")])
def test_the_pool_follows_the_encoder_where_it_is_not_said(
    name: str, pooled: str, make: Callable[..., Expression]
) -> None:
    assert make(name=name).pool == pooled
    assert make(name=name, per_frame=True).pool == "patch"
    assert make(name=name, pool="all").pool == ("patch" if name == "vit" else "all")


def test_frame_features_are_of_their_own_frames(make: Callable[..., Expression], batch: dict[str, Tensor]) -> None:
    """Patches come back in raster order: averaging over space, then stretching from token frames to frames."""
    task = make(pool="patch", per_frame=True).eval()
    patches, _ = task.backbone(
        batch["clip"]
        .float()
        .div(255)
        .sub(torch.tensor([0.485, 0.456, 0.406]))
        .div(torch.tensor([0.229, 0.224, 0.225]))
        .permute(0, 4, 1, 2, 3)
    )
    steps = torch.stack([patches[:, 16 * t : 16 * (t + 1)].mean(dim=1) for t in range(4)], dim=1)
    expected = []
    for frame in range(8):
        place = min(max((frame + 0.5) / 2 - 0.5, 0), 3)
        below = min(int(place), 2)
        expected.append(steps[:, below] * (1 - place + below) + steps[:, below + 1] * (place - below))
    normed = F.layer_norm(torch.stack(expected, dim=1), (32,), task.fc_norm.weight, task.fc_norm.bias, 1e-6)
    torch.testing.assert_close(task.features(batch), normed, rtol=1e-3, atol=1e-4)
    out = task.predict(batch)
    assert out["probabilities"].shape == (4, 5) and out["frame_probabilities"].shape == (4, 8, 5)


def test_the_head_starts_near_nothing(make: Callable[..., Expression]) -> None:
    task = make()
    assert 0 < task.head.weight.abs().max() < 1e-4
    assert task.head.bias.abs().max() == 0
    assert make(head_scale=1.0).head.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit", "pool": "region"}, "needs an encoder with regions or a class token, but 'vit' has none"),
        ({"pool": "region", "per_frame": True}, "per_frame needs pool 'patch'"),
        ({"num_classes": 1}, "num_classes"),
        ({"smoothing": 1.0}, "smoothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, make: Callable[..., Expression]
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
