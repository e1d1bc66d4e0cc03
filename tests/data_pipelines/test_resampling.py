"""Resizing comes near the published filter, and a map shows what it says it shows."""

import math
from functools import reduce

import cv2
import numpy as np
import pytest
from PIL import Image

from mien.data_pipelines.resampling import Step, resizing, warping


def noisy(size: int) -> np.ndarray:
    """Return two frames with structure at every scale, the finest included."""
    rng = np.random.default_rng(0)
    small = rng.integers(40, 216, (2, 12, 12, 3), dtype=np.uint8)
    smooth = np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC) for frame in small])
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def stepped(clip: np.ndarray, steps: list[Step]) -> np.ndarray:
    """Return every frame of a clip after all steps."""
    return np.stack([reduce(lambda frame, step: step(frame), steps, frame) for frame in clip])


def resize(clip: np.ndarray, size: int) -> np.ndarray:
    return stepped(clip, [resizing(*clip.shape[1:3], size)])


def warp(clip: np.ndarray, matrix: np.ndarray, size: int, fill: int) -> np.ndarray:
    return stepped(clip, [warping(*clip.shape[1:3], matrix, size, fill)])


def by_pillow(clip: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).resize((size, size), Image.Resampling.BILINEAR)) for f in clip])


@pytest.mark.parametrize("side", [48, 64, 100, 160, 178, 200, 224, 256, 320, 360, 720])
def test_resizing_is_near_pillows_bilinear_filter(side: int) -> None:
    clip = noisy(side)
    found, expected = resize(clip, 160), by_pillow(clip, 160)
    error = np.abs(found.astype(int) - expected).mean()
    by_area = np.stack([cv2.resize(frame, (160, 160), interpolation=cv2.INTER_AREA) for frame in clip])
    bare = np.stack([cv2.resize(frame, (160, 160), interpolation=cv2.INTER_LINEAR) for frame in clip])
    assert error < 1.7
    assert error <= max(0.6, 1.5 * np.abs(by_area.astype(int) - expected).mean())
    if side > 200:  # where taking two pixels of many would show
        assert error < 0.62 * np.abs(bare.astype(int) - expected).mean()


def test_resizing_stretches_and_leaves_what_fits() -> None:
    clip = noisy(160)
    assert np.array_equal(resize(clip, 160), clip)
    wide = resize(clip[:, :80], 40)
    assert wide.shape == (2, 40, 40, 3)
    thin = resize(clip[:, :, :30], 40)  # one side grows, the other is a quarter
    assert np.abs(thin.astype(int) - by_pillow(clip[:, :, :30], 40)).mean() < 4


def test_a_map_of_nothing_is_resizing() -> None:
    clip = noisy(96)
    for size in (64, 96, 150):
        same = warp(clip, np.eye(3), size, fill=0)
        assert np.abs(same.astype(int) - resize(clip, size)).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (480, 360), (100, 640), (640, 120)])
def test_large_frames_are_averaged_also_through_a_map_and_where_one_side_grows(height: int, width: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    noise = by_pillow(frame, 160).std()  # of what nothing averages it is 74
    angle = math.radians(20)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0.2], [math.sin(angle), math.cos(angle), -0.1], [0, 0, 1]])
    assert resize(frame, 160).std() < 1.6 * noise
    assert warp(frame, np.eye(3), 160, fill=128).std() < 1.6 * noise
    assert warp(frame, turn, 160, fill=128)[:, 60:100, 60:100].std() < 1.6 * noise


def test_a_map_takes_its_points_from_where_it_says_and_fill_from_outside() -> None:
    # Red is the column, green the row: a pixel tells where it came from.
    ramp = np.arange(200, dtype=np.uint8)
    frame = np.stack([*np.meshgrid(ramp, ramp), np.full((200, 200), 9, np.uint8)], axis=-1)
    matrix = np.array([[0.4, -0.2, 0.3], [0.1, 0.5, 0.2], [0, 0, 1]])
    (shown,) = warp(frame[None], matrix, 50, fill=128)
    for row, column in ((0, 0), (10, 40), (49, 49), (25, 3)):
        x, y, _ = matrix @ [(column + 0.5) / 50, (row + 0.5) / 50, 1]
        assert shown[row, column, :2].astype(float) == pytest.approx([200 * x - 0.5, 200 * y - 0.5], abs=1)
    right = np.array([[1, 0, 0.5], [0, 1, 0], [0, 0, 1]])
    (moved,) = warp(frame[None], right, 200, fill=128)
    assert (moved[:, 101:] == 128).all() and (moved[:, :99, 2] == 9).all()


def test_edges_bear_no_fill() -> None:
    # Enlarged, the outermost pixels lie outside the middles of the frame's, but inside the frame.
    clip = np.full((1, 10, 10, 3), 200, np.uint8)
    assert (warp(clip, np.eye(3), 64, fill=0) == 200).all()
    assert (warp(clip, np.array([[1, 0, 0], [0, -1, 1], [0, 0, 1]]), 64, fill=0) == 200).all()
