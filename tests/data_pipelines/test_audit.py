"""An audit finds every fault that is planted, says how grave it is, and finds none where there is none."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mien.data_pipelines import audit_faces, duplicates
from mien.data_pipelines.audit import Audit, CheckConfig, audit
from mien.data_pipelines.audit_parts import known_classes
from mien.data_pipelines.face_detector import DetectorMissingError
from mien.data_pipelines.findings import Finding
from mien.data_pipelines.manifest import Manifest, Rejected, build
from mien.data_pipelines.preparers import DATASETS
from mien.data_pipelines.splits import SplitConfig

CLASSES = ("a", "b", "c")
FRAMES, SIZE = 20, 64
Row = dict[str, Any]


@pytest.fixture(autouse=True)
def no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let findings be the same whether the detector is installed or not: these clips show no faces."""

    def absent(_: float) -> audit_faces.Detector:
        raise DetectorMissingError

    monkeypatch.setitem(audit_faces.DETECTORS, "centerface", absent)


def pictures(seed: int, moving: bool = True) -> np.ndarray:
    """Return a clip (t, h, w, 3) of soft blots, a pattern a seed, that drift across the frame or stand still."""
    rng = np.random.default_rng(seed)
    board = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (3 * SIZE, 3 * SIZE))
    steps = np.outer(np.arange(FRAMES) * moving, rng.uniform(1, 3, 2)).astype(int)
    return np.stack([board[y : y + SIZE, x : x + SIZE] for y, x in steps])


