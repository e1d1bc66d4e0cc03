"""The picture of a video's course."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from mien.platform import timeline
from mien.platform.timeline import Course


def course(frames: int, number: int = 0) -> Course:
    time = np.arange(frames) / 25
    first = (time % 2 < 1).astype(float)
    return Course(number, time, np.stack([first, 1 - first], axis=1), np.stack([0 * time, 3 * np.sin(time)], 1), False)


def test_hours_become_a_few_hundred_means() -> None:
    long = course(100_000)
    few = timeline.binned(long, long.time[-1] + 0.04, columns=500)
    assert len(few.time) == 500
    assert few.probabilities is not None and few.probabilities.sum(axis=1) == pytest.approx(np.ones(500))
    assert few.time == pytest.approx((np.arange(500) + 0.5) * 8, abs=0.05)
    assert timeline.binned(course(10), 0.4, columns=500).time.tolist() == course(10).time.tolist()
    behind = course(1000)._replace(gaze=np.tile([[0.0, 3.1], [0.0, -3.1]], (500, 1)))
    met = timeline.binned(behind, 40, columns=10).gaze
    assert met is not None and np.abs(met[:, 1]) == pytest.approx(np.full(10, np.pi), abs=0.01)


@pytest.mark.parametrize("faces", [0, 1, 9])
def test_it_is_written_for_no_face_one_and_many(tmp_path: Path, faces: int) -> None:
    courses = [course(50 + number, number) for number in range(faces)]
    timeline.save(tmp_path / "a.png", courses, ("Happy", "Sad"), 4.0, "a title", ["a note", "another"])
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture is not None and picture.shape[1] > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
