"""A fingerprint is the same for the same clips, says what was put into them, and costs next to nothing."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.fingerprint import MEDIAN, PUBLISHED, fingerprint, measured_faces, quantiles
from mien.data_pipelines.fold import Fold
from mien.data_pipelines.manifest import SCHEMA, Manifest, build
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.data_pipelines.splits import SplitConfig, split

READ = ReadConfig(sampling=SamplingConfig(frames=16, stride=4), augment=AugmentConfig(kind="finetune"))


def manifest(count: int = 20, **changes: Any) -> Manifest:
    """Return clips of 50 to 69 frames, 25 a second, by five persons in two classes."""
    rows = [
        {
            "video": f"{number:03d}",
            "path": f"{number:03d}",
            "dataset": "toy",
            "subject": f"p{number % 5}",
            "label": number % 2,
            "frames": 50 + number,
            "fps": 25.0,
            "height": 224,
            "width": 200,
            "fold": number % 5 + 1,
        }
        | changes
        for number in range(count)
    ]
    return build(rows, ("calm", "glad"), "/clips", "toy")


def test_it_says_what_decides_scores() -> None:
    found = fingerprint(manifest(), read=READ, parts={"train": 20}, protocol="honest")
    assert (found["clips"], found["subjects"], found["datasets"]) == (20, 5, {"toy": 20})
    assert found["classes"] == ["calm", "glad"] and found["class_counts"] == [10, 10]
    assert found["frames"][0] == 50 and found["frames"][MEDIAN] == 59 and found["frames"][-1] == 69
    assert found["fps"] == [25] * 7 and found["fps_known"] == 1 and found["height"] == [224] * 7
    assert found["shorter_than_span"] == 0.7 and found["as_long_as_clip"] == 0  # 50 to 63 of 64
    assert found["read"]["stride"] == 4 and found["read"]["size"] == 160 and found["faces"] is None
    assert found["manifest"] == manifest().fingerprint() and found["sources"] == {"frame folder": 20}
    assert json.loads(json.dumps(found)) == found and len(json.dumps(found)) < 2000


def test_it_is_of_the_chosen_lines_in_any_order_and_follows_what_they_hold() -> None:
    given = manifest()
    some = fingerprint(given, np.array([1, 3, 5]), READ)
    assert some == fingerprint(given, [5, 1, 3], READ) == fingerprint(replace(given, root="/moved"), [3, 5, 1], READ)
    assert some["class_counts"] == [0, 3] and some["clips"] == 3
    thin = fingerprint(manifest(frames=16), read=READ)
    assert thin["as_long_as_clip"] == 1 and thin["shorter_than_span"] == 1
    assert fingerprint(manifest(subject=None), read=READ)["subjects"] is None
    unknown = fingerprint(manifest(fps=None), read=READ)
    assert unknown["fps"] is None and unknown["fps_known"] == 0


def test_consecutive_frames_have_no_stride() -> None:
    ending = READ.model_copy(update={"sampling": SamplingConfig(rule="ending", frames=16, stride=4)})
    found = fingerprint(manifest(), read=ending)
    assert found["read"]["stride"] == 1 and found["shorter_than_span"] == 0


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/b", "frame folder"),
        ("a/b.MP4", "video"),
        ("a/0001.jpg", "image"),
        ("a.parquet#12+400", "shard"),
        ("clip.v2", "frame folder"),
    ],
)
def test_the_kind_of_a_clip_is_told_by_its_path(path: str, kind: str) -> None:
    assert fingerprint(manifest(1, path=path))["sources"] == {kind: 1}


def test_quantiles_are_values_that_occur() -> None:
    assert quantiles(np.array([3, 1, 2])) == [1, 1, 1, 2, 3, 3, 3]
    assert quantiles(np.array([29.97], np.float32)) == [29.97] * 7 and quantiles(np.array([])) is None


def test_faces_come_from_an_audit_of_this_very_manifest(tmp_path: Path) -> None:
    given = manifest()
    faces = {"clips": 3, "without": 0.0, "shares": [0.5] * 7}
    (tmp_path / "m_audit").mkdir()
    record = tmp_path / "m_audit" / "audit.json"
    record.write_text(json.dumps({"fingerprint": given.fingerprint(), "faces": faces}))
    assert fingerprint(given, path=tmp_path / "m.parquet")["faces"] == faces
    assert measured_faces(manifest(19), tmp_path / "m.parquet") is None
    assert measured_faces(given, tmp_path / "other.parquet") is None
    record.write_text("{")
    assert measured_faces(given, tmp_path / "m.parquet") is None


def test_a_margin_that_was_noted_when_faces_were_cropped_is_known() -> None:
    note = "faces cropped by centerface, margin 0.15, 224 pixels"
    assert fingerprint(replace(manifest(), notes=(note,)))["crop_margin"] == 0.15
    assert fingerprint(manifest())["crop_margin"] is None


def test_a_fold_has_one_for_each_part(tmp_path: Path) -> None:
    fold = Fold(manifest(40), split(manifest(40), 1, SplitConfig()), READ)
    train, test = (fold.fingerprint(part, str(tmp_path / "m.parquet")) for part in ("train", "test"))
    assert train["parts"] == test["parts"] and sum(train["parts"].values()) == 40
    assert train["clips"] == train["parts"]["train"] and test["clips"] == 8 == test["parts"]["test"]
    assert train["read"]["size"] == 160 and train["protocol"] == "honest" and test["subjects"] == 1


def test_published_ones_have_the_same_keys() -> None:
    known = fingerprint(manifest(), read=READ)
    for of in PUBLISHED.values():
        assert of.keys() <= known.keys() and of["read"].keys() <= known["read"].keys()


def test_forty_thousand_clips_take_well_under_a_second() -> None:
    count = 40_000
    one = manifest(1).table.slice(0, 1)
    table = pa.concat_tables([one] * count).combine_chunks()
    names = pa.array([f"{number:06d}" for number in range(count)])
    table = table.set_column(0, SCHEMA.field("video"), names)
    large = Manifest(table, ("calm", "glad"), "/clips", "large")
    began = time.perf_counter()
    fingerprint(large, np.arange(count - 1), READ)
    assert time.perf_counter() - began < 1  # 0.1 s on one core
