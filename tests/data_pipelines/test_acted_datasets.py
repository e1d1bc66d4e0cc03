"""CREMA-D, RAVDESS and eNTERFACE'05: what their names tell, as videos and as aligned frames, whole and in part."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import pytest

from mien.data_pipelines import splits
from mien.data_pipelines.datasets import cremad, enterface05, ravdess
from mien.data_pipelines.datasets.cremad import CremadConfig
from mien.data_pipelines.datasets.enterface05 import Enterface05Config
from mien.data_pipelines.datasets.ravdess import RavdessConfig
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.probing import DatasetError

Make = Callable[..., Path]


def copies(source: Path, places: Iterable[Path]) -> None:
    """Copy one small clip, a file or a folder, to many places."""
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place)


def facts(manifest: Manifest) -> list[tuple[str, int, str, int]]:
    columns = (manifest.column(name) for name in ("video", "label", "subject", "fold"))
    return sorted(zip(*columns, strict=True))


# CREMA-D


def test_cremad_has_the_published_clips_and_folds() -> None:
    names = [name for actor in cremad.ACTORS for name in cremad.names(actor)]
    assert len(names) == len(set(names)) == 7442 and len(cremad.ABSENT) == 20
    columns = [cremad.columns(name) for name in names]
    assert Counter(row["fold"] for row in columns) == {1: 1463, 2: 1470, 3: 1476, 4: 1476, 5: 1557}
    # As many clips an emotion as the owner tells: 1,271, and 1,087 neutral ones.
    assert [Counter(row["label"] for row in columns)[label] for label in range(6)] == [
        1271,
        1271,
        1271,
        1271,
        1087,
        1271,
    ]
    actors = {fold: {row["subject"] for row in columns if row["fold"] == fold} for fold in range(1, 6)}
    assert [len(actors[fold]) for fold in range(1, 6)] == [18, 18, 18, 18, 19]
    assert set().union(*actors.values()) == {str(actor) for actor in range(1001, 1092)}
    assert min(actors[5]) == "1073" and max(actors[1]) == "1018"
    assert all(cremad.official_name(name) == name for name in names)


def test_cremad_names_may_be_spelled_in_other_ways() -> None:
    assert cremad.official_name("1040_ITH_SAD_X") == "1040_ITH_SAD_XX"
    assert cremad.official_name("1001_ieo_ang_hi ") == "1001_IEO_ANG_HI"
    assert cremad.official_name("1001_IEO_ANG") is None and cremad.official_name("readme") is None


def test_cremad_is_read_from_videos_and_aligned_frames(tmp_path: Path, make_video: Make, make_frames: Make) -> None:
    names = cremad.names(1002)
    assert len(names) == 81
    flash, aligned = tmp_path / "VideoFlash", tmp_path / "face_aligned"
    copies(make_video(tmp_path / "one.flv", frames=5), (flash / f"{name}.flv" for name in names))
    (flash / "1002_ITH_SAD_XX.flv").rename(flash / "1002_ith_sad_x.FLV")
    config = CremadConfig(root=str(tmp_path), actors=(1002,))
    videos = cremad.read(config)
    assert len(videos) == 81 and set(videos.column("frames")) == {5} and set(videos.column("fps")) == {25}
    assert videos.classes == ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD") and videos.notes == (
        "clips are the videos in VideoFlash",
    )
    copies(make_frames(tmp_path / "one", frames=12, name="{}.jpg"), (aligned / name for name in names))
    frames = cremad.read(config)
    assert facts(frames) == facts(videos) and set(frames.column("frames")) == {12}
    assert frames.notes == ("clips are the frame folders in face_aligned; set clips to read VideoFlash instead",)
    assert cremad.read(config.model_copy(update={"clips": "VideoFlash"})).column("path") == videos.column("path")


def test_cremad_in_part_says_what_is_missing(tmp_path: Path, make_video: Make) -> None:
    video = make_video(tmp_path / "one.flv", frames=3)
    copies(video, (tmp_path / f"VideoFlash/{name}.flv" for name in cremad.names(1001)[2:]))
    copies(video, (tmp_path / f"VideoFlash/{name}.flv" for name in ("1002_TIE_NEU_XX", "1003_DFA_ANG_XX", "trailer")))
    with pytest.raises(DatasetError, match=r"7361 of 7442 are not.*allow_missing") as told:
        cremad.read(CremadConfig(root=str(tmp_path)))
    assert "VideoFlash/1001_DFA_ANG_XX: is missing\n  VideoFlash/1001_DFA_DIS_XX: is missing" in str(told.value)
    manifest = cremad.read(CremadConfig(root=str(tmp_path), allow_missing=True))
    assert len(manifest) == 81 and len(manifest.rejected) == 7361
    assert manifest.notes == (
        "clips are the videos in VideoFlash; left out: 1 of other names, such as VideoFlash/trailer.flv",
        "left out: 1 clips that are not listed, such as VideoFlash/1002_TIE_NEU_XX.flv",
    )
    with pytest.raises(DatasetError, match=r"actors must be among 1001 to 1091, the 91 of CREMA-D, but got 1, 1092"):
        cremad.read(CremadConfig(root=str(tmp_path), actors=(1, 1001, 1092)))


def test_cremad_without_git_lfs_says_so(tmp_path: Path) -> None:
    pointer = tmp_path / "VideoFlash/1001_DFA_ANG_XX.flv"
    pointer.parent.mkdir()
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    with pytest.raises(DatasetError, match="git-lfs has it: run `git lfs pull`"):
        cremad.read(CremadConfig(root=str(tmp_path)))


# RAVDESS


def test_ravdess_has_the_published_clips_and_folds() -> None:
    names = [name for actor in ravdess.ACTORS for name in ravdess.names(actor)]
    assert len(names) == len(set(names)) == 1440
    columns = [ravdess.columns(name) for name in names]
    for fold in range(1, 7):
        here = [row for row in columns if row["fold"] == fold]
        assert (len(names) - len(here), len(here)) == (1200, 240)
        assert Counter(row["label"] for row in here) == {0: 16} | dict.fromkeys(range(1, 8), 32)
        assert {row["subject"] for row in here} == {f"{actor:02d}" for actor in range(4 * fold - 3, 4 * fold + 1)}
    assert ravdess.columns("02-01-06-01-02-01-12") == {"label": 5, "subject": "12", "fold": 3}  # the owner's example
    assert not any("-01-02-" in name[5:11] for name in names if name[6:8] == "01")  # no strong neutral


def test_ravdess_takes_the_speech_without_sound_wherever_it_was_unpacked(
    tmp_path: Path, make_video: Make, make_frames: Make
) -> None:
    video = make_video(tmp_path / "one.mp4", frames=5)
    second = ravdess.names(2)
    # One archive unpacked beside the others, another into its own folder; each with its sound, and with songs.
    copies(video, (tmp_path / f"Actor_01/{name}.mp4" for name in ravdess.names(1)))
    copies(video, (tmp_path / f"Actor_01/{name.replace('02-', '01-', 1)}.mp4" for name in ravdess.names(1)))
    copies(video, [tmp_path / "Actor_01/02-02-01-01-01-01-01.mp4"])
    copies(video, (tmp_path / f"Video_Speech_Actor_02/Actor_02/{name}.mp4" for name in second))
    config = RavdessConfig(root=str(tmp_path), actors=(1, 2))
    videos = ravdess.read(config)
    assert len(videos) == 120 and Counter(videos.column("subject")) == {"01": 60, "02": 60}
    assert videos.classes == ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
    assert "left out: 61 of other names, such as Actor_01/01-01-" in videos.notes[0]
    frames = make_frames(tmp_path / "one", frames=3)
    copies(frames, (tmp_path / f"face_aligned/Actor_{name[-2:]}/{name}" for name in (*ravdess.names(1), *second)))
    aligned = ravdess.read(config)
    assert facts(aligned) == facts(videos) and aligned.column("path")[0].startswith("face_aligned/Actor_01/02-01-01")


def test_ravdess_that_lies_twice_or_in_part_says_so(tmp_path: Path, make_video: Make) -> None:
    video = make_video(tmp_path / "one.mp4", frames=3)
    name = "02-01-01-01-01-01-01"
    copies(video, [tmp_path / f"Actor_01/{name}.mp4", tmp_path / f"Video_Speech_Actor_01/Actor_01/{name}.mp4"])
    with pytest.raises(DatasetError, match=rf"{name} lies in Actor_01/.* and in Video_Speech.*: take one of the two"):
        ravdess.read(RavdessConfig(root=str(tmp_path)))
    shutil.rmtree(tmp_path / "Video_Speech_Actor_01")
    with pytest.raises(DatasetError, match=r"1439 of 1440 are not.*\n  02-01-01-01-01-02-01: is missing"):
        ravdess.read(RavdessConfig(root=str(tmp_path)))
    assert len(ravdess.read(RavdessConfig(root=str(tmp_path), allow_missing=True))) == 1


# eNTERFACE'05


def sentence_names() -> list[str]:
    """Return ids as the owner's folders give them, without the three sentences that the published set lacks."""
    found = [
        f"subject_{subject}/{emotion}/sentence_{sentence}/s{subject}_{emotion[:2]}_{sentence}"
        for subject, emotion, sentence in product(enterface05.SUBJECTS, enterface05.CLASSES, range(1, 6))
    ]
    lacking = {f"subject_23/happiness/sentence_{sentence}/s23_ha_{sentence}" for sentence in (1, 2, 3)}
    return [name for name in found if name not in lacking]


