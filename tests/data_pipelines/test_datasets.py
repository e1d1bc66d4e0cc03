"""What every reader must do, and what each does with the dataset as its owner ships it.

A new reader gives `TREES` a function that writes a tiny tree in its layout and returns the reader's settings.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError
from scipy.io import savemat

from mien.data_pipelines import decode
from mien.data_pipelines.annotation_files import MEANING, AnnotationError, angles_to_vector
from mien.data_pipelines.datasets import annotations, cremad, dfew, enterface05, ravdess, videos, voxceleb2
from mien.data_pipelines.datasets.annotations import AnnotationsConfig
from mien.data_pipelines.datasets.cremad import CremadConfig
from mien.data_pipelines.datasets.dfew import DfewConfig
from mien.data_pipelines.datasets.enterface05 import Enterface05Config
from mien.data_pipelines.datasets.ferv39k import Ferv39kConfig
from mien.data_pipelines.datasets.gaze360 import Gaze360Config
from mien.data_pipelines.datasets.mafw import CLASSES as MAFW
from mien.data_pipelines.datasets.mafw import MafwConfig
from mien.data_pipelines.datasets.ravdess import RavdessConfig
from mien.data_pipelines.datasets.videos import VideosConfig
from mien.data_pipelines.datasets.voxceleb2 import Voxceleb2Config
from mien.data_pipelines.manifest import SCHEMA, Manifest, ManifestError
from mien.data_pipelines.preparers import DATASETS
from mien.data_pipelines.probing import DatasetError

Make = Callable[..., Path]


def dfew_tree(root: Path, make_video: Make, make_frames: Make, clips: int = 10) -> DfewConfig:
    """Ten clips of seven classes; clip n is tested in fold n % 5 + 1."""
    for clip in range(1, clips + 1):
        make_frames(root / f"Clip/jpg_256/{clip:05d}", frames=4 + clip, name="{}.jpg")
    for fold in range(1, 6):
        for part in ("train", "test"):
            chosen = [clip for clip in range(1, clips + 1) if (clip % 5 + 1 == fold) == (part == "test")]
            lines = "".join(f"{clip},{clip % 7 + 1}\n" for clip in chosen)
            write(root / f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv", "video_name,label\n" + lines)
    return DfewConfig(root=str(root), threads=2)


def annotations_tree(root: Path, make_video: Make, make_frames: Make) -> AnnotationsConfig:
    make_video(root / "a b/1.mp4", frames=20)
    make_frames(root / "a b/2", frames=7)
    write(root / "train.csv", '"a b/1.mp4" 1 0.1 -0.2\n\n"a b/2"   0  0.5   1\n')
    return AnnotationsConfig(annotations=str(root / "train.csv"), root=str(root), classes=("no", "yes"), threads=2)


def videos_tree(root: Path, make_video: Make, make_frames: Make) -> VideosConfig:
    for name in ("ada/1.mp4", "ada/deep er/2.avi", "bob/10.mp4"):
        make_video(root / name, frames=20)
    return VideosConfig(root=str(root), threads=2)


def voxceleb2_tree(root: Path, make_video: Make, make_frames: Make) -> Voxceleb2Config:
    for name in ("id00012/abc/00001.mp4", "id00012/abc/00002.mp4", "id00015/xyz/00001.mp4"):
        make_video(root / "dev/mp4" / name, frames=10)
    return Voxceleb2Config(root=str(root), threads=2)


def cremad_tree(root: Path, make_video: Make, make_frames: Make) -> CremadConfig:
    copies(make_video(root / "one.flv", frames=4), [root / f"VideoFlash/{name}.flv" for name in cremad.names(1001)])
    return CremadConfig(root=str(root), actors=(1001,), threads=2)


def ravdess_tree(root: Path, make_video: Make, make_frames: Make) -> RavdessConfig:
    copies(make_video(root / "one.mp4", frames=4), [root / f"Actor_03/{name}.mp4" for name in ravdess.names(3)])
    return RavdessConfig(root=str(root), actors=(3,), threads=2)


def enterface05_tree(root: Path, make_video: Make, make_frames: Make) -> Enterface05Config:
    sentences = [(emotion, number) for emotion in enterface05.CLASSES for number in range(1, 6)]
    folders = [f"enterface database/subject 7/{emotion}/sentence {number}" for emotion, number in sentences]
    copies(make_video(root / "one.avi", frames=4), [root / folder / "s7.avi" for folder in folders])
    return Enterface05Config(root=str(root), subjects=(7,), threads=2)


def mafw_tree(root: Path, make_video: Make, make_frames: Make) -> MafwConfig:
    for clip in range(11):
        make_frames(root / f"data/frames/{clip:05d}", frames=4, name="{}.png")
    for fold, part in ((fold, part) for fold in range(1, 6) for part in ("train", "test")):
        chosen = [clip for clip in range(11) if (clip % 5 + 1 == fold) == (part == "test")]
        lines = "".join(f"{clip:05d}.mp4 {MAFW[clip]}\n" for clip in chosen)
        write(root / f"split/single/no_caption/set_{fold}/{part}.txt", lines)
    return MafwConfig(root=str(root), threads=2)


def ferv39k_tree(root: Path, make_video: Make, make_frames: Make) -> Ferv39kConfig:
    for part in ("train", "test"):
        clips = [f"{scene}/{emotion}/{part}" for scene in ("Action", "Crime") for emotion in ("Happy", "Fear")]
        for clip in clips:
            make_frames(root / "2_ClipsforFaceCrop" / clip, frames=4)
        lines = "".join(f"{clip} {clip.split('/')[1]}\n" for clip in clips)
        write(root / f"4_setups/All_scenes/{part}_All.csv", lines)
    return Ferv39kConfig(root=str(root), threads=2)


def gaze360_tree(root: Path, make_video: Make, make_frames: Make) -> Gaze360Config:
    """One labelled frame of one person, the last of a sequence whose head comes nearer, and two of another."""
    for person, frames in ((1, range(4)), (2, range(8, 12))):
        for frame in frames:
            make_frames(root / f"imgs/rec_000/head/{person:06d}", 1, 40 + frame, 60 + frame, "{:06d}.jpg", frame)
    table = {"recordings": ["rec_000"], "recording": [0, 0, 0, 0], "person_identity": [1, 1, 2, 2]}
    table |= {"frame": [0, 3, 10, 11], "gaze_dir": np.eye(3)[[0, 1, 2, 2]], "split": [3, 0, 0, 2]}
    savemat(root / "metadata.mat", table)
    return Gaze360Config(root=str(root), threads=2)


TREES: dict[str, Callable[[Path, Make, Make], BaseModel]] = {
    "annotations": annotations_tree,
    "cremad": cremad_tree,
    "dfew": dfew_tree,
    "enterface05": enterface05_tree,
    "ferv39k": ferv39k_tree,
    "gaze360": gaze360_tree,
    "mafw": mafw_tree,
    "ravdess": ravdess_tree,
    "videos": videos_tree,
    "voxceleb2": voxceleb2_tree,
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def copies(video: Path, places: list[Path]) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, place)


@pytest.fixture(params=sorted(DATASETS))
def dataset(request: pytest.FixtureRequest, tmp_path: Path, make_video: Make, make_frames: Make) -> Any:
    """Return a dataset's name and the settings of a tiny tree in its layout."""
    return request.param, TREES[request.param](tmp_path / "root", make_video, make_frames)


