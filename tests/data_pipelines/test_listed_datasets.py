"""MAFW and FERV39k: official lists beside clips, as videos and as face crops, with what such lists are like."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mien.data_pipelines.datasets import ferv39k, mafw
from mien.data_pipelines.datasets.ferv39k import Ferv39kConfig
from mien.data_pipelines.datasets.mafw import CLASSES, MafwConfig
from mien.data_pipelines.official_lists import pairs
from mien.data_pipelines.probing import DatasetError

Make = Callable[..., Path]
LISTS = "split/single/no_caption"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def label_of(clip: int) -> int:
    """Return a class such that all eleven are there, and most are missing in each fold's test."""
    return clip * 3 % 11


def mafw_lists(root: Path, clips: range, line: Callable[[int], str], lists: str = LISTS) -> None:
    """Write five folds; clip n is tested in fold n % 5 + 1."""
    for fold in range(1, 6):
        for part in ("train", "test"):
            chosen = (clip for clip in clips if (clip % 5 + 1 == fold) == (part == "test"))
            write(root / f"{lists}/set_{fold}/{part}.txt", "".join(line(clip) for clip in chosen))


@pytest.fixture
def mafw_root(tmp_path: Path, make_frames: Make) -> Path:
    """Return a MAFW of twelve clips, the eleven classes among them, with unpadded frames."""
    for clip in range(1, 13):
        make_frames(tmp_path / f"data/frames/{clip:05d}", frames=2 + clip, name="{}.png")
    mafw_lists(tmp_path, range(1, 13), lambda clip: f"{clip:05d}.mp4 {CLASSES[label_of(clip)]}\n")
    return tmp_path


def test_mafw_has_official_labels_and_folds(mafw_root: Path) -> None:
    manifest = mafw.read(MafwConfig(root=str(mafw_root)))
    assert manifest.column("video") == [f"{clip:05d}" for clip in range(1, 13)]
    assert manifest.column("path")[0] == "data/frames/00001"
    assert manifest.column("label") == [label_of(clip) for clip in range(1, 13)]
    assert manifest.column("fold") == [clip % 5 + 1 for clip in range(1, 13)]
    assert manifest.column("frames") == [2 + clip for clip in range(1, 13)]
    assert set(manifest.column("subject")) == set(manifest.column("split")) == {None}
    assert manifest.notes == (
        "the lists name 12 clips, of the published 9,172",
        "clips are the frame folders in data/frames",
    )


def test_mafw_is_read_from_the_owners_clips_too(mafw_root: Path, make_video: Make) -> None:
    for clip in range(1, 14):  # the thirteenth has several labels, and stands in no list
        make_video(mafw_root / f"data/clips/{clip:05d}.mp4", frames=6)
    config = MafwConfig(root=str(mafw_root), clips="data/clips")
    manifest = mafw.read(config)
    assert manifest.column("path")[:2] == ["data/clips/00001.mp4", "data/clips/00002.mp4"]
    assert manifest.notes[-1] == "left out: 1 clips that are not listed, such as data/clips/00013.mp4"
    (mafw_root / "data/frames").rename(mafw_root / "data/elsewhere")
    assert mafw.read(config.model_copy(update={"clips": None})) == manifest


@pytest.mark.parametrize(
    "line",
    [
        lambda clip: f"{clip:05d}.mp4 {label_of(clip)}\n",
        lambda clip: f"{clip}.mp4\t{label_of(clip) + 1} \r\n",
        lambda clip: f"data\\clips\\{clip:05d}.mp4, {CLASSES[label_of(clip)].title()}\n",
    ],
    ids=["from 0", "from 1, unpadded, tab", "Windows separators, comma, capitals"],
)
def test_mafw_lists_may_be_written_in_other_ways(mafw_root: Path, line: Callable[[int], str]) -> None:
    expected = mafw.read(MafwConfig(root=str(mafw_root))).fingerprint()
    mafw_lists(mafw_root, range(1, 13), line)
    assert mafw.read(MafwConfig(root=str(mafw_root))).fingerprint() == expected
    (mafw_root / "split").rename(mafw_root / "Train & Test Set")
    assert mafw.read(MafwConfig(root=str(mafw_root))).fingerprint() == expected


def test_mafw_says_what_its_lists_lack(mafw_root: Path) -> None:
    config = MafwConfig(root=str(mafw_root))
    mafw_lists(mafw_root, range(1, 13), lambda clip: f"{clip:05d}.mp4 {1 + label_of(clip) % 9}\n")
    with pytest.raises(DatasetError, match=r"count from 0 or from 1, but .* holds neither 0 nor 11: restore"):
        mafw.read(config)
    mafw_lists(mafw_root, range(1, 13), lambda clip: f"{clip:05d}.mp4 joy\n")
    with pytest.raises(DatasetError, match=r"train\.txt:1: a MAFW label is one of anger, .* from 0 to 10.*'joy'"):
        mafw.read(config)
    mafw_lists(mafw_root, range(1, 15), lambda clip: f"{clip:05d}.mp4 {CLASSES[label_of(clip)]}\n")
    with pytest.raises(DatasetError, match=r"2 of 14 are not.*\n  data/frames/00013: is missing"):
        mafw.read(config)
    part = mafw.read(config.model_copy(update={"allow_missing": True}))
    assert len(part) == 12 and [item.path for item in part.rejected] == ["data/frames/00013", "data/frames/00014"]
    (mafw_root / f"{LISTS}/set_2/test.txt").unlink()
    with pytest.raises(DatasetError, match=r"train has \[1, 2, 3, 4, 5\] and test has \[1, 3, 4, 5\]"):
        mafw.read(config)
    with pytest.raises(DatasetError, match=f"needs its official lists, but there is no {mafw_root}/nowhere"):
        mafw.read(config.model_copy(update={"lists": "nowhere"}))


