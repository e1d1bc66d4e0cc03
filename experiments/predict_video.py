"""Show what a finished run says of the faces in any video: annotated video, table and timeline.

    python experiments/predict_video.py holiday.mp4 interview.mov --run output/dfew_fold1 --output output/shown

Takes what PyAV opens: phone videos (lying on their side, at a wavering rate), webcam files, films with cuts, with sound
or without, and folders of frames. Faces are found, followed and cropped as by crop_faces.py. Overlapping clips of each
face, as long in time as the run's training clips, go through its model, and a frame gets the mean of all answers about
it. What the run has learned is shown: classes, gaze or both. For each video NAME it writes

    DIR/NAME.mp4              the video with boxes, classes, bars of probability and gaze arrows, and its sound
    DIR/NAME.csv, .parquet    one row a frame and face; pitch, yaw and spread are radians (+pitch up, +yaw image-left)
    DIR/NAME.png              the timeline
    DIR/NAME.json             settings, faces, what was wrong with the file, and how far it is from the training clips

A face that is in view for less than a clip repeats a frame, as short clips do in evaluation, and is flagged `short`.
The video is read three times, to find faces, to predict and to draw; memory holds boxes and answers, some hundred
bytes a frame and face, and no pictures but those of one clip.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines import faces
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.face_detector import DETECTORS
from mien.data_pipelines.faces import FindConfig, Followed
from mien.data_pipelines.fingerprint import Fingerprint
from mien.data_pipelines.footage import Footage
from mien.data_pipelines.manifest import ManifestError
from mien.data_pipelines.sounded_video import SoundedVideo
from mien.data_pipelines.timed_windows import WindowPlan, face_windows
from mien.data_pipelines.video_distance import distance, learned_rate, margin_like
from mien.experiments.finetune import FinetuneConfig, load_task, open_fold
from mien.models import tasks
from mien.models.backbone import FeatureTask
from mien.platform import checkpoint, face_overlay, predict, timeline
from mien.platform.config import ConfigError, dump, parse, plain, run_program
from mien.platform.face_overlay import Shown
from mien.platform.face_table import FaceTable
from mien.platform.frame_answers import FrameAnswers, window_answers
from mien.platform.progress import clock, progress
from mien.platform.scores import matrix
from mien.platform.storage import storing, write_whole
from mien.platform.training import device_here
from mien.platform.video_outputs import earlier, named, places


class PredictVideoConfig(BaseModel, frozen=True, extra="forbid"):
    """Which videos, whose answers, and how they are drawn."""

    videos: tuple[str, ...] = Field(min_length=1, description="videos; may be given as the first words")
    run: str = Field(description="folder of a finished fine-tuning run")
    faces: FindConfig = FindConfig()
    margin: float | None = Field(
        None,
        ge=0,
        description="share of the face's longer side added on each end of a crop; null: as the run's training clips "
        "were cropped, as far as their fingerprint tells, else as in crop_faces.py",
    )
    learned_fps: float | None = Field(
        None, gt=0, description="rate of the run's training clips, frames/s; null: as they say, else the video's own"
    )
    fps: float | None = Field(None, gt=0, description="rate at which a video is read and drawn; null: its own")
    hop: int | None = Field(
        None,
        ge=1,
        description="frames of a clip from one clip to the next, at most a clip's; null: a quarter of it, and 1 where "
        "an answer is about a clip's last frame",
    )
    batch_size: int = Field(16, ge=1, description="clips predicted at a time")
    short_side: int = Field(480, ge=64, description="smaller videos are drawn larger, to be read, pixels")
    long_side: int = Field(1920, ge=64, description="larger videos are drawn smaller, pixels")


class Model(NamedTuple):
    """A finished run, and what it says of itself."""

    task: FeatureTask
    config: FinetuneConfig
    classes: tuple[str, ...]  # none where it has not learned classes
    gaze: bool
    learned: Fingerprint | None  # of its training clips
    made_from: dict[str, str]
    confidence: float | None  # mean probability of the likeliest class, on validation


def load_model(folder: Path) -> Model:
    """Return the trained task of a finished run; its own clips need not be there any more."""
    if not (folder / "scores.json").is_file():
        hint = "give what --output named when finetune.py ended, or fold_K of a study's trial"
        if (folder / "winner.json").is_file():
            trial = json.loads((folder / "winner.json").read_text(encoding="utf-8"))["trial"]
            hint = f"this is a study, whose folds have a model each: give {folder / 'trials' / trial / 'fold_1'}, say"
        raise ConfigError(
            f"run must be the folder of a finished fine-tuning (scores.json), but {folder} is not; {hint}"
        )
    config, task, about = load_task(folder)
    learns = tasks.labels_of(config.task)
    learned = about.get("inputs", {}).get("trained_on")
    if learned is None:  # a run of before fingerprints were kept; perhaps its clips are still there
        try:
            learned = open_fold(config).fingerprint("train", config.data.manifest)
        except ManifestError:
            learned = None
    found = checkpoint.find(folder)
    weights = f"{checkpoint.crc32(found / 'weights.safetensors'):08x}"
    classes = tuple(about["classes"]) if "label" in learns else ()
    confidence = None
    if classes and (folder / "predictions" / "val.parquet").is_file():
        known = predict.read(folder / "predictions" / "val.parquet")["probabilities"]
        confidence = float(matrix(known).max(axis=1).mean()) if len(known) else None
    made_from = {"run": str(folder), "checkpoint": found.name, "weights": weights}
    return Model(task.to(device_here()), config, classes, "gaze" in learns, learned, made_from, confidence)


class Told(NamedTuple):
    """A video's faces, and what the model says of them."""

    footage: Footage
    followed: Followed
    margin: float  # of the crops
    plan: WindowPlan
    answers: list[FrameAnswers]  # of each track
    confidence: float | None  # mean probability of the likeliest class