def test_every_dataset_gives_a_manifest_whose_clips_can_be_read(dataset: Any, tmp_path: Path) -> None:
    name, config = dataset
    settings, read = DATASETS[name]
    assert config.name == name and isinstance(config, settings)
    manifest = read(config)
    assert manifest.table.schema == SCHEMA and len(manifest) >= 2 and not manifest.rejected
    for row in manifest.rows():
        assert not Path(row["path"]).is_absolute() and "\\" not in row["path"]
        path = Path(manifest.root) / row["path"]
        last = decode.read(path, [row["start"] + row["frames"] - 1])
        assert last.shape == (1, row["height"], row["width"], 3)
    # Twice the same, with any number of threads, and through Parquet.
    assert read(config.model_copy(update={"threads": 1})) == manifest
    manifest.write(tmp_path / "manifest.parquet")
    assert Manifest.read(tmp_path / "manifest.parquet") == manifest


def test_every_dataset_tells_its_progress(dataset: Any) -> None:
    name, config = dataset
    told: list[tuple[int, int]] = []
    DATASETS[name][1](config, progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(1, told[-1][1] + 1))


def test_every_dataset_says_where_it_looked_when_there_is_nothing(dataset: Any, tmp_path: Path) -> None:
    name, config = dataset
    (tmp_path / "empty").mkdir()
    for root in ("nowhere", "empty"):
        with pytest.raises(DatasetError, match=f"{tmp_path}/{root}"):
            DATASETS[name][1](config.model_copy(update={"root": str(tmp_path / root)}))


