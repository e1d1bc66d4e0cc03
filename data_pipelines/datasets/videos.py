"""Any folder of videos or images, found at any depth: for pretraining, prediction and trials.

A long video can be cut into clips; they share the file and differ in `start`, and splits keep them together. An image
is a clip of one frame; where images are the frames of videos, `annotations` reads their folders as clips.

A label file may say what is known of each file: `path label`, or any other columns that `annotation_files` reads. A
file that it does not name stays, with nothing known.
"""

from collections.abc import Set
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from mien.data_pipelines.annotation_files import MEANING, AnnotationError, Columns, Record, cleaned, read_records
from mien.data_pipelines.decode import IMAGES, DecodeError
from mien.data_pipelines.manifest import Manifest, Rejected, build
from mien.data_pipelines.probing import DatasetError, Progress, listed, printable, probe_all
from mien.data_pipelines.video_files import VIDEOS

FILES = {"videos": VIDEOS, "images": IMAGES, "both": VIDEOS | IMAGES}


class VideosConfig(BaseModel, frozen=True, extra="forbid"):
    """Where the files are, what is known of them, and how they are cut."""

    name: Literal["videos"] = "videos"
    root: str = Field(description="folder that is searched, with all folders in it")
    files: Literal["videos", "images", "both"] = Field(
        "videos", description="what is searched for; an image is a clip of one frame"
    )
    labels: str | None = Field(
        None, description="annotation file under root: a path under root, and what is known of it"
    )
    columns: Columns = Field(
        "auto",
        description="what stands behind a path there: label | angles (pitch yaw) | vector (x y z) | label_angles | "
        "label_emotion, angles_emotion (the emotion is the class) | auto (known by names or numbers, or asked)",
    )
    classes: tuple[str, ...] = Field((), description="class names in the order of labels; none = numbers as names")
    dataset: str = Field("videos", description="what the dataset is called in tables")
    clip_frames: int | None = Field(None, ge=1, description="cut each video into clips of so many frames; none = whole")
    hop_frames: int | None = Field(None, ge=1, description="frames between the starts of clips; none = clip_frames")
    subject_from_folder: bool = Field(False, description="the first folder's name is the person")
    threads: int = Field(8, ge=1, description="files looked at side by side")

    @model_validator(mode="after")
    def _hops_need_clips(self) -> "VideosConfig":
        if self.hop_frames and not self.clip_frames:
            raise ValueError(f"hop_frames needs clip_frames, but got hop_frames={self.hop_frames} alone: set both")
        return self


def read(config: VideosConfig, progress: Progress | None = None) -> Manifest:
    """Return a row for each file, or for each clip cut from one; unreadable and missing files are in `rejected`."""
    root, suffixes = Path(config.root), FILES[config.files]
    if not root.is_dir():
        raise DatasetError(f"a folder of {_named(config)} must exist, but there is none at {root.absolute()}: set root")
    paths = find_videos(root, suffixes)
    if not paths:
        raise DatasetError(
            f"a folder of {_named(config)} must hold some ({' '.join(sorted(suffixes))}), at any depth, but there is "
            f"none under {root.absolute()}: set root to where they are, set files to videos, images or both, or read "
            "frame folders through an annotation file"
        )
    notes: list[str] = []
    known, absent = _known(config, root, set(paths), notes) if config.labels else ({}, [])
    rows, rejected = video_rows(paths, root, config.threads, progress)
    cut = []
    for row in rows:
        if config.subject_from_folder and "/" in row["path"]:
            row["subject"] = row["path"].split("/")[0]
        if row["path"] in known:
            record = known[row["path"]]
            row |= {"label": record.label, "pitch": record.pitch, "yaw": record.yaw}
        cut += _cut(row, config.clip_frames, config.hop_frames or config.clip_frames)
    numbers = range(max((record.label for record in known.values() if record.label is not None), default=-1) + 1)
    classes = config.classes or tuple(map(str, numbers))
    rows = [{**row, "dataset": config.dataset} for row in cut]
    return build(rows, classes, root, config.dataset, rejected + absent, notes)


def _named(config: VideosConfig) -> str:
    return "videos or images" if config.files == "both" else config.files


def _known(
    config: VideosConfig, root: Path, paths: set[str], notes: list[str]
) -> tuple[dict[str, Record], list[Rejected]]:
    """Return what the label file says of each path, and the lines whose file is not there."""
    file = root / (config.labels or "")
    records, columns = read_records([file], config.columns, len(config.classes) or None)
    known: dict[str, Record] = {}
    absent: dict[str, Rejected] = {}
    for record in records:
        path = cleaned(record.path, f"{root.as_posix()}/")
        if path not in paths:
            absent[path] = Rejected(path, f"is missing ({record.where})")
            continue
        first = known.setdefault(path, record)
        if first[3:] != record[3:]:
            raise AnnotationError(
                f"{record.where}: a file has one line, or equal ones, but of {path} {first.where} says something else: "
                "take one of the two out"
            )
    if not known:
        raise DatasetError(
            f"{file.absolute()}: a label file's paths must name {_named(config)} under {root.absolute()}, but none "
            f"does; the first is {records[0].path}: write them as they lie under root"
        )
    asked = " (columns=auto)" if config.columns == "auto" else ""
    notes.append(f"lines of {file.name} read as path {' '.join(MEANING[columns])}{asked}")
    if len(known) < len(paths):
        notes.append(f"files that {file.name} does not name: {len(paths) - len(known)} of {len(paths)}")
    return known, list(absent.values())


def find_videos(folder: Path, suffixes: Set[str] = VIDEOS) -> list[str]:
    """Return the videos in a folder and its folders, relative to it, sorted; hidden files are no videos."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def video_rows(
    paths: list[str], root: Path, threads: int, progress: Progress | None
) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """Return a row, without its dataset, for each video that can be read, and the others with their reasons."""
    rows, rejected = [], []
    for path, found in probe_all(paths, root, threads, progress).items():
        if isinstance(found, DecodeError):
            rejected.append(Rejected(printable(path), found.reason))
        else:
            rows.append({"video": path, "path": path, **found._asdict()})
    if not rows:
        raise DatasetError(
            f"some file must be readable, but none of {len(paths)} under {root.absolute()} is: repair them, or set "
            f"root to another folder:{listed(rejected)}"
        )
    return rows, rejected


def _cut(row: dict[str, Any], clip_frames: int | None, hop_frames: int | None) -> list[dict[str, Any]]:
    """Return the row's clips of `clip_frames` frames; a video that is not longer stays whole."""
    if not clip_frames or not hop_frames or row["frames"] <= clip_frames:
        return [row]
    starts = range(0, row["frames"] - clip_frames + 1, hop_frames)
    return [{**row, "video": f"{row['video']}#{start}", "start": start, "frames": clip_frames} for start in starts]
