"""DFEW (Jiang et al., ACM MM 2020): film clips in seven classes, five official folds.

    ROOT/Clip/jpg_256/00001/*.jpg
    ROOT/EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv      video_name,label with labels 1..7

A clip's fold is the one that tests it. Two files may add what DFEW does not have: who is seen, and gaze.
"""

import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from mien.data_pipelines.annotation_files import MEANING, Columns, angles_to_vector, read_records, vector_to_angles
from mien.data_pipelines.decode import IMAGES
from mien.data_pipelines.labelled_clips import Found, LabelledConfig, build_labelled
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.official_lists import fold_files, numbered_clip, pairs, read_folds, read_list
from mien.data_pipelines.probing import DatasetError, Progress

CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")  # source labels 1..7


class DfewConfig(LabelledConfig, frozen=True):
    """Where DFEW is."""

    name: Literal["dfew"] = "dfew"
    root: str = Field("data/dfew", description="folder that holds Clip and EmoLabel_DataSplit")
    clips: str = Field("Clip/jpg_256", description="folder of frame folders under root; not the 16-frame variant")
    subjects: str = Field("subjects.csv", description="table video_name,subject under root; read where it exists")
    gaze: str | None = Field(
        None, description="annotation file under root: paths of clips or of their frames, and gaze"
    )
    gaze_columns: Columns = Field(
        "auto",
        description="what stands behind a path there: angles (pitch yaw) | vector (x y z) | label_angles | "
        "angles_emotion | auto (known by names or numbers, or asked)",
    )


def read(config: DfewConfig, progress: Progress | None = None) -> Manifest:
    """Return the single-labelled clips with their class, official fold and, where known, person and gaze."""
    root = Path(config.root)
    folder, labels = root / config.clips, root / "EmoLabel_DataSplit"
    if not folder.is_dir() or not labels.is_dir():
        missing = " and ".join(str(path.absolute()) for path in (folder, labels) if not path.is_dir())
        raise DatasetError(
            f"DFEW must lie as {root}/{config.clips}/00001/*.jpg and {root}/EmoLabel_DataSplit/test(single-labeled)/"
            f"set_1.csv, but there is no {missing}: ask for the data at https://dfew-dataset.github.io and unpack "
            "Clip and EmoLabel_DataSplit there, or set root"
        )
    files = fold_files(labels, "train(single-labeled)/set_*.csv", "test(single-labeled)/set_*.csv")
    label_of, fold_of = read_folds(labels, files, _read)
    names = sorted(label_of)
    notes = (
        [] if "16f" not in config.clips else [f"{config.clips} is another input than jpg_256: scores are lower on it"]
    )
    with os.scandir(folder) as entries:
        present = sorted(entry.name for entry in entries if entry.is_dir())
    found = Found(config.clips, {name: f"{config.clips}/{name}" for name in present})
    subject_of = _subjects(root / config.subjects, notes)
    gaze_of = _gaze(root / config.gaze, config.gaze_columns, set(names), notes) if config.gaze else {}
    wanted = {}
    for name in names:
        pitch, yaw = gaze_of.get(name, (None, None))
        known = {"subject": subject_of.get(name), "pitch": pitch, "yaw": yaw}
        wanted[name] = {**known, "label": label_of[name], "fold": fold_of[name]}
    return build_labelled(config, "DFEW", CLASSES, wanted, found, notes, progress)


def _read(path: Path) -> dict[str, int]:
    """Return the labels (0..6) in a file of lines `video_name,label`."""
    return read_list(
        path,
        "DFEW",
        "a number from 1 to 7",
        lambda text: int(text) - 1 if re.fullmatch("[1-7]", text) else None,
    )


def _subjects(path: Path, notes: list[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    notes.append(f"subjects from {path.name}")
    lines = [line for number, line in pairs(path) if (number, line[0]) != (1, "video_name")]
    return {numbered_clip(name): subject for name, subject in lines}


def _gaze(path: Path, asked: Columns, names: set[str], notes: list[str]) -> dict[str, tuple[float, float]]:
    """Return pitch and yaw of the clips in an annotation file: of a clip with several lines, the mean direction."""
    if not path.is_file():
        raise DatasetError(
            f"a gaze file must exist, but there is no {path.absolute()}: set gaze to its place under root, or leave it "
            "out"
        )
    records, columns = read_records([path], asked, setting="gaze_columns")
    if columns in ("label", "label_emotion"):
        raise DatasetError(
            f"{path}: a gaze file has pitch and yaw or x y z behind the path, but this one has "
            f"{' '.join(MEANING[columns])} alone: set gaze to another file, or leave it out"
        )
    angles: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        place = Path(record.path.replace("\\", "/"))
        name = numbered_clip(place.parent.name if place.suffix.lower() in IMAGES else place.name)
        if name in names and record.pitch is not None and record.yaw is not None:
            angles.setdefault(name, []).append((record.pitch, record.yaw))
    if not angles:
        raise DatasetError(
            f"{path}: a gaze file's paths must name DFEW's clips, but none does; the first is {records[0].path}: write "
            "them as 00001 or as FOLDER/00001/FRAME.jpg"
        )
    notes.append(
        f"gaze of {len(angles)} of {len(names)} clips from {path.name}, read as path {' '.join(MEANING[columns])}"
    )
    means = {}
    for name, looks in angles.items():
        mean = angles_to_vector(np.array(looks)).mean(axis=0)
        pitch, yaw = vector_to_angles((mean / np.linalg.norm(mean))[None])[0]
        means[name] = (float(pitch), float(yaw)) if len(looks) > 1 else looks[0]
    return means