def test_every_dataset_refuses_or_reports_a_broken_file(dataset: Any, tmp_path: Path) -> None:
    name, config = dataset
    manifest = DATASETS[name][1](config)
    broken = manifest.row(0)["path"]
    path = Path(manifest.root, broken)
    for file in path.iterdir() if path.is_dir() else [path]:
        file.write_bytes(b"")
    if "allow_missing" in type(config).model_fields:
        with pytest.raises(DatasetError, match=rf"(?s)1 of \d+ are not.*allow_missing.*{broken}.*empty"):
            DATASETS[name][1](config)
        config = config.model_copy(update={"allow_missing": True})
    found = DATASETS[name][1](config)
    assert [item.path for item in found.rejected] == [broken] and "empty" in found.rejected[0].reason
    assert len(found) == len(manifest) - 1


# DFEW


@pytest.fixture
def dfew_root(tmp_path: Path, make_video: Make, make_frames: Make) -> Path:
    dfew_tree(tmp_path, make_video, make_frames)
    return tmp_path


def read_dfew(root: Path, **settings: Any) -> Manifest:
    return dfew.read(DfewConfig(root=str(root), **settings))


def test_dfew_has_official_labels_and_folds(dfew_root: Path) -> None:
    manifest = read_dfew(dfew_root)
    assert manifest.classes == ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
    assert manifest.column("video") == [f"{clip:05d}" for clip in range(1, 11)]
    assert manifest.column("label") == [clip % 7 for clip in range(1, 11)]
    assert manifest.column("fold") == [clip % 5 + 1 for clip in range(1, 11)]
    assert manifest.column("frames") == [4 + clip for clip in range(1, 11)]
    assert set(manifest.column("split")) == set(manifest.column("subject")) == set(manifest.column("pitch")) == {None}


def test_dfew_tables_may_have_spaces_no_header_and_padded_names(dfew_root: Path) -> None:
    expected = read_dfew(dfew_root).fingerprint()
    for path in (dfew_root / "EmoLabel_DataSplit").rglob("*.csv"):
        _, *lines = path.read_text().splitlines()
        names = [line.split(",") for line in lines]
        path.write_text("\ufeff" + "".join(f" {int(name):05d}.mp4 , {label} \r\n" for name, label in names))
    assert read_dfew(dfew_root).fingerprint() == expected


def test_dfew_takes_subjects_and_gaze_from_files_beside_it(dfew_root: Path) -> None:
    write(dfew_root / "subjects.csv", "video_name,subject\n1,ada\n00002,bob\n")
    write(
        dfew_root / "gaze.csv",
        "some\\where\\00001 4 0.1 -0.2\nx/00003/00001.jpg 0 0 0.4\nx/00003/00002.jpg 0 0 0.6\nx/99 0 0 0\n",
    )
    manifest = read_dfew(dfew_root, gaze="gaze.csv")
    assert manifest.column("subject")[:3] == ["ada", "bob", None]
    assert manifest.column("pitch")[:3] == [pytest.approx(0.1), None, pytest.approx(0)]
    # A clip with several lines looks where they do on average.
    assert manifest.column("yaw")[:3] == [pytest.approx(-0.2), None, pytest.approx(0.5)]
    assert manifest.notes == (
        "subjects from subjects.csv",
        "gaze of 2 of 10 clips from gaze.csv, read as path label pitch yaw",
    )


