"""The rendered world: its labels are exact, its bytes follow from its settings, its layouts are complete."""

import csv
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from mien.data_pipelines import synthetic
from mien.data_pipelines.face_renderer import ACTIONS, direction, rotation
from mien.data_pipelines.synthetic import EXPRESSIONS, WorldConfig, identity, render
from mien.data_pipelines.synthetic_layouts import WorldError, is_complete, write

EASY = WorldConfig(size=64, frames=4, difficulty=0)
HARD = WorldConfig(size=64, frames=4, difficulty=1)
SMALL = WorldConfig(
    size=32, frames=3, identities=6, clips_per_identity=7, unlabelled_identities=2, videos_per_identity=2,
    video_frames=20, tracks=3, track_frames=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world, written once."""
    root = tmp_path_factory.mktemp("world") / "small"
    assert list(write(SMALL, root))[-1] == (6 * 7 + 2 * 2 + 3, 49)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def symmetric(number: int) -> synthetic.Identity:
    return replace(identity(EASY, number), parting=0.0)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others() -> None:
    once, again, other = (render(HARD, identity(HARD, 3), "Happy", (0.1, 0.2), seed) for seed in (5, 5, 6))
    assert once.shape == (4, 64, 64, 3) and once.dtype == np.uint8
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_pixels_are_those_of_this_version_of_the_drawing() -> None:
    """Equal configs promise equal worlds: whoever changes the drawing raises VERSION and these figures with it."""
    clip = render(HARD, identity(HARD, 1), "Angry", (0.1, -0.3), 0)
    assert synthetic.VERSION == 1
    np.testing.assert_allclose(clip.mean(axis=(0, 1, 2)), PIXELS, atol=0.5)


PIXELS = (143.21, 130.10, 106.47)


@pytest.mark.parametrize(("onset", "offset"), [("Surprise", "Fear"), ("Angry", "Disgust")])
def test_members_of_a_pair_are_the_same_frames_in_opposite_order(onset: str, offset: str) -> None:
    face = identity(HARD, 2)
    there, back = (render(HARD, face, name, (-0.1, 0.3), 9) for name in (onset, offset))
    assert np.array_equal(there, back[::-1]) and not np.array_equal(there, back)


def test_a_moving_gaze_keeps_its_own_order_when_a_class_runs_backwards() -> None:
    gaze = np.radians([[0, -40], [0, -40], [0, 40], [0, 40]])
    clip = render(EASY, symmetric(0), "Fear", gaze, 0)
    for t, angles in ((0, gaze[0]), (3, gaze[3])):
        still = render(EASY, symmetric(0), "Fear", angles, 0)[t]
        assert np.array_equal(clip[t], still)


def test_classes_differ_visibly_and_held_classes_show_in_every_frame() -> None:
    peaks = {name: render(EASY, identity(EASY, 0), name, (0, 0), 0) for name in ("Happy", "Sad", "Neutral")}
    peaks |= {name: render(EASY, identity(EASY, 0), name, (0, 0), 0)[-1:] for name in ("Angry", "Surprise")}
    names = list(peaks)
    for k, name in enumerate(names):
        for other in names[k + 1 :]:
            assert min(difference(frame, peaks[other][-1]) for frame in peaks[name]) > 2


def test_a_mirrored_clip_is_the_clip_with_yaw_negated() -> None:
    for number, (pitch, yaw) in enumerate([(0.2, 0.6), (-0.3, 0.3), (0.0, -0.5)]):
        clip = render(EASY, symmetric(number), "Happy", (pitch, yaw), 0)
        mirrored = render(EASY, symmetric(number), "Happy", (pitch, -yaw), 0)
        assert difference(clip[:, :, ::-1], mirrored) < 0.5 < 5 < difference(clip, mirrored)


def test_positive_yaw_moves_the_iris_to_the_left_of_the_image_and_positive_pitch_up() -> None:
    face = replace(symmetric(0), iris=(0.0, 255.0, 0.0), background=(0.0, 0.0, 0.0))

    def iris(pitch: float, yaw: float) -> np.ndarray:
        frame = render(EASY, face, "Neutral", (pitch, yaw), 0)[0].astype(int)
        return np.argwhere(frame[..., 1] - np.maximum(frame[..., 0], frame[..., 2]) > 120).mean(axis=0)

    (y, x), (_, left), (up, _) = iris(0, 0), iris(0, 0.35), iris(0.2, 0)
    assert left < x - 2 and up < y - 1


def test_rotation_turns_the_forward_axis_to_the_direction_of_its_angles() -> None:
    angles = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    turned = rotation(angles) @ np.array([0.0, 0, -1])
    np.testing.assert_allclose(turned, direction(angles[:, :2]), atol=1e-12)
    pitch, yaw = np.arcsin(turned[:, 1]), np.arctan2(turned[:, 0], -turned[:, 2])
    np.testing.assert_allclose(np.stack([pitch, yaw], axis=1), angles[:, :2], atol=1e-12)


def test_an_easy_world_has_no_nuisance_and_people_differ_in_a_hard_one_at_rest() -> None:
    face = identity(EASY, 4)
    assert np.array_equal(render(EASY, face, "Sad", (0, 0), 0), render(EASY, face, "Sad", (0, 0), 1))
    assert set(face.resting) == {0.0}
    resting = np.array([identity(HARD, k).resting for k in range(200)])
    assert resting.shape == (200, len(ACTIONS)) and 0.14 < resting[:, :-1].std() < 0.18


def test_classes_take_turns_and_gaze_says_nothing_of_the_class() -> None:
    clips = [synthetic.clip(WorldConfig(), k + 1) for k in range(700)]
    assert {name: sum(c.expression == name for c in clips) for name in EXPRESSIONS} == dict.fromkeys(EXPRESSIONS, 100)
    assert all(list(EXPRESSIONS)[c.label] == c.expression for c in clips)
    gaze = np.degrees([c.gaze for c in clips])
    assert 18 < np.abs(gaze[:, 0]).max() <= 20 and 36 < np.abs(gaze[:, 1]).max() <= 40
    means = np.array([gaze[k::7].mean(axis=0) for k in range(7)])
    assert np.abs(means).max() < 8


def test_dfew_layout_has_every_clip_and_tests_it_once_with_people_never_shared(world: Path) -> None:
    dfew = world / "dfew"
    with open(dfew / "subjects.csv") as file:
        subjects = {row["video_name"]: row["subject"] for row in csv.DictReader(file)}
    assert len(subjects) == 42 and len(set(subjects.values())) == 6
    tested: list[str] = []
    for fold in range(1, 6):
        parts = {}
        for part in ("train", "test"):
            with open(dfew / f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv") as file:
                rows = list(csv.DictReader(file))
            assert {int(row["label"]) for row in rows} == set(range(1, 8))
            parts[part] = {row["video_name"] for row in rows}
        assert parts["train"] | parts["test"] == set(subjects) and not parts["train"] & parts["test"]
        assert not {subjects[v] for v in parts["train"]} & {subjects[v] for v in parts["test"]}
        tested += parts["test"]
    assert sorted(tested) == sorted(subjects)
    for video in subjects:
        frames = sorted((dfew / f"Clip/jpg_256/{int(video):05d}").iterdir())
        assert [frame.name for frame in frames] == ["00001.jpg", "00002.jpg", "00003.jpg"]


def test_written_frames_and_annotations_are_those_of_the_clip(world: Path) -> None:
    lines = (world / "dfew/annotations/gaze.csv").read_text().splitlines()
    folder, label, pitch, yaw = lines[9].split()
    clip = synthetic.clip(SMALL, 10)
    assert folder == "Clip/jpg_256/00010" and int(label) == clip.label
    np.testing.assert_allclose((float(pitch), float(yaw)), clip.gaze, atol=1e-6)
    rendered = render(SMALL, identity(SMALL, clip.subject), clip.expression, clip.gaze, clip.seed)
    stored = cv2.imread(str(world / "dfew" / folder / "00003.jpg"))
    assert stored is not None and difference(stored[..., ::-1], rendered[2]) < 6


def test_videos_have_their_frames_and_a_keyframe_every_sixteen(world: Path) -> None:
    paths = sorted((world / "voxceleb2/dev/mp4").rglob("*.mp4"))
    assert [str(p.relative_to(world / "voxceleb2/dev/mp4")) for p in paths[:2]] == [
        "id00006/video00001/00001.mp4",
        "id00006/video00002/00001.mp4",
    ]
    assert len(paths) == 4
    with av.open(str(paths[1])) as container:
        frames = list(container.decode(video=0))
    assert [k for k, frame in enumerate(frames) if frame.key_frame] == [0, 16] and len(frames) == 20
    assert difference(frames[7].to_ndarray(format="rgb24"), synthetic.video(SMALL, 2).frames[7]) < 12


def test_gaze_tracks_name_their_frames_and_the_gaze_of_each(world: Path) -> None:
    tracks = sorted((world / "gaze_tracks/tracks").iterdir())
    assert [t.name for t in tracks] == ["00001.csv", "00002.csv", "00003.csv"]
    rows = [line.split() for line in tracks[1].read_text().splitlines()]
    assert all((world / "gaze_tracks" / row[0]).is_file() for row in rows)
    gaze = np.array([[float(value) for value in row[1:]] for row in rows])
    np.testing.assert_allclose(gaze, synthetic.track(SMALL, 2).gaze, atol=1e-6)
    assert gaze.std(axis=0).max() > 0.01


def test_neither_processes_nor_a_stop_change_a_byte(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "again"
    for progress in write(SMALL, root):
        if progress.done == 20:
            break
    assert not is_complete(SMALL, root)
    (root / "dfew/Clip/jpg_256/00007").rename(tmp_path / "lost")
    assert list(write(SMALL, root, processes=2))[-1].done == 49
    assert is_complete(SMALL, root) and contents(root) == contents(world)


def test_a_complete_world_is_left_alone(world: Path) -> None:
    before = (world / "world.json").stat().st_mtime_ns
    assert list(write(SMALL, world)) == [(49, 49)]
    assert (world / "world.json").stat().st_mtime_ns == before


def test_a_folder_of_another_world_or_of_other_files_is_refused(world: Path, tmp_path: Path) -> None:
    other = SMALL.model_copy(update={"difficulty": 0.9})
    with pytest.raises(WorldError, match=r"difficulty=0.9 where the folder has 0.3"):
        list(write(other, world))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(WorldError, match="holds other files"):
        list(write(SMALL, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"identities": 3}, "at least 5"),
        ({"classes": ("Happy", "Bored")}, "Bored"),
        ({"classes": ("Happy", "Happy")}, "must differ"),
        ({"size": 63}, "even"),
        ({"tracks": 2, "identities": 0}, "labelled people"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        WorldConfig.model_validate(settings)
