"""A manifest says what is wrong with its rows, and comes back from Parquet as it went in."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mien.data_pipelines.manifest import SCHEMA, Manifest, ManifestError, Rejected, build, concat

CLASSES = ("happy", "sad")


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "video": f"clip {number}",
        "path": f"videos/clip {number}.mp4",
        "dataset": "toy",
        "label": number % 2,
        "frames": 20 + number,
        "height": 48,
        "width": 64,
        **changes,
    }


def toy(count: int = 4, **changes: Any) -> Manifest:
    return build([row(number, **changes) for number in range(count)], CLASSES, "/data", "toy")


def test_a_manifest_comes_back_from_parquet_as_it_went_in(tmp_path: Path) -> None:
    rows = [row(0, subject="ada", pitch=0.1, yaw=-3.1, fps=25.0, split="test", fold=2), row(1, start=7, label=None)]
    written = build(rows, CLASSES, "/data", "toy", [Rejected("videos/x.mp4", "is empty")], ["columns: path, label"])
    written.write(tmp_path / "deep" / "toy.parquet")
    read = Manifest.read(tmp_path / "deep" / "toy.parquet")
    assert read == written
    assert read.fingerprint() == written.fingerprint()
    assert read.table.schema == SCHEMA
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["toy.parquet"]
    moved = Manifest.read(tmp_path / "deep" / "toy.parquet", root="/elsewhere")
    assert moved.root == "/elsewhere" and moved.fingerprint() == written.fingerprint()


def test_rows_have_every_column_and_null_is_none() -> None:
    manifest = toy()
    assert list(manifest.rows()[2]) == SCHEMA.names
    assert manifest.row(2) == manifest.rows()[2]
    assert manifest.row(2)["subject"] is None and manifest.row(2)["start"] == 0
    assert manifest.column("label") == [0, 1, 0, 1]


def test_take_keeps_the_order_asked_for() -> None:
    taken = toy().take([3, 1])
    assert taken.column("video") == ["clip 3", "clip 1"] and taken.classes == CLASSES


def test_the_fingerprint_follows_the_content() -> None:
    assert toy().fingerprint() == toy().fingerprint() == toy(5).take(range(4)).fingerprint()
    others = [
        toy(5),
        toy(frames=9),
        toy(label=None),
        toy().take([1, 0, 2, 3]),
        toy(subject=""),
        toy(yaw=0.1, pitch=0.0),
    ]
    fingerprints = {manifest.fingerprint() for manifest in [toy(), *others]}
    assert len(fingerprints) == 1 + len(others)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"video": "same"}, r"video ids must be unique.*4 of 4.*same \(path=videos/clip 0.mp4\)"),
        ({"path": None}, "path must be known"),
        ({"label": 2}, r"label must be in 0\.\.1.*clip 0 \(label=2\).*; name every class in `classes`, or correct"),
        ({"label": -1}, "label must be in 0"),
        ({"pitch": float("nan"), "yaw": 0.0}, r"pitch must be finite.*null, not NaN"),
        ({"pitch": 0.0, "yaw": float("inf")}, "yaw must be finite"),
        ({"pitch": 10.0, "yaw": 20.0}, "in radians"),
        ({"pitch": 0.1}, "pitch and yaw come together"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"start": -1}, "start must be at least 0"),
        ({"width": 0}, "width must be at least 1"),
        ({"fold": 0}, "fold must be at least 1"),
        ({"fps": 0.0}, "fps must be above 0"),
        ({"split": "dev"}, "split must be one of"),
        ({"labl": 1}, r"columns .* but got \['labl'\]"),
        ({"frames": "many"}, "wrong type"),
    ],
)
def test_rows_that_break_a_rule_are_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        toy(**changes)


def test_an_empty_manifest_and_equal_classes_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"at least one clip.*/data"):
        build([], CLASSES, "/data", "toy")
    with pytest.raises(ManifestError, match=r"label must be null without classes.*; name every class"):
        build([row(0)], (), "/data", "toy")
    with pytest.raises(ManifestError, match="class names must differ"):
        build([row(0)], ("sad", "sad"), "/data", "toy")


def test_unreadable_manifests_say_so(tmp_path: Path) -> None:
    path = tmp_path / "toy.parquet"
    with pytest.raises(ManifestError, match="no file"):
        Manifest.read(path)
    path.write_text("not parquet")
    with pytest.raises(ManifestError, match="must be a Parquet file"):
        Manifest.read(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ManifestError, match="schema version must be 1"):
        Manifest.read(path)


def test_manifests_are_joined() -> None:
    one, two = toy(2), build([row(5, dataset="other", label=None)], (), "/other", "other")
    joined = concat([one, two])
    assert joined.column("video") == ["clip 0", "clip 1", "clip 5"]
    assert joined.column("path") == ["/data/videos/clip 0.mp4", "/data/videos/clip 1.mp4", "/other/videos/clip 5.mp4"]
    assert (joined.classes, joined.root, joined.name) == (CLASSES, "/", "toy+other")
    # One root stays as it is, and equal ids are told apart by their datasets.
    same = concat([one, build([row(0, dataset="other")], CLASSES, "/data", "other")])
    assert same.root == "/data" and same.column("video") == ["toy/clip 0", "toy/clip 1", "other/clip 0"]
    with pytest.raises(ManifestError, match="same classes"):
        concat([one, build([row(9)], ("sad", "happy"), "/data", "other")])


@pytest.mark.parametrize(
    ("root", "path", "outside"),
    [
        ("/data", "a/b.mp4", False),
        ("/data", "a/../b.mp4", False),
        ("/data", "/data/a.mp4", False),
        ("/data", "a..b/..c.mp4", False),
        ("/data", "../secret.mp4", True),
        ("/data", "a/../../secret.mp4", True),
        ("/data", "/etc/passwd", True),
        ("/data", "/database/a.mp4", True),
        ("/data", "file:///etc/passwd", True),
        ("/data", "http://169.254.169.254/latest", True),
        ("data", "../secret.mp4", True),
        ("/", "/anywhere/a.mp4", False),
        ("s3://bucket/faces", "a.mp4", False),
        ("s3://bucket/faces", "s3://bucket/faces/a.mp4", False),
        ("s3://bucket/faces", "s3://bucket/other/a.mp4", True),
        ("s3://bucket/faces", "../other/a.mp4", True),
        ("s3://bucket/faces", "s3://bucket/faces/../other/a.mp4", True),
        ("s3://bucket/faces", "file:///etc/passwd", True),
    ],
)
def test_a_path_that_leads_out_of_the_root_is_refused_when_read(
    root: str, path: str, outside: bool, tmp_path: Path
) -> None:
    row = {"video": "a", "path": path, "dataset": "toy", "frames": 4, "height": 8, "width": 8}
    build([row], (), root, "toy").write(tmp_path / "toy.parquet")
    if outside:
        with pytest.raises(ManifestError, match="must lie below the root"):
            Manifest.read(tmp_path / "toy.parquet")
    else:
        Manifest.read(tmp_path / "toy.parquet")


def test_a_root_of_ones_own_allows_what_lies_below_it(tmp_path: Path) -> None:
    row = {"video": "a", "path": "/elsewhere/a.mp4", "dataset": "toy", "frames": 4, "height": 8, "width": 8}
    build([row], (), "/data", "toy").write(tmp_path / "toy.parquet")
    for root in ("/", "/elsewhere"):
        assert Manifest.read(tmp_path / "toy.parquet", root=root).root == root


def test_joined_sets_have_the_root_that_holds_all() -> None:
    row = {"video": "a", "path": "a.mp4", "dataset": "toy", "frames": 4, "height": 8, "width": 8}

    def joined(*roots: str) -> Manifest:
        return concat([build([row | {"dataset": root}], (), root, "toy") for root in roots])

    assert joined("/data/a", "/data/b").root == "/data"
    assert joined("/data/a", "/data/b").column("path") == ["/data/a/a.mp4", "/data/b/a.mp4"]
    assert joined("s3://a", "s3://b/c").root == "s3://"
    assert joined("s3://a", "/data").root == ""
