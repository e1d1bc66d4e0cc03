"""Told gaze goes with what its teacher does not know; a frame's gaze is found where a clip of its own part ends."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mien.data_pipelines import augment, reading
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.gaze_labels import with_gaze, with_gaze_of_frames
from mien.data_pipelines.manifest import SCHEMA, Manifest, ManifestError, build, concat
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig

NEW = SCHEMA.names[SCHEMA.names.index("fold") + 1 :]


def clip(video: str, end: int, frames: int, **changes: Any) -> dict[str, Any]:
    """Return a row of a clip of some frames that ends with frame number `end`, whose yaw is a hundredth of it."""
    where = {"video": video, "path": "track", "start": end - frames + 1, "frames": frames}
    return {"dataset": "toy", "height": 48, "width": 64, "pitch": 0.0, "yaw": end / 100} | where | changes


def toy(*rows: dict[str, Any], root: str | Path = "/data") -> Manifest:
    return build(rows, (), root, "toy")


def yaws(manifest: Manifest) -> list[list[int | None]]:
    return [[None if yaw is None else round(100 * yaw) for yaw in clip] for clip in manifest.column("frame_yaw")]


def test_a_frames_gaze_is_that_of_the_clip_which_ends_with_it() -> None:
    rows = [clip("a", 2, 3), clip("b", 4, 3), clip("c", 5, 3), clip("other file", 4, 3, path="else", yaw=0.5)]
    made = with_gaze_of_frames(toy(*rows))
    assert yaws(made) == [[None, None, 2], [2, None, 4], [None, 4, 5], [None, None, 50]]
    assert made.column("frame_pitch")[1] == [0, None, 0] and made.column("frame_spread") == [None] * 4
    # What is on the other side of a split is not known, and neither is a clip without gaze.
    rows[1] |= {"split": "test"}
    assert yaws(with_gaze_of_frames(toy(*rows)))[1:3] == [[None, None, 4], [None, None, 5]]
    rows[1] |= {"split": None, "fold": 2, "pitch": None, "yaw": None}
    assert yaws(with_gaze_of_frames(toy(*rows)))[1:3] == [[None, None, None], [None, None, 5]]


def test_told_gaze_comes_back_from_parquet_with_its_spread_and_its_frames(tmp_path: Path) -> None:
    bare = toy(clip("a", 2, 3), clip("b", 4, 1), clip("c", 5, 2))
    frames = pa.table({"row": [0, 0, 0, 2, 2], "pitch": [0.0] * 5, "yaw": [0.1, 0.2, 0.3, 0.4, 0.5]})
    frames = frames.append_column("spread", pa.array([0.5, None, 0.25, 0.0, 0.125], pa.float32()))
    angles_rad = np.array([[0.0, 0.2], [np.nan, np.nan], [0.0, 0.45]])
    made = with_gaze(bare, angles_rad, "told", np.array([0.375, np.nan, 0.0625]), frames)
    assert made.column("gaze_spread") == [0.375, None, 0.0625] and made.column("pitch") == [0, None, 0]
    assert yaws(made.take([0, 2])) == [[10, 20, 30], [40, 50]] and made.column("frame_yaw")[1] is None
    assert made.column("frame_spread") == [[0.5, None, 0.25], None, [0.0, 0.125]] and made.notes == ("told",)
    made.write(tmp_path / "told.parquet")
    assert Manifest.read(tmp_path / "told.parquet") == made and made.row(0) == made.rows()[0]
    joined = concat([made, toy(clip("d", 3, 2), root="/elsewhere")])
    assert joined.column("frame_spread") == [*made.column("frame_spread"), None]
    # Other labels, other clips: what was known of the old ones goes.
    again = with_gaze(made, angles_rad, "anew")
    assert all(again.column(name) == [None] * 3 for name in NEW)
    fingerprints = {bare.fingerprint(), made.fingerprint(), again.fingerprint()}
    fingerprints.add(with_gaze(bare, angles_rad, "", np.array([0.375, np.nan, 0.0625])).fingerprint())
    assert len(fingerprints) == 4


def test_a_manifest_of_version_1_is_read_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    row = {"video": "a", "path": "a.mp4", "dataset": "toy", "subject": "p", "label": 1, "pitch": 0.25, "yaw": -0.5}
    size = {"frames": 9, "height": 48, "width": 64}
    rows = [row | {"fps": 25.0, "split": "train"} | size]
    rows.append({"video": "b", "path": "b.mp4", "dataset": "toy", "fold": 2} | size | {"frames": 20})
    made = build(rows, ("happy", "sad"), "/data", "toy")
    assert made.fingerprint() == "972c0c19c53cc1e2"  # as version 1 computed it
    made.write(tmp_path / "new.parquet")
    table = pq.read_table(tmp_path / "new.parquet")
    about = table.schema.metadata[b"mien"].replace(b'"schema_version": 2', b'"schema_version": 1')
    old = table.drop_columns(NEW).replace_schema_metadata({"mien": about})
    pq.write_table(old, tmp_path / "old.parquet")
    assert Manifest.read(tmp_path / "old.parquet") == made
    pq.write_table(old.replace_schema_metadata({"mien": about.replace(b": 1", b": 3")}), tmp_path / "later.parquet")
    with pytest.raises(ManifestError, match=r"must be 1 or 2, but .*later\.parquet has 3"):
        Manifest.read(tmp_path / "later.parquet")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gaze_spread": -0.1}, "gaze_spread must be at least 0"),
        ({"gaze_spread": float("inf")}, "gaze_spread must be at least 0"),
        ({"frame_yaw": [0.1]}, r"frame_yaw must hold a value for each frame, or null.*a \(frames=2\)"),
    ],
)
def test_rows_that_break_a_rule_are_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ManifestError, match=told):
        toy(clip("a", 2, 2, **changes))


@pytest.fixture
def read(tmp_path: Path, make_frames: Any) -> ReadConfig:
    make_frames(tmp_path / "track", frames=8)
    return ReadConfig(sampling=SamplingConfig(rule="ending", frames=4), size=32, root=str(tmp_path), frame_gaze=True)


def test_frames_bear_their_own_gaze_and_spread_and_a_mirror_turns_all_of_them(read: ReadConfig) -> None:
    row = clip("a", 3, 3, frame_pitch=[0.0, 0.1, 0.2], frame_yaw=[0.5, None, 0.7], frame_spread=[0.25, None, 0.125])
    made = toy(row).row(0)
    example = reading.read_train(made, 0, 0, read)  # the first of three frames is repeated in front
    assert example["gaze"][:, 1] == pytest.approx([0.5, 0.5, np.nan, 0.7], nan_ok=True)
    assert example["gaze_spread"].tolist() == [0.25, 0.25, 0, 0.125] and example["gaze_spread"].dtype == np.float32
    (view,) = reading.read_views(made, 0, read)
    assert np.array_equal(view["gaze"], example["gaze"], equal_nan=True)
    turned = augment.mirrored_gaze(example["gaze"])
    assert turned[:, 1] == pytest.approx([-0.5, -0.5, np.nan, -0.7], nan_ok=True)
    assert np.array_equal(turned[:, 0], example["gaze"][:, 0])
    lost = AugmentConfig(kind="finetune")  # its crops leave no gaze, of no frame
    assert np.isnan(reading.read_train(made, 0, 0, read.model_copy(update={"augment": lost}))["gaze"]).all()


def test_without_gaze_of_frames_a_label_is_the_clips_or_where_clips_end_with_it_the_last_frames(
    read: ReadConfig,
) -> None:
    row = toy(clip("a", 5, 4, gaze_spread=0.25)).row(0)
    last = reading.read_train(row, 0, 0, read)
    assert last["gaze"][:, 1] == pytest.approx([np.nan] * 3 + [0.05], nan_ok=True)
    assert last["gaze_spread"].tolist() == [0, 0, 0, 0.25]
    over = read.model_copy(update={"sampling": SamplingConfig(frames=4, stride=1)})
    every = reading.read_train(row, 0, 0, over)
    assert every["gaze"][:, 1] == pytest.approx([0.05] * 4) and every["gaze_spread"].tolist() == [0.25] * 4
    whole = reading.read_train(row, 0, 0, read.model_copy(update={"frame_gaze": False}))
    assert whole["gaze"].tolist() == pytest.approx([0, 0.05]) and whole["gaze_spread"] == 0.25


def test_a_batch_of_no_clip_has_the_shapes_of_others(read: ReadConfig) -> None:
    manifest = toy(clip("a", 5, 4), root=read.root)
    ((some, _),) = reading.local_batches(manifest, [0], 2, 0, read, steps=1)
    none = reading.collate([], read)
    assert {name: (array.dtype, array.shape[1:]) for name, array in none.items()} == {
        name: (array.dtype, array.shape[1:]) for name, array in some.items()
    }