def test_enterface_folds_have_the_published_sizes_and_share_nobody() -> None:
    names = sentence_names()
    columns = [enterface05.columns(enterface05.sentence_of(name)) for name in names]
    assert len(names) == 1287
    assert Counter(row["fold"] for row in columns) == {1: 270, 2: 270, 3: 267, 4: 270, 5: 210}
    subjects = {row["subject"]: row["fold"] for row in columns}
    assert (
        len(subjects) == 43 and "6" not in subjects and all(subjects[row["subject"]] == row["fold"] for row in columns)
    )
    present = {enterface05.sentence_of(name) for name in names}
    missing, absent = enterface05.split_absent(present, enterface05.SUBJECTS)
    assert missing == [] and absent == [(23, "happiness", sentence) for sentence in (1, 2, 3)]
    # A fourth of the same fold, and one of another, are missing.
    missing, absent = enterface05.split_absent(present - {(23, "fear", 1)}, enterface05.SUBJECTS)
    assert len(missing) == 4 and absent == []
    missing, absent = enterface05.split_absent(present - {(1, "fear", 1)}, enterface05.SUBJECTS)
    assert missing == [(1, "fear", 1)] and len(absent) == 3


def test_enterface_folders_are_known_however_they_are_spelled() -> None:
    expected = "subject_3/anger/sentence_1/s_3_an_1"
    for path in ("subject 3/anger/sentence 1/s_3_an_1", "Subject_3/Anger/Sentence1/s_3_an_1", expected):
        assert enterface05.clip_id(path) == expected
    for path in ("subject 6/anger/sentence 1/a", "subject 3/joy/sentence 1/a", "subject 3/anger/sentence 6/a"):
        assert enterface05.clip_id(path) is None


