"""Any dataset that comes as annotation files: a line a clip, or a line a frame.

A path may be a video, a folder of frames, or a frame. A frame stands for the clip that ends with it: the frames before
it as long as their numbers are consecutive, at most `clip_frames` (MAE-DFER's gaze fork, its Gaze360 reader).
A folder of annotation files is one dataset, a file a track.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from mien.data_pipelines.annotation_files import MEANING, AnnotationError, Columns, Record, cleaned, read_records
from mien.data_pipelines.decode import IMAGES, DecodeError, frame_files, natural
from mien.data_pipelines.gaze_labels import with_gaze_of_frames
from mien.data_pipelines.manifest import Manifest, Rejected, build
from mien.data_pipelines.probing import DatasetError, Progress, listed, probe_all


class AnnotationsConfig(BaseModel, frozen=True, extra="forbid"):
    """Which annotation files, and what their paths and numbers mean."""

    name: Literal["annotations"] = "annotations"
    annotations: str = Field(description="annotation file, or a folder with one a track; train where others are given")
    val_annotations: str | None = Field(None, description="the official validation part, file or folder")
    test_annotations: str | None = Field(None, description="the official test part, file or folder")
    root: str = Field("", description="folder that relative paths start from")
    strip_prefix: str = Field(
        "", description="beginning of the written paths that is taken off, such as another's disk"
    )
    columns: Columns = Field(
        "auto",
        description="what stands behind a path: label | angles (pitch yaw) | vector (x y z) | label_angles | "
        "label_emotion, angles_emotion (the emotion is the class) | auto (known by names or numbers, or asked)",
    )
    classes: tuple[str, ...] = Field((), description="class names in the order of labels; none = numbers as names")
    dataset: str = Field("annotations", description="what the dataset is called in tables")
    clip_frames: int = Field(16, ge=1, description="longest clip that ends with a written frame")
    subject_folder: int | None = Field(
        None,
        ge=0,
        description="which folder of a path names the person, from 0; none = the track's file, where there is one",
    )
    allow_missing: bool = Field(False, description="leave out what is missing or unreadable, and count it")
    threads: int = Field(8, ge=1, description="files looked at side by side")


def read(config: AnnotationsConfig, progress: Progress | None = None) -> Manifest:
    """Return a row for each line; a note says which columns were taken."""
    root = Path(config.root)
    if not root.is_dir():
        raise DatasetError(
            f"the folder that paths start from must exist, but there is none at {root.absolute()}: set root"
        )
    parts = {"train": config.annotations, "val": config.val_annotations, "test": config.test_annotations}
    given = {part: Path(path) for part, path in parts.items() if path is not None}
    part_of = {file: part for part, path in given.items() for file in _files(path, part)}
    records, columns = read_records(list(part_of), config.columns, len(config.classes) or None)
    notes = [
        f"lines read as path {' '.join(MEANING[columns])}" + (" (columns=auto)" if config.columns == "auto" else "")
    ]
    if any("\\" in record.path for record in records):
        notes.append("\\ in paths read as /")

    clips = [_Clip(record, cleaned(record.path, config.strip_prefix)) for record in records]
    clips, repeated = _once(clips)
    if repeated:  # as published tracks have them, where frames are missing
        notes.append(f"lines that repeat one of their file count once: {repeated}")
    folders: dict[str, _Numbered] = {}
    for clip in clips:
        if clip.is_frame and clip.source not in folders:
            folders[clip.source] = _Numbered(root / clip.source)
    found = probe_all([clip.source for clip in clips], root, config.threads, progress)

    rows, rejected = [], []
    for clip in clips:
        probe = found[clip.source]
        if isinstance(probe, DecodeError):
            rejected.append(Rejected(clip.path, f"{probe.reason} ({clip.record.where})"))
            continue
        row: dict[str, Any] = {"video": clip.path, "path": clip.source, "dataset": config.dataset, **probe._asdict()}
        if clip.is_frame:
            run = folders[clip.source].run(clip.path.rpartition("/")[2], config.clip_frames)
            if run is None:
                rejected.append(Rejected(clip.path, f"is missing ({clip.record.where})"))
                continue
            row["start"], row["frames"] = run
        row |= {"label": clip.record.label, "pitch": clip.record.pitch, "yaw": clip.record.yaw}
        part = part_of[clip.record.file]
        row["split"] = part if len(given) > 1 else None
        row["subject"] = _subject(clip, given[part], config.subject_folder)
        rows.append(row)
    if rejected and not (config.allow_missing and rows):
        raise DatasetError(
            f"every path of an annotation file must be readable, but {len(rejected)} of {len(clips)} are not under "
            f"{root.absolute()}: set root or strip_prefix, or allow_missing to leave them out:{listed(rejected)}"
        )
    numbers = range(max((row["label"] for row in rows if row["label"] is not None), default=-1) + 1)
    made = build(rows, config.classes or tuple(map(str, numbers)), root, config.dataset, rejected, notes)
    gazed = any(row["pitch"] is not None for row in rows) and all(clip.is_frame for clip in clips)
    return with_gaze_of_frames(made) if gazed else made


class _Clip:
    """One line's clip: where its frames are."""

    def __init__(self, record: Record, path: str) -> None:
        self.record, self.path = record, path
        self.is_frame = Path(path).suffix.lower() in IMAGES
        self.source = path.rpartition("/")[0] or "." if self.is_frame else path


