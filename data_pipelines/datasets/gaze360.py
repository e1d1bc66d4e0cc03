"""Gaze360 (Kellnhofer et al., ICCV 2019): people around a 360° camera, crops of their heads, their gaze in each frame.

    ROOT/metadata.mat                             the annotations, as gaze360_labels reads them
    ROOT/imgs/rec_000/head/000001/000123.jpg      recording, person, frame; sizes differ from frame to frame
    LISTS/{train,validation,test}.txt             of the code release: `rec_000/head/000001/000123.jpg x y z`

Gaze is a unit vector in the eye's frame: x left in the image, y up, z away from the camera.

A row is a labelled frame, and its clip the files of its folder that end with it: back from file to file for at most
`clip_frames`, as long as numbers leap by `max_gap` or less and files can be read. A gap is a leap in time: no frame is
repeated or made up for it (the fork repeats the frame behind the gap). `max_gap=1` gives the consecutive frames of the
fork's first reader. A clip also knows the gaze of its earlier frames, as far as they are labelled and in its part, for
a model that answers for each frame (the fork's second reader). Unused frames, whose head a target hides or which begin
or end a sequence, have no row of their own, but stand in the clips of later ones, as in the paper. A clip has the size
of its last frame; the others are brought to it when they are read.

A person's number means nothing in another recording, and the same person can have several numbers in one, so only
recordings share nobody: `subject_is` says which of the two a subject is. The subsets of the tables are said to be
"within 90°" and "within 20°" of the camera; this reads both as yaw, and for 90° any other reading is the same.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines.annotation_files import vector_to_angles
from mien.data_pipelines.datasets.gaze360_labels import LISTS, Labels, read_lists, read_metadata
from mien.data_pipelines.decode import DecodeError, frame_files, frame_size, natural
from mien.data_pipelines.gaze_labels import with_gaze_of_frames
from mien.data_pipelines.manifest import Manifest, Rejected, build
from mien.data_pipelines.probing import DatasetError, Progress, listed
from mien.data_pipelines.threads import in_order

FRONT_DEG = {"all": 180, "front180": 90, "front_facing": 20}  # largest yaw to either side


class Gaze360Config(BaseModel, frozen=True, extra="forbid"):
    """Where Gaze360 is, and what a clip of it is."""

    name: Literal["gaze360"] = "gaze360"
    root: str = Field("data/gaze360", description="folder that holds metadata.mat and imgs")
    labels: str = Field(
        "metadata.mat",
        description="the release's file under root, or a folder with train.txt, validation.txt and test.txt",
    )
    images: str = Field("imgs", description="folder under root that holds rec_000/head/000001/000123.jpg")
    subset: Literal["all", "front180", "front_facing"] = Field(
        "all", description="labelled frames to keep, in every part: all | |yaw| <= 90 degrees | |yaw| <= 20 degrees"
    )
    max_gap: int = Field(5, ge=1, description="largest step between two frame numbers of a clip; 1 = no gap")
    clip_frames: int = Field(16, ge=1, description="longest clip that ends with a labelled frame")
    subject_is: Literal["person", "recording"] = Field(
        "person", description="who is a subject: a number in a recording, or all people of a recording"
    )
    allow_missing: bool = Field(False, description="leave out what is missing or unreadable, and count it")
    threads: int = Field(8, ge=1, description="folders looked at side by side")


Frames = dict[int, tuple[str, float, float]]  # part, pitch and yaw by frame number


def read(config: Gaze360Config, progress: Progress | None = None) -> Manifest:
    """Return a row for each labelled frame: the clip that ends with it, and its gaze."""
    root = Path(config.root)
    images, labels = root / config.images, root / config.labels
    if not images.is_dir() or not labels.exists():
        missing = " and ".join(str(path.absolute()) for path in (images, labels) if not path.exists())
        raise DatasetError(
            f"Gaze360 must lie as {root}/{config.images}/rec_000/head/000001/000123.jpg with {root}/metadata.mat, but "
            f"there is no {missing}: ask for the data at http://gaze360.csail.mit.edu and unpack them there, or set "
            "root; set labels to the folder of train.txt, validation.txt and test.txt to take the code release's lists"
        )
    given = read_lists(labels, config.allow_missing) if labels.is_dir() else read_metadata(labels)
    notes = given.notes
    wanted, rejected = _wanted(given, config, notes)
    folders = sorted(wanted, key=natural)
    tracks = in_order(lambda name: _Track(images / name), folders, config.threads, ahead=8 * config.threads)
    rows: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    lost = len(rejected)
    for done, (folder, track) in enumerate(zip(folders, tracks, strict=True), start=1):
        found, bad = _clips(folder, track, wanted[folder], config, seen)
        rows += found
        lost += len(bad)
        rejected += _rejected(f"{config.images}/{folder}", track, bad, whole=not found)
        if progress:
            progress(done, len(folders))
    if lost and not (config.allow_missing and rows):
        raise DatasetError(
            f"every labelled frame of Gaze360 must be readable, but {lost} of {lost + len(rows)} are not under "
            f"{root.absolute()}: repair them, or set allow_missing to leave them out:{listed(rejected)}"
        )
    notes += [f"labelled frames left out, missing or unreadable: {lost}"] if lost else []
    notes += _told(seen, len(rows), config)
    return with_gaze_of_frames(build(rows, (), root, "gaze360", rejected, notes))


def _wanted(given: Labels, config: Gaze360Config, notes: list[str]) -> tuple[dict[str, Frames], list[Rejected]]:
    """Return the frames to read of every folder, and those whose gaze is no direction."""
    chosen = np.array([part in LISTS for part in given.parts], bool)
    unused = Counter(part for part in given.parts if part not in LISTS)
    notes += [f"{count} frames of split {part} only stand in clips of others" for part, count in unused.items()]
    with np.errstate(invalid="ignore"):
        unit = np.abs(np.linalg.norm(given.vectors, axis=1) - 1) < 1e-3  # the lists' are unit to 1e-15
    angles = vector_to_angles(np.where(unit[:, None], given.vectors, (0, 0, -1)))
    front = np.abs(np.degrees(angles[:, 1])) <= FRONT_DEG[config.subset]
    if config.subset != "all":
        total = int((chosen & unit).sum())
        kept, limit = int((chosen & unit & front).sum()), FRONT_DEG[config.subset]
        notes.append(f"subset {config.subset}: {kept} of {total} labelled frames, those with |yaw| <= {limit} degrees")
    wanted: dict[str, Frames] = {}
    rejected: list[Rejected] = []
    repeated = 0
    numbers, pairs = given.numbers.tolist(), angles.tolist()
    for i in np.flatnonzero(chosen & (front | ~unit)).tolist():
        folder, number = given.folders[i], numbers[i]
        if not unit[i]:
            said = " ".join(f"{value:g}" for value in given.vectors[i])
            path = f"{config.images}/{folder}/{number:06d}.jpg"
            rejected.append(Rejected(path, f"its gaze must be a vector of length 1, but is {said}"))
            continue
        here = (given.parts[i], *pairs[i])
        first = wanted.setdefault(folder, {}).setdefault(number, here)
        if first is not here:
            if first != here:
                raise DatasetError(
                    f"a frame has one gaze and is in one part, but {folder}/{number:06d}.jpg is in {first[0]} with "
                    f"pitch and yaw {first[1]:.4f} {first[2]:.4f} and in {here[0]} with {here[1]:.4f} {here[2]:.4f}: "
                    "take one of the two out, or restore the released files"
                )
            repeated += 1
    notes += [f"labels that stand there twice count once: {repeated}"] if repeated else []
    if not wanted and not rejected:
        raise DatasetError(
            f"some frame must be labelled, but of {len(given.parts)} in {Path(config.root, config.labels).absolute()} "
            f"none is in train, val or test and in subset {config.subset}: set subset=all, or restore the file"
        )
    return wanted, rejected


class _Track:
    """The frames of one folder, in the order in which the decoder counts them."""

    def __init__(self, folder: Path) -> None:
        files: list[Path] = []
        self.whole = ""  # what is wrong with the folder itself
        try:
            files = frame_files(folder)
        except OSError as error:
            self.whole = "is missing" if not folder.exists() else f"cannot be listed: {error.strerror}"
        self.names = [file.name for file in files]
        self.numbers = [int(file.stem) if file.stem.isdecimal() else -1 for file in files]
        self.places = {number: place for place, number in enumerate(self.numbers) if number >= 0}
        self.sizes: list[tuple[int, int]] = []
        self.problems: list[str] = []  # "" where there is none
        for place, (file, number) in enumerate(zip(files, self.numbers, strict=True)):
            size, problem = (0, 0), ""
            try:
                size = frame_size(file)
            except DecodeError as error:
                problem = error.reason
            if number < 0:
                problem = "is no frame: its name is not a number"
            elif place and number == self.numbers[place - 1]:
                problem = f"is there twice, as {self.names[place - 1]} and {file.name}: remove one of them"
            self.sizes.append(size)
            self.problems.append(problem)

    def starts(self, max_gap: int, longest: int) -> list[int]:
        """Return where the clip of each frame begins."""
        begin, starts = 0, []
        for place, number in enumerate(self.numbers):
            before = self.problems[place - 1] if place else ""
            if place and (before or self.problems[place] or number - self.numbers[place - 1] > max_gap):
                begin = place
            starts.append(max(begin, place - longest + 1))
        return starts


def _clips(
    folder: str, track: _Track, wanted: Frames, config: Gaze360Config, seen: Counter[str]
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Return a folder's rows, and why other frames have none; counts what is to be told of the rows in `seen`."""
    recording, _, person = folder.split("/")
    subject = recording if config.subject_is == "recording" else f"{recording}/{person}"
    always = {"dataset": "gaze360", "path": f"{config.images}/{folder}", "subject": subject}
    starts = track.starts(config.max_gap, config.clip_frames)
    rows, bad = [], {}
    for number, (part, pitch, yaw) in sorted(wanted.items()):
        last = track.places.get(number)
        if last is None or track.problems[last]:
            bad[number] = "is missing" if last is None else track.problems[last]
            continue
        start, frames, (height, width) = starts[last], last - starts[last] + 1, track.sizes[last]
        where = {"video": f"{recording}/{person}/{number:06d}", "start": start, "frames": frames, "split": part}
        rows.append({**always, **where, "pitch": pitch, "yaw": yaw, "height": height, "width": width})
        seen["short"] += frames < config.clip_frames
        seen["leaping"] += track.numbers[last] - track.numbers[start] != frames - 1
        seen["stretching"] += any(size != track.sizes[last] for size in track.sizes[start:last])
    return rows, bad


