"""Scores from a table of predictions: classes, gaze, and how sure either is.

UAR is the mean of the classes' recalls and WAR the share of clips that are right (MAE-DFER, section 4). A class absent
from the truth has no recall: it is left out of the UAR and named as absent. Macro F1 is over the classes that occur in
the truth or the answers, as scikit-learn has it. All but degrees are shares of 1.

Intervals are 95 % percentile bootstraps. Clips of one person are alike, so whole subjects are drawn where every scored
clip has one, otherwise clips.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import stdtrit

RESAMPLES = 1000
# Gaze360 (Kellnhofer et al., ICCV 2019) is reported over all directions, the front half and faces turned to the camera.
SUBSETS = {"all": 180.0, "front180": 90.0, "front_facing": 20.0}  # largest |yaw|, degrees
NAMES = ("uar", "war", "f1_weighted", "f1_micro", "f1_macro", "angular_error_deg")


def scores(
    table: pa.Table, classes: Sequence[str], seed: int, *, train_gaze: np.ndarray | None = None
) -> dict[str, Any]:
    """Score a table with one row a video, as `predict.merge` makes it; what has no truth or no prediction is left out.

    `train_gaze` (n, 2), pitch and yaw in radians, gives the constant answer that a gaze model must beat; without it
    the table's own mean direction is taken, which no constant can beat, and `constant.from` says which it was.
    Of clips of several datasets, `by_dataset` has the scores of each.
    Raises ValueError for views that were not merged, labels outside the classes and predictions that are no numbers.
    """
    videos = list(zip(table["dataset"].to_pylist(), table["video"].to_pylist(), strict=True))
    if len(set(videos)) < len(videos):
        raise ValueError(
            f"scores need one row a video, but {len(videos)} rows hold {len(set(videos))}; merge the views"
        )
    found: dict[str, Any] = {"num_clips": len(videos), "classes": list(classes)}
    truth = np.array([-1 if label is None else label for label in table["label"].to_pylist()], dtype=np.int64)
    labelled = (truth >= 0) & ("probabilities" in table.column_names)
    true_gaze = columns(table, "pitch", "yaw")
    gazed = ~np.isnan(true_gaze).any(1) & ("pred_pitch" in table.column_names)
    scored = np.flatnonzero(labelled | gazed)

    people = list(zip(table["dataset"].to_pylist(), table["subject"].to_pylist(), strict=True))
    people = [people[row] for row in scored]
    units = np.arange(len(people))
    if all(subject is not None for _, subject in people):
        number = {person: index for index, person in enumerate(dict.fromkeys(people))}
        units = np.array([number[person] for person in people], dtype=np.int64)
        found["num_subjects"] = len(number)
    draws = np.zeros((RESAMPLES, len(videos)), dtype=np.float32)
    draws[:, scored] = bootstrap(units, seed)
    samples: dict[str, np.ndarray] = {}

    if labelled.any():
        answer = answers(table, len(classes))
        if truth.max() >= len(classes):
            raise ValueError(f"labels must be below {len(classes)}, the number of classes, but one is {truth.max()}")
        cells = (truth * len(classes) + answer)[labelled]
        confusion = confusions(cells, np.ones((1, len(cells))), len(classes))
        found |= {name: float(values[0]) for name, values in class_scores(confusion).items()}
        samples |= class_scores(confusions(cells, draws[:, labelled], len(classes)))
        found["confusion"] = confusion[0].astype(int).tolist()
        found["per_class"] = dict(zip(classes, each_class(confusion[0]), strict=True))
        found["num_labelled"], found["num_classes_present"] = len(cells), len(set(truth[labelled]))

    if gazed.any():
        predicted = columns(table, "pred_pitch", "pred_yaw")[gazed]
        if np.isnan(predicted).any():
            raise ValueError(f"predicted angles must be numbers, but {int(np.isnan(predicted).any(1).sum())} are not")
        errors = angular_error(true_gaze[gazed], predicted)
        known_gaze = true_gaze[gazed] if train_gaze is None else train_gaze
        constant = angles(directions(known_gaze).mean(0, keepdims=True))
        found["num_gazed"], found["angular_error_deg"] = len(errors), float(errors.mean())
        constant_errors = angular_error(true_gaze[gazed], constant)
        found["constant_error_deg"] = float(constant_errors.mean())
        found["subsets"] = {
            name: {"num_gazed": int(part.sum())}
            | {
                "angular_error_deg": float(errors[part].mean()),
                "constant_error_deg": float(constant_errors[part].mean()),
            }
            for name, within_deg in SUBSETS.items()
            if (part := np.abs(np.degrees(true_gaze[gazed][:, 1])) <= within_deg).any()
        }
        pitch, yaw = np.degrees(constant[0]).tolist()
        found["constant"] = {
            "pitch_deg": pitch,
            "yaw_deg": yaw,
            "from": "this table" if train_gaze is None else "train",
        }
        weights = draws[:, gazed]
        with np.errstate(invalid="ignore"):  # a draw without any gaze has no error; nanpercentile leaves it out
            samples["angular_error_deg"] = weights @ errors / weights.sum(1)
    found["intervals"] = {name: np.nanpercentile(values, (2.5, 97.5)).tolist() for name, values in samples.items()}
    names = table["dataset"].unique().to_pylist()
    if len(names) > 1:
        parts = {name: table.filter(pc.equal(table["dataset"], name)) for name in names}
        found["by_dataset"] = {name: scores(part, classes, seed, train_gaze=train_gaze) for name, part in parts.items()}
    return found


def known_gaze(table: pa.Table) -> np.ndarray | None:
    """Return the gaze of the rows that have one, (n, 2) radians, or None."""
    angles = columns(table, "pitch", "yaw")
    angles = angles[np.isfinite(angles).all(1)]
    return angles if len(angles) else None


def bootstrap(units: np.ndarray, seed: int) -> np.ndarray:
    """Return how often each clip counts in each resample, (resamples, clips); clips of one unit count alike."""
    rng, number = np.random.default_rng(seed), int(units.max(initial=-1)) + 1
    drawn = np.empty((RESAMPLES, len(units)), dtype=np.float32)
    for row in drawn:
        row[:] = np.bincount(rng.integers(number, size=number), minlength=number)[units]
    return drawn


def answers(table: pa.Table, num_classes: int) -> np.ndarray:
    """Return the most probable class of each row."""
    probabilities = matrix(table["probabilities"])
    if probabilities.shape[1] != num_classes or not np.isfinite(probabilities).all():
        raise ValueError(f"predictions must be {num_classes} finite probabilities a row, one a class of the data set")
    return probabilities.argmax(1)


def recall(truth: np.ndarray, guess: np.ndarray) -> float:
    """Return the mean of the classes' recalls, UAR."""
    return float(np.mean([(guess[truth == label] == label).mean() for label in np.unique(truth)]))