class _Numbered:
    """The frames of one folder, and the number in each frame's name."""

    def __init__(self, folder: Path) -> None:
        names = [path.name for path in frame_files(folder)] if folder.is_dir() else []
        self.places = {name: place for place, name in enumerate(names)}
        self.numbers = [[piece for piece, _ in natural(Path(name).stem) if piece >= 0][-1:] for name in names]

    def run(self, name: str, longest: int) -> tuple[int, int] | None:
        """Return start and length of the consecutive frames that end with `name`, or None where it is not there."""
        last = self.places.get(name)
        if last is None:
            return None
        first = last
        while first > 0 and last - first + 1 < longest and self._follows(first):
            first -= 1
        return first, last - first + 1

    def _follows(self, place: int) -> bool:
        before, here = self.numbers[place - 1], self.numbers[place]
        return bool(before and here) and before[0] + 1 == here[0]


def _files(path: Path, part: str) -> list[Path]:
    """Return the annotation files in a folder, or the one that `path` is."""
    if path.is_file():
        return [path]
    setting = "annotations" if part == "train" else f"{part}_annotations"
    if not path.is_dir():
        raise DatasetError(
            f"{setting} must be a file, or a folder of .csv or .txt files, but there is no {path.absolute()}: set "
            f"{setting} to where it is"
        )
    found = (file for file in path.rglob("*") if file.suffix.lower() in (".csv", ".txt"))
    files = sorted(found, key=lambda file: natural(str(file)))
    if not files:
        raise DatasetError(
            f"a folder of annotations must hold .csv or .txt files, but {path.absolute()} holds none: set {setting} to "
            "where they are"
        )
    return files


def _once(clips: list[_Clip]) -> tuple[list[_Clip], int]:
    """Return the clips without the lines that repeat one of their own file, and how many those are.

    Raises AnnotationError where two lines, of one file or of two parts, say different things of the same clip.
    """
    seen: dict[str, _Clip] = {}
    for clip in clips:
        first, here = seen.setdefault(clip.path, clip).record, clip.record
        if first.file != here.file:
            raise AnnotationError(
                f"{here.where}: a clip has one line and belongs to one part, but {clip.path} stands in {first.where} "
                "too: a validation file that copies the test file must be left out"
            )
        if first[3:] != here[3:]:
            raise AnnotationError(
                f"{here.where}: a clip has one line, or equal ones, but of {clip.path} {first.where} says something "
                "else: take one of the two out"
            )
    return list(seen.values()), len(clips) - len(seen)


def _subject(clip: _Clip, annotations: Path, level: int | None) -> str | None:
    """Return the person, or the track where files are tracks: its folder's name, or its own."""
    if level is not None:
        folders = clip.path.split("/")[:-1]
        if level >= len(folders):
            raise DatasetError(f"{clip.record.where}: subject_folder {level} needs a deeper path than {clip.path}")
        return folders[level]
    if annotations.is_file():
        return None
    track = clip.record.file.relative_to(annotations)
    return track.parts[0] if len(track.parts) > 1 else track.stem
