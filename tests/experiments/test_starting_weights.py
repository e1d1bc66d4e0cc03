"""What a training begins with: the moving average of a run, or what pretraining goes on from; and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mien.experiments import finetune, pretrain
from mien.models import published
from mien.models.expression import Expression, ExpressionConfig
from mien.models.mae import MaskedAutoencoder
from mien.platform import checkpoint
from mien.platform import config as settings
from mien.platform.config import ConfigError, plain

TUBES = {"frames": 4, "size": 32, "patch": 8, "tubelet": 2}
DECODER = {"block": "mamba", "width": 16, "depth": 1}
Make = Callable[..., pretrain.PretrainConfig]


@pytest.fixture
def make(recipes: dict[str, Path]) -> Make:
    """Return a function that makes a pretraining's config with a small state-space encoder."""

    def build(encoder: dict[str, Any] | None = None, **changes: Any) -> pretrain.PretrainConfig:
        encoder = encoder or {"name": "mamba", "width": 32, "depth": 2}
        known = {"task.backbone.encoder": encoder, "task.decoder": DECODER}
        return settings.load(pretrain.PretrainConfig, recipes["pretrain"], known | changes)

    return build


@pytest.fixture
def videomamba(make: Make, tmp_path: Path) -> Path:
    """Return a file as VideoMamba's are: classes from clips of tubes of one frame, and larger."""
    backbone = plain(make().task.backbone) | {"tubes": TUBES | {"size": 64, "tubelet": 1}}
    torch.manual_seed(3)
    task = Expression(ExpressionConfig.model_validate({"backbone": backbone, "pool": "region", "num_classes": 40}))
    torch.save({"model": published.save(task)}, tmp_path / "videomamba.pth")
    return tmp_path / "videomamba.pth"


def test_fine_tuning_begins_with_the_moving_average_where_that_is_asked_for(
    recipes: dict[str, Path], tmp_path: Path
) -> None:
    words = ["--config", str(recipes["finetune"]), "loop.steps=3", "optim.lr=1e-2"]
    finetune.main([*words, "loop.ema_decay=0.9", "--output", str(tmp_path / "first")])

    def begun(**changes: Any) -> dict[str, torch.Tensor]:
        config = settings.rebuild(finetune.FinetuneConfig, {"pretrained": str(tmp_path / "first"), **changes})
        return finetune.make_task(finetune.completed(config)).state_dict()

    name = "backbone.encoder.blocks.0.mlp.fc1.weight"
    own, average = begun()[name], begun(pretrained_ema=True)[name]
    assert torch.equal(own, checkpoint.weights(tmp_path / "first")[name])
    assert torch.equal(average, checkpoint.weights(tmp_path / "first", ema=True)[name])
    assert not torch.equal(own, average)


@pytest.mark.parametrize("where", ["finetuned", "file", None])
def test_an_average_that_is_not_there_is_refused_before_anything_starts(
    where: str | None, finetuned: Path, videomamba: Path
) -> None:
    path = {"finetuned": str(finetuned), "file": str(videomamba), None: None}[where]
    config = finetune.FinetuneConfig(pretrained=path, pretrained_ema=True)
    with pytest.raises(ConfigError, match=r"moving average of a run's weights, but .* holds none"):
        finetune.completed(config)


def test_pretraining_goes_on_from_videomambas_file_of_other_clips(make: Make, videomamba: Path) -> None:
    config = make(pretrained=str(videomamba))
    task, report = pretrain.make_task(config, begins=True)
    told = str(report)
    assert "stretched from 1x8x8 to 1x4x4" in told and "stretched from 4x1x1 to 2x1x1" in told
    assert "inflated from one frame to 2 (centre)" in told and "a head, which an autoencoder has none of" in told
    state = published.read_state(videomamba)
    assert torch.equal(task.state_dict()["backbone.encoder.blocks.1.mixer.A_b_log"], state["layers.1.mixer.A_b_log"])
    # A run that goes on has weights of its own: nothing is loaded again.
    assert pretrain.make_task(config, begins=False)[1] is None


def test_pretraining_goes_on_from_a_run_that_was_fine_tuned(
    make: Make, finetuned: Path, recipes: dict[str, Path]
) -> None:
    config = settings.load(pretrain.PretrainConfig, recipes["pretrain"], {"pretrained": str(finetuned)})
    task, report = pretrain.make_task(config, begins=True)
    before = checkpoint.weights(finetuned)
    assert report is not None and {name.split(".")[0] for name in report.left} >= {"fc_norm", "class_head", "gaze_head"}
    for name, value in task.backbone.state_dict().items():
        assert torch.equal(value, before[f"backbone.{name}"])


def test_pretraining_goes_on_from_the_published_names_of_a_model_of_ours(make: Make, tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = MaskedAutoencoder(make().task)
    torch.save({"model": published.save(first), "mien": {"task": plain(make().task)}}, tmp_path / "first.pth")
    task, report = pretrain.make_task(make(pretrained=str(tmp_path / "first.pth")), begins=True)
    assert report is not None and not report.left and not report.fresh and not report.changed
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in task.state_dict().items())


def test_weights_of_another_encoder_or_grid_are_refused(make: Make, tmp_path: Path) -> None:
    vit = {"name": "vit", "width": 64, "depth": 1, "heads": 1}
    config = ExpressionConfig.model_validate({"backbone": {"tubes": TUBES | {"size": 64}, "encoder": vit}})
    checkpoint.export(tmp_path / "large", Expression(config).state_dict(), {"task": plain(config)})
    with pytest.raises(ConfigError, match=r"holds the encoder vit, but task\.backbone\.encoder is mamba"):
        pretrain.make_task(make(pretrained=str(tmp_path / "large")), begins=True)
    with pytest.raises(ConfigError, match=r"set task\.backbone\.table_grid=\[2, 8, 8\]"):
        pretrain.make_task(make(vit, pretrained=str(tmp_path / "large")), begins=True)
    stretched = make(vit, pretrained=str(tmp_path / "large"), **{"task.backbone.table_grid": [2, 8, 8]})
    report = pretrain.make_task(stretched, begins=True)[1]
    assert "positions of the fixed table" in str(report)
