"""The published sizes: outputs of the published architecture on the reference's weights, parameters and products."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mien.models import attention
from mien.models.backbone import BackboneConfig, Task
from mien.models.decoder import DecoderConfig
from mien.models.expression import Expression, ExpressionConfig
from mien.models.gaze import Gaze, GazeConfig
from mien.models.lgi_former import LgiFormerConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder, target_of
from mien.models.masking import MaskConfig, complement
from mien.models.patches import gather, to_tubes
from mien.models.vit import VitConfig

GOLDEN = np.load(Path(__file__).parents[1] / "reference" / "golden.npz")
TOLERANCE = 1e-4
JOINT_512 = VitConfig(width=512, heads=8, depth=16)


@pytest.fixture(scope="module")
def clip(reference: ModuleType) -> Tensor:
    """Return the reference's two clips as batches hold them, (b, t, h, w, c) in 0..255."""
    return torch.from_numpy(reference.video(2)).permute(0, 2, 3, 4, 1) * 255


def off(found: Tensor, name: str) -> float:
    return float(np.abs(found.detach().numpy() - GOLDEN[name]).max())


def parameters(task: Task) -> int:
    return sum(parameter.numel() for parameter in task.parameters())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("finetune_lgi_region", ExpressionConfig()),
        ("finetune_vit_joint", ExpressionConfig(backbone=BackboneConfig(encoder=VitConfig()), pool="patch")),
    ],
)
def test_fine_tuned_outputs_are_the_published(
    name: str, config: ExpressionConfig, clip: Tensor, filled: Callable[[Task], Any]
) -> None:
    task = filled(Expression(config)).eval()
    assert parameters(task) == GOLDEN[f"{name}/parameters"]
    with torch.no_grad():
        features = task.features({"clip": clip})
        assert off(features, f"{name}/features") < TOLERANCE
        assert off(task.head(features), f"{name}/logits") < TOLERANCE


def test_pretraining_outputs_are_the_published(
    clip: Tensor, filled: Callable[[Task], Any], reference: ModuleType
) -> None:
    name = "pretrain_lgi_window"
    task = filled(MaskedAutoencoder(MaeConfig(published_positions=True))).eval()
    assert parameters(task) == GOLDEN[f"{name}/parameters"]
    keep = complement(torch.from_numpy(reference.window_mask(2)).nonzero()[:, 1].view(2, -1), 800)
    seen: list[Tensor] = []
    task.encoder_to_decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = task.predict({"clip": clip, "keep": keep})
    assert off(seen[0][:, ::10, ::32], f"{name}/encoded") < TOLERANCE
    assert off(out["prediction"][:, ::45, ::96], f"{name}/prediction") < TOLERANCE
    assert off(out["loss"].mean(), f"{name}/loss") < TOLERANCE

    tubes = task.backbone.config.tubes
    pixels = to_tubes(clip.movedim(-1, 1), tubes) / 255
    target = gather(target_of(pixels, tubes, task.config.target), out["hidden"])
    assert off(target[:, ::45, ::96], f"{name}/target") < TOLERANCE
    plain = gather(target_of(pixels, tubes, task.config.target.model_copy(update={"motion": False})), out["hidden"])
    assert off((out["prediction"] - plain).square().mean(), f"{name}/loss_no_difference") < TOLERANCE


def lgi(pool: str = "region", num_classes: int = 7, **encoder: Any) -> ExpressionConfig:
    backbone = BackboneConfig(encoder=LgiFormerConfig(**encoder))
    return ExpressionConfig.model_validate({"backbone": backbone, "pool": pool, "num_classes": num_classes})


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (lgi(), 84_878_343),
        (lgi(num_classes=11), 84_880_395),
        (lgi(num_classes=8), 84_878_856),
        (lgi(num_classes=6), 84_877_830),
        (lgi(depth=12, region=(2, 2, 10), num_classes=2), 63_861_250),
        (lgi(depth=12, num_classes=2), 63_855_106),
        (lgi(sharing="first_third"), 68_076_551),
        (lgi(sharing="all"), 51_274_759),
        (lgi(second=False), 68_060_167),
        (lgi(third="none"), 68_043_783),
        (lgi(first="cross"), 84_894_727),
        (lgi(third="self"), 84_861_959),
        (lgi(width=768, heads=12, depth=12), 142_972_423),
        (ExpressionConfig(backbone=BackboneConfig(encoder=JOINT_512), pool="patch"), 51_221_511),
        (
            ExpressionConfig(backbone=BackboneConfig(encoder=JOINT_512.model_copy(update={"depth": 12})), pool="patch"),
            38_614_023,
        ),
        (ExpressionConfig(backbone=BackboneConfig(encoder=VitConfig()), pool="patch"), 86_232_583),
    ],
)
def test_fine_tuned_models_have_the_published_number_of_parameters(config: ExpressionConfig, count: int) -> None:
    with torch.device("meta"):
        assert parameters(Expression(config)) == count


def test_the_gaze_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert parameters(Gaze(GazeConfig())) == 84_875_778


@pytest.mark.parametrize(
    ("encoder", "depth", "count"),
    [
        (LgiFormerConfig(), 4, 92_760_192),
        (LgiFormerConfig(), 8, 99_856_512),
        (VitConfig(), 4, 94_210_944),
        (JOINT_512, 4, 59_103_360),
    ],
)
def test_autoencoders_have_the_published_number_of_parameters(encoder: Any, depth: int, count: int) -> None:
    mask = MaskConfig(kind="window" if isinstance(encoder, LgiFormerConfig) else "tube")
    config = MaeConfig(backbone=BackboneConfig(encoder=encoder), decoder=DecoderConfig(depth=depth), mask=mask)
    with torch.device("meta"):
        task = MaskedAutoencoder(config)
    assert parameters(task) == count
    if depth == 4 and isinstance(encoder, LgiFormerConfig):
        in_backbone = parameters(task.backbone) + sum(p.numel() for p in task.norm.parameters())
        assert in_backbone == 84_874_752


def products(task: Task, batch: dict[str, Tensor]) -> float:
    """Return 10^9 multiply-accumulates of a forward pass; half the operations counted."""
    task.requires_grad_(False)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the counter does not know
    counted = {fused: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        task.predict(batch)
    return counter.get_total_flops() / 2e9


def test_products_are_the_published_where_few_keys_are_treated_like_many(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = torch.zeros(1, 16, 160, 160, 3, dtype=torch.uint8)
    draw = torch.zeros(1, dtype=torch.int64)
    config = lgi(depth=1)
    fewer = products(Expression(config), {"clip": clip})
    monkeypatch.setattr(attention, "is_few", lambda *_: False)
    embedding = 800 * 1536 * 512 / 1e9
    block = products(Expression(config), {"clip": clip}) - embedding
    assert embedding + 16 * block == pytest.approx(49.652, rel=0.01)
    assert embedding + 16 * (fewer - embedding) == pytest.approx(43.9, rel=0.01)
    masked = products(MaskedAutoencoder(MaeConfig()), {"clip": clip, "draw": draw})
    hidden_tubes_embedded_too = 0.9 * embedding
    assert masked + hidden_tubes_embedded_too == pytest.approx(14.027, rel=0.01)
