"""Raw video to faces: detected, tracked, cropped, resized, a file for each person and shot.

A footage is read twice. The first time finds faces in every few frames and joins them to tracks; the second cuts the
crops out. Reading twice costs the decoding again (a millisecond a frame at 360p) and buys what one look cannot have:
boxes smoothed from both sides, tracks that are too short never written, and no frame held in memory while a track's
fate is open. Memory is a frame or two and the boxes, also for hours.

Of each footage a record is written, whatever came of it; frames without a face are counted there and are no failure.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines.crop_files import CropWriter, Kind, Sheet, cut_out, empty, open_writer
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.face_detector import DETECTORS, Detector
from mien.data_pipelines.face_tracks import Track, TrackConfig, Tracker, likeness, main_track, squares
from mien.data_pipelines.footage import Footage
from mien.data_pipelines.unfinished import unfinished

Record = dict[str, Any]
MARGIN = 0.15  # share of the longer side of a face, on each end of a crop
Beat = Callable[[], None]  # called at every frame, so that whoever watches knows that it goes on


class FindConfig(BaseModel, frozen=True, extra="forbid"):
    """How faces are found and followed."""

    detector: Literal["centerface", "whole"] = Field(
        "centerface", description="what finds faces; whole: nothing does, the frame's middle is one (cropped clips)"
    )
    min_face: int = Field(24, ge=1, description="height of a face, pixels of the video, at least")
    detect_side: int = Field(
        320,
        ge=64,
        description="longer side to which pictures are shrunk to look for faces; 640 finds half as large ones",
    )
    tracks: TrackConfig = TrackConfig()
    keep: Literal["all", "main"] = Field(
        "all", description="all: every person and shot; main: the largest face of a video, for labelled clips"
    )


class FacesConfig(FindConfig, frozen=True):
    """How faces are found, and what is made of them."""

    margin: float = Field(MARGIN, ge=0, description="share of the face's longer side added on each end of the crop")
    size: int = Field(224, ge=16, multiple_of=2, description="height and width of the crops written, pixels")
    format: Kind = Field("mp4", description="what is written for each track: mp4 | frames (a folder of JPEG)")
    fps: float | None = Field(None, gt=0, description="rate of the crops, frames/s; null: the video's own")
    sheet_frames: int = Field(
        24, ge=0, description="frames of each video drawn with their boxes on a sheet; 0: no sheet"
    )


@dataclass(frozen=True)
class Followed:
    """What the first reading of a footage found."""

    tracks: list[Track]
    frames: int
    cuts: int
    size: tuple[int, int]  # height and width of the first frame


def follow(footage: Footage, config: FindConfig, detector: Detector, beat: Beat = lambda: None) -> Followed:
    """Read a footage and return its tracks; raises DecodeError."""
    tracker: Tracker | None = None
    before: np.ndarray | None = None
    due, frames, cuts = 0, 0, 0
    size = last_size = (0, 0)
    for frame in footage.frames():
        beat()
        tracker = tracker or Tracker(config.tracks, footage.fps)
        now = frame.thumbnail()
        size, last_size, other_size = size if frame.index else frame.size, frame.size, frame.size != last_size
        if before is not None and (frame.jump or other_size or likeness(before, now) < config.tracks.cut):
            tracker.cut(frame.index)
            cuts, due = cuts + 1, frame.index
        if frame.index >= due:
            picture = frame.rgb(config.detect_side)
            faces = detector(picture)
            faces[:, :4] *= frame.size[0] / picture.shape[0]
            tracker.look(frame.index, faces[faces[:, 3] - faces[:, 1] >= config.min_face])
            due = frame.index + config.tracks.detect_every
        before, frames = now, frame.index + 1
    assert tracker is not None  # a footage without frames is a DecodeError
    tracks = tracker.finish(frames)
    return Followed([main_track(tracks)] if config.keep == "main" and tracks else tracks, frames, cuts, size)


def crop(
    footage: Footage, followed: Followed, config: FacesConfig, folder: Path, sheet: Path, beat: Beat = lambda: None
) -> list[str]:
    """Read a footage again and write its tracks into `folder`; return their names there."""
    empty(folder)
    waiting = list(enumerate(followed.tracks))
    running: dict[int, tuple[Track, np.ndarray, CropWriter]] = {}
    names: list[str] = []
    drawn = set(np.linspace(0, followed.frames - 1, config.sheet_frames).round().astype(int).tolist())
    drawing = Sheet()
    for frame in footage.frames() if waiting or drawn else ():
        beat()
        while waiting and waiting[0][1].start <= frame.index:
            number, track = waiting.pop(0)
            name, writer = open_writer(folder, number, config.format, footage.fps, config.size)
            running[number] = (track, squares(track.boxes, config.margin), writer)
            names.append(name)
        if not running and frame.index not in drawn:
            continue
        picture = frame.rgb()
        marks = []
        for number, (track, around, writer) in list(running.items()):
            place = frame.index - track.start
            writer.add(cut_out(picture, around[place], config.size))
            marks.append((number, track.boxes[place], around[place]))
            if place + 1 == len(track):
                writer.close()
                del running[number]
        if frame.index in drawn:
            drawing.add(frame.index, picture, marks)
    assert not waiting and not running, "the second reading gave fewer frames than the first"
    if not names:
        folder.rmdir()
    drawing.save(sheet)
    return names


def process(
    source: Path,
    name: str,
    output: Path,
    config: FacesConfig,
    detector: Detector | None = None,
    beat: Beat = lambda: None,
) -> Record:
    """Crop one footage and write its record, which is returned; a footage that cannot be read is one with a reason.

    `name` is its name in the output: crops go to clips/NAME/, the drawing to sheets/NAME.png, the record to
    records/NAME.json, which is written last.
    """
    began = time.monotonic()
    cv2.setNumThreads(1)
    detector = detector or DETECTORS[config.detector](config.tracks.keep_score)
    footage = Footage(source, config.fps)
    record: Record = {"name": name, "made_from": made_from(source, config)}
    try:
        followed = follow(footage, config, detector, beat)
        names = crop(footage, followed, config, output / "clips" / name, output / "sheets" / f"{name}.png", beat)
    except DecodeError as error:
        record |= {"state": "unreadable", "reason": error.reason, "tracks": []}
    except MemoryError:
        record |= {"state": "unreadable", "reason": "takes more memory than guard.memory_gib", "tracks": []}
    else:
        record |= _told(name, followed, names, footage, config)
    write_record(output, record | {"seconds": round(time.monotonic() - began, 3)})
    return read_record(output, name) or {}


def _told(name: str, followed: Followed, names: list[str], footage: Footage, config: FacesConfig) -> Record:
    with_face = np.zeros(followed.frames, bool)
    tracks = []
    for file, track in zip(names, followed.tracks, strict=True):
        with_face[track.start : track.start + len(track)] = True
        tracks.append(
            {"path": f"clips/{name}/{file}", "start": track.start, "frames": len(track)}
            | {"found_ratio": round(track.found / track.looks, 4), "score": round(track.score, 4)}
            | {"face_px": round(float(np.median(track.boxes[:, 3])), 1)}
        )
    return {
        "state": "cropped" if tracks else "no face",
        "reason": None
        if tracks
        else f"no face is seen for {config.tracks.min_frames} of its {followed.frames} frames on end",
        "frames": followed.frames,
        "frames_with_face": int(with_face.sum()),
        "fps": footage.fps,
        "height": followed.size[0],
        "width": followed.size[1],
        "cuts": followed.cuts,
        "notes": footage.notes,
        "tracks": tracks,
    }


def made_from(source: Path, config: FacesConfig) -> Record:
    """Return what a record holds good for: the settings, and the file's size and time."""
    settings = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    try:
        about = source.stat()
    except OSError:
        return {"settings": settings, "bytes": None, "modified_ns": None}
    return {"settings": settings, "bytes": about.st_size, "modified_ns": about.st_mtime_ns}


def safe_name(path: str) -> str:
    """Return a path as a name below the output folder: relative, and nowhere upwards."""
    pure = PurePath(path)
    return "/".join(part for part in pure.parts if part not in (pure.anchor, "..")) or "footage"


def record_file(output: Path, name: str) -> Path:
    """Return where the record of a footage stands."""
    return output / "records" / f"{name}.json"


def write_record(output: Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    with unfinished(record_file(output, record["name"])) as part:
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(output: Path, name: str) -> Record | None:
    """Return the record of a footage, or None where there is none."""
    try:
        return json.loads(record_file(output, name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
