"""What is said of a video against the clips that a run learned from."""

from typing import Any

import numpy as np
import pytest

from mien.data_pipelines.face_tracks import Track
from mien.data_pipelines.faces import MARGIN
from mien.data_pipelines.timed_windows import WindowPlan
from mien.data_pipelines.video_distance import distance, learned_rate, margin_like

LEARNED = {"fps": [25] * 7, "width": [224] * 7, "height": [224] * 7, "crop_margin": 0.15, "shorter_than_span": 0.0}


def lines(side: float, **other: Any) -> str:
    tracks = [Track(0, np.tile(np.float32([50, 50, 0.8 * side, side]), (200, 1)), 1, 1, 1.0)]
    given: dict[str, Any] = {"fps": 50.0, "learned_fps": 25.0, "stride": 4, "margin": 0.15, "size": 160}
    given |= {"learned": LEARNED, "confidence": (0.5, 0.8)}
    return "\n".join(distance(WindowPlan(16, 8.0, 32), tracks, **given | other))


def test_a_video_like_the_training_clips_differs_in_nothing() -> None:
    found = lines(224 / 1.3)
    assert "every 8 of 50 frames/s, as long as in training (every 4 of 25 frames/s)" in found
    assert "50% on average, on validation clips 80%" in found
    assert "nothing that is known to matter differs" in found and "enlarged" not in found


def test_small_faces_other_margins_and_short_tracks_are_told() -> None:
    assert "100% are enlarged" in lines(40)
    assert "margin of the crops: trained on 0.15, here 0.4" in lines(224 / 1.8, margin=0.4)
    assert "clips shorter than what a clip covers" in "\n".join(
        distance(
            WindowPlan(16, 8.0, 32),
            [Track(0, np.ones((20, 4), np.float32), 1, 1, 1.0)],
            fps=50.0, learned_fps=25.0, stride=4, margin=0.15, size=16, learned=LEARNED, confidence=(None, None),
        )
    )  # fmt: skip


def test_what_is_not_known_is_said() -> None:
    assert "do not say their rate" in lines(100, learned_fps=None)
    assert "not recorded" in lines(100, learned=None)
    assert learned_rate(None) is None and learned_rate({"fps": None}) is None and learned_rate(LEARNED) == 25


def test_faces_are_cropped_as_the_training_clips_were() -> None:
    tracks = [Track(0, np.tile(np.float32([50, 50, 80, 100]), (10, 1)), 1, 1, 1.0)]
    assert margin_like({"crop_margin": 0.3, "faces": {"shares": [0.5] * 7}}, tracks) == 0.3
    found = margin_like({"crop_margin": None, "faces": {"shares": [0.5] * 7}}, tracks)
    assert 80 * 100 / (100 * (1 + 2 * found)) ** 2 == pytest.approx(0.5, abs=0.002)
    assert margin_like({"faces": {"shares": [0.9] * 7}}, tracks) == 0
    for nothing in (None, {}, {"faces": None, "crop_margin": None}):
        assert margin_like(nothing, tracks) == MARGIN
    assert margin_like({"faces": {"shares": [0.5] * 7}}, []) == MARGIN
