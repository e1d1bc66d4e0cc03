"""Folders of videos or images with a label file, and VoxCeleb2 with its list of broken files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mien.data_pipelines import decode, reading
from mien.data_pipelines.annotation_files import AnnotationError
from mien.data_pipelines.datasets import videos, voxceleb2
from mien.data_pipelines.datasets.videos import VideosConfig
from mien.data_pipelines.datasets.voxceleb2 import Voxceleb2Config
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.probing import DatasetError
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.sampling import SamplingConfig

Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, make_video: Make, make_frames: Make) -> Path:
    """Return a root with two videos and three images, of which two have another size."""
    make_video(tmp_path / "ada/1.mp4", frames=20)
    make_video(tmp_path / "bob/2.avi", frames=20)
    make_frames(tmp_path / "ada", frames=1, name="face.png")
    make_frames(tmp_path / "bob", frames=2, height=32, width=24, name="{}.jpg")
    return tmp_path


def read(root: Path, labels: str | None = None, **settings: Any) -> Manifest:
    if labels is not None:
        (root / "labels.txt").write_text(labels)
        settings["labels"] = "labels.txt"
    return videos.read(VideosConfig(root=str(root), threads=2, **settings))


# A folder of videos or images


def test_files_says_what_is_a_clip(folder: Path) -> None:
    assert read(folder).column("video") == ["ada/1.mp4", "bob/2.avi"]
    assert read(folder, files="images").column("video") == ["ada/face.png", "bob/1.jpg", "bob/2.jpg"]
    both = read(folder, files="both", subject_from_folder=True)
    assert both.column("frames") == [20, 1, 1, 20, 1] and both.column("fps") == [25, None, None, 25, None]
    assert both.column("subject") == ["ada", "ada", "bob", "bob", "bob"]
    assert both.column("height") == [48, 48, 32, 48, 32] and not both.notes
    (folder / "other").mkdir()
    with pytest.raises(DatasetError, match=r"a folder of images must hold some \(.*\.png.*set files to videos, images"):
        read(folder / "other", files="images")


@pytest.mark.parametrize("rule", ["pretrain", "finetune", "ending"])
def test_an_image_is_read_as_a_clip_of_its_one_frame_again_and_again(folder: Path, rule: Any, which: Any) -> None:
    manifest = read(folder, files="images")
    config = ReadConfig(sampling=SamplingConfig(rule=rule, frames=8), size=48, root=str(folder))
    sources = reading.load_manifest(manifest, range(3), str(folder))
    for source in (None, sources.source(2)):
        clip = reading.read_train(manifest.row(2), 2, 0, config, source)["clip"]
        views = reading.read_views(manifest.row(2), 2, config, source)
        assert which(clip) == [1] * 8 and [which(view["clip"]) for view in views] == [[1] * 8]
    assert decode.read(folder / "ada/face.png", [0, 0]).shape == (2, 48, 64, 3)
    with pytest.raises(decode.DecodeError, match=r"holds 1 frames, but frame 3"):
        decode.read(folder / "ada/face.png", [3])


def test_a_label_file_says_what_is_known_of_files(folder: Path) -> None:
    manifest = read(folder, "ada\\1.mp4 2\n./bob/1.jpg 0\nbob/1.jpg 0\n", files="both")
    assert manifest.column("label") == [2, None, 0, None, None] and manifest.classes == ("0", "1", "2")
    assert manifest.notes == (
        "lines of labels.txt read as path label (columns=auto)",
        "files that labels.txt does not name: 3 of 5",
    )
    named = read(folder, f"{folder}/ada/1.mp4 1 0.1 0.2\nbob/2.avi -1 0 -3\n", classes=("no", "yes"), clip_frames=10)
    # Every clip that is cut from a file has what is known of the file.
    assert named.column("label") == [1, 1, None, None] and named.classes == ("no", "yes")
    assert np.allclose(named.column("yaw"), [0.2, 0.2, -3, -3])


def test_lines_without_their_file_are_listed(folder: Path) -> None:
    manifest = read(folder, "ada/1.mp4 0\ncal/1.mp4 1\nada/face.png 0\n")
    assert manifest.column("label") == [0, None]
    assert [tuple(item) for item in manifest.rejected] == [
        ("cal/1.mp4", f"is missing ({folder}/labels.txt:2)"),
        ("ada/face.png", f"is missing ({folder}/labels.txt:3)"),
    ]
    with pytest.raises(DatasetError, match=r"must name videos under .* none does; the first is 1\.mp4: write them as"):
        read(folder, "1.mp4 0\n")
    with pytest.raises(AnnotationError, match=r"labels\.txt:2: a file has one line.*ada/1\.mp4 .*:1 says something"):
        read(folder, "ada/1.mp4 0\nada/1.mp4 1\n")
    with pytest.raises(AnnotationError, match=r"nowhere\.txt: an annotation file must be readable"):
        videos.read(VideosConfig(root=str(folder), labels="nowhere.txt"))
    with pytest.raises(AnnotationError, match="set columns to angles or label_emotion"):
        read(folder, "ada/1.mp4 0 1\n")


# VoxCeleb2


@pytest.fixture
def voxceleb(tmp_path: Path, make_video: Make) -> Path:
    for name in ("id00012/abc/00001", "id00012/abc/00002", "id00015/xyz/00001"):
        make_video(tmp_path / f"dev/mp4/{name}.mp4", frames=10)
    return tmp_path


def read_voxceleb(root: Path, broken: str) -> Manifest:
    (root / "broken.txt").write_text(broken)
    return voxceleb2.read(Voxceleb2Config(root=str(root), broken="broken.txt", threads=2))


@pytest.mark.parametrize(
    "line",
    [
        "dev/mp4/id00012/abc/00002.mp4",
        "id00012/abc/00002",
        "/data/of others/dev/mp4/id00012/abc/00002.mp4  # no moov box",
        "..\\dev\\mp4\\id00012\\abc\\00002.mp4\r",
    ],
)
def test_broken_clips_are_taken_out_before_they_are_opened(voxceleb: Path, line: str) -> None:
    (voxceleb / "dev/mp4/id00012/abc/00002.mp4").write_bytes(b"")
    manifest = read_voxceleb(voxceleb, f"# by hand\n\n{line}\n{line}\n")
    assert manifest.column("video") == ["id00012/abc/00001", "id00015/xyz/00001"] and not manifest.rejected
    assert manifest.notes == ("taken out as broken by broken.txt: 1",)


def test_lines_that_name_no_clip_are_told(voxceleb: Path) -> None:
    manifest = read_voxceleb(voxceleb, "id00012/abc/00002.mp4\ndev/mp4/id00099/abc/00001.mp4\n00001.mp4\n")
    assert len(manifest) == 2
    assert manifest.notes[1] == "lines of broken.txt that name no clip here: 2 (00001, dev/mp4/id00099/abc/00001)"
    with pytest.raises(DatasetError, match=r"some clip must be whole, but .*broken\.txt names all 3: set broken to"):
        read_voxceleb(voxceleb, "id00012/abc/00001\nid00012/abc/00002\nid00015/xyz/00001\n")
    with pytest.raises(DatasetError, match=r"list of broken files must be readable.*nowhere\.txt.*set broken to its"):
        voxceleb2.read(Voxceleb2Config(root=str(voxceleb), broken="nowhere.txt"))