def test_dfew_lists_missing_clips_unless_they_may_be_missing(dfew_root: Path) -> None:
    for clip in (3, 7):
        (dfew_root / f"Clip/jpg_256/{clip:05d}").rename(dfew_root / f"elsewhere{clip}")
    with pytest.raises(DatasetError, match=r"2 of 10 are not.*\n.*00003: is missing\n.*00007: is missing"):
        read_dfew(dfew_root)
    manifest = read_dfew(dfew_root, allow_missing=True)
    assert len(manifest) == 8 and [item.path for item in manifest.rejected] == [
        "Clip/jpg_256/00003",
        "Clip/jpg_256/00007",
    ]


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("test", ("1,2\n", "1,3\n"), "label that other files give.*00001"),
        ("test", ("1,2\n", "1,2\n2,3\n"), "no clip that another fold tests.*00002"),
        ("test", ("1,2\n", ""), "every clip in some fold.*00001"),
        ("train", ("2,3\n", "2,3\n1,2\n"), "no clip that its fold tests.*00001"),
        ("train", ("3,4\n", ""), "every clip that its fold does not test.*00003"),
        (
            "test",
            ("1,2\n", "1,8\n"),
            r"set_2\.csv:2: a DFEW label is a number from 1 to 7.*'8': correct it, or restore",
        ),
        # Without names of columns, the first line is a clip's, whatever is wrong with it.
        ("test", ("video_name,label\n1,2\n", "1,8\n"), r"set_2\.csv:1: a DFEW label is a number.*'8': correct it"),
        ("test", ("video_name,label\n1,2\n", "1,happy\n"), r"set_2\.csv:1: a DFEW label is a number.*'happy'"),
        ("test", ("1,2\n", "1,2\n1,2\n"), r"set_2\.csv:3: a clip has one line.*take one of them out"),
        ("test", ("1,2\n", "1\n"), r"set_2\.csv:2: a line has two columns.*correct it, or take it out"),
    ],
)
def test_dfew_says_which_files_differ(dfew_root: Path, part: str, change: tuple[str, str], told: str) -> None:
    # Clip 1 is tested in fold 2; clips 2 and 3 train there.
    path = dfew_root / f"EmoLabel_DataSplit/{part}(single-labeled)/set_2.csv"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(DatasetError, match=told):
        read_dfew(dfew_root)


def test_dfew_without_a_fold_or_gaze_says_so(dfew_root: Path) -> None:
    write(dfew_root / "gaze.csv", "other/77 0 0.1 0.2\n")
    with pytest.raises(DatasetError, match="none does; the first is other/77: write them as 00001"):
        read_dfew(dfew_root, gaze="gaze.csv")
    with pytest.raises(DatasetError, match=r"there is no .*nowhere\.csv: set gaze to its place under root"):
        read_dfew(dfew_root, gaze="nowhere.csv")
    write(dfew_root / "gaze.csv", "x/1 0 0\n")
    with pytest.raises(AnnotationError, match="set gaze_columns to angles or label_emotion"):
        read_dfew(dfew_root, gaze="gaze.csv")
    with pytest.raises(DatasetError, match="has label emotion alone: set gaze to another file"):
        read_dfew(dfew_root, gaze="gaze.csv", gaze_columns="label_emotion")
    assert read_dfew(dfew_root, gaze="gaze.csv", gaze_columns="angles").column("pitch")[0] == 0
    (dfew_root / "EmoLabel_DataSplit/train(single-labeled)/set_4.csv").unlink()
    with pytest.raises(DatasetError, match=r"train has \[1, 2, 3, 5\] and test has \[1, 2, 3, 4, 5\]"):
        read_dfew(dfew_root)


def test_no_dfew_on_disk_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Clip/jpg_256/00001.*ask for the data at https://dfew-dataset"):
        read_dfew(tmp_path / "dfew")


# Folders of videos


def test_videos_are_found_at_any_depth_and_named_by_their_path(
    tmp_path: Path, make_video: Make, make_frames: Make
) -> None:
    config = videos_tree(tmp_path, make_video, make_frames)
    write(tmp_path / "ada/._1.mp4", "hidden")
    manifest = videos.read(config)
    assert manifest.column("video") == ["ada/1.mp4", "ada/deep er/2.avi", "bob/10.mp4"]
    assert set(manifest.column("subject")) == {None} and manifest.column("fps") == [25, 25, 25]
    named = videos.read(config.model_copy(update={"subject_from_folder": True}))
    assert named.column("subject") == ["ada", "ada", "bob"]


