"""Boxes to tracks: people who come, go, cross and vanish for a moment; cuts; steadiness."""

from typing import Any

import numpy as np
import pytest

from mien.data_pipelines.face_detector import overlaps, without_repeats
from mien.data_pipelines.face_tracks import Track, TrackConfig, Tracker, likeness, main_track, squares

FPS = 25.0


def face(x: float, y: float, side: float = 40.0, score: float = 0.9) -> list[float]:
    """Return a face around a middle."""
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2, score]


def tracked(
    looks: dict[int, list[list[float]]], frames: int, cuts: tuple[int, ...] = (), **settings: Any
) -> list[Track]:
    """Return the tracks of what was found at the given frames, with cuts before some frames."""
    tracker = Tracker(TrackConfig(**settings), FPS)
    for frame in sorted({*looks, *cuts}):
        if frame in cuts:
            tracker.cut(frame)
        if frame in looks:
            tracker.look(frame, np.array(looks[frame], np.float32).reshape(-1, 5))
    return tracker.finish(frames)


def spans(tracks: list[Track]) -> list[tuple[int, int]]:
    return [(track.start, track.start + len(track)) for track in tracks]


def test_one_still_face_is_one_track_to_the_last_frame() -> None:
    tracks = tracked({frame: [face(100, 80)] for frame in range(0, 100, 5)}, frames=103)
    assert spans(tracks) == [(0, 103)]
    assert np.allclose(tracks[0].boxes, [100, 80, 40, 40])
    assert tracks[0].found == tracks[0].looks == 20


def test_two_people_who_move_stay_two_tracks() -> None:
    looks = {
        frame: [face(50 + frame, 60), face(250 - frame, 160)][:: 1 if frame % 2 else -1] for frame in range(0, 100, 5)
    }
    tracks = tracked(looks, frames=100, smooth_seconds=0.0)
    assert spans(tracks) == [(0, 100), (0, 100)]
    rows = sorted(tracks, key=lambda track: float(track.boxes[0, 1]))
    assert np.allclose(rows[0].boxes[:96, 0], 50 + np.arange(96)) and np.allclose(
        rows[1].boxes[:96, 0], 250 - np.arange(96)
    )


def test_a_face_that_enters_and_leaves_has_just_its_time() -> None:
    tracks = tracked({frame: [face(100, 80)] if 30 <= frame <= 60 else [] for frame in range(0, 100, 5)}, frames=100)
    assert spans(tracks) == [(30, 61)]


def test_a_face_not_found_for_a_moment_keeps_its_track_and_one_gone_for_long_does_not() -> None:
    looks = {frame: [] if 40 <= frame < 50 else [face(100 + frame, 80)] for frame in range(0, 100, 5)}
    (track,) = tracked(looks, frames=100, smooth_seconds=0.0)
    assert track.found == track.looks - 2
    assert np.allclose(track.boxes[35:51, 0], np.arange(135, 151))  # on a straight line meanwhile
    looks = {frame: [] if 40 <= frame < 70 else [face(100, 80)] for frame in range(0, 100, 5)}
    assert spans(tracked(looks, frames=100)) == [(0, 36), (70, 100)]


def test_a_cut_ends_all_tracks_and_the_last_frames_before_it_belong_to_them() -> None:
    looks = {frame: [face(100, 80)] for frame in (*range(0, 50, 5), *range(52, 100, 5))}
    assert spans(tracked(looks, frames=100, cuts=(52,))) == [(0, 52), (52, 100)]


def test_a_box_that_jumps_begins_another_track() -> None:
    looks = {frame: [face(100 if frame < 50 else 300, 80)] for frame in range(0, 100, 5)}
    assert spans(tracked(looks, frames=100)) == [(0, 46), (50, 100)]


def test_tracks_that_are_too_short_are_not_kept() -> None:
    looks = {frame: [face(100, 80)] if frame <= 15 else [] for frame in range(0, 100, 5)}
    assert tracked(looks, frames=100, min_frames=17) == []
    assert spans(tracked(looks, frames=100, min_frames=16)) == [(0, 16)]


def test_a_doubtful_face_goes_on_with_a_track_but_begins_none() -> None:
    looks = {
        frame: [face(100, 80, score=0.9 if frame < 50 else 0.35), face(300, 80, score=0.35)]
        for frame in range(0, 100, 5)
    }
    assert spans(tracked(looks, frames=100)) == [(0, 100)]


def test_smoothing_takes_the_tremble_and_leaves_the_movement() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 3, 200)
    looks = {5 * i: [face(100 + i, 80 + noise[i])] for i in range(200)}
    rough, smooth = (tracked(looks, 1000, smooth_seconds=seconds)[0].boxes for seconds in (0.0, 0.3))
    assert np.abs(np.diff(smooth[:, 1])).mean() < 0.5 * np.abs(np.diff(rough[:, 1])).mean()
    assert np.abs(smooth[50:-50, 0] - rough[50:-50, 0]).max() < 0.1


def test_tracks_are_the_same_whatever_the_order_of_the_faces() -> None:
    rng = np.random.default_rng(1)
    looks = {f: [face(60 + f * 0.4, 60), face(110 + f * 0.4, 60), face(200, 150)] for f in range(0, 100, 5)}
    mixed = {f: [faces[i] for i in rng.permutation(3)] for f, faces in looks.items()}
    plain, other = (sorted(track.boxes.sum() for track in tracked(some, 100)) for some in (looks, mixed))
    assert plain == pytest.approx(other)


def test_hours_of_looks_are_tracked_in_seconds() -> None:
    tracks = tracked({frame: [face(100, 80), face(300, 90)] for frame in range(0, 180_000, 5)}, frames=180_000)
    assert spans(tracks) == [(0, 180_000)] * 2


def test_likeness_knows_a_cut_from_a_change_of_exposure() -> None:
    rng = np.random.default_rng(2)
    scene, other = (rng.integers(0, 180, (36, 64)).astype(np.uint8) for _ in range(2))
    black = np.zeros((36, 64), np.uint8)
    assert likeness(scene, scene) == pytest.approx(1)
    assert likeness(scene, scene + np.uint8(60)) == pytest.approx(1)
    assert likeness(scene, (scene * 0.7).astype(np.uint8)) > 0.9
    assert abs(likeness(scene, other)) < 0.1 and likeness(black, scene) < 0.1
    assert likeness(black, black + np.uint8(1)) == pytest.approx(1)


def test_squares_grow_by_the_margin_on_either_end() -> None:
    assert squares(np.array([[50, 40, 20, 30]]), 0.5).tolist() == [[50, 40, 60]]


def test_the_main_track_is_the_largest_face_over_its_time() -> None:
    long_small, short_large = (
        Track(0, np.full((frames, 4), side, np.float32), 1, 1, 1.0) for frames, side in ((100, 20), (50, 40))
    )
    assert main_track([long_small, short_large]) is short_large


def test_faces_found_twice_are_kept_once() -> None:
    faces = np.array([face(100, 80, score=0.6), face(103, 82, score=0.9), face(200, 80, score=0.7)], np.float32)
    assert without_repeats(faces)[:, 4].tolist() == pytest.approx([0.9, 0.7])
    assert without_repeats(np.empty((0, 5), np.float32)).shape == (0, 5)
    assert overlaps(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])).tolist() == [[1 / 3, 0]]