def write(folder: Path, clip: np.ndarray, quality: int = 92, scale: float = 1) -> Path:
    folder.mkdir(parents=True)
    for index, frame in enumerate(clip):
        sized = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        assert cv2.imwrite(str(folder / f"{index}.jpg"), sized, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Return 30 clips of ten persons in five folds, each class once a person; every second clip stands still."""
    root = tmp_path_factory.mktemp("clean")
    rows = []
    for index in range(30):
        path = write(root / f"{index:02d}", pictures(index, moving=index % 2 == 0)).name
        row = {"video": path, "path": path, "dataset": "toy", "label": index % 3, "subject": f"p{index // 3}"}
        rows.append(row | {"frames": FRAMES, "height": SIZE, "width": SIZE, "fold": index // 3 % 5 + 1, "fps": 25.0})
    return build(rows, CLASSES, root, "toy")


Add = Callable[..., Manifest]


@pytest.fixture
def added(clean: Manifest, tmp_path: Path) -> Add:
    """Return a function that gives the clean manifest one more clip, encoded anew from a clip of the manifest."""

    def add(of: int, quality: int | None = None, scale: float = 1, **changes: Any) -> Manifest:
        row = clean.row(of)
        if quality is None:
            path = Path(shutil.copytree(Path(clean.root) / row["path"], tmp_path / "one more"))
        else:
            path = write(tmp_path / "one more", pictures(of, moving=of % 2 == 0), quality, scale)
        size = {"height": round(SIZE * scale), "width": round(SIZE * scale)}
        return build(
            [*clean.rows(), row | size | {"video": "new", "path": str(path)} | changes], CLASSES, clean.root, "t"
        )

    return add


def of(found: Audit, check: str, severity: str, words: str) -> Finding:
    """Return the one finding of a check that says `words`, and see that it is as grave as it should be."""
    (one,) = [finding for finding in found.findings if finding.check == check and words in finding.what]
    assert one.severity == severity and (one.remedy or severity == "note")
    return one


def errors(found: Audit) -> set[str]:
    return {finding.check for finding in found.findings if finding.severity == "error"}


@pytest.mark.parametrize("read", ["none", "some", "all"])
def test_a_clean_manifest_has_no_errors_and_no_warnings(clean: Manifest, read: Any) -> None:
    seen = []
    found = audit(clean, CheckConfig(read=read), lambda done, total: seen.append((done, total)))
    assert [finding for finding in found.findings if finding.severity != "note"] == []
    assert found.duplicates == () and found.unreadable == ()
    # No file is opened where none is asked for.
    assert seen == ([] if read == "none" else [(count, 30) for count in range(1, 31)])
    assert found.inputs["toy"]["frames"] == {"min": 20, "median": 20.0, "max": 20}


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "val"), ("val", "test")])
def test_a_person_in_two_parts_is_found(clean: Manifest, one: str, other: str) -> None:
    parts = {0: "train", 1: "val", 2: "test"}
    rows = [row | {"fold": None, "split": parts[index // 3 % 3]} for index, row in enumerate(clean.rows())]
    rows[3 * list(parts.values()).index(one)]["subject"] = rows[3 * list(parts.values()).index(other)]["subject"]
    found = audit(build(rows, CLASSES, clean.root, "toy"), CheckConfig(read="none"))
    severity = "warning" if (one, other) == ("val", "test") else "error"
    assert of(found, "subjects", severity, f"in {one} and in {other}").count == 1


def test_a_person_in_two_folds_is_found_and_unknown_persons_are_said(clean: Manifest) -> None:
    rows = clean.rows()
    rows[0]["fold"] = 2
    found = audit(build(rows, CLASSES, clean.root, "toy"), CheckConfig(read="none"))
    finding = of(found, "subjects", "error", "in train and in test")
    assert finding.examples == ("p0 (fold 1, fold 2)",) and "folds=5" in finding.remedy
    unknown = build([row | {"subject": None} for row in rows], CLASSES, clean.root, "toy")
    assert of(audit(unknown, CheckConfig(read="none")), "subjects", "warning", "do not say who").count == 30


def test_the_leaky_protocol_is_named_not_blamed(clean: Manifest) -> None:
    found = audit(clean, CheckConfig(read="none", split=SplitConfig(protocol="leaky", validation_ratio=0.4)))
    assert "leaky" in of(found, "subjects", "note", "in train and in val").remedy


def test_validation_that_is_the_test_part_is_found_by_rows_by_files_and_by_content(clean: Manifest) -> None:
    paper = audit(clean, CheckConfig(read="none", split=SplitConfig(protocol="paper")))
    assert of(paper, "validation", "warning", "validate and test").count == 30
    assert paper.errors == 0
    rows = [row | {"fold": None, "split": "test" if index < 6 else "train"} for index, row in enumerate(clean.rows())]
    copies = [row | {"video": f"val{row['video']}", "split": "val"} for row in rows[:6]]
    files = audit(build([*rows, *copies], CLASSES, clean.root, "toy"), CheckConfig(read="none"))
    assert of(files, "validation", "error", "copies of test").examples == ("official parts (6 of 6 clips)",)
    assert of(files, "duplicates", "error", "in val and in test").count == 6
    # The same under other names.
    for row in copies:
        source = Path(clean.root) / row["path"]
        row["path"] = str(source.parent / f"copy {source.name}")
        shutil.copytree(source, row["path"])
    content = audit(build([*rows, *copies], CLASSES, clean.root, "toy"), CheckConfig())
    assert of(content, "validation", "error", "copies of test").count == 1
    assert {group.same for group in content.duplicates} == {"bytes"}
    for row in copies:
        shutil.rmtree(row["path"])


@pytest.mark.parametrize(("quality", "scale"), [(None, 1), (50, 1), (75, 0.5), (75, 2), (90, 2.7)])
def test_a_duplicate_is_found_after_another_compression_and_at_another_size(
    added: Add, quality: int | None, scale: float
) -> None:
    found = audit(added(4, quality, scale, fold=5, subject="x"), CheckConfig())
    (group,) = found.duplicates
    assert (group.rows, group.where, group.folds) == ((4, 30), "train and test", ("fold 2", "fold 5"))
    assert group.same == ("bytes" if quality is None else "pictures")
    assert "04, new" in of(found, "duplicates", "error", "in train and in test").examples[0]


def test_a_duplicate_inside_one_part_weighs_less(added: Add) -> None:
    found = audit(added(4, quality=50), CheckConfig())
    assert found.errors == 0
    assert of(found, "duplicates", "warning", "inside one part").count == 1


def test_still_clips_that_look_alike_are_a_warning_and_equal_bytes_an_error(added: Add, tmp_path: Path) -> None:
    found = audit(added(5, quality=50, fold=5, subject="x"), CheckConfig())
    assert found.duplicates[0].same == "still pictures" and found.errors == 0
    assert of(found, "duplicates", "warning", "hardly move").count == 1
    shutil.rmtree(tmp_path / "one more")
    assert "duplicates" in errors(audit(added(5, fold=5, subject="x"), CheckConfig()))


def test_the_same_frames_in_another_order_are_another_clip(clean: Manifest, added: Add, tmp_path: Path) -> None:
    manifest = added(4)
    shutil.rmtree(tmp_path / "one more")
    write(tmp_path / "one more", pictures(4)[::-1])
    assert audit(manifest, CheckConfig()).duplicates == ()


def test_duplicates_with_different_labels_are_found(added: Add) -> None:
    found = audit(added(4, quality=60, label=2), CheckConfig())
    assert found.duplicates[0].labels == (1, 2)
    assert ": b, c" in of(found, "labels", "error", "bear different labels").examples[0]


def test_clips_that_overlap_in_one_file_are_no_duplicates_but_may_not_be_shared(clean: Manifest) -> None:
    rows = [row | {"subject": None, "frames": 16} for row in clean.rows()]
    rows.append(rows[4] | {"video": "later", "start": 2})
    assert audit(build(rows, CLASSES, clean.root, "toy"), CheckConfig()).duplicates == ()
    rows[-1]["fold"] = 5
    found = audit(build(rows, CLASSES, clean.root, "toy"), CheckConfig())
    assert found.duplicates == () and of(found, "files", "error", "in train and in test").count == 1


def test_class_lists_that_differ_from_the_datasets_are_found(clean: Manifest) -> None:
    known = known_classes("dfew")
    assert known is not None

    def findings(classes: tuple[str, ...]) -> Audit:
        rows = [row | {"dataset": "dfew", "label": index % 7} for index, row in enumerate(clean.rows())]
        return audit(build(rows, classes, clean.root, "dfew"), CheckConfig(read="none"))

    assert "class list" not in {finding.check for finding in findings(known).findings}
    swapped = of(findings((known[1], known[0], *known[2:])), "class list", "error", "another place")
    assert swapped.count == 2 and swapped.examples[0].startswith("manifest: Sad, Happy")
    of(findings(tuple(name.upper() for name in known)), "class list", "note", "written otherwise")
    of(findings((*known[:6], "contempt")), "class list", "warning", "not among dfew's 7")


def test_every_datasets_own_class_list_is_known() -> None:
    lists = {name: known_classes(name) for name in DATASETS}
    assert lists["dfew"] and lists["videos"] is None
    assert known_classes("toy") is None


def test_a_folder_named_as_another_class_is_found(clean: Manifest) -> None:
    rows = [row | {"path": f"{CLASSES[row['label']].upper()}/{row['path']}"} for row in clean.rows()]
    assert audit(build(rows, CLASSES, clean.root, "toy"), CheckConfig(read="none")).errors == 0
    found = audit(build(rows, ("b", "a", "c"), clean.root, "toy"), CheckConfig(read="none"))
    assert of(found, "labels", "error", "folder named after another class").count == 20


@pytest.mark.parametrize("read", ["some", "all"])
def test_unreadable_files_are_found(added: Add, tmp_path: Path, read: Any) -> None:
    manifest = added(4, fold=5, subject="x")
    (tmp_path / "one more" / "7.jpg").write_bytes(b"no picture")  # not among the five frames that are looked at
    found = audit(manifest, CheckConfig(read=read))
    assert ["7.jpg" in reason for _, reason in found.unreadable] == ([True] if read == "all" else [])
    (tmp_path / "one more" / f"{FRAMES - 1}.jpg").unlink()
    found = audit(manifest, CheckConfig(read=read))
    assert of(found, "unreadable", "error", "cannot be read").count == 1
    ((row, reason),) = found.unreadable
    assert row == 30 and "holds 19 frames" in reason
    # One in 31 would not end a pretraining.
    unlabelled = build([row | {"label": None, "fold": None} for row in manifest.rows()], (), manifest.root, "toy")
    assert of(audit(unlabelled, CheckConfig(read=read)), "unreadable", "warning", "cannot be read").count == 1


def test_files_that_have_changed_their_size_are_found(added: Add) -> None:
    found = audit(added(4, quality=80, scale=2, height=SIZE, width=SIZE), CheckConfig())
    assert of(found, "sizes", "warning", "another size").examples == ("new: 128x128, manifest 64x64",)


def test_a_class_that_a_fold_lacks_is_found(clean: Manifest) -> None:
    rows = [row for row in clean.rows() if not (row["fold"] == 2 and row["label"] == 2)]
    found = audit(build(rows, CLASSES, clean.root, "toy"), CheckConfig(read="none"))
    assert of(found, "classes", "warning", "in a test part").examples == ("c (fold 2)",)
    assert found.class_counts["fold 2"]["test"] == [2, 2, 0]
    nobody = build(clean.rows(), (*CLASSES, "d"), clean.root, "toy")
    found = audit(nobody, CheckConfig(read="none"))
    assert of(found, "classes", "error", "in a train part").count == 5
    assert "none of d" in of(found, "parts", "error", "cannot be split").what


def test_lengths_rates_and_rejected_files_are_told(clean: Manifest) -> None:
    rows = [row | {"frames": 16, "fps": 60.0 if index else 25.0} for index, row in enumerate(clean.rows())]
    manifest = replace(build(rows, CLASSES, clean.root, "toy"), rejected=(Rejected("x.mp4", "is empty"),))
    found = audit(manifest, CheckConfig(read="none", clip_frames=20))
    assert of(found, "frames", "note", "shorter than 20").count == 30
    assert "46/50" in of(found, "frames", "warning", "exactly 16").remedy
    assert of(found, "fps", "warning", "frame rates").examples == ("60.0 (29)", "25.0 (1)")
    assert of(found, "rejected", "note", "left out").examples == ("x.mp4: is empty",)


def test_pairs_are_found_among_many_and_large_groups_stay_cheap() -> None:
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (3000, duplicates.FRAMES, 2, 2)).repeat(8, axis=2).repeat(8, axis=3)
    clips = np.clip(clips + rng.normal(0, 20, clips.shape), 0, 255).astype(np.uint8)
    clips[2000:2100] = np.clip(clips[:100] + rng.normal(0, 2, clips[:100].shape), 0, 255)
    clips[2500:] = 0
    pairs, sure = duplicates.near_pairs(clips, np.full(3000, 64))
    found = {tuple(pair) for pair, certain in zip(pairs.tolist(), sure, strict=True) if certain}
    assert {pair for pair in found if pair[1] < 2500} == {(index, 2000 + index) for index in range(100)}
    black = [group for group in duplicates.joined([pairs]) if group[0] >= 2500]
    assert len(pairs) < 500 * duplicates.NEIGHBOURS + 101 and [len(group) for group in black] == [500]


def test_nothing_and_one_clip_have_no_pairs() -> None:
    for count in (0, 1):
        shape = (count, duplicates.FRAMES, duplicates.SIDE, duplicates.SIDE)
        pairs, sure = duplicates.near_pairs(np.zeros(shape, np.uint8), np.full(count, 64))
        assert pairs.shape == (0, 2) and len(sure) == 0
    assert duplicates.joined([duplicates.equal_pairs([None, None, "a"])]) == []
