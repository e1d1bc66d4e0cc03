"""What the folds of one dataset were tested to be: their scores together, why they may differ, and the mistakes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from mien.platform import scores


@dataclass
class Tested:
    """The tested folds of one dataset, each added as it is predicted."""

    classes: tuple[str, ...]
    protocol: str
    folds: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: list[pa.Table] = field(default_factory=list)
    gazes: list[np.ndarray] = field(default_factory=list)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # each fold's fingerprint of the tested clips
    compared: dict[str, dict[str, Any]] = field(default_factory=dict)  # each fold's, with what it was trained on
    notes: list[str] = field(default_factory=list)

    def add(self, fold: str, found: dict[str, Any], videos: pa.Table, gaze: np.ndarray | None) -> None:
        """Take in a fold's scores, its table with one row a video, and the gaze (n, 2) of what it was trained on."""
        self.folds[fold] = found
        self.tables.append(videos.append_column("fold", pa.array([fold] * len(videos))))
        self.gazes += [] if gaze is None else [gaze]

    def scores(self, seed: int) -> dict[str, Any]:
        """Return the scores of each fold, their mean, and those of all clips together."""
        train = np.concatenate(self.gazes) if self.gazes else None
        return {
            "folds": self.folds,
            "total": scores.fold_summary(list(self.folds.values())),
            "pooled": scores.scores(pa.concat_tables(self.tables), self.classes, seed, train_gaze=train),
            "protocol": self.protocol,
            "classes": list(self.classes),
            "inputs": self.inputs,
            "notes": self.notes,
        }


def wrong(videos: pa.Table, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the clips whose class was taken for another: video, its manifest row, truth, answer and confidence."""
    if "probabilities" not in videos.column_names:
        return []
    columns = (videos[name].to_pylist() for name in ("video", "row", "label"))
    found = []
    for video, row, label, shares in zip(*columns, scores.matrix(videos["probabilities"]), strict=True):
        answer = int(shares.argmax())
        if label is not None and answer != label:
            named = {"truth": classes[label], "predicted": classes[answer]}
            found.append({"video": video, "row": row} | named | {"confidence": float(shares[answer])})
    return found
