"""The published schedule to its last digit, and the published parameter groups."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mien.platform.optim import (
    OptimConfig,
    build,
    groups,
    lr_at,
    peak_rate,
    set_rates,
    told_decay,
    told_rate,
    weight_decay_at,
)

REFERENCE = Path(__file__).resolve().parent.parent / "reference"


def test_the_learning_rates_of_the_released_pretraining_run_are_reproduced() -> None:
    config = OptimConfig(lr=3e-4, min_lr=1e-5, warmup_epochs=5)
    with (REFERENCE / "pretrain_loss.csv").open() as file:
        published = [float(row["train_lr"]) for row in csv.DictReader(file)]
    assert len(published) == 50
    for epoch, expected in enumerate(published):
        steps = range(epoch * 6823, (epoch + 1) * 6823)
        mean = np.mean([lr_at(step, 100 * 6823, 6823, config, batch_size=160) for step in steps])
        assert mean == pytest.approx(expected, rel=1e-9, abs=0)


def test_warm_up_holds_both_ends_and_the_cosine_starts_at_the_peak() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=5, scale_lr=False)
    rates = [lr_at(step, 15, 10, config, batch_size=96) for step in range(16)]
    assert rates[:5] == [0, 0.25, 0.5, 0.75, 1.0]
    assert rates[5] == 1.0
    assert rates[10] == pytest.approx(0.55)
    # The cosine has n points and does not reach its end; a surplus step repeats the last.
    assert 0.1 < rates[14] == rates[15]
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_the_rate_follows_the_global_batch_unless_told_not_to() -> None:
    scaled, plain = (OptimConfig(warmup_steps=0, min_lr=1e-4, scale_lr=switch) for switch in (True, False))
    assert lr_at(7, 20, 10, scaled, batch_size=64) == pytest.approx(lr_at(7, 20, 10, plain, batch_size=64) / 4)


def test_the_rate_is_told_with_its_rule_and_small_batches_with_the_other_rule() -> None:
    config = OptimConfig(lr=3e-4)
    assert told_rate(config, 160).startswith("learning rate 0.0001875 at the peak: optim.lr 0.0003 x 160 clips")
    assert "square root" not in told_rate(config, 160)
    assert "square root's rule would give 7.5e-05" in told_rate(config, 16)
    plain = OptimConfig(lr=3e-4, scale_lr=False)
    assert (
        told_rate(plain, 16) == "learning rate 0.0003 at the peak, as optim.lr says: the batch of 16 does not change it"
    )
    assert peak_rate(config, 160) == max(lr_at(step, 100, 10, config, 160) for step in range(100))


def test_a_warm_up_that_leaves_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"50 of 20 steps.*lower warmup_epochs"):
        lr_at(0, 20, 10, OptimConfig(warmup_epochs=5), batch_size=256)


def test_weight_decay_is_constant_or_a_cosine_over_the_whole_run() -> None:
    assert weight_decay_at(9, 10, OptimConfig(weight_decay=0.05)) == 0.05
    config = OptimConfig(weight_decay=0.04, weight_decay_end=0.4)
    assert weight_decay_at(0, 10, config) == pytest.approx(0.04)
    assert weight_decay_at(5, 10, config) == pytest.approx(0.22)


def published_layer(name: str) -> int:
    """Layers of a fine-tuning model of two blocks: embedding 0, blocks 1 and 2, everything else 3."""
    parts = name.split(".")
    return {"patch_embed": 0, "blocks": int(parts[1]) + 1 if parts[0] == "blocks" else 3}.get(parts[0], 3)


def test_every_parameter_of_the_published_model_gets_its_published_scale_and_decay() -> None:
    expected = json.loads((REFERENCE / "training.json").read_text())["finetune_depth2_groups"]
    # Only the number of dimensions matters: 2 for matrices, 1 for biases and norms.
    one_dimensional = (".bias", "_bias", "norm0.weight", "norm1.weight", "norm2.weight", "fc_norm.weight")
    parameters = {
        name: nn.Parameter(torch.zeros((2,) if name.endswith(one_dimensional) else (2, 2))) for name in expected
    }
    layers = {name: published_layer(name) for name in expected}
    config = OptimConfig(weight_decay=0.05, layer_decay=0.75)
    found = {
        name: [group["scale"], group["weight_decay"]]
        for group in groups(parameters.items(), layers, 2, {"lg_region_tokens"}, config)
        for name, _ in group["params"]
    }
    assert found == expected


class TinyTask(nn.Module):
    num_layers = 1

    def __init__(self) -> None:
        super().__init__()
        self.region_tokens = nn.Parameter(torch.zeros(3, 4))
        self.block = nn.Linear(4, 4)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)

    def parameter_layers(self) -> dict[str, int]:
        return {"region_tokens": 2, "block.weight": 1, "block.bias": 1}

    def undecayed(self) -> set[str]:
        return {"region_tokens"}


def test_the_published_pretraining_decays_region_tokens_and_frozen_parameters_are_left_out() -> None:
    task = TinyTask()
    plain = {
        name: group["weight_decay"]
        for group in build(task, OptimConfig()).param_groups
        for name in group["param_names"]
    }
    assert plain == {"region_tokens": 0.0, "block.weight": 0.05, "block.bias": 0.0}
    published = build(task, OptimConfig(decay_anyway=("region_tokens",)))
    assert {name for group in published.param_groups if group["weight_decay"] for name in group["param_names"]} == {
        "region_tokens",
        "block.weight",
    }


def test_what_another_encoder_has_may_be_named_and_is_told_but_not_what_none_has() -> None:
    task = TinyTask()
    task.exempt = ("region_tokens", "pos_embed")
    config = OptimConfig(decay_anyway=("region_tokens", "pos_embed"))
    assert told_decay(task, config) == "also on region_tokens; not on pos_embed, of which this model has none"
    assert told_decay(task, OptimConfig()) == ""
    decayed = [group["param_names"] for group in build(task, config).param_groups if group["weight_decay"]]
    assert sorted(name for names in decayed for name in names) == ["block.weight", "region_tokens"]
    with pytest.raises(
        ValueError, match=r"\['pos_embed', 'region_tokens'\], but got 'regions_token'; did you mean reg"
    ):
        build(task, OptimConfig(decay_anyway=("regions_token",)))
    with pytest.raises(ValueError, match=r"but got 'bias'; vectors are never decayed"):
        build(task, OptimConfig(decay_anyway=("bias",)))


def test_rates_reach_every_group_by_its_scale_and_leave_undecayed_ones_alone() -> None:
    optimiser = build(TinyTask(), OptimConfig(layer_decay=0.5))
    set_rates(optimiser, 0.1, 0.3)
    assert {
        name: (group["lr"], group["weight_decay"]) for group in optimiser.param_groups for name in group["param_names"]
    } == {
        "region_tokens": (0.1, 0.0),
        "block.weight": (0.05, 0.3),
        "block.bias": (0.05, 0.0),
    }
