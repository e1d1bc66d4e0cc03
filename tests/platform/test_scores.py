"""Scores agree with published figures and scikit-learn, and intervals with what they promise."""

import time
from collections.abc import Sequence
from statistics import stdev
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from mien.platform.scores import angles, angular_error, directions, fold_summary, scores, summary

EMOTIONS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
# DFEW fold 1 as the published log has it; rows are the truth.
PUBLISHED = [
    [454, 7, 10, 14, 2, 1, 1],
    [5, 292, 49, 15, 11, 1, 6],
    [19, 30, 403, 38, 33, 5, 6],
    [9, 9, 49, 336, 22, 3, 7],
    [4, 11, 58, 9, 194, 0, 18],
    [0, 0, 16, 4, 3, 3, 3],
    [1, 20, 23, 17, 48, 1, 71],
]


def make(
    truth: Sequence[int | None],
    answer: Sequence[int],
    num_classes: int,
    subjects: Sequence[str | None] | None = None,
    gaze: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
) -> pa.Table:
    """A table of predictions, one row a video."""
    number = len(truth)
    nothing = np.full((number, 2), np.nan)
    pitch, yaw = (nothing if gaze is None else gaze).T
    columns: dict[str, Any] = {
        "video": [f"clip {index}" for index in range(number)],
        "dataset": ["tiny"] * number,
        "subject": pa.array(subjects or [None] * number, pa.string()),
        "label": pa.array(truth, pa.int64()),
        "pitch": pa.array(pitch, from_pandas=True),
        "yaw": pa.array(yaw, from_pandas=True),
        "probabilities": np.eye(num_classes)[list(answer)].tolist(),
    }
    if predicted is not None:
        columns["pred_pitch"], columns["pred_yaw"] = predicted.T
    return pa.table(columns)


def published() -> pa.Table:
    pairs = [(t, a) for t, row in enumerate(PUBLISHED) for a, count in enumerate(row) for _ in range(count)]
    return make(*zip(*pairs, strict=True), num_classes=7)


def test_the_published_confusion_matrix_gives_the_published_scores() -> None:
    found = scores(published(), EMOTIONS, seed=0)
    assert found["confusion"] == PUBLISHED
    assert round(100 * found["uar"], 2) == 62.59
    assert round(100 * found["war"], 2) == 74.88
    assert round(found["f1_weighted"], 4) == 0.7441
    assert round(found["f1_micro"], 4) == 0.7488
    assert round(found["f1_macro"], 4) == 0.6357
    assert found["num_clips"] == found["num_labelled"] == 2341 and found["num_classes_present"] == 7
    assert found["per_class"]["disgust"] == pytest.approx(
        {"clips": 29, "recall": 3 / 29, "precision": 3 / 14, "f1": 6 / 43}
    )


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(4))
def test_scores_agree_with_scikit_learn_also_where_classes_are_absent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, answer = rng.integers(0, 5 - seed, 60), rng.integers(0, 5, 60)
    found = scores(make(truth.tolist(), answer.tolist(), 6), "abcdef", seed=0)
    assert found["uar"] == pytest.approx(balanced_accuracy_score(truth, answer))
    for kind in ("weighted", "micro", "macro"):
        assert found[f"f1_{kind}"] == pytest.approx(f1_score(truth, answer, average=kind))
    assert [name for name, value in found["per_class"].items() if value is None] == list("abcdef"[5 - seed :])
    assert found["num_classes_present"] == 5 - seed


def test_a_clip_without_a_label_is_counted_but_not_scored() -> None:
    found = scores(make([0, None, 1, 1], [0, 0, 1, 0], 2), "ab", seed=0)
    assert (found["num_clips"], found["num_labelled"], found["uar"]) == (4, 3, 0.75)
    nothing = scores(make([None, None], [0, 0], 2), "ab", seed=0)
    assert "uar" not in nothing and nothing["intervals"] == {}