def test_long_videos_are_cut_and_short_ones_stay_whole(tmp_path: Path, make_video: Make, which: Any) -> None:
    make_video(tmp_path / "long.mp4", frames=40)
    make_video(tmp_path / "short.mp4", frames=9)
    manifest = videos.read(VideosConfig(root=str(tmp_path), clip_frames=16, hop_frames=12))
    found = [(row["video"], row["path"], row["start"], row["frames"]) for row in manifest.rows()]
    assert found == [
        ("long.mp4#0", "long.mp4", 0, 16),
        ("long.mp4#12", "long.mp4", 12, 16),
        ("long.mp4#24", "long.mp4", 24, 16),
        ("short.mp4", "short.mp4", 0, 9),
    ]
    assert [row["start"] for row in videos.read(VideosConfig(root=str(tmp_path), clip_frames=20)).rows()] == [0, 20, 0]
    with pytest.raises(ValidationError, match="hop_frames needs clip_frames"):
        VideosConfig(root="x", hop_frames=4)


def test_unreadable_videos_are_listed_and_nothing_but_them_is_an_error(tmp_path: Path, make_video: Make) -> None:
    make_video(tmp_path / "good.mp4")
    write(tmp_path / "text.mp4", "no video at all, but named like one")
    cut = make_video(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-100])
    manifest = videos.read(VideosConfig(root=str(tmp_path)))
    assert manifest.column("video") == ["good.mp4"]
    assert [item.path for item in manifest.rejected] == ["cut.mp4", "text.mp4"]
    assert "truncated" in manifest.rejected[0].reason and "not an mp4" in manifest.rejected[1].reason
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(
        DatasetError,
        match=r"none of 2.*: repair them, or set root.*\n.*cut\.mp4: is truncated.*\n.*text\.mp4: is not an mp4",
    ):
        videos.read(VideosConfig(root=str(tmp_path)))


def test_voxceleb2_knows_its_persons(tmp_path: Path, make_video: Make, make_frames: Make) -> None:
    manifest = voxceleb2.read(voxceleb2_tree(tmp_path, make_video, make_frames))
    assert manifest.column("video") == ["id00012/abc/00001", "id00012/abc/00002", "id00015/xyz/00001"]
    assert manifest.column("subject") == ["id00012", "id00012", "id00015"]
    assert manifest.column("path")[0] == "dev/mp4/id00012/abc/00001.mp4"


# Annotation files


def annotate(root: Path, text: str, **settings: Any) -> Manifest:
    path = write(root / "labels.txt", text)
    return annotations.read(AnnotationsConfig(annotations=str(path), root=str(root), **settings))


@pytest.fixture
def clips(tmp_path: Path, make_frames: Make) -> Path:
    """Return a root with the frame folders `one`, `two` and `two words`."""
    for name in ("one", "two", "two words"):
        make_frames(tmp_path / name, frames=5)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("one 0\ntwo 1\n", "label"),
        ("one 0.5 1 0\ntwo -0.5 -3 1\n", "pitch yaw emotion"),
        ("one 0.5 1\ntwo -0.5 -3\n", "pitch yaw"),
        ("one 0 0.5 1\ntwo 1 -0.5 -3\n", "label pitch yaw"),
        ("one 0 0 -1\ntwo 0.36 0.8 -0.48\n", "x y z"),
    ],
)
def test_columns_are_known_by_their_numbers_and_said(clips: Path, text: str, columns: str) -> None:
    manifest = annotate(clips, text)
    assert manifest.notes == (f"lines read as path {columns} (columns=auto)",)
    classes = "label" in columns or "emotion" in columns
    assert manifest.column("label") == ([0, 1] if classes else [None, None])
    angles = {"label": [None, None], "x y z": [0, np.arcsin(0.8)]}.get(columns, [0.5, -0.5])
    assert manifest.column("pitch") == [a if a is None else pytest.approx(a) for a in angles]
    yaws = {"label": [None, None], "x y z": [0, np.arctan2(0.36, 0.48)]}.get(columns, [1, -3])
    assert manifest.column("yaw") == [a if a is None else pytest.approx(a) for a in yaws]
    assert manifest.classes == (("0", "1") if classes else ())
    # Names of the columns say the same.
    named = annotate(clips, f"Path {columns.title()}\n{text}")
    assert named.fingerprint() == manifest.fingerprint()


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("one 0 0.6 0.8\ntwo 0 0 1\n", ("vector", "label_angles")),
        ("one 0 3\ntwo 1 0\n", ("angles", "label_emotion")),
        ("one 0 0\ntwo 0 1\n", ("angles", "label_emotion")),
        ("one 4 20\ntwo 3 10\n", ("angles", "label_emotion")),  # classes, or degrees
        ("one 0.0 0.3 2\ntwo 0.0 0.1 0\n", ("label_angles", "angles_emotion")),
        ("one 0.6 0.8 0\ntwo 0 0 1\n", ("vector", "angles_emotion")),
    ],
)
def test_numbers_that_can_be_two_things_are_a_question_which_names_both(
    clips: Path, text: str, kinds: tuple[Any, Any]
) -> None:
    either = " or ".join(kinds)
    meanings = " or as ".join(f"path {' '.join(MEANING[kind])}" for kind in kinds)
    with pytest.raises(AnnotationError, match=rf"labels\.txt:1: .*read as {meanings}: set columns to {either}$"):
        annotate(clips, text)
    for kind in kinds[:1] if "20" not in text else kinds[1:]:
        assert annotate(clips, text, columns=kind).notes == (f"lines read as path {' '.join(MEANING[kind])}",)
    # Names of the columns answer it too.
    named = annotate(clips, f"path {' '.join(MEANING[kinds[1]])}\n{text}")
    assert named.fingerprint() == annotate(clips, text, columns=kinds[1]).fingerprint()


