"""Probes: features that hold the classes are told apart, noise is not, and the model stays as it was."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mien.platform.linear_probe import features, probe


def parts(signal: float) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 4
    x = rng.normal(size=(240, 16)) + signal * rng.normal(size=(4, 16))[labels]
    return (x[:120], labels[:120]), (x[120:], labels[120:])


def test_classes_that_features_hold_are_found_by_both() -> None:
    found = probe(*parts(signal=2.0))
    assert min(found.values()) > 0.9 and min(found["uar_linear"], found["uar_knn"]) > 0.95
    assert set(found) == {f"uar_{name}{end}" for name in ("linear", "knn") for end in ("", "_low", "_high")}


def test_features_without_classes_score_chance() -> None:
    found = probe(*parts(signal=0.0))
    for name in ("uar_linear", "uar_knn"):
        assert abs(found[name] - 0.25) < 0.12
        assert found[f"{name}_low"] < 0.25 < found[f"{name}_high"]


def test_the_interval_is_over_people_where_they_are_known() -> None:
    train, val = parts(signal=0.5)
    clips, people, one = (probe(train, val, people=who) for who in (None, np.arange(120) // 24, np.zeros(120, int)))
    assert clips["uar_linear"] == people["uar_linear"] == one["uar_linear"]
    assert 0.08 < clips["uar_linear_high"] - clips["uar_linear_low"] < 0.3
    assert clips["uar_linear_low"] != people["uar_linear_low"]
    # Where all clips are of one person, every draw is the same.
    assert one["uar_knn_low"] == pytest.approx(one["uar_knn"]) and one["uar_knn_high"] == pytest.approx(one["uar_knn"])


def test_a_part_smaller_than_the_neighbours_still_votes() -> None:
    train, val = parts(signal=2.0)
    assert probe((train[0][:8], train[1][:8]), val, neighbours=100)["uar_knn"] > 0.5


class Mean(nn.Module):
    """Features of a mode: dropout shows whether it evaluates."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.drop(batch["clip"].float().mean(dim=(1, 2, 3)))


def test_features_keep_the_models_mode_and_draw_nothing() -> None:
    task = Mean().train()
    before = torch.get_rng_state()
    batches = [{"clip": np.full((2, 4, 8, 8, 3), n, np.uint8), "row": np.array([n, n + 1])} for n in (2, 4)]
    rows, x = features(task, batches, torch.device("cpu"), "fp32")
    assert rows.tolist() == [2, 3, 4, 5] and x[:, 0].tolist() == [2, 2, 4, 4]
    assert task.training and torch.equal(before, torch.get_rng_state())