def test_the_angle_between_directions_is_measured_on_the_sphere() -> None:
    degrees = np.array([[0, 0], [90, 0], [90, 45], [0, 179], [30, 0]], dtype=float)
    other = np.array([[0, 0], [90, 120], [-90, 0], [0, -179], [0, 0]], dtype=float)
    assert angular_error(np.radians(degrees), np.radians(other)) == pytest.approx([0, 0, 180, 2, 30], abs=1e-5)


def test_angles_and_directions_are_each_others_inverse() -> None:
    rng = np.random.default_rng(0)
    angles_rad = np.stack([rng.uniform(-1.5, 1.5, 100), rng.uniform(-3.1, 3.1, 100)], axis=1)
    assert angles(3 * directions(angles_rad)) == pytest.approx(angles_rad)
    # Looking into the camera is the origin; x is left in the image, y up, z away from the camera.
    assert directions(np.zeros((1, 2))) == pytest.approx(np.array([[0, 0, -1]]))


def test_gaze_is_scored_against_a_constant_answer_and_says_where_that_came_from() -> None:
    gaze = np.radians([[0, 10], [0, 30], [0, np.nan], [0, 20]])
    predicted = np.radians([[0, 12], [0, 30], [0, 0], [4, 20]])
    table = make([None] * 4, [0] * 4, 1, gaze=gaze, predicted=predicted)
    found = scores(table, ["only"], seed=0)
    assert found["num_gazed"] == 3
    assert found["angular_error_deg"] == pytest.approx(2)
    assert found["constant_error_deg"] == pytest.approx(20 / 3)
    assert found["constant"] == pytest.approx({"pitch_deg": 0, "yaw_deg": 20, "from": "this table"})
    trained = scores(table, ["only"], seed=0, train_gaze=np.radians([[0, -10], [0, 10]]))
    assert trained["constant_error_deg"] == pytest.approx(20)
    assert trained["constant"]["from"] == "train"
    low, high = found["intervals"]["angular_error_deg"]
    assert 0 <= low <= 2 <= high <= 4 + 1e-6


def test_intervals_are_the_seeds_and_hold_the_score() -> None:
    table = published()
    found, again, other = (scores(table, EMOTIONS, seed=seed)["intervals"] for seed in (0, 0, 1))
    assert found == again != other
    assert found.keys() == {"uar", "war", "f1_weighted", "f1_micro", "f1_macro"}
    low, high = found["war"]
    # The binomial's standard error says how wide it must be.
    error = np.sqrt(0.7488 * 0.2512 / 2341)
    assert (low, high) == pytest.approx((0.7488 - 1.96 * error, 0.7488 + 1.96 * error), abs=error / 4)


def test_the_interval_is_over_subjects_where_all_are_known() -> None:
    # Ten people, each always right or always wrong: a hundred clips of one say no more than one.
    truth, answer = [0, 1] * 500, ([0, 1] * 50 + [1, 0] * 50) * 5
    people = [f"person {index // 100}" for index in range(1000)]
    by_subject = scores(make(truth, answer, 2, people), "ab", seed=0)
    by_clip = scores(make(truth, answer, 2, [*people[:-1], None]), "ab", seed=0)
    assert by_subject["num_subjects"] == 10 and "num_subjects" not in by_clip
    width = {name: np.ptp(found["intervals"]["war"]) for name, found in (("subject", by_subject), ("clip", by_clip))}
    assert width["subject"] > 5 * width["clip"]


def test_a_clip_that_is_not_scored_needs_no_subject() -> None:
    truth, answer, people = [0, 1] * 50, [0, 1, 1, 0] * 25, [f"person {index // 10}" for index in range(100)]
    known = scores(make(truth, answer, 2, people), "ab", seed=0)
    more = scores(make([*truth, None], [*answer, 0], 2, [*people, None]), "ab", seed=0)
    assert more["num_subjects"] == 10 and more["intervals"] == known["intervals"]


