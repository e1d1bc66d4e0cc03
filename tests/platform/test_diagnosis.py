"""The checks of a training that does not learn: each says what is wrong where something is, and only there."""

import itertools
import json
import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from mien.platform import diagnosis
from mien.platform.loop import LoopConfig
from mien.platform.optim import OptimConfig
from mien.platform.scores import recall

OPTIM = OptimConfig(lr=1e-2, scale_lr=False, warmup_steps=0)
LOOP = LoopConfig(steps=100, batch_size=4, precision="fp32")


class Chain(nn.Module):
    """Two linear blocks and a head; `cut` takes the gradient from the first block, `scale` shrinks it."""

    def __init__(self, cut: bool = False, scale: float = 1.0, spare: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.head = nn.Linear(3, 1)
        self.spare = nn.Linear(3, 3) if spare else nn.Identity()
        self.cut, self.scale, self.num_layers = cut, scale, 2

    def parameter_layers(self) -> dict[str, int]:
        names = (name for name, _ in self.named_parameters())
        return {name: int(name.split(".")[1]) + 1 if name.startswith("blocks") else 3 for name in names}

    def undecayed(self) -> set[str]:
        return set()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.blocks[0](batch["x"])
        x = x.detach() if self.cut else x * self.scale + (x * (1 - self.scale)).detach()
        return {"loss": (self.head(self.blocks[1](x)) - batch["y"]).square().mean()}


def looked_at(task: nn.Module, loop: LoopConfig = LOOP, value: float = 1.0) -> list[diagnosis.Finding]:
    batch = {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), "y": torch.full((4, 1), value)}
    return diagnosis.observe(task, itertools.repeat(batch), loop, OPTIM, num_clips=4, steps=5)


def test_gradients_of_a_sound_model_are_good_and_told_for_each_layer() -> None:
    gradients, skipped = looked_at(Chain(), LOOP.model_copy(update={"clip_grad": 1e-3}))
    assert gradients.verdict == skipped.verdict == "good"
    assert [row["layer"] for row in gradients.numbers["layers"]] == ["block 1", "block 2", "head"]
    assert skipped.numbers["steps"] == 5 and skipped.numbers["clipped_ratio"] == 1
    json.dumps([gradients.plain(), skipped.plain()])


def test_a_layer_that_does_not_learn_is_named() -> None:
    dead = looked_at(Chain(cut=True))[0]
    assert dead.verdict == "wrong" and "does not depend on block 1" in dead.words
    weak = looked_at(Chain(scale=1e-5))[0]
    assert weak.verdict == "look" and "block 1 is least" in weak.words


def test_parameters_that_the_loss_does_not_use_are_named() -> None:
    idle = looked_at(Chain(spare=True))[0]
    assert idle.verdict == "wrong" and "spare" in idle.words


def test_a_loss_that_is_no_number_is_wrong() -> None:
    (found,) = looked_at(Chain(), value=math.nan)
    assert found.verdict == "wrong" and found.words.startswith("step 1 of 5 gave no number")


@pytest.mark.parametrize(("late", "verdict"), [(0, "good"), (3, "wrong")])
def test_overflows_count_after_the_scaler_has_found_its_scale(late: int, verdict: str) -> None:
    counts = [4] * diagnosis.SEARCH + [4 + late] * 20
    records: list[dict[str, float]] = [{"skipped": n, "wait_seconds": 0.0, "seconds": 1.0} for n in counts]
    found = diagnosis.skipped(records, LOOP.model_copy(update={"precision": "fp16"}))
    assert found.verdict == verdict and found.numbers["skipped_ratio"] == (4 + late) / 36


def test_a_score_by_chance_is_likely_and_a_true_one_is_not() -> None:
    truth = np.arange(60) % 3
    guess = np.random.default_rng(0).permutation(truth)
    assert diagnosis.by_chance(lambda order: recall(truth[order], guess), 60, 0)[1] > 0.05
    score, p = diagnosis.by_chance(lambda order: recall(truth[order], truth), 60, 0)
    assert score == 1 and p < 0.01


def test_shuffled_labels_that_foretell_validation_every_time_are_a_leak() -> None:
    assert diagnosis.shuffled("UAR", 0.2, (0.9, 0.001), [(0.9, 0.001), (0.8, 0.001)]).verdict == "wrong"
    assert diagnosis.shuffled("UAR", 0.2, (0.9, 0.001), [(0.4, 0.001), (0.2, 0.5)]).verdict == "good"


def test_shuffled_labels_say_little_where_true_ones_are_not_learned_either() -> None:
    found = diagnosis.shuffled("UAR", 0.2, (0.25, 0.3), [(0.2, 0.5)])
    assert found.verdict == "look" and "more diagnose.shuffle_steps" in found.words


def test_by_heart_means_every_class_surely_and_gaze_within_a_tenth() -> None:
    truth = pa.table({"label": [0, 1], "pitch": [0.0, 0.2], "yaw": [0.0, 0.4]})
    sure = {"probabilities": [[0.99, 0.01], [0.01, 0.99]], "pred_pitch": [0.0, 0.2], "pred_yaw": [0.0, 0.4]}
    both = ("label", "gaze")
    assert diagnosis.by_heart(pa.table(sure), truth, both)[0]
    assert not diagnosis.by_heart(pa.table(sure | {"probabilities": [[0.6, 0.4], [0.4, 0.6]]}), truth, both)[0]
    assert not diagnosis.by_heart(pa.table(sure | {"pred_yaw": [0.4, 0.0]}), truth, both)[0]
    assert not diagnosis.by_heart(pa.table(sure), truth, ())[0], "nothing learned is not learned by heart"


def test_rates_that_do_it_are_told_beside_the_runs_own() -> None:
    slow = {"lr": 1e-9, "learned": False, "steps": 9, "words": "accuracy 0.1"}
    fast = {"lr": 1e-3, "learned": True, "steps": 5, "words": "accuracy 1"}
    assert diagnosis.memorised([fast], 8).verdict == "good"
    assert diagnosis.memorised([slow, fast], 8).verdict == "look"
    assert diagnosis.memorised([slow], 8).verdict == "wrong"
