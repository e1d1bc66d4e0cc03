"""Write the rendered world to disk in the layouts of the real datasets, so that their readers read it unchanged.

    ROOT/world.json                                             the config, its hash, and whether all is written
    ROOT/dfew/Clip/jpg_256/%05d/%05d.jpg                        labelled clips as DFEW has them
    ROOT/dfew/EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv    video_name,label (1..7); no person
                                                                is tested in two folds
    ROOT/dfew/subjects.csv                                      video_name,subject, which DFEW itself does not have
    ROOT/dfew/annotations/gaze.csv                              `folder label pitch yaw`, label from 0, radians
    ROOT/voxceleb2/dev/mp4/id%05d/video%05d/00001.mp4           unlabelled videos, a keyframe every 16 frames
    ROOT/gaze_tracks/frames/id%05d/%05d/%05d.jpg                frames of gaze tracks
    ROOT/gaze_tracks/tracks/%05d.csv                            `frame pitch yaw`, one file a track

Every item is written under a temporary name and then renamed, so a stopped writer goes on where it was; items depend on
the config alone, so neither the number of processes nor a stop changes a byte.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from mien.data_pipelines import synthetic
from mien.data_pipelines.synthetic import FOLDS, Clip, WorldConfig

KEYFRAME_EVERY = 16  # frames: 16-frame clips then decode 2 to 3 times faster than from a film's sparse keyframes
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]


class WorldError(ValueError):
    """A folder that holds something other than the world which was asked for."""


class Progress(NamedTuple):
    """How many clips, videos and tracks are written, and how many there will be."""

    done: int
    total: int


class Item(NamedTuple):
    """One thing to write: a clip, a video or a track, by its number from 1."""

    kind: str
    number: int


def write(config: WorldConfig, root: Path, processes: int = 1) -> Iterator[Progress]:
    """Write the world under `root`, or what is missing of it, telling the progress; nothing happens until iterated.

    Raises WorldError where `root` holds another world or other files.
    """
    items = [Item("clip", k + 1) for k in range(config.identities * config.clips_per_identity)]
    items += [Item("video", k + 1) for k in range(config.unlabelled_identities * config.videos_per_identity)]
    items += [Item("track", k + 1) for k in range(config.tracks)]
    if is_complete(config, root):
        yield Progress(len(items), len(items))
        return
    root.mkdir(parents=True, exist_ok=True)
    _mark(config, root, complete=False)
    if config.identities:
        _write_tables(config, root)
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(_write_item, repeat(config), repeat(root), items, chunksize=8), start=1):
                yield Progress(done, len(items))
    else:
        for done, item in enumerate(items, start=1):
            _write_item(config, root, item)
            yield Progress(done, len(items))
    _mark(config, root, complete=True)
    shutil.rmtree(root / ".partial", ignore_errors=True)


def is_complete(config: WorldConfig, root: Path) -> bool:
    """Whether `root` holds all of this world; WorldError if it holds another one or none but other files."""
    marker = root / "world.json"
    if marker.is_file():
        found = json.loads(marker.read_text())
        if found["hash"] != config.hash():
            differs = {k: (v, found["config"].get(k)) for k, v in _plain(config).items() if found["config"].get(k) != v}
            given = ", ".join(f"{k}={v} where the folder has {w}" for k, (v, w) in differs.items()) or "another drawing"
            raise WorldError(
                f"{root} holds a world made with other settings ({given}); give another folder, or remove this one"
            )
        return bool(found["complete"])
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise WorldError(
            f"a world is written into an empty or new folder; {root} holds other files; give another folder"
        )
    return False


def _plain(config: WorldConfig) -> dict[str, object]:
    return config.model_dump(mode="json")


def _mark(config: WorldConfig, root: Path, complete: bool) -> None:
    text = json.dumps({"hash": config.hash(), "complete": complete, "config": _plain(config)}, indent=1)
    _replace(root, root / "world.json", lambda path: path.write_text(text))


def _write_item(config: WorldConfig, root: Path, item: Item) -> None:
    """Render and write one item unless it stands there already."""
    name = f"{item.number:05d}"
    if item.kind == "clip":
        folder = root / "dfew/Clip/jpg_256" / name
        if not folder.exists():
            it = synthetic.clip(config, item.number)
            frames = synthetic.render(config, synthetic.identity(config, it.subject), it.expression, it.gaze, it.seed)
            _replace(root, folder, lambda path: _write_frames(path, frames))
    elif item.kind == "video":
        person, nth = divmod(item.number - 1, config.videos_per_identity)
        path = root / f"voxceleb2/dev/mp4/id{config.identities + person:05d}/video{nth + 1:05d}/00001.mp4"
        if not path.exists():
            take = synthetic.video(config, item.number)
            _replace(root, path, lambda path: _write_video(path, take.frames, config.fps))
    else:
        table = root / f"gaze_tracks/tracks/{name}.csv"
        if not table.exists():
            take = synthetic.track(config, item.number)
            place = f"frames/id{take.subject:05d}/{name}"
            _replace(root, root / "gaze_tracks" / place, lambda path: _write_frames(path, take.frames))
            lines = [f"{place}/{k:05d}.jpg {p:.6f} {y:.6f}\n" for k, (p, y) in enumerate(take.gaze, start=1)]
            _replace(root, table, lambda path: path.write_text("".join(lines)))


def _write_tables(config: WorldConfig, root: Path) -> None:
    """DFEW's ten label tables, and the subjects and gazes it does not have."""
    clips = [synthetic.clip(config, k + 1) for k in range(config.identities * config.clips_per_identity)]

    def table(path: str, rows: list[str]) -> None:
        text = "".join(row + "\n" for row in rows)
        _replace(root, root / "dfew" / path, lambda partial: partial.write_text(text))

    for fold in range(1, FOLDS + 1):
        for part, wanted in (("train", False), ("test", True)):
            rows = [f"{c.number},{c.label + 1}" for c in clips if (fold_of(c) == fold) == wanted]
            table(f"EmoLabel_DataSplit/{part}(single-labeled)/set_{fold}.csv", ["video_name,label", *rows])
    table("subjects.csv", ["video_name,subject", *(f"{c.number},id{c.subject:05d}" for c in clips)])
    gazes = [f"Clip/jpg_256/{c.number:05d} {c.label} {c.gaze[0]:.6f} {c.gaze[1]:.6f}" for c in clips]
    table("annotations/gaze.csv", gazes)


def fold_of(clip: Clip) -> int:
    """The fold (from 1) in which a clip is tested: its person's, so that folds share nobody."""
    return clip.subject % FOLDS + 1


def _write_frames(folder: Path, frames: NDArray[np.uint8]) -> None:
    folder.mkdir()
    for k, frame in enumerate(frames, start=1):
        encoded = cv2.imencode(".jpg", frame[..., ::-1], JPEG)[1]
        (folder / f"{k:05d}.jpg").write_bytes(encoded.tobytes())


def _write_video(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    options = {"g": str(KEYFRAME_EVERY), "bf": "0", "crf": "18", "preset": "veryfast", "sc_threshold": "0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1  # the encoder's output depends on its threads
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _replace(root: Path, target: Path, make: Callable[[Path], object]) -> None:
    """Make a file or folder under `root`/.partial, then give it its place and name in one step."""
    partial = root / ".partial" / f"{os.getpid()}-{target.name}"
    partial.parent.mkdir(exist_ok=True)
    if partial.is_dir():  # left by a writer that was stopped
        shutil.rmtree(partial)
    make(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(partial, target)