@contextmanager
def watched(label: str, footage: Footage, total: int | None) -> Iterator[Callable[[], None]]:
    """Show how far the reading of a footage is; yields what is to be called at each frame."""
    with progress(label, total, "frames") as bar:

        def beat() -> None:
            bar.total = total or max(footage.expected or 0, bar.done + 1)
            bar.advance()

        yield beat


def tell(source: Path, model: Model, config: PredictVideoConfig) -> Told:
    """Read a video twice: follow its faces, and predict them; raises DecodeError."""
    footage = Footage(source, config.fps)
    detector = DETECTORS[config.faces.detector](config.faces.tracks.keep_score)
    with watched("1/3 finding faces", footage, None) as beat:
        followed = faces.follow(footage, config.faces, detector, beat)
    data, tubes = model.config.data, model.config.task.backbone.tubes
    rate = config.learned_fps or learned_rate(model.learned)
    plan = WindowPlan.paced(data.sampling, tubes.frames, model.task.per_frame, footage.fps, rate, config.hop)
    margin = margin_like(model.learned, followed.tracks) if config.margin is None else config.margin
    answers = [FrameAnswers(len(track), len(model.classes), model.gaze) for track in followed.tracks]
    tops, count = 0.0, 0
    with watched("2/3 predicting", footage, followed.frames) as beat:
        frames = (frame for frame in footage.frames() if beat() is None)
        stream = face_windows(
            frames if answers else (), followed.tracks, plan, margin=margin, size=tubes.size, precrop=data.augment
        )
        while batch := list(islice(stream, config.batch_size)):
            clip = np.stack([one.clip for one in batch])
            said = window_answers(model.task, clip, device_here(), model.config.loop.precision)
            for place, one in enumerate(batch):
                answers[one.number].add(one.window.told, {name: value[place] for name, value in said.items()})
            if model.classes:
                tops, count = tops + float(said["probabilities"].max(axis=2).mean(axis=1).sum()), count + len(batch)
    return Told(footage, followed, margin, plan, answers, tops / count if count else None)


def draw(told: Told, model: Model, config: PredictVideoConfig, place: Path, notes: Sequence[str]) -> dict[str, Any]:
    """Read a video again: draw it, and write table and timeline beside it; return what is to be noted."""
    footage, tracks = told.footage, told.followed.tracks
    canvas = face_overlay.Canvas(told.followed.size, config.short_side, config.long_side)
    sound_of = footage.path if footage.path.is_file() else None
    video = SoundedVideo(named(place, "mp4"), canvas.size, footage.fps, sound_of)
    table = FaceTable(named(place, "parquet"), named(place, "csv"), model.classes, model.gaze)
    said = [(one.probabilities(), *(one.gaze() or (None, None))) for one in told.answers]
    short = [told.plan.is_short(len(track)) for track in tracks]
    times = np.zeros(told.followed.frames)
    coming, here = list(range(len(tracks)))[::-1], list[int]()
    with watched("3/3 drawing", footage, told.followed.frames) as beat:
        for frame in footage.frames():
            beat()
            while coming and tracks[coming[-1]].start <= frame.index:
                here.append(coming.pop())
            here = [number for number in here if tracks[number].box(frame.index) is not None]
            picture, scale, corner = canvas.lay(frame.rgb())
            rows = []
            for number in here:
                index = frame.index - tracks[number].start
                probabilities, gaze, spread = (None if some is None else some[index] for some in said[number])
                box = tracks[number].boxes[index]
                rows.append((Shown(number, box, probabilities, gaze, short[number]), index, spread))
            shown = [face._replace(box=face.box * scale + np.array([*corner, 0, 0])) for face, _, _ in rows]
            face_overlay.draw(picture, shown, model.classes, "" if tracks else "no face found")
            times[frame.index] = video.add(picture, frame.time)
            for face, index, spread in rows:
                windows = int(told.answers[face.number].windows[index])
                table.add(frame.index, times[frame.index], face, windows, spread)
    video.close()
    table.close()
    courses = [
        timeline.Course(number, times[track.start :][: len(track)], said[number][0], said[number][1], short[number])
        for number, track in enumerate(tracks)
    ]
    seconds = float(times[-1]) + 1 / footage.fps
    title = f"{footage.path.name}, by {'/'.join(Path(config.run).parts[-2:])}"
    timeline.save(named(place, "png"), courses, model.classes, seconds, title, notes)
    return {"rows": table.count, "seconds": round(seconds, 3), "notes": footage.notes | video.notes}


