"""Windows over a face at the pace of training, and their crops: what they show, what they tell of, what is held."""

import numpy as np
import pytest

from mien.data_pipelines import windows
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.face_tracks import Track
from mien.data_pipelines.footage import Frame
from mien.data_pipelines.sampling import SamplingConfig, view_indices
from mien.data_pipelines.timed_windows import WindowPlan, _Running, face_windows, nearest

PLAIN = AugmentConfig(kind="none")


def told(plan: WindowPlan, num_frames: int) -> np.ndarray:
    """Return how many answers there are about each frame."""
    counts = np.zeros(num_frames, int)
    for window in plan.windows(num_frames):
        assert len(window.shown) == plan.frames
        assert len(window.told) == (plan.frames if plan.per_frame else 1)
        for first, last in window.told:
            counts[first:last] += 1
    return counts


@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 40, 61, 62, 200])
@pytest.mark.parametrize("step", [0.4, 1, 4, 4.8, 9.6])
@pytest.mark.parametrize("kind", ["clip", "per_frame", "ending"])
def test_every_frame_is_told_of_and_windows_come_in_order(num_frames: int, step: float, kind: str) -> None:
    for hop in (1, 16):
        plan = WindowPlan(16, step, max(1, round(hop * step)), kind == "ending", kind == "per_frame")
        assert told(plan, num_frames).min() >= 1
    plan = WindowPlan(16, step, max(1, round(4 * step)), kind == "ending", kind == "per_frame")
    assert told(plan, num_frames).min() >= 1
    shown = np.stack([window.shown for window in plan.windows(num_frames)])
    assert shown.min() >= 0 and shown.max() < num_frames
    assert (np.diff(shown, axis=1) >= 0).all()
    assert (np.diff(shown[:, 0]) >= 0).all() and (np.diff(shown[:, -1]) >= 0).all()
    if not plan.is_short(num_frames) or kind == "ending":
        assert shown[-1, -1] == num_frames - 1


def test_a_window_lasts_as_long_as_a_training_clip_at_any_rate() -> None:
    sampling = SamplingConfig(stride=4)
    for fps, shown in ((25.0, [0, 4, 8, 12]), (50.0, [0, 8, 16, 24]), (30.0, [0, 5, 10, 14]), (5.0, [0, 1, 2, 2])):
        plan = WindowPlan.paced(sampling, 4, False, fps, 25.0, None)
        assert next(plan.windows(500)).shown.tolist() == shown, fps
        assert (plan.frames - 1) * plan.step / fps == pytest.approx(12 / 25)
    # Where the rate of training is not known, frames are counted.
    assert WindowPlan.paced(sampling, 4, False, 30.0, None, None).step == 4
    assert WindowPlan.paced(SamplingConfig(rule="ending", stride=4), 7, False, 25.0, 25.0, None) == WindowPlan(
        7, 1.0, 1, ends_with_label=True
    )


@pytest.mark.parametrize("num_frames", [1, 5, 16, 17, 33, 60])
def test_a_short_face_is_shown_as_evaluation_shows_short_clips(num_frames: int) -> None:
    plan = WindowPlan(16, 4.0, 16)
    assert plan.is_short(num_frames)
    (only,) = plan.windows(num_frames)
    (view,) = view_indices(num_frames, SamplingConfig(frames=16, stride=4))
    assert only.shown.tolist() == view.tolist()
    assert only.told == ((0, num_frames),)
    assert not plan.is_short(61) and len(list(plan.windows(61))) == 1


@pytest.mark.parametrize("num_frames", [1, 3, 7, 20])
def test_windows_of_clips_that_end_with_their_label_are_those_of_relabelling(num_frames: int) -> None:
    plan = WindowPlan(7, 1.0, 1, ends_with_label=True)
    found = list(plan.windows(num_frames))
    assert np.array_equal(np.stack([window.shown for window in found]), windows.endings(num_frames, 7))
    assert [window.told for window in found] == [((end, end + 1),) for end in range(num_frames)]


def test_a_frames_answer_is_about_the_frames_nearest_to_it() -> None:
    assert nearest(np.array([0, 4, 8]), 0, 9) == ((0, 2), (2, 6), (6, 9))
    assert nearest(np.array([0, 0, 1]), 0, 2) == ((0, 0), (0, 1), (1, 2))


def frames(count: int) -> list[Frame]:
    """Return frames whose left half is as bright as their index, and whose right half is black."""
    pictures = np.zeros((count, 20, 40, 3), np.uint8)
    pictures[:, :, :20] = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return [Frame(index, False, picture) for index, picture in enumerate(pictures)]


def track(start: int, count: int, x: float) -> Track:
    return Track(start, np.tile(np.float32([x, 10, 8, 8]), (count, 1)), 1, 1, 1.0)


def test_crops_are_of_the_face_and_of_the_frames_that_a_window_shows() -> None:
    tracks = [track(3, 30, 10), track(10, 12, 30)]
    plan = WindowPlan(4, 2.0, 4)
    found = list(face_windows(frames(40), tracks, plan, margin=0, size=16, precrop=PLAIN))
    for one in found:
        assert one.clip.shape == (4, 16, 16, 3) and one.clip.dtype == np.uint8
        bright = one.window.shown + 3 if one.number == 0 else np.zeros(4)
        assert np.array_equal(one.clip[:, 8, 8, 0], bright)
    for number, of in enumerate(tracks):
        expected = [window.shown.tolist() for window in plan.windows(len(of))]
        assert [one.window.shown.tolist() for one in found if one.number == number] == expected


def test_a_long_face_holds_the_crops_of_one_clips_time() -> None:
    plan = WindowPlan(8, 2.0, 4)
    running = _Running(track(0, 5000, 10), plan, 0.0)
    crop, most, made = np.zeros((4, 4, 3), np.uint8), 0, 0
    for place in range(5000):
        if running.wants(place):
            made += len(list(running.add(place, crop)))
        most = max(most, len(running._crops))
    assert made == len(list(plan.windows(5000)))
    assert most <= 15  # frames from a window's first to its last


def test_a_frame_that_no_window_shows_is_not_converted() -> None:
    running = _Running(track(0, 100, 10), WindowPlan(4, 8.0, 32), 0.0)
    assert [place for place in range(25) if running.wants(place)] == [0, 8, 16, 24]