def test_the_emotion_of_a_relabelled_file_is_the_class(clips: Path) -> None:
    manifest = annotate(clips, "one 0 3\ntwo 1 -1\n", columns="label_emotion")
    assert manifest.column("label") == [3, None] and manifest.column("pitch") == [None, None]
    assert manifest.classes == ("0", "1", "2", "3")
    with pytest.raises(AnnotationError, match=r"labels\.txt:1: an emotion is below 3.*says 0 3: name its class in"):
        annotate(clips, "one 0 3\ntwo 1 -1\n", columns="label_emotion", classes=("a", "b", "c"))
    manifest = annotate(clips, "one 0.0 0.3 2\ntwo 0.0 0.1 0\n", columns="angles_emotion")
    assert manifest.column("label") == [2, 0]
    assert manifest.column("pitch") == [0, 0] and manifest.column("yaw") == pytest.approx([0.3, 0.1])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "one 0 .1 .2\ntwo 1 nan .3\n",
            "2: numbers are finite, but this line says 1 nan 0.3: leave out the line of a clip",
        ),
        ("one 0 .1 .2\ntwo 1.5 .1 .3\n", "2: a label is a whole number.*says 1.5 0.1 0.3: .*as path label pitch yaw"),
        ("one 0 0 -1\ntwo .6 .8 .1\n", "2: x y z has length 1.*says 0.6 0.8 0.1: divide it.*taken as path x y z"),
        (
            "one .1 .2 3\ntwo .1 .2 3.5\n",
            "2: an emotion is a whole.*says 0.1 0.2 3.5: .*taken as path pitch yaw emotion",
        ),
        ("one 0 10 -20\ntwo 3 5 5\n", "1: pitch and yaw are radians.*: convert degrees.*taken as path label pitch yaw"),
        ("one .1 .6 .9\n", "1: x y z has length 1.*set columns if they are not"),
    ],
)
def test_where_no_reading_fits_the_line_that_breaks_the_likeliest_is_named(clips: Path, text: str, told: str) -> None:
    with pytest.raises(AnnotationError, match=rf"labels\.txt:{told}"):
        annotate(clips, text)


