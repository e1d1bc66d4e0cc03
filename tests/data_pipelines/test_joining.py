"""Datasets are joined by what their classes mean, keep their folds, and lose no clip in silence."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mien.data_pipelines import joining, splits
from mien.data_pipelines.joining import JoinConfig, common_classes, with_classes
from mien.data_pipelines.manifest import Manifest, ManifestError, build
from mien.data_pipelines.splits import SplitConfig

FILM = ("Happy", "Sad", "Neutral")
STAGE = ("SAD", "contempt", "HAP")


def toy(name: str, classes: tuple[str, ...], labels: list[int | None], **known: Any) -> Manifest:
    rows = [
        {
            "video": f"{number:05d}",
            "path": f"{number:05d}.mp4",
            "dataset": name,
            "label": label,
            "frames": 16,
            "height": 8,
            "width": 8,
            **{key: values[number] for key, values in known.items()},
        }
        for number, label in enumerate(labels)
    ]
    return build(rows, classes, f"/data/{name}", name)


def test_classes_meet_by_what_they_mean_and_others_are_left_out_and_told(tmp_path: Path) -> None:
    film = toy("film", FILM, [0, 1, 2, None])
    stage = toy("stage", STAGE, [0, 1, 2, 2])
    for manifest in (film, stage):
        manifest.write(tmp_path / f"{manifest.name}.parquet")
    files = tuple(str(tmp_path / f"{name}.parquet") for name in ("film", "stage"))
    joined = joining.read(JoinConfig(manifests=files))
    assert joined.classes == ("Happy", "Sad")
    found = dict(zip(joined.column("video"), joined.column("label"), strict=True))
    assert found == {
        "film/00000": 0, "film/00001": 1, "film/00003": None, "stage/00000": 1, "stage/00002": 0, "stage/00003": 0,
    }  # fmt: skip
    told = [note for note in joined.notes if "left out" in note]
    assert told == [
        "clips of film whose class the whole does not have are left out: 1 Neutral",
        "clips of stage whose class the whole does not have are left out: 1 contempt",
    ]
    assert joined.column("path")[0] == "/data/film/00000.mp4" and joined.column("path")[-1] == "/data/stage/00003.mp4"


def test_classes_of_the_whole_may_be_named_and_one_set_alone_may_have_one() -> None:
    stage = with_classes(toy("stage", STAGE, [0, 1, 2]), ("happiness", "contempt", "neutral"))
    assert stage.column("label") == [1, 0] and stage.classes == ("happiness", "contempt", "neutral")


def test_the_seven_classes_of_the_published_sets_meet() -> None:
    dfew = toy("dfew", ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"), [0])
    mafw = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt")
    ravdess = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    assert common_classes([dfew, toy("mafw", mafw, [0])]) == dfew.classes
    assert common_classes([dfew, toy("ravdess", ravdess, [0])]) == dfew.classes
    cremad = toy("cremad", ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"), [0])
    assert common_classes([cremad, dfew]) == cremad.classes


def test_folds_and_persons_of_each_set_stay_apart() -> None:
    labels: list[int | None] = [0, 1] * 6
    known = {"fold": [1] * 6 + [2] * 6, "subject": [str(number // 2) for number in range(12)]}
    joined = joining.concat([toy(name, ("sad", "happy"), labels, **known) for name in ("film", "stage")])
    split = splits.split(joined, 1, SplitConfig(validation_ratio=0.3))
    datasets = joined.column("dataset")
    assert Counter(datasets[row] for row in split.test) == {"film": 6, "stage": 6}
    people = {part: {(datasets[row], joined.column("subject")[row]) for row in rows} for part, rows in
              (("train", split.train), ("val", split.val))}  # fmt: skip
    assert not people["train"] & people["val"]


def test_sets_with_nothing_in_common_and_classes_with_two_names_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"two classes in common, but film: .*; other: awe, calm have 0; join"):
        common_classes([toy("film", FILM, [0]), toy("other", ("awe", "calm"), [0])])
    with pytest.raises(ManifestError, match=r"happy, Happiness of the whole has two for happiness"):
        with_classes(toy("film", FILM, [0]), ("happy", "Happiness"))
