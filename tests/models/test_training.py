"""Five steps of the published recipes have the published losses, from parameter groups that are the published ones."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mien.models.backbone import BackboneConfig, Task
from mien.models.decoder import DecoderConfig
from mien.models.expression import Expression, ExpressionConfig
from mien.models.lgi_former import LgiFormerConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.models.masking import complement
from mien.models.published import published_name

TRAINING = json.loads((Path(__file__).parents[1] / "reference" / "training.json").read_text())
BACKBONE = BackboneConfig(encoder=LgiFormerConfig(depth=2))
LR = 1e-3
WEIGHT_DECAY = 0.05


def rates(task: Task, layer_decay: float, decayed: Collection[str] = ()) -> dict[str, tuple[float, float]]:
    """Return each parameter's scale of the learning rate and weight decay; `decayed` are so whatever the task says."""
    undecayed = task.undecayed()
    return {
        name: (
            layer_decay ** (task.num_layers + 1 - layer),
            WEIGHT_DECAY if name not in undecayed or name in decayed else 0.0,
        )
        for name, layer in task.parameter_layers().items()
    }


def five_losses(
    task: Task, batch: dict[str, Tensor], of_parameters: dict[str, tuple[float, float]], betas: tuple[float, float]
) -> list[float]:
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "lr": LR * of_parameters[name][0], "weight_decay": of_parameters[name][1]}
        for name, parameter in task.named_parameters()
    ]
    optimiser = torch.optim.AdamW(groups, betas=betas, eps=1e-8, fused=True)
    losses = []
    for _ in range(5):
        loss = task.train()(batch)["loss"]
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return losses


def test_fine_tuning_has_the_published_losses_and_groups(filled: Callable[[Task], Any], reference: ModuleType) -> None:
    task = filled(Expression(ExpressionConfig(backbone=BACKBONE)))
    of_parameters = rates(task, layer_decay=0.75)
    groups = {published_name(name, task): list(rate) for name, rate in of_parameters.items()}
    assert groups == TRAINING["finetune_depth2_groups"]
    clip = torch.from_numpy(reference.video(4, seed=7)).permute(0, 2, 3, 4, 1) * 255
    losses = five_losses(task, {"clip": clip, "label": torch.tensor([0, 3, 5, 6])}, of_parameters, (0.9, 0.999))
    assert losses == pytest.approx(TRAINING["finetune_depth2_losses"], rel=1e-3)


def test_pretraining_has_the_published_losses(filled: Callable[[Task], Any], reference: ModuleType) -> None:
    """The published rule decays region tokens (it missed their name), but not the mask token."""
    task = filled(
        MaskedAutoencoder(MaeConfig(backbone=BACKBONE, decoder=DecoderConfig(depth=1), published_positions=True))
    )
    hidden = torch.from_numpy(reference.window_mask(4, seed=7)).nonzero()[:, 1].view(4, -1)
    clip = torch.from_numpy(reference.video(4, seed=7)).permute(0, 2, 3, 4, 1) * 255
    losses = five_losses(
        task,
        {"clip": clip, "keep": complement(hidden, 800)},
        rates(task, layer_decay=1.0, decayed={"backbone.encoder.region_tokens"}),
        (0.9, 0.95),
    )
    assert losses == pytest.approx(TRAINING["pretrain_depth2_losses"], rel=1e-3)