@pytest.mark.parametrize(
    ("text", "settings", "told"),
    [
        ("a b\none 0\n", {}, r"1: all after the path are numbers.*'a b': put a path with spaces in quotes"),
        ("two words 0\n", {}, r"1: all after the path are numbers.*'two words 0': put a path with spaces in quotes"),
        ("one\ntwo 0\n", {}, r"1: a line is a path and one to three numbers.*write it so, or take it out"),
        # Another order than ours, which would put pitch and yaw the wrong way round.
        ("path yaw pitch\none 0.1 0.2\n", {}, r"1: names of columns are path and label, .*names yaw pitch: bring the"),
        ("path label 3\none 0 3\n", {}, r"1: names of columns are path and label, .*names label 3: bring the"),
        (
            "path label\none 0\n",
            {"columns": "angles"},
            r"1: names of columns agree with columns.*columns=label for all",
        ),
        ("path label\none 0 1\n", {}, r"2: columns: label means path label.*set columns to angles or label_emotion"),
        ("one 0\npath label\n", {}, r"2: all after the path are numbers.*'path label'"),
    ],
)
def test_a_first_line_is_names_of_columns_or_a_clip_and_never_dropped(
    clips: Path, text: str, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(AnnotationError, match=rf"labels\.txt:{told}"):
        annotate(clips, text, **settings)


def test_a_vector_becomes_the_angles_that_give_it_back(clips: Path) -> None:
    vector = np.array([[0.48, -0.6, -0.64], [-0.36, 0.48, 0.8]])
    manifest = annotate(
        clips, "".join(f"{n} {x} {y} {z}\n" for n, (x, y, z) in zip(("one", "two"), vector, strict=True))
    )
    angles = np.array([manifest.column("pitch"), manifest.column("yaw")]).T
    assert np.allclose(angles_to_vector(angles), vector, atol=1e-6)


@pytest.mark.parametrize("text", ['"two words" 1', "'two words'   1", "two words\t1", " two words \t 1 "])
def test_paths_with_spaces_stand_in_quotes_or_before_a_tab(clips: Path, text: str) -> None:
    assert annotate(clips, text + "\n").column("path") == ["two words"]


def test_header_blank_lines_windows_paths_and_prefixes_are_understood(clips: Path) -> None:
    text = "path label\n\nD:\\data\\one  0\nD:\\data\\two  -1\n./two words/\t1\n"
    manifest = annotate(clips, text, strip_prefix="D:/data/")
    assert manifest.column("path") == ["one", "two", "two words"]
    assert manifest.column("label") == [0, None, 1]
    assert "\\ in paths read as /" in manifest.notes


@pytest.mark.parametrize(
    ("text", "settings", "told"),
    [
        (
            "one 0\ntwo\n",
            {},
            r"labels\.txt:2: a line is a path and one to three numbers.*is 'two': write it so, or take",
        ),
        (
            "one 0\ntwo 0 1 2\n",
            {},
            r"labels\.txt:2: .*same columns.*has 4 columns where .*labels\.txt:1 has 2: write them alike",
        ),
        (
            "one 0\ntwo 2\n",
            {"classes": ("a", "b")},
            r"labels\.txt:2: a label is below 2.*says 2: name its class in `classes`, or correct",
        ),
        ("one 0\ntwo 0.5\n", {}, r"labels\.txt:2: a label is a whole number.*says 0\.5"),
        ("one 0 0 0\ntwo 1 nan 0\n", {"columns": "label_angles"}, r"labels\.txt:2: numbers are finite.*says 1 nan 0"),
        ("one 0 0\ntwo 10 -40\n", {}, r"labels\.txt:2: pitch and yaw are radians.*says 10 -40"),
        ("one 0 0 1\ntwo 1 1 1\n", {"columns": "vector"}, r"labels\.txt:2: x y z has length 1"),
        ("one 0\ntwo many\n", {}, r"labels\.txt:2: all after the path are numbers.*'two many'"),
        ("one,0\n", {}, "separated by white space"),
        ("one 0 0\n", {"columns": "label"}, "columns: label means path label, but this line has 2 numbers"),
        ("\n", {}, "must hold lines.*: write `path label`"),
        ("one 0\none/ 1\n", {}, r"labels\.txt:2: a clip has one line.*labels\.txt:1 says something else: take one"),
        ("one 0\nthree 0\n", {}, r"(?s)1 of 2 are not.*three.*labels\.txt:2"),
        ("one/00009.jpg 0\n", {}, r"(?s)1 of 1 are not.*00009\.jpg: is missing.*labels\.txt:1"),
        ("one 0\n", {"subject_folder": 1}, r"labels\.txt:1: subject_folder 1 needs a deeper path"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(clips: Path, text: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises((AnnotationError, DatasetError), match=told):
        annotate(clips, text, **settings)


def test_a_frame_is_the_clip_that_ends_with_it(tmp_path: Path, make_frames: Make) -> None:
    folder = make_frames(tmp_path / "rec/head/7", frames=30, name="{}.jpg")
    (folder / "12.jpg").unlink()
    names = [1, 5, 11, 13, 30]
    text = "".join(f"rec/head/7/{name}.jpg 0.1 0.2\n" for name in names)
    manifest = annotate(tmp_path, text, subject_folder=2)
    # Places count the files that are there: frame 13 is the twelfth.
    found = [(row["path"], row["start"], row["frames"]) for row in manifest.rows()]
    assert found == [("rec/head/7", start, frames) for start, frames in [(0, 1), (0, 5), (0, 11), (11, 1), (13, 16)]]
    assert set(manifest.column("subject")) == {"7"}
    last = decode.frame_files(folder)[13 + 16 - 1].name
    assert last == "30.jpg"
    assert annotate(tmp_path, text, clip_frames=4).column("frames") == [1, 4, 4, 1, 4]


def test_a_folder_of_annotation_files_is_one_dataset_of_tracks(tmp_path: Path, make_frames: Make) -> None:
    for track in ("10", "9"):
        make_frames(tmp_path / f"frames/{track}", frames=3)
        write(tmp_path / f"tracks/{track}.csv", "".join(f"frames/{track}/0000{n}.jpg 0.0 0.{n}\n" for n in (1, 2, 3)))
    config = AnnotationsConfig(annotations=str(tmp_path / "tracks"), root=str(tmp_path))
    manifest = annotations.read(config)
    assert manifest.column("subject") == ["9"] * 3 + ["10"] * 3
    assert manifest.column("frames") == [1, 2, 3, 1, 2, 3]
    (tmp_path / "tracks/ada").mkdir()
    (tmp_path / "tracks/9.csv").rename(tmp_path / "tracks/ada/9.csv")
    assert set(annotations.read(config).column("subject")) == {"ada", "10"}


def test_rows_that_a_track_repeats_for_missing_frames_count_once(tmp_path: Path, make_frames: Make) -> None:
    make_frames(tmp_path / "frames/7", frames=9)
    (tmp_path / "frames/7/00004.jpg").unlink()
    rows = [f"frames/7/{n:05d}.jpg 0 0.1 0.{n}\n" * (2 if n == 5 else 1) for n in (2, 3, 5, 6)]
    track = write(tmp_path / "tracks/7.csv", "".join(rows))
    config = AnnotationsConfig(annotations=str(tmp_path / "tracks"), root=str(tmp_path))
    manifest = annotations.read(config)
    assert manifest.column("yaw") == pytest.approx([0.2, 0.3, 0.5, 0.6])
    assert manifest.notes[-1] == "lines that repeat one of their file count once: 1"
    # The same row in another file is still a clip in two parts.
    write(tmp_path / "tracks/8.csv", rows[0])
    with pytest.raises(AnnotationError, match=r"8\.csv:1: a clip has one line and belongs to one part.*7\.csv:1"):
        annotations.read(config)
    track.unlink()
    assert len(annotations.read(config).notes) == 1


@pytest.mark.parametrize("setting", ["annotations", "val_annotations", "test_annotations"])
def test_a_missing_annotation_file_names_the_setting_to_change(clips: Path, setting: str) -> None:
    write(clips / "all.csv", "one 0\n")
    config = AnnotationsConfig(annotations=str(clips / "all.csv"), root=str(clips))
    with pytest.raises(DatasetError, match=rf"{setting} must be a file.*no {clips}/gone.csv: set {setting} to where"):
        annotations.read(config.model_copy(update={setting: str(clips / "gone.csv")}))
    (clips / "none").mkdir()
    with pytest.raises(DatasetError, match=rf"none holds none: set {setting} to where they are"):
        annotations.read(config.model_copy(update={setting: str(clips / "none")}))


def test_official_parts_come_from_files_of_their_own(clips: Path) -> None:
    parts = {"annotations": "train", "val_annotations": "val", "test_annotations": "test"}
    files = {
        setting: str(write(clips / f"{part}.csv", f'"{path}" {label}\n'))
        for label, ((setting, part), path) in enumerate(zip(parts.items(), ("one", "two", "two words"), strict=True))
    }
    manifest = annotations.read(AnnotationsConfig(**files, root=str(clips)))
    assert manifest.column("split") == ["train", "val", "test"]
    # The published splits validate on a copy of the test file.
    write(clips / "val.csv", '"two words" 2\n')
    with pytest.raises(AnnotationError, match=r"test\.csv:1: .*one part.*val\.csv:1.*copies the test file"):
        annotations.read(AnnotationsConfig(**files, root=str(clips)))


def test_class_names_are_kept_even_where_a_class_has_no_clip(clips: Path) -> None:
    manifest = annotate(clips, "one 0\n", classes=("a", "b", "c"))
    assert manifest.classes == ("a", "b", "c")
    with pytest.raises(ManifestError, match="class names must differ"):
        annotate(clips, "one 0\n", classes=("a", "a"))