def made_from(source: Path, model: Model, config: PredictVideoConfig) -> dict[str, Any]:
    """Return what outputs hold good for."""
    about = source.stat()
    settings = {name: value for name, value in plain(config).items() if name not in ("videos", "run")}
    return model.made_from | {"settings": settings, "bytes": about.st_size, "modified_ns": about.st_mtime_ns}


def process(source: Path, place: Path, model: Model, config: PredictVideoConfig) -> dict[str, Any]:
    """Do one video, and write its record, which is returned; raises DecodeError."""
    told = tell(source, model, config)
    sampling = model.config.data.sampling
    lines = distance(
        told.plan,
        told.followed.tracks,
        fps=told.footage.fps,
        learned_fps=config.learned_fps or learned_rate(model.learned),
        stride=1 if sampling.ends_with_label else sampling.stride,
        margin=told.margin,
        size=model.config.task.backbone.tubes.size,
        learned=model.learned,
        confidence=(told.confidence, model.confidence),
    )
    with storing(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw(told, model, config, place, lines)
    followed = told.followed
    with_face = np.zeros(followed.frames, bool)
    tracks: list[dict[str, Any]] = []
    for number, track in enumerate(followed.tracks):
        with_face[track.start : track.start + len(track)] = True
        tracks.append({"face": number, "start": track.start, "frames": len(track)})
        tracks[-1] |= {"short": told.plan.is_short(len(track)), "score": round(track.score, 4)}
    record = {"video": str(source), "made_from": made_from(source, model, config), "margin": told.margin}
    record |= {"fps": told.footage.fps, "frames": followed.frames, "frames_with_face": int(with_face.sum())}
    record |= {"cuts": followed.cuts, "faces": tracks, "distance": lines} | drawn
    write_whole(named(place, "json"), json.dumps(record, indent=1) + "\n")
    return record


def words(record: dict[str, Any], place: Path) -> str:
    """Return what came of a video, as text."""
    frames, seen = record["frames"], record["frames_with_face"]
    short = sum(face["short"] for face in record["faces"])
    lines = [
        f"{record['video']}: {len(record['faces'])} faces in {seen / frames:.1%} of {frames:,} frames "
        f"({clock(record['seconds'])}, {record['cuts']} cuts)"
        + (f", {short} of them shorter than a clip" * (short > 0))
    ]
    lines += [f"  {line}" for line in record["distance"]]
    lines += [f"  {name}: {value}" for name, value in record["notes"].items()]
    return "\n".join([*lines, f"  look at {place}.mp4 and {place}.png; the rows are in {place}.csv"])


def main(argv: Sequence[str]) -> None:
    """Read the command line and show each video."""
    first = next((n for n, word in enumerate(argv) if word.startswith("-") or "=" in word), len(argv))
    arguments = [*([f"videos={json.dumps(argv[:first])}"] if first else []), *argv[first:]]
    call = parse(PredictVideoConfig, arguments, __doc__, flags={"again": "replace what is there already"})
    config, output = call.config, call.output or Path("output/videos")
    todo = places(config.videos, output)
    DETECTORS[config.faces.detector](config.faces.tracks.keep_score)  # says now what is missing
    model = load_model(Path(config.run))
    most = model.config.task.backbone.tubes.frames
    if config.hop is not None and config.hop > most:
        raise ConfigError(f"hop must be at most {most}, the frames of the run's clips; got {config.hop}")
    if call.dry_run:
        print(dump(config))
        return
    unreadable = []
    for source, place in todo:
        if not (record := earlier(place, made_from(source, model, config), "again" in call.flags)):
            try:
                record = process(source, place, model, config)
            except DecodeError as error:
                unreadable.append(str(error))
                continue
        print(words(record, place))
    if unreadable:
        raise ConfigError("a video must hold frames that can be decoded, but\n  " + "\n  ".join(unreadable))


if __name__ == "__main__":
    run_program(main)
