"""A pretrained backbone at other sizes: what a place means stays, what fits is taken, and all else is told by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mien.models.adaptation import AdaptConfig, adapted_config
from mien.models.backbone import Backbone, BackboneConfig
from mien.models.expression import Expression, ExpressionConfig
from mien.models.loading import Report, load_backbone
from mien.models.patches import position_table, stretch

CLIP = {"frames": 8, "size": 32}


def shaken(backbone: BackboneConfig) -> Expression:
    task = Expression(ExpressionConfig(backbone=backbone, pool="patch"))
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.2)
    return task.eval()


def adapted(source: Expression, **settings: Any) -> tuple[Expression, Report]:
    before = source.backbone.config
    task = shaken(adapted_config(before, AdaptConfig(**settings)))
    return task, load_backbone(task, source.state_dict(), source=before)


@pytest.mark.parametrize("encoder", ["lgi_former", "vit", "mamba"])
@pytest.mark.parametrize("depth", [2, 4])
def test_blocks_are_taken_from_the_first_on(encoder: str, depth: int, small: Callable[..., BackboneConfig]) -> None:
    source = shaken(small(encoder, depth=3))
    task, report = adapted(source, depth=depth)
    assert len(task.backbone.encoder.blocks) == depth
    for block in range(min(depth, 3)):
        ours, theirs = (x.backbone.encoder.blocks[block].state_dict() for x in (task, source))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    names = [name for name in (report.left if depth == 2 else report.fresh) if ".blocks." in name]
    assert names and all(f".blocks.{min(depth, 3)}." in name for name in names)
    told = (
        "left in the file (of blocks after the model's 2)"
        if depth == 2
        else "newly drawn (of blocks after the file's 3)"
    )
    assert told in str(report)


def test_a_shallower_model_is_the_first_blocks_of_the_deeper_one(
    small: Callable[..., BackboneConfig], batch: dict[str, Tensor]
) -> None:
    source = shaken(small(depth=3))
    task, _ = adapted(source, depth=2)
    clip = torch.randn(1, 3, 8, 32, 32)
    source.backbone.encoder.blocks = source.backbone.encoder.blocks[:2]
    for ours, theirs in zip(task.backbone(clip), source.backbone(clip), strict=True):
        assert torch.equal(ours, theirs)


def test_stretching_keeps_what_stands_and_averages_what_lies_between() -> None:
    rows = torch.arange(2.0)[:, None].repeat(1, 3)  # along time
    assert stretch(rows, (2, 1, 1), (4, 1, 1))[:, 0].tolist() == [0, 0.25, 0.75, 1]
    assert stretch(rows, (1, 2, 1), (1, 4, 1), smooth=False)[:, 0].tolist() == [0, 0.25, 0.75, 1]
    grid = torch.randn(2 * 3 * 4, 5)
    assert torch.equal(stretch(grid, (2, 3, 4), (2, 3, 4)), grid)
    constant = torch.ones(2 * 3 * 4, 5)
    assert torch.allclose(stretch(constant, (2, 3, 4), (5, 7, 3)), torch.ones(5 * 7 * 3, 5))
    # A separate axis moves its own index alone: columns do not mix with rows.
    column = (torch.arange(24.0) % 4)[:, None]
    wide = stretch(column, (2, 3, 4), (3, 6, 8), smooth=False).view(3, 6, 8)
    assert torch.allclose(wide, wide[:1, :1].expand_as(wide), atol=1e-6) and (wide[0, 0].diff() >= 0).all()


@pytest.mark.parametrize(
    ("settings", "grid"),
    [({"size": 64}, (4, 8, 8)), ({"frames": 16}, (8, 4, 4)), ({"frames": 4, "size": 16}, (2, 2, 2))],
)
def test_the_fixed_positions_are_stretched_and_stay_with_the_model(
    settings: dict[str, int], grid: tuple[int, int, int], small: Callable[..., BackboneConfig]
) -> None:
    source = shaken(small("vit"))
    task, report = adapted(source, **settings)
    config = task.backbone.config
    assert config.tubes.grid == grid and config.table_grid == (4, 4, 4)
    expected = stretch(position_table(64, 32), (4, 4, 4), grid)
    assert torch.equal(task.backbone.positions, expected)
    told = f"1 resized (stretched from 4x4x4 to {'x'.join(map(str, grid))}): positions of the fixed table"
    assert told in str(report)
    # Whoever rebuilds it from its config has the same; going on to a third size begins at the first grid.
    again = Backbone(BackboneConfig.model_validate(config.model_dump()))
    assert torch.equal(again.positions, expected)
    third = adapted_config(config, AdaptConfig(size=48, frames=8))
    assert third.table_grid == (4, 4, 4)
    assert adapted_config(config, AdaptConfig(**CLIP)).table_grid is None


def test_learned_positions_are_stretched_and_the_class_tokens_own_is_kept(small: Callable[..., BackboneConfig]) -> None:
    source = shaken(small("mamba"))
    task, report = adapted(source, size=64, frames=16)
    ours, theirs = task.backbone.encoder, source.backbone.encoder
    assert torch.equal(ours.pos_embed[:, :1], theirs.pos_embed[:, :1])
    assert torch.equal(ours.pos_embed[0, 1:], stretch(theirs.pos_embed[0, 1:], (1, 4, 4), (1, 8, 8)))
    assert torch.equal(ours.temporal_pos_embedding[0], stretch(theirs.temporal_pos_embedding[0], (4, 1, 1), (8, 1, 1)))
    assert set(report.changed) == {"backbone.encoder.pos_embed", "backbone.encoder.temporal_pos_embedding"}
    assert task.backbone.config.table_grid is None


def test_region_tokens_go_to_other_regions(small: Callable[..., BackboneConfig], batch: dict[str, Tensor]) -> None:
    source = shaken(small(region=(2, 2, 4)))  # 2 x 2 x 1 regions
    task, report = adapted(source, region=(1, 2, 2))  # 4 x 2 x 2
    old, new = (x.backbone.encoder.region_tokens for x in (source, task))
    assert torch.equal(new, stretch(old, (2, 2, 1), (4, 2, 2), smooth=False))
    assert report.changed == {"backbone.encoder.region_tokens": "stretched from 2x2x1 to 4x2x2"}
    assert torch.isfinite(task.features(batch)).all()
    same, report = adapted(source)
    assert not report.changed and same.backbone.config == source.backbone.config


def test_what_cannot_be_adapted_is_refused(small: Callable[..., BackboneConfig]) -> None:
    with pytest.raises(ValueError, match=r"adapt\.region needs an encoder with regions; 'vit' has none"):
        adapted_config(small("vit"), AdaptConfig(region=(1, 1, 1)))
    with pytest.raises(ValueError, match="region must divide the grid"):
        adapted_config(small(), AdaptConfig(size=40))
    with pytest.raises(ValueError, match="patch 8 must divide size 36"):
        adapted_config(small(), AdaptConfig(size=36))
    wide = shaken(small(width=48))
    with pytest.raises(ValueError, match=r"other shapes: .*\(32,\) in the file, \(48,\) in the model"):
        load_backbone(wide, shaken(small()).state_dict(), source=small())
