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
from pydantic import BaseModel, Field

from mien.data_pipelines.annotation_files import MEANING, Columns, angles_to_vector, read_records, vector_to_angles
from mien.data_pipelines.decode import IMAGES, DecodeError
from mien.data_pipelines.manifest import Manifest, Rejected, build
from mien.data_pipelines.probing import DatasetError, Progress, listed, probe_all

CLASSES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")  # source labels 1..7


class DfewConfig(BaseModel, frozen=True, extra="forbid"):
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
    allow_missing: bool = Field(False, description="leave out clips that are missing or unreadable, and count them")
    threads: int = Field(8, ge=1, description="clips looked at side by side")


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
    label_of, fold_of = _official(labels)
    names = sorted(label_of)
    notes = (
        [] if "16f" not in config.clips else [f"{config.clips} is another input than jpg_256: scores are lower on it"]
    )
    with os.scandir(folder) as entries:
        present = {entry.name for entry in entries if entry.is_dir()}
    rejected = [Rejected(f"{config.clips}/{name}", "is missing") for name in names if name not in present]
    paths = [f"{config.clips}/{name}" for name in names if name in present]
    found = probe_all(paths, root, config.threads, progress)
    rejected += [Rejected(path, probe.reason) for path, probe in found.items() if isinstance(probe, DecodeError)]
    if rejected and not config.allow_missing:
        raise DatasetError(
            f"every labelled clip of DFEW must be readable, but {len(rejected)} of {len(names)} are not under {root}: "
            f"repair them, or set allow_missing to leave them out of the folds:{listed(rejected)}"
        )
    subject_of = _subjects(root / config.subjects, notes)
    gaze_of = _gaze(root / config.gaze, config.gaze_columns, set(names), notes) if config.gaze else {}
    rows = []
    for path, probe in found.items():
        if isinstance(probe, DecodeError):
            continue
        name = path.rpartition("/")[2]
        pitch, yaw = gaze_of.get(name, (None, None))
        row = {
            "video": name,
            "path": path,
            "dataset": "dfew",
            "subject": subject_of.get(name),
            "pitch": pitch,
            "yaw": yaw,
        }
        rows.append({**row, "label": label_of[name], "fold": fold_of[name], **probe._asdict()})
    return build(rows, CLASSES, root, "dfew", rejected, notes)


def _official(labels: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return label (0..6) and fold of every clip, after checking that the official files agree with one another."""
    train, test = (
        {
            int(path.stem[4:]): path
            for path in labels.glob(f"{part}(single-labeled)/set_*.csv")
            if path.stem[4:].isdecimal()
        }
        for part in ("train", "test")
    )
    if not test or set(train) != set(test):
        raise DatasetError(
            f"{labels} must hold train(single-labeled)/set_K.csv and test(single-labeled)/set_K.csv for the same folds "
            f"K, but train has {sorted(train)} and test has {sorted(test)}"
        )
    label_of: dict[str, int] = {}
    fold_of: dict[str, int] = {}
    trained: dict[int, set[str]] = {}
    for fold in sorted(test):
        for part, path in (("train", train[fold]), ("test", test[fold])):
            table = _table(path)
            differ = [name for name, label in table.items() if label_of.setdefault(name, label) != label]
            twice = [name for name in table if part == "test" and name in fold_of]
            _agree(path, "gives clips the label that other files give them", differ)
            _agree(path, "tests no clip that another fold tests", twice)
            if part == "test":
                fold_of |= dict.fromkeys(table, fold)
            else:
                trained[fold] = set(table)
    _agree(labels, "tests every clip in some fold", set(label_of) - set(fold_of))
    for fold, names in trained.items():
        tested = {name for name, tests in fold_of.items() if tests == fold}
        _agree(train[fold], "trains on no clip that its fold tests", names & tested)
        _agree(train[fold], "trains on every clip that its fold does not test", set(label_of) - names - tested)
    return label_of, fold_of


def _agree(path: Path, rule: str, offenders: list[str] | set[str]) -> None:
    if offenders:
        shown = ", ".join(sorted(offenders)[:5])
        raise DatasetError(f"an official split {rule}, but {path} breaks this for {len(offenders)} clips: {shown}")


def _table(path: Path) -> dict[str, int]:
    """Return the labels (0..6) in a file of lines `video_name,label`, with or without names of columns."""
    table: dict[str, int] = {}
    for number, (name, label) in _pairs(path):
        if number == 1 and "label" in label.lower():
            continue
        if not re.fullmatch("[1-7]", label):
            raise DatasetError(
                f"{path}:{number}: a DFEW label is a number from 1 to 7, but this line says {label!r}: correct it, or "
                "restore the official file"
            )
        if _clip(name) in table:
            raise DatasetError(
                f"{path}:{number}: a clip has one line, but {name} has another one above: take one of them out"
            )
        table[_clip(name)] = int(label) - 1
    return table


def _pairs(path: Path) -> list[tuple[int, tuple[str, str]]]:
    """Return (line number, (first, second)) of a table of two columns; spaces do not matter."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = [field.strip().strip('"') for field in re.split(r"[,;\t]", line)] if line.strip() else []
        fields = fields[0].split() if len(fields) == 1 else fields
        if len(fields) == 2:
            pairs.append((number, (fields[0], fields[1])))
        elif fields:
            raise DatasetError(
                f"{path}:{number}: a line has two columns, but this one has {len(fields)}, {line!r}: correct it, or "
                "take it out"
            )
    return pairs


def _clip(name: str) -> str:
    """Return a clip's folder name from any way it is written: 7, 00007, 00007.mp4."""
    stem = name.partition(".")[0]
    return f"{int(stem):05d}" if stem.isdecimal() else stem


def _subjects(path: Path, notes: list[str]) -> dict[str, str]:
    if not path.is_file():
        return {}
    notes.append(f"subjects from {path.name}")
    return {_clip(name): subject for number, (name, subject) in _pairs(path) if (number, name) != (1, "video_name")}


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
        name = _clip(place.parent.name if place.suffix.lower() in IMAGES else place.name)
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
    for name, pairs in angles.items():
        mean = angles_to_vector(np.array(pairs)).mean(axis=0)
        pitch, yaw = vector_to_angles((mean / np.linalg.norm(mean))[None])[0]
        means[name] = (float(pitch), float(yaw)) if len(pairs) > 1 else pairs[0]
    return means
