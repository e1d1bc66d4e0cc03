"""A model is judged elsewhere on clips that are new to it, with its own numbers for classes, and losses are counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien.data_pipelines.fold import DataConfig, Fold
from mien.data_pipelines.manifest import Manifest, ManifestError, build
from mien.data_pipelines.other_clips import OtherClips, open_other
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.splits import SplitConfig, split

OWN = ("Happy", "Sad", "Angry")
OTHER = ("anger", "contempt", "happiness")


def toy(classes: tuple[str, ...] = OWN, name: str = "film", count: int = 30, **changes: Any) -> Manifest:
    """Return clips by ten persons in five folds, each class in turn."""
    rows = [
        {
            "video": f"{name}{number:02d}",
            "path": f"{number:02d}",
            "dataset": name,
            "subject": f"{name}{number // 3}",
            "label": number % 3 if classes else None,
            "frames": 16,
            "height": 8,
            "width": 8,
            "fold": number // 3 % 5 + 1,
        }
        | {key: value(number) if callable(value) else value for key, value in changes.items()}
        for number in range(count)
    ]
    return build(rows, classes, "/clips", name)


def opened(
    manifest: Manifest, classes: tuple[str, ...] = OWN, known: bool = True, datasets: tuple[str, ...] | None = ("film",)
) -> OtherClips:
    own = toy()
    fold = Fold(own, split(own, 1, SplitConfig()), ReadConfig()) if known else None
    return open_other(manifest, DataConfig(fold=1), classes, fold, datasets, frames=16, size=112)


def test_classes_are_matched_by_name_and_others_left_out_and_counted() -> None:
    found = opened(toy(OTHER, "stage"))
    manifest, rows = found.fold.manifest, found.fold.split.test
    assert manifest.classes == OWN and found.fold.read.size == 112 and found.seen == 0
    # Lines stay those of the given manifest; contempt, every third from the second on, is left out.
    assert rows.tolist() == [row for row in range(30) if row % 3 != 1]
    assert [manifest.column("label")[row] for row in rows] == [2, 0] * 10
    assert found.other_classes == {"contempt": 10}
    assert found.notes() == ["left out, since the model knows no such class: 10 contempt"]


def test_of_its_own_set_in_another_form_only_its_own_fold_is_judged() -> None:
    own = toy(frames=8)
    assert opened(own).fold.split.test.tolist() == np.flatnonzero(np.array(own.column("fold")) == 1).tolist()
    # The same where nothing is known of what it was trained on: the fold that it tested is safe in any case.
    unknown = opened(own, known=False, datasets=None)
    assert unknown.fold.split.test.tolist() == opened(own).fold.split.test.tolist()
    assert "is not known" in unknown.notes()[0]


def test_clips_and_persons_that_were_learned_from_are_left_out_and_counted() -> None:
    mixed = toy(fold=None)  # the very clips without folds
    found = opened(mixed)
    tested = [row for row in range(30) if row // 3 % 5 == 0]
    assert found.fold.split.test.tolist() == tested and found.seen == 24
    assert found.notes() == ["left out, since the model was trained or chosen on them or their persons: 24 clips"]
    renamed = toy(fold=None, video=lambda number: f"copy{number}")  # other clips of the same persons
    assert opened(renamed).fold.split.test.tolist() == tested


def test_an_official_test_part_is_what_is_judged() -> None:
    parts = toy(name="stage", fold=None, split=lambda number: "test" if number > 20 else "train")
    assert opened(parts).fold.split.test.tolist() == list(range(21, 30))
    everything = toy(name="stage", fold=None)
    assert len(opened(everything).fold.split.test) == 30


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"two classes or more.*(bored, calm, sad).*it knows 1; it tells Happy"):
        opened(toy(("bored", "calm", "sad"), "stage"))
    with pytest.raises(ManifestError, match="neither class nor gaze"):
        opened(toy((), "stage"))
    with pytest.raises(ManifestError, match="new to it, but film has none"):
        opened(toy(fold=None, count=30, subject="film4"))


def test_a_model_of_gaze_alone_needs_no_classes() -> None:
    gazed = toy((), "stage", pitch=0.1, yaw=0.2)
    assert len(opened(gazed, ()).fold.split.test) == 30
    named = toy(OTHER, "stage", pitch=0.1, yaw=0.2)
    assert opened(named, ()).fold.manifest.classes == OTHER


def test_paths_stay_relative_to_the_manifests_own_root(tmp_path: Path) -> None:
    toy(OTHER, "stage").write(tmp_path / "m.parquet")
    read = Manifest.read(tmp_path / "m.parquet", str(tmp_path))
    assert opened(read).fold.read.root == str(tmp_path)
