"""What frozen features know: a linear classifier and the nearest neighbours on them, scored by UAR.

An encoder is not changed by it, so it tells in a minute, and while pretraining goes on, whether pretraining helps.
Both are fitted to train alone, with fixed settings, so that validation chooses nothing. Each score comes with its 95 %
interval, a bootstrap over the people that are judged, as of all scores.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from mien.platform.loop import Precision, autocast
from mien.platform.scores import bootstrap, class_scores, confusions, recall

PENALTY = 0.1  # C of the logistic regression on features of deviation 1: more of it changes little, less overfits
MOST_ITERATIONS = 3000


@torch.no_grad()
def features(
    task: nn.Module, batches: Iterable[Mapping[str, np.ndarray]], device: torch.device, precision: Precision
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (n,) and features (n, d) of a task's clips; its mode is put back, no random number is drawn."""
    plain: Any = task
    training, rows, found = task.training, [], []
    task.eval()
    try:
        for batch in batches:
            with autocast(device, precision):
                x = plain.features({"clip": torch.from_numpy(batch["clip"]).to(device)})
            rows.append(batch["row"])
            x = x.mean(dim=1) if x.ndim == 3 else x  # a model of frames has features of each
            found.append(x.float().cpu().numpy())
    finally:
        task.train(training)
    return np.concatenate(rows), np.concatenate(found)


def probe(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    neighbours: int = 10,
    people: np.ndarray | None = None,
) -> dict[str, float]:
    """Return `uar_linear` and `uar_knn` on validation, each with `_low` and `_high`, the ends of its 95 % interval.

    Both parts are (features (n, d), labels (n,)); `people` (n,) are the numbers, from 0, of those judged, where they
    are known. Logistic regression with classes weighted alike; cosine neighbours weighted by nearness.
    """
    linear = make_pipeline(
        StandardScaler(), LogisticRegression(C=PENALTY, max_iter=MOST_ITERATIONS, class_weight="balanced")
    )
    nearest = KNeighborsClassifier(min(neighbours, len(train[0])), weights="distance", metric="cosine")
    draws = bootstrap(np.arange(len(val[1])) if people is None else people, seed=0)
    classes = int(max(train[1].max(), val[1].max())) + 1
    found: dict[str, float] = {}
    for name, model in (("uar_linear", linear), ("uar_knn", nearest)):
        answers = model.fit(*train).predict(val[0])
        resampled = class_scores(confusions(val[1] * classes + answers, draws, classes))["uar"]
        low, high = np.nanpercentile(resampled, (2.5, 97.5)).tolist()
        found |= {name: recall(val[1], answers), f"{name}_low": low, f"{name}_high": high}
    return found