def confusions(cells: np.ndarray, weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Return a confusion matrix (rows are the truth) for each row of clip weights, (resamples, classes, classes)."""
    size = num_classes**2
    counts = [np.bincount(cells, row, minlength=size) for row in weights]
    return np.stack(counts).reshape(-1, num_classes, num_classes)


def class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of each of a stack of confusion matrices, NaN where one is empty."""
    right, support, given = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(2), confusion.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(support > 0, right / support, 0)
        f1 = np.where(support + given > 0, 2 * right / (support + given), 0)
        total = support.sum(1)
        accuracy = right.sum(1) / total
        return {
            "uar": recall.sum(1) / (support > 0).sum(1),
            "war": accuracy,
            "f1_weighted": (f1 * support).sum(1) / total,
            "f1_micro": accuracy,  # one answer a clip: every wrong one is as much a false positive as a false negative
            "f1_macro": f1.sum(1) / (support + given > 0).sum(1),
        }


def each_class(confusion: np.ndarray) -> list[dict[str, float] | None]:
    """Return clips, recall, precision and F1 of each class; None for one absent from the truth."""
    found: list[dict[str, float] | None] = []
    for right, support, given in zip(np.diag(confusion), confusion.sum(1), confusion.sum(0), strict=True):
        parts = {
            "clips": int(support),
            "recall": float(right / max(support, 1)),
            "precision": float(right / max(given, 1)),
            "f1": float(2 * right / max(support + given, 1)),
        }
        found.append(parts if support else None)
    return found


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of equally long lists as a float64 matrix."""
    return pc.list_flatten(column).to_numpy().reshape(len(column), -1).astype(np.float64)


def columns(table: pa.Table, *names: str) -> np.ndarray:
    """Return float columns side by side, NaN where there is nothing."""
    return np.stack([np.array(table[name].to_pylist(), dtype=np.float64) for name in names], axis=1)


def directions(angles_rad: np.ndarray) -> np.ndarray:
    """Return unit vectors (n, 3): x left in the image, y up, z away from the camera, of (n, 2) pitch and yaw."""
    pitch, yaw = angles_rad[:, 0], angles_rad[:, 1]
    return np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), -np.cos(pitch) * np.cos(yaw)], axis=1)


def angles(vectors: np.ndarray) -> np.ndarray:
    """Return (n, 2) pitch and yaw of (n, 3) vectors of any length but 0."""
    x, y, z = vectors.T
    return np.stack([np.arctan2(y, np.hypot(x, z)), np.arctan2(x, -z)], axis=1)


def angular_error(truth_rad: np.ndarray, predicted_rad: np.ndarray) -> np.ndarray:
    """Return the angle in degrees between true and predicted directions, both (n, 2) pitch and yaw in radians."""
    cosine = (directions(truth_rad) * directions(predicted_rad)).sum(1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def summary(found: Mapping[str, Any], title: str) -> str:
    """Return scores as lines for a person."""
    lines = [f"{title}: {found['num_clips']:,} clips, {found.get('num_subjects', 'unknown')} subjects"]
    for name, words in (("uar", "UAR"), ("war", "WAR"), ("angular_error_deg", "gaze error")):
        if name in found:
            low, high = found["intervals"][name]
            unit = " deg" if name.endswith("deg") else ""
            lines.append(f"  {words:<10} {found[name]:.3f}{unit}  (95 % interval {low:.3f} to {high:.3f})")
    if "constant_error_deg" in found:
        lines.append(f"  {'constant':<10} {found['constant_error_deg']:.3f} deg: always the mean gaze of train")
    for name, part in list(found.get("subsets", {}).items())[1:]:
        error, constant = part["angular_error_deg"], part["constant_error_deg"]
        lines.append(f"  {name:<12} {error:.3f} deg, constant {constant:.3f} deg, {part['num_gazed']:,} clips")
    lines += [summary(part, title=f"  of {name}") for name, part in found.get("by_dataset", {}).items()]
    return "\n".join(lines)


def fold_summary(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arithmetic mean over folds of each score they all have, as published totals are, with its spread.

    `sd` is between folds and `t_intervals` the 95 % interval of the mean by Student's t; both need two folds.
    """
    names = [name for name in (*NAMES, "constant_error_deg") if all(name in fold for fold in folds)]
    values = {name: np.array([fold[name] for fold in folds]) for name in names}
    found: dict[str, Any] = {"num_folds": len(folds)} | {name: float(each.mean()) for name, each in values.items()}
    if len(folds) > 1:
        deviations = {name: float(each.std(ddof=1)) for name, each in values.items()}
        reach = float(stdtrit(len(folds) - 1, 0.975)) / math.sqrt(len(folds))
        found["sd"] = deviations
        found["t_intervals"] = {
            name: [found[name] - reach * sd, found[name] + reach * sd] for name, sd in deviations.items()
        }
    return found