def _rejected(place: str, track: _Track, bad: dict[int, str], whole: bool) -> Iterable[Rejected]:
    """Return what of a folder cannot be used: the folder where that is all of it, or else its frames."""
    if whole:
        reason = track.whole or next(iter(bad.values()))
        return [Rejected(place, f"{reason}; none of its {len(bad)} labelled frames can be read")]
    frames = [Rejected(f"{place}/{number:06d}.jpg", reason) for number, reason in bad.items()]
    after = "; no label is lost, but clips begin after it"
    others = [i for i, problem in enumerate(track.problems) if problem and track.numbers[i] not in bad]
    return frames + [Rejected(f"{place}/{track.names[i]}", track.problems[i] + after) for i in others]


def _told(seen: Counter[str], clips: int, config: Gaze360Config) -> Iterable[str]:
    """Return what is to know of the clips; sampling.rule=ending reads them as their frames stand."""
    yield f"a clip ends with the frame its gaze is of: train and evaluate with sampling.rule=ending ({clips} clips)"
    if seen["short"]:
        yield f"clips with fewer than {config.clip_frames} frames, whose first is repeated in front: {seen['short']}"
    if seen["leaping"]:
        yield f"clips that leap over missing frames, {config.max_gap - 1} at most in one place: {seen['leaping']}"
    if seen["stretching"]:
        yield f"clips with frames of several sizes, brought to that of the last: {seen['stretching']}"
