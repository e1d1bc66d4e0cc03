"""Gaze360 in its owner's layout: each labelled frame ends a clip of real files, and nothing is lost unsaid."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from mien.data_pipelines import decode, reading
from mien.data_pipelines.annotation_files import angles_to_vector
from mien.data_pipelines.audit import CheckConfig, audit
from mien.data_pipelines.datasets import gaze360
from mien.data_pipelines.datasets.gaze360 import Gaze360Config
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.probing import DatasetError
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.data_pipelines.splits import SplitConfig, SplitError, split

Make = Callable[..., Path]
TRAIN, VAL, TEST, UNUSED = range(4)
Row = tuple[str, int, int, int, float, float]  # recording, person, frame, split, pitch and yaw in degrees

# Two recordings with a person 1 each; in the first, frames 5 and 6 and 12 to 20 are missing.
FRAMES = {("rec_000", 1): [*range(0, 5), *range(7, 12), *range(21, 24)], ("rec_002", 1): [*range(40, 60)]}
ROWS: list[Row] = [
    *(("rec_000", 1, frame, UNUSED, 0, 0) for frame in (0, 1, 2)),
    ("rec_000", 1, 3, TRAIN, 10, 20),
    ("rec_000", 1, 4, TRAIN, 0, -89),
    ("rec_000", 1, 7, TRAIN, -30, 100),
    ("rec_000", 1, 11, TRAIN, 5, -10),
    ("rec_000", 1, 22, TRAIN, 0, 0),
    ("rec_002", 1, 41, VAL, 0, 30),
    ("rec_002", 1, 59, VAL, 0, 15),
]


def directions(rows: list[Row]) -> np.ndarray:
    return angles_to_vector(np.radians([row[4:] for row in rows]))


def write_metadata(root: Path, rows: list[Row], **changes: Any) -> Path:
    recordings = sorted({row[0] for row in rows} | {"rec_001"})
    table = {
        "ts": np.zeros(len(rows)),
        "recordings": np.array(recordings, object),
        "recording": [recordings.index(row[0]) for row in rows],
        "person_identity": [row[1] for row in rows],
        "frame": [row[2] for row in rows],
        "split": [row[3] for row in rows],
        "splits": np.array(["train", "val", "test", "unused"]),
        "gaze_dir": directions(rows),
    }
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "metadata.mat", {name: value for name, value in (table | changes).items() if value is not None})
    return root


def write_lists(folder: Path, rows: list[Row], path: str = "{}/head/{:06d}/{:06d}.jpg", **names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in enumerate(("train", "validation", "test")):
        chosen = [row for row in rows if row[3] == part]
        vectors = directions(chosen) if chosen else []
        lines = [
            f"{path.format(*row[:3])} {x:.15f} {y:.15f} {z:.15f} \n"
            for row, (x, y, z) in zip(chosen, vectors, strict=True)
        ]
        (folder / f"{names.get(name, name)}.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def root(tmp_path: Path, make_frames: Make) -> Path:
    for (recording, person), numbers in FRAMES.items():
        for number in numbers:  # the head comes nearer: the crops grow
            folder = tmp_path / f"imgs/{recording}/head/{person:06d}"
            make_frames(folder, 1, 40 + number, 30 + number, "{:06d}.jpg", number)
    return write_metadata(tmp_path, ROWS)


def read(root: Path, **settings: Any) -> Manifest:
    return gaze360.read(Gaze360Config(root=str(root), threads=2, **settings))


def files_of(manifest: Manifest) -> dict[str, list[int]]:
    """Return the frame numbers of each clip, as the decoder counts them."""
    found = {}
    for row in manifest.rows():
        files = decode.frame_files(Path(manifest.root) / row["path"])[row["start"] :][: row["frames"]]
        found[row["video"]] = [int(file.stem) for file in files]
    return found


def test_a_clip_is_real_frames_that_end_with_the_labelled_one(root: Path) -> None:
    manifest = read(root)
    assert files_of(manifest) == {
        "rec_000/000001/000003": [0, 1, 2, 3],
        "rec_000/000001/000004": [0, 1, 2, 3, 4],
        "rec_000/000001/000007": [0, 1, 2, 3, 4, 7],  # a gap of 3
        "rec_000/000001/000011": [0, 1, 2, 3, 4, 7, 8, 9, 10, 11],
        "rec_000/000001/000022": [21, 22],  # a gap of 10 is too large
        "rec_002/000001/000041": [40, 41],
        "rec_002/000001/000059": list(range(44, 60)),  # no longer than 16
    }
    assert manifest.column("split") == ["train"] * 5 + ["val"] * 2 and manifest.classes == ()
    assert manifest.notes == (
        "3 frames of split unused only stand in clips of others",
        "a clip ends with the frame its gaze is of: train and evaluate with sampling.rule=ending (7 clips)",
        "clips with fewer than 16 frames, whose first is repeated in front: 6",
        "clips that leap over missing frames, 4 at most in one place: 2",
        "clips with frames of several sizes, brought to that of the last: 7",
    )


@pytest.mark.parametrize(
    ("max_gap", "expected"), [(1, [7]), (2, [7]), (3, [0, 1, 2, 3, 4, 7]), (100, [0, 1, 2, 3, 4, 7])]
)
def test_max_gap_says_which_frames_stay_together(root: Path, max_gap: int, expected: list[int]) -> None:
    assert files_of(read(root, max_gap=max_gap))["rec_000/000001/000007"] == expected
    after = files_of(read(root, max_gap=max_gap))["rec_000/000001/000022"]
    assert (after[0] < 20) == (max_gap >= 10)


def test_a_clip_knows_the_gaze_of_its_labelled_frames_and_of_none_behind_a_gap(root: Path) -> None:
    manifest = read(root)
    known = {
        video: {number: round(np.degrees(yaw)) for number, yaw in zip(numbers, yaws, strict=True) if yaw is not None}
        for (video, numbers), yaws in zip(files_of(manifest).items(), manifest.column("frame_yaw"), strict=True)
    }
    assert known == {
        "rec_000/000001/000003": {3: 20},
        "rec_000/000001/000004": {3: 20, 4: -89},
        "rec_000/000001/000007": {3: 20, 4: -89, 7: 100},
        "rec_000/000001/000011": {3: 20, 4: -89, 7: 100, 11: -10},
        "rec_000/000001/000022": {22: 0},  # 4, 7 and 11 stand before a gap of 10
        "rec_002/000001/000041": {41: 30},
        "rec_002/000001/000059": {59: 15},
    }
    # So a model that answers for each frame learns no leap: the windows of training and evaluation hold one track.
    read_frames = ReadConfig(sampling=SamplingConfig(rule="ending", frames=4), root=str(root), frame_gaze=True)
    example = reading.read_train(manifest.row(4), 4, 0, read_frames)
    assert np.degrees(example["gaze"][:, 1]) == pytest.approx([np.nan, np.nan, np.nan, 0], nan_ok=True)


def test_gaze_is_pitch_and_yaw_of_the_vector(root: Path) -> None:
    manifest = read(root)
    labelled = [row for row in ROWS if row[3] != UNUSED]
    assert np.degrees(manifest.column("pitch")) == pytest.approx([row[4] for row in labelled], abs=1e-4)
    assert np.degrees(manifest.column("yaw")) == pytest.approx([row[5] for row in labelled], abs=1e-4)


def test_a_number_is_another_person_in_another_recording(root: Path) -> None:
    assert set(read(root).column("subject")) == {"rec_000/000001", "rec_002/000001"}
    assert set(read(root, subject_is="recording").column("subject")) == {"rec_000", "rec_002"}
    # The official validation part validates; a person in both parts is found.
    parts = split(read(root), None, SplitConfig())
    assert parts.val.tolist() == [5, 6] and parts.group == "subject"
    write_metadata(root, [*ROWS, ("rec_000", 1, 23, VAL, 0, 0)])
    with pytest.raises(SplitError, match="must not share a subject"):
        split(read(root), None, SplitConfig())


@pytest.mark.parametrize(("subset", "kept"), [("all", 7), ("front180", 6), ("front_facing", 4)])
def test_a_subset_is_a_range_of_yaw_in_every_part(root: Path, subset: str, kept: int) -> None:
    manifest = read(root, subset=subset)
    assert len(manifest) == kept
    limit = {"all": 180, "front180": 90, "front_facing": 20}[subset]
    assert np.abs(np.degrees(manifest.column("yaw"))).max() <= limit + 1e-4
    told = [note for note in manifest.notes if note.startswith("subset")]
    expected = f"subset {subset}: {kept} of 7 labelled frames, those with |yaw| <= {limit} degrees"
    assert told == ([] if subset == "all" else [expected])
    # Frames outside of it are still what comes before the others.
    assert files_of(manifest)["rec_000/000001/000011"] == files_of(read(root))["rec_000/000001/000011"]


def test_clips_of_growing_heads_are_read_at_the_size_of_their_last_frame(root: Path, which: Any) -> None:
    manifest = read(root)
    row = manifest.row(3)
    assert (row["height"], row["width"]) == (51, 41)
    config = ReadConfig(sampling=SamplingConfig(rule="ending", frames=4), size=32, root=str(root))
    sources = reading.load_manifest(manifest, range(len(manifest)), str(root))
    for source in (None, sources.source(3)):
        example = reading.read_train(row, 3, 0, config, source)
        assert example["clip"].shape == (4, 32, 32, 3)
        assert np.degrees(example["gaze"]) == pytest.approx([5, -10], abs=1e-4)
        (view,) = reading.read_views(row, 3, config, source)
        assert view["clip"].shape == (4, 32, 32, 3)
    last = decode.read(root / row["path"], [row["start"] + row["frames"] - 1])
    assert np.array_equal(decode.read(root / row["path"], [0, 9], (51, 41))[1], last[0])


def test_lists_of_the_code_release_say_the_same_as_the_metadata(root: Path) -> None:
    expected = read(root).fingerprint()
    write_lists(root / "code", ROWS)
    found = read(root, labels="code")
    assert found.fingerprint() == expected
    # Windows separators, a prefix, frames without padding, lines in any order, and lines that stand there twice.
    write_lists(root / "other", [*ROWS[::-1], ROWS[3]], "D:\\my data\\imgs\\{}\\head\\{:06d}\\{}.jpg", validation="val")
    found = read(root, labels=str(root / "other"))
    assert found.fingerprint() == expected
    assert found.notes[:2] == ("\\ in paths read as /", "labels that stand there twice count once: 1")


def test_files_without_padding_are_counted_by_number(root: Path) -> None:
    expected = read(root).fingerprint()
    for path in list((root / "imgs").rglob("*.jpg")):
        path.rename(path.with_name(f"{int(path.stem)}.jpg"))
    assert read(root).fingerprint() == expected


def test_missing_frames_are_listed_unless_they_may_be_missing(root: Path) -> None:
    (root / "imgs/rec_000/head/000001/000007.jpg").unlink()
    (root / "imgs/rec_002").rename(root / "elsewhere")
    told = (
        r"3 of 7 are not.*allow_missing.*\n.*000007\.jpg: is missing\n.*rec_002/head/000001: is missing; none of its 2"
    )
    with pytest.raises(DatasetError, match=told):
        read(root)
    manifest = read(root, allow_missing=True)
    assert "labelled frames left out, missing or unreadable: 3" in manifest.notes
    assert [item.path for item in manifest.rejected] == [
        "imgs/rec_000/head/000001/000007.jpg",
        "imgs/rec_002/head/000001",
    ]
    # What is missing makes the gap larger, and nothing takes its place.
    assert files_of(manifest)["rec_000/000001/000011"] == [0, 1, 2, 3, 4, 8, 9, 10, 11]


def test_a_broken_frame_ends_the_clips_behind_it_and_is_listed(root: Path) -> None:
    folder = root / "imgs/rec_000/head/000001"
    (folder / "000009.jpg").write_bytes(b"")
    (folder / "cover.jpg").write_bytes((folder / "000008.jpg").read_bytes())
    cv2.imwrite(str(folder / "22.png"), np.zeros((9, 9, 3), np.uint8))
    manifest = read(root, allow_missing=True)
    assert files_of(manifest)["rec_000/000001/000011"] == [10, 11]
    rejected = {Path(item.path).name: item.reason for item in manifest.rejected}
    assert rejected["000009.jpg"] == "000009.jpg is empty (0 bytes); no label is lost, but clips begin after it"
    assert "its name is not a number" in rejected["cover.jpg"]
    assert rejected["000022.jpg"] == "is there twice, as 000022.jpg and 22.png: remove one of them"
    assert "rec_000/000001/000022" not in files_of(manifest)
    # An unlabelled frame alone is told, and stops nothing.
    (folder / "22.png").unlink()
    assert len(read(root)) == 7 and len(read(root).rejected) == 2


def test_a_gaze_that_is_no_direction_is_rejected(root: Path) -> None:
    vectors = directions(ROWS)
    vectors[4], vectors[5], vectors[0] = np.nan, vectors[5] * 0.9, np.nan
    write_metadata(root, ROWS, gaze_dir=vectors)
    with pytest.raises(DatasetError, match=r"2 of 7 are not.*\n.*000004\.jpg: its gaze must be.*length 1, but is nan"):
        read(root)
    assert len(read(root, allow_missing=True)) == 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gaze_dir": None, "frame": None}, "there is no frame, gaze_dir: restore the released file"),
        ({"frame": [1, 2]}, r"a row for each frame.*gaze_dir 10, recording 10, person_identity 10, frame 2, split 10"),
        ({"split": [7] * 10}, "split counts 4 names from 0, but it goes from 7 to 7"),
        ({"splits": np.array(["a", "b", "c", "d"])}, "splits are named train, val, test, unused, but they are a, b, c"),
        ({"split": [UNUSED] * 10}, "some frame must be labelled, but of 10 .* none is in train"),
        ({"frame": [3] * 10, "person_identity": [1] * 10}, "a frame has one gaze and is in one part.*000003.jpg is in"),
    ],
)
def test_metadata_that_is_not_as_documented_is_refused(root: Path, changes: dict[str, Any], told: str) -> None:
    write_metadata(root, ROWS, **changes)
    with pytest.raises(DatasetError, match=told):
        read(root)


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"not a Matlab file" * 20, b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM"]
)
def test_damaged_metadata_is_refused(root: Path, content: bytes) -> None:
    (root / "metadata.mat").write_bytes(content)
    with pytest.raises(DatasetError, match=r"metadata\.mat: metadata.mat is a Matlab file .*cannot be read"):
        read(root)
    write_metadata(root, ROWS)
    whole = (root / "metadata.mat").read_bytes()
    for end in range(0, len(whole) - 1, 97):
        (root / "metadata.mat").write_bytes(whole[:end])
        with warnings.catch_warnings(), pytest.raises(DatasetError, match=r"metadata\.mat"):
            warnings.simplefilter("ignore")
            read(root)


def test_lists_that_are_not_all_there_or_hold_other_lines_are_refused(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no train\.txt, validation\.txt, test\.txt: set labels"):
        read(root, labels=".", allow_missing=True)
    lists = write_lists(root / "code", ROWS)
    (lists / "train.txt").rename(lists / "old.txt")
    with pytest.raises(DatasetError, match=r"there is no train\.txt: set labels.*allow_missing"):
        read(root, labels="code")
    found = read(root, labels="code", allow_missing=True)
    assert found.notes[0] == "there is no train.txt" and set(found.column("split")) == {"val"}
    for line in ("rec_000/head/000001/000003.jpg 0 0", "rec_000/000003.jpg 0 0 -1", "rec_000/head/000001/a.jpg 0 0 -1"):
        (lists / "train.txt").write_text(f"\n{line}\n")
        with pytest.raises(DatasetError, match=rf"train\.txt:2: a line is rec_000.* but this one is '{line}'"):
            read(root, labels="code")


@pytest.mark.parametrize("read_frames", ["some", "all"])
def test_an_audit_reads_crops_that_grow_and_tells_how_many_clips_hold_them(
    root: Path, read_frames: Literal["some", "all"]
) -> None:
    manifest = read(root)
    found = audit(manifest, CheckConfig(read=read_frames, threads=2))
    assert found.unreadable == ()
    (note,) = [finding for finding in found.findings if "several sizes" in finding.what]
    assert note.severity == "note" and note.count == len(manifest)
    assert not [finding for finding in found.findings if "another size than the manifest" in finding.what]
    # A frame that is damaged is still unreadable, not of another size.
    (root / "imgs/rec_002/head/000001/000041.jpg").write_bytes(b"\xff\xd8 no more")
    damaged = audit(manifest, CheckConfig(read=read_frames, threads=2))
    assert [manifest.column("video")[row] for row, _ in damaged.unreadable] == ["rec_002/000001/000041"]