def test_people_of_two_datasets_with_the_same_name_are_two() -> None:
    table = make([0, 1], [0, 1], 2, ["1", "1"])
    table = table.set_column(table.column_names.index("dataset"), "dataset", pa.array(["a", "b"]))
    assert scores(table, "ab", seed=0)["num_subjects"] == 2


def test_clips_of_two_datasets_with_the_same_name_are_two() -> None:
    table = make([0, 1], [0, 1], 2)
    table = table.set_column(table.column_names.index("video"), "video", pa.array(["00001", "00001"]))
    table = table.set_column(table.column_names.index("dataset"), "dataset", pa.array(["a", "b"]))
    assert scores(table, "ab", seed=0)["num_clips"] == 2


def test_gaze_is_scored_over_the_front_half_and_for_faces_turned_to_the_camera_too() -> None:
    # Each clip is off by a tenth of its yaw, to the side.
    yaw = np.radians([0.0, 10, -20, 50, -90, 120])
    true = np.stack([np.zeros(6), yaw], axis=1)
    found = scores(make([None] * 6, [0] * 6, 2, gaze=true, predicted=true * 1.1), "ab", seed=0)
    parts = found["subsets"]
    assert {name: part["num_gazed"] for name, part in parts.items()} == {"all": 6, "front180": 5, "front_facing": 3}
    assert parts["all"]["angular_error_deg"] == pytest.approx(found["angular_error_deg"])
    assert parts["front_facing"]["angular_error_deg"] == pytest.approx(1)
    assert parts["front180"]["angular_error_deg"] == pytest.approx(3.4)
    assert "front_facing 1.000 deg, constant" in summary(found, "test")


def test_intervals_of_twelve_thousand_clips_take_under_two_seconds() -> None:
    rng = np.random.default_rng(0)
    gaze = rng.normal(0, 0.3, (12_000, 2))
    truth, answer = rng.integers(0, 11, (2, 12_000)).tolist()
    table = make(truth, answer, 11, gaze=gaze, predicted=gaze)
    began = time.process_time()
    scores(table, "abcdefghijk", seed=0)
    assert time.process_time() - began < 2


def test_what_cannot_be_scored_is_refused() -> None:
    table = make([0, 1], [0, 1], 2)
    with pytest.raises(ValueError, match=r"4 rows hold 2; merge the views"):
        scores(pa.concat_tables([table, table]), "ab", seed=0)
    with pytest.raises(ValueError, match="below 2, the number of classes, but one is 2"):
        scores(make([0, 2], [0, 1], 2), "ab", seed=0)
    with pytest.raises(ValueError, match="3 finite probabilities"):
        scores(table, "abc", seed=0)
    spoilt = np.array([[np.nan, 0.0], [0, 0]])
    with pytest.raises(ValueError, match="must be numbers, but 1 are not"):
        scores(make([0, 1], [0, 1], 2, gaze=np.zeros((2, 2)), predicted=spoilt), "ab", seed=0)


def test_the_total_over_folds_is_their_mean_as_published() -> None:
    folds = [
        {"uar": uar, "war": war}
        for uar, war in zip((62.59, 61.96, 64.00, 63.07, 65.42), (74.88, 72.49, 74.91, 74.05, 75.81), strict=True)
    ]
    found = fold_summary(folds)
    assert (round(found["uar"], 2), round(found["war"], 2)) == (63.41, 74.43)
    assert found["num_folds"] == 5
    assert found["sd"]["uar"] == pytest.approx(stdev(fold["uar"] for fold in folds))
    low, high = found["t_intervals"]["uar"]
    assert high - found["uar"] == pytest.approx(2.776 * found["sd"]["uar"] / 5**0.5, rel=1e-3)
    assert found["uar"] - low == pytest.approx(high - found["uar"])


def test_one_fold_has_no_spread_and_a_score_some_fold_lacks_no_total() -> None:
    assert fold_summary([{"uar": 0.5}]) == {"num_folds": 1, "uar": 0.5}
    assert "angular_error_deg" not in fold_summary([{"uar": 0.5, "angular_error_deg": 3.0}, {"uar": 0.5}])