def test_enterface_is_read_from_videos_and_aligned_frames(tmp_path: Path, make_video: Make, make_frames: Make) -> None:
    names = [name for name in sentence_names() if name.startswith(("subject_5/", "subject_23/"))]
    database = tmp_path / "enterface database"
    video = make_video(tmp_path / "one.avi", frames=5)
    copies(video, (database / f"{name.replace('ct_', 'ct ').replace('ce_', 'ce ')}.avi" for name in names))
    # Subject 6 as the owner ships it, without sentences; and what Windows leaves behind.
    copies(video, [database / "subject 6/anger/s6_an.avi", database / "subject 6/anger.avi"])
    (database / "subject 5/anger/sentence 1/Thumbs.db").write_bytes(b"x")
    config = Enterface05Config(root=str(tmp_path), subjects=(5, 23))
    videos = enterface05.read(config)
    assert len(videos) == 57 and Counter(videos.column("fold")) == {1: 30, 3: 27}
    assert "enterface database/subject 5/anger/sentence 1/s5_an_1.avi" in videos.column("path")
    assert videos.notes == (
        "not there, as in the published set: "
        + ", ".join(f"subject_23/happiness/sentence_{sentence}" for sentence in (1, 2, 3)),
        "clips are the videos in enterface database; left out: 2 of other names, such as "
        "enterface database/subject 6/anger.avi",
    )
    copies(
        make_frames(tmp_path / "one", frames=11, name="{}.jpg"), (tmp_path / "face_aligned" / name for name in names)
    )
    frames = enterface05.read(config)
    assert facts(frames) == facts(videos) and set(frames.column("frames")) == {11}
    # The database's own folder may be the root; and what else is missing is told.
    (database / "subject 5/fear/sentence 2/s5_fe_2.avi").unlink()
    inside = config.model_copy(update={"root": str(database)})
    with pytest.raises(DatasetError, match=r"1 of 57 are not.*\n  subject_5/fear/sentence_2: is missing"):
        enterface05.read(inside)
    part = enterface05.read(inside.model_copy(update={"allow_missing": True}))
    assert len(part) == 56 and facts(part) == [fact for fact in facts(videos) if "s5_fe_2" not in fact[0]]
    assert splits.split(part, 1, splits.SplitConfig(protocol="paper")).train.size == 27
