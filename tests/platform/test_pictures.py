"""Strips and sheets hold the frames they were given, and files hold what was saved."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.platform import pictures


def ramp(frames: int, height: int = 8, width: int = 6) -> np.ndarray:
    """Return a clip whose frames are as bright as their number."""
    return np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 3))


def test_a_strip_shows_first_and_last_frame_and_even_steps_between() -> None:
    strip = pictures.strip(ramp(16), frames=4, height=8)
    assert strip.shape == (8, 24, 3)
    assert strip[0, ::6, 0].tolist() == [0, 5, 10, 15]


def test_a_short_clip_gives_a_short_strip() -> None:
    assert pictures.strip(ramp(1), frames=8, height=16).shape == (16, 12, 3)


@pytest.mark.parametrize("clip", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)])
def test_a_strip_of_no_clip_is_refused(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="clip"):
        pictures.strip(clip)


def test_a_sheet_holds_its_pictures_on_transparent_paper_beside_their_names() -> None:
    row = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20)]
    sheet = pictures.grid([row, row[:1]], ["input", "masked"], ["a", "b"], height=8, gap=2)
    assert sheet.shape == (18 + 2 + 8 + 2 + 8, 10 + 7 * 6 + 18, 4)
    assert sheet[20, 52].tolist() == [10, 10, 10, 255]
    assert sheet[20, 62].tolist() == [20, 20, 20, 255]
    assert sheet[-1, -1, 3] == 0
    assert sheet[20:28, :52, 3].any()


@pytest.mark.parametrize("rows", [[], [[]]])
def test_an_empty_sheet_is_refused(rows: list) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        pictures.grid(rows)


def test_floats_are_refused_with_what_was_given() -> None:
    with pytest.raises(ValueError, match=r"float32 \(4, 4, 3\)"):
        pictures.grid([[np.zeros((4, 4, 3), np.float32)]])


def test_a_saved_picture_keeps_its_colours(tmp_path: Path) -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    pictures.save(tmp_path / "new" / "red.png", red)
    assert cv2.imread(str(tmp_path / "new" / "red.png"))[0, 0].tolist() == [0, 0, 200]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["red.png"]


def test_a_transparent_sheet_becomes_white_in_a_jpeg(tmp_path: Path) -> None:
    pictures.save(tmp_path / "a.jpg", np.zeros((8, 8, 4), np.uint8))
    assert cv2.imread(str(tmp_path / "a.jpg")).min() > 250


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png or \.jpg"):
        pictures.save(tmp_path / "a.gif", np.zeros((4, 4, 3), np.uint8))


def test_a_large_picture_is_made_small_enough_and_a_small_one_left_alone() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (400, 600, 4), dtype=np.uint8)
    data = cv2.imencode(".png", noise)[1].tobytes()
    assert pictures.shrink(data, len(data)) == data
    assert len(pictures.shrink(data, 30_000, 300)) <= 30_000


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no picture"):
        pictures.shrink(data, 100)
