"""Answers about a frame are averaged as directions, and their spread is the angle between them; parts are whole."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mien.platform.frame_gaze import FRAMES, FrameGaze, agreement, clip_means, clips_table, frames_table
from mien.platform.parts import Parts, PartsError
from mien.platform.scores import angular_error


def test_answers_are_averaged_across_the_back_of_the_head_and_spread_is_their_angle() -> None:
    gaze = FrameGaze(3)
    gaze.add(np.array([0, 1]), np.array([[[0.0, np.pi - 0.01], [0.2, 0.3]]]))
    gaze.add(np.array([0]), np.array([[[0.0, 0.01 - np.pi]]]))
    gaze.add(np.array([2]), np.array([[[0.1, 0.1]], [[0.1, 0.1]]]))
    assert angular_error(gaze.angles(), np.array([[0.0, np.pi], [0.2, 0.3], [0.1, 0.1]])) == pytest.approx(0, abs=1e-5)
    # Two answers 0.02 apart are 0.01 from their mean; one answer has no spread; equal answers have none to speak of.
    assert gaze.spread()[0] == pytest.approx(0.01, rel=1e-3) and np.isnan(gaze.spread()[1])
    assert gaze.spread()[2] == pytest.approx(0, abs=1e-7)


def test_one_answer_of_each_view_can_be_about_all_frames_of_a_window() -> None:
    gaze = FrameGaze(4)
    gaze.add(np.array([0, 1, 2]), np.array([[[0.0, 0.1]], [[0.0, 0.3]]]))
    gaze.add(np.array([1, 2, 3]), np.array([[[0.0, 0.5]], [[0.0, 0.7]]]))
    assert gaze.angles()[:, 1] == pytest.approx([0.2, 0.4, 0.4, 0.6])
    assert gaze.spread() == pytest.approx([0.1, np.sqrt(0.05), np.sqrt(0.05), 0.1], rel=0.02)


def test_the_spread_is_the_root_mean_square_of_small_angles() -> None:
    rng = np.random.default_rng(0)
    answers = np.array([0.3, -0.4]) + 0.02 * rng.standard_normal((40, 1, 2))
    gaze = FrameGaze(1)
    gaze.add(np.array([0]), answers)
    angles = np.radians(angular_error(np.repeat(gaze.angles(), 40, axis=0), answers[:, 0]))
    assert gaze.spread()[0] == pytest.approx(np.sqrt((angles**2).mean()), rel=1e-3)


@pytest.fixture
def frames() -> pa.Table:
    """Return the frames of manifest lines 2 (two frames, one of them with a spread) and 0 (one frame, no spread)."""
    gazes = {2: FrameGaze(2), 0: FrameGaze(1)}
    gazes[2].add(np.array([0, 1]), np.array([[[0.0, 0.1], [0.0, 0.3]]]))
    gazes[2].add(np.array([0]), np.array([[[0.0, 0.1]]]))
    gazes[0].add(np.array([0]), np.array([[[-0.2, 0.0]]]))
    return frames_table([0, 2], ["a", "c"], gazes)


def test_a_clip_gets_the_mean_of_its_frames(frames: pa.Table) -> None:
    assert frames.schema == FRAMES and frames["spread"].null_count == 2
    assert frames["frame"].to_pylist() == [0, 0, 1]
    lines, angles, spread = clip_means(frames)
    assert lines.tolist() == [0, 2] and angles == pytest.approx(np.array([[-0.2, 0], [0, 0.2]]), abs=1e-6)
    assert np.isnan(spread[0]) and spread[1] == pytest.approx(0, abs=1e-7)
    assert [len(values) for values in clip_means(FRAMES.empty_table())] == [0, 0, 0]


def test_new_gaze_is_compared_where_a_clip_had_its_own() -> None:
    truth = {"pitch": [0.0, 0.0, 0.0, None, 0.0], "yaw": [0.0, 0.1, 0.2, None, 0.4], "label": [0] * 5}
    names = ["a", "b", "c", "d", "e"]
    manifest = pa.table(truth | {"video": names, "dataset": ["x"] * 5, "subject": names})
    new = np.array([[0, 0.01], [0, 0.12], [0, 0.22], [0, 0.3], [np.nan, np.nan]])
    table = clips_table(manifest, new, np.array([0.1, 0.5, 0.4, 0.2, np.nan]))
    assert table["pred_yaw"].null_count == 1 and table["spread"].null_count == 1
    found = agreement(table, ["x"])
    assert found is not None and found["num_gazed"] == 3
    assert found["angular_error_deg"] == pytest.approx(np.degrees(0.05 / 3), rel=1e-3)
    assert found["sure_error_deg"] == pytest.approx(np.degrees(0.01), rel=1e-3)
    assert found["unsure_error_deg"] == pytest.approx(np.degrees(0.02), rel=1e-3)
    assert agreement(table.slice(3, 2), ["x"]) is None


def test_parts_are_made_once_joined_in_order_and_refused_when_of_another_origin(
    tmp_path: Path, frames: pa.Table
) -> None:
    parts = Parts(tmp_path / "parts", 5, 2, {"weights": "a1"})
    assert parts.missing() == [0, 1, 2] and [list(lines) for lines in parts.lines] == [[0, 1], [2, 3], [4]]
    parts.write(2, FRAMES.empty_table(), [{"row": 4, "reason": "is empty"}])
    parts.write(0, frames.slice(0, 1), [])
    assert parts.missing() == [1] and parts.dropped() == [{"row": 4, "reason": "is empty"}]
    parts.write(1, frames.slice(1), [])
    parts.join(tmp_path / "frames.parquet")
    assert pq.read_table(tmp_path / "frames.parquet") == frames
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.parquet", "parts"]
    with pytest.raises(PartsError, match=r"part_00000\.parquet was not: weights: a1 there, b2 now.*another --output"):
        Parts(tmp_path / "parts", 5, 2, {"weights": "b2"}).missing()
