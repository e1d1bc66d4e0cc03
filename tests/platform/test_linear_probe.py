"""Probes: features that hold the classes are told apart, noise is not, and the model stays as it was."""

from collections.abc import Mapping

import numpy as np
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
    assert min(found.values()) > 0.95 and set(found) == {"uar_linear", "uar_knn"}


def test_features_without_classes_score_chance() -> None:
    assert all(abs(value - 0.25) < 0.12 for value in probe(*parts(signal=0.0)).values())


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