# FERV39k

SCENES = {"train": ("Action/Happy/0267", "Daily Life/Sad/0001", "Talk_show/Fear/12"), "test": ("Action/Angry/0001",)}


@pytest.fixture
def ferv39k_root(tmp_path: Path, make_frames: Make) -> Path:
    for part, clips in SCENES.items():
        for clip in clips:
            make_frames(tmp_path / "2_ClipsforFaceCrop" / clip, frames=11, name="{}.jpg")
        lines = "".join(f"{clip} {clip.split('/')[1]}\n" for clip in clips)
        write(tmp_path / f"4_setups/All_scenes/{part}_All.csv", lines)
    return tmp_path


def test_ferv39k_has_official_labels_and_parts(ferv39k_root: Path) -> None:
    manifest = ferv39k.read(Ferv39kConfig(root=str(ferv39k_root)))
    assert manifest.classes == ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
    assert manifest.column("video") == [*SCENES["train"], *SCENES["test"]]
    assert manifest.column("path")[1] == "2_ClipsforFaceCrop/Daily Life/Sad/0001"
    assert manifest.column("label") == [0, 1, 6, 3] and manifest.column("split") == ["train"] * 3 + ["test"]
    assert set(manifest.column("fold")) == set(manifest.column("subject")) == {None}
    assert manifest.notes[:3] == (
        "3 scenes, each the first folder of a clip's id",
        "train_All.csv names 3 clips, of the published 31,088",
        "test_All.csv names 1 clips, of the published 7,847",
    )


@pytest.mark.parametrize(
    "line",
    [
        lambda clip, label: f"{clip.replace('/', chr(92))},{label.lower()}\r\n",
        lambda clip, label: f'"./{clip}.mp4"\t{label} \n',
        lambda clip, label: f"{clip.upper()} {label}\n",
    ],
    ids=["Windows separators, comma", "quotes, suffix, tab", "another case"],
)
def test_ferv39k_lists_may_be_written_in_other_ways(ferv39k_root: Path, line: Callable[[str, str], str]) -> None:
    expected = ferv39k.read(Ferv39kConfig(root=str(ferv39k_root)))
    for part, clips in SCENES.items():
        lines = "".join(line(clip, clip.split("/")[1]) for clip in clips)
        write(ferv39k_root / f"4_setups/All_scenes/{part}_All.csv", "path,label\n" + lines)
    found = ferv39k.read(Ferv39kConfig(root=str(ferv39k_root)))
    for column in ("path", "label", "split"):
        assert found.column(column) == expected.column(column)


def test_ferv39k_may_be_videos(ferv39k_root: Path, make_video: Make) -> None:
    for clip in (*SCENES["train"], *SCENES["test"]):
        make_video(ferv39k_root / f"raw/{clip}.mp4", frames=7)
    manifest = ferv39k.read(Ferv39kConfig(root=str(ferv39k_root), clips="raw"))
    assert manifest.column("path")[0] == "raw/Action/Happy/0267.mp4" and set(manifest.column("frames")) == {7}


def test_ferv39k_says_what_is_wrong(ferv39k_root: Path) -> None:
    config = Ferv39kConfig(root=str(ferv39k_root))
    (ferv39k_root / "2_ClipsforFaceCrop/Action/Happy/0267").rename(ferv39k_root / "2_ClipsforFaceCrop/Action/Happy/9")
    with pytest.raises(DatasetError, match=r"1 of 4 are not.*\n  2_ClipsforFaceCrop/Action/Happy/0267: is missing"):
        ferv39k.read(config)
    manifest = ferv39k.read(config.model_copy(update={"allow_missing": True}))
    assert len(manifest) == 3 and "not listed, such as 2_ClipsforFaceCrop/Action/Happy/9" in manifest.notes[-1]
    test = ferv39k_root / "4_setups/All_scenes/test_All.csv"
    write(test, "Action/Angry/0001 Contempt\n")
    with pytest.raises(DatasetError, match=r"test_All\.csv:1: a FERV39k label is one of Happy, .*'Contempt'"):
        ferv39k.read(config)
    write(test, "Action/Angry/0001 Angry\nAction/Happy/0267 Happy\n")
    with pytest.raises(DatasetError, match=r"in one official part, but 1 are .*: Action/Happy/0267: restore"):
        ferv39k.read(config)
    test.unlink()
    with pytest.raises(DatasetError, match=r"official lists, but there is no .*test_All\.csv: unpack 4_setups"):
        ferv39k.read(config)


def test_a_listed_path_may_hold_spaces(tmp_path: Path) -> None:
    write(tmp_path / "list.csv", "\ufeffDaily Life/Sad/1 Sad\n\n  a b , 1 \n")
    assert pairs(tmp_path / "list.csv") == [(1, ("Daily Life/Sad/1", "Sad")), (3, ("a b", "1"))]
