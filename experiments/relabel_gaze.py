"""Label every frame of every clip of a manifest with the gaze that a finished fine-tuning run predicts.

    python experiments/relabel_gaze.py --output output/dfew_gaze \\
        --checkpoint output/gaze360 --manifest output/dfew/manifest.parquet

One Ray Data job reads the frames, and the run's model predicts them here in windows that cover each clip to its last
frame. What a window's answer says depends on the run. A model with an output for each frame (`per_frame`) gives each
frame its own angles. A model of whole clips gives one direction for a window, and a frame gets the mean direction of
all windows that show it: gaze smoothed over time, by a triangle of two windows' width about the frame at `hop` 1, by
whichever windows it stands in at a large one, and in either case blurred where gaze moves. A model of clips whose last
frame bears the label (sampling `ending`, as Gaze360's) speaks of a window's last frame, so that a window ends with each
frame. Each window is also shown in a mirror, its answer turned back.

Writes into DIR: `manifest.parquet`, the manifest with the mean direction of each clip's frames as its pitch and yaw,
each frame's own, from which a model with `per_frame` learns, and `gaze_spread`, which `task.spread_scale_deg` of a
training turns into weights; `frames.parquet`, one row a frame: row (the manifest's line), video, frame (from 0 in the
clip), pitch, yaw and spread; `clips.parquet`, one row a clip: its own gaze where it had one (pitch, yaw), the new one
(pred_pitch, pred_yaw) and the mean spread. All are radians; spread is how far the answers about a frame lie apart, null
where there is but one.
With `--csv`, also `csv/merged.csv` and `csv/videos/VIDEO.csv` with lines `frame_path label pitch yaw`. A clip that
cannot be read stands in `dropped.jsonl` and has no gaze. The same command goes on where it was stopped.

The model runs in this process, on its GPU where there is one, and not in Ray tasks: decoding is what a cluster helps
with; weights then travel nowhere, nothing holds CPUs that data tasks wait for, and parts are written by one hand.
"""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from mien.data_pipelines import clips, frame_annotations, input_differences, reading, windows
from mien.data_pipelines.blocks import StreamConfig
from mien.data_pipelines.fingerprint import Fingerprint, fingerprint
from mien.data_pipelines.gaze_labels import with_gaze
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.unreadable import DropCount, Dropped
from mien.experiments.finetune import FinetuneConfig, load_task
from mien.models import tasks
from mien.models.backbone import FeatureTask
from mien.platform import checkpoint, predict
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.frame_gaze import FrameGaze, agreement, clip_means, clips_table, frames_table
from mien.platform.parts import Parts
from mien.platform.progress import progress, table
from mien.platform.run import Run, interruptible
from mien.platform.storage import storing, write_whole
from mien.platform.training import device_here


class RelabelConfig(BaseModel, frozen=True, extra="forbid"):
    """Which run labels which clips, and how."""

    checkpoint: str = Field(
        description="the teacher: folder of a finished fine-tuning run that predicts gaze (task gaze or combined)"
    )
    manifest: str = Field("output/dfew/manifest.parquet", description="manifest made by prepare.py, to be labelled")
    root: str | None = Field(None, description="folder of the clips, where it has moved since prepare.py")
    hop: int | None = Field(
        None, description="frames from a window to the next, at most a window's; null: a quarter of it", ge=1
    )
    stride: int | None = Field(
        None,
        description="video frames from a window's frame to the next, 1 = consecutive; null: as the run learned",
        ge=1,
    )
    mirror: bool = Field(True, description="show each window in a mirror too, and turn its answer back")
    batch_size: int = Field(32, description="windows predicted at a time, their mirror images aside", ge=1)
    part_clips: int = Field(500, description="clips of a part; what a stopped program has to do again at most", ge=1)
    stream: StreamConfig = StreamConfig()
    cluster: ClusterConfig = ClusterConfig()


class Teacher(NamedTuple):
    """A finished run: its task, how it saw clips, and what its labels are made from."""

    task: FeatureTask
    config: FinetuneConfig
    made_from: dict[str, Any]
    trained_on: Fingerprint | None

    @property
    def ends_with_label(self) -> bool:
        """Whether an answer is about the last frame of a clip."""
        return self.config.data.sampling.ends_with_label and not self.task.per_frame

    def told(self, shown: np.ndarray) -> np.ndarray:
        """Return the frames that the answer to a window of the frames `shown` (t,) is about."""
        if self.task.per_frame:
            return shown
        # Once each: repeating the last frame of a short clip adds no answer.
        return shown[-1:] if self.ends_with_label else np.unique(shown)


class Work(NamedTuple):
    """All that is needed to label a manifest."""

    config: RelabelConfig
    teacher: Teacher
    manifest: Manifest
    read: ReadConfig
    hop: int
    stride: int

    def windows(self, num_frames: int) -> np.ndarray:
        """Return the windows (n, t) of a clip."""
        if self.teacher.ends_with_label:
            return windows.endings(num_frames, self.read.sampling.frames)
        return windows.windows(num_frames, self.read.sampling.frames, self.hop, self.stride)

    def compared(self) -> dict[str, Any]:
        """Return how the clips differ from those that the run was trained on; classes do not matter to gaze."""
        here = fingerprint(self.manifest, read=self.read, path=self.config.manifest)
        return input_differences.report(self.teacher.trained_on, here | {"classes": []})

    def parts(self, output: Path) -> Parts:
        """Return the parts of the frames' table in a run folder."""
        made_from = self.teacher.made_from | {"manifest": self.manifest.fingerprint()}
        return Parts(output / "parts", len(self.manifest), self.config.part_clips, made_from)


def load_teacher(folder: Path) -> Teacher:
    """Return the trained task of a finished run; its own clips need not be there any more."""
    if not (folder / "scores.json").is_file():
        raise ConfigError(
            f"checkpoint must be the folder of a finished fine-tuning (with a scores.json), but {folder} is none; give "
            "what --output named when finetune.py ended, or fold_K of a study's trial"
        )
    config, task, about = load_task(folder)
    if "gaze" not in tasks.labels_of(config.task):
        raise ConfigError(
            f"checkpoint must predict gaze, but {folder} learned {config.task.name} without it; give a run of "
            "task.name=gaze, or combined with task.gaze_weight above 0"
        )
    found = checkpoint.find(folder)
    weights = f"{checkpoint.crc32(found / 'weights.safetensors'):08x}"
    made_from = {"checkpoint": found.name, "weights": weights, "trained_on": about["fingerprint"]}
    return Teacher(task, config, made_from, about.get("inputs", {}).get("trained_on"))


def opened(config: RelabelConfig) -> Work:
    """Return what a command amounts to, or say what is wrong with it."""
    teacher, manifest = load_teacher(Path(config.checkpoint)), Manifest.read(config.manifest, config.root)
    data, tubes = teacher.config.data, teacher.config.task.backbone.tubes
    hop = max(1, tubes.frames // 4) if config.hop is None else config.hop
    if hop > tubes.frames:
        raise ConfigError(
            f"hop must be at most {tubes.frames}, the frames of the run's window, or frames are left out; got {hop}"
        )
    stride = config.stride or (1 if data.sampling.ends_with_label else data.sampling.stride)
    if teacher.ends_with_label and (config.hop not in (None, 1) or stride != 1):
        raise ConfigError(
            "a run whose clips end with the frame that bears the label (sampling.rule=ending) takes a window of "
            f"consecutive frames for each frame; leave hop={config.hop} and stride={config.stride} out"
        )
    shown = data.sampling.model_copy(update={"stride": stride})
    read = reading.for_model(shown, data.augment, frames=tubes.frames, size=tubes.size, root=manifest.root)
    return Work(config, teacher, manifest, read, hop, stride)


def label(work: Work, parts: Parts, missing: Sequence[int], output: Path) -> None:
    """Label the clips of the missing parts, and write each part when its last clip is done."""
    config, manifest, device = work.config, work.manifest, device_here()
    task, precision = work.teacher.task.to(device), work.teacher.config.loop.precision
    lengths = manifest.column("frames")
    gazes: dict[int, FrameGaze] = {}
    unreadable: dict[int, Dropped] = {}
    todo, rows = list(missing), np.concatenate([parts.lines[number] for number in missing])
    dropped, seen = parts.dropped(), len(manifest) - len(rows)

    def report(clip: Dropped) -> None:
        unreadable[clip["row"]] = clip

    def write_before(line: int) -> None:
        """Write the parts whose clips all stand before a manifest line."""
        nonlocal dropped, seen
        while todo and parts.lines[todo[0]].stop <= line:
            lines = parts.lines[todo[0]]
            known = [row for row in lines if row not in unreadable]
            lost = [unreadable[row] for row in lines if row in unreadable]
            # Over all parts, so that a run which was stopped judges as one that was not.
            seen += len(lines)
            dropped = sorted([*dropped, *lost], key=lambda clip: clip["row"])
            DropCount(config.stream, "stream").add(seen, dropped)
            videos = manifest.table["video"].take(known).to_pylist()
            parts.write(todo.pop(0), frames_table(known, videos, gazes), lost)
            write_whole(output / "dropped.jsonl", "".join(json.dumps(clip) + "\n" for clip in dropped))
            for row in lines:
                gazes.pop(row, None)

    planned = lru_cache(maxsize=64)(work.windows)  # clips of one length have the same
    stream = clips.video_frames(manifest, rows, work.read, config.stream)
    with progress("relabelling", len(manifest), "clips", done=len(manifest) - len(rows)) as bar:
        past = 0
        for batch in windows.cut(stream, lambda row: planned(lengths[row]), config.batch_size, report):
            answers = predict.window_gaze(task, batch["clip"], device, precision, config.mirror)
            for number, (row, shown) in enumerate(zip(batch["row"].tolist(), batch["frames"], strict=True)):
                gazes.setdefault(row, FrameGaze(lengths[row])).add(work.teacher.told(shown), answers[:, number])
            # Clips come in order, so those before the newest have had their last window.
            write_before(newest := int(batch["row"][-1]))
            place = int(np.searchsorted(rows, newest))
            bar.advance(place - past, unreadable=len(unreadable))
            past = place
        write_before(len(manifest))
        bar.advance(len(rows) - past, unreadable=len(unreadable))


def relabel(config: RelabelConfig, output: Path, csv: bool = False) -> dict[str, Any] | None:
    """Label a manifest in a run folder; return how the gaze agrees with the clips' own, where they have one."""
    work = opened(config)  # what is wrong is said before there is a folder, which belongs to one config
    with Run.start(output, config, seed=0):
        parts, manifest, compared = work.parts(output), work.manifest, work.compared()
        write_whole(output / "compared.json", json.dumps(compared, indent=1) + "\n")
        why = "why gaze may be further off than in the run's scores:"
        print("\n  - ".join([why, *input_differences.told(compared)]))
        if missing := parts.missing():
            with connect(config.cluster):
                label(work, parts, missing, output)
        angles_rad, spread = np.full((len(manifest), 2), np.nan), np.full(len(manifest), np.nan)
        for number in parts.present():
            lines, mean_rad, mean_spread = clip_means(parts.read(number))
            angles_rad[lines], spread[lines] = mean_rad, mean_spread
        parts.join(output / "frames.parquet")
        known = clips_table(manifest.table, angles_rad, spread)
        predict.write(known, output / "clips.parquet")
        if csv:
            with storing(output):
                frame_annotations.write(output / "csv", manifest, map(parts.read, parts.present()))
        made_from = ", ".join(f"{name} {value}" for name, value in parts.made_from.items())
        told = "pitch and yaw are pseudo-labels: the mean direction of each clip's frames"
        note = f"{told} by {config.checkpoint} ({made_from})"
        frames = pq.read_table(output / "frames.parquet", columns=["row", "pitch", "yaw", "spread"])
        with storing(output):
            with_gaze(manifest, angles_rad, note, spread, frames).write(output / "manifest.parquet")
        print(f"{len(manifest) - len(parts.dropped()):,} clips have gaze now: {output / 'manifest.parquet'}")
        if parts.dropped():
            print(f"{len(parts.dropped())} clips cannot be read and have none: {output / 'dropped.jsonl'}")
        if parts.made_from["trained_on"] == parts.made_from["manifest"]:
            print("the run was trained on clips of this very manifest: labels of those are better than on new clips")
        if found := agreement(known, manifest.classes):
            write_whole(output / "agreement.json", json.dumps(found, indent=1) + "\n")
        return found


def tell(found: dict[str, Any]) -> None:
    """Print how far the new gaze is from the clips' own."""
    low, high = found["intervals"]["angular_error_deg"]
    constant = found["constant_error_deg"]
    print(f"against the own gaze of {found['num_gazed']:,} clips, which is kept in clips.parquet:")
    print(f"  error     {found['angular_error_deg']:.3f} deg  (95 % interval {low:.3f} to {high:.3f})")
    print(f"  constant  {constant:.3f} deg: always the mean of their own gaze, which no constant can beat")
    if "sure_error_deg" in found:
        sure, unsure = found["sure_error_deg"], found["unsure_error_deg"]
        print(f"  by spread {sure:.3f} deg for the half with the smaller spread, {unsure:.3f} deg for the other")
        print(f"            rank correlation of spread and error {found['spread_error_correlation']:.3f}")


def relabel_sizes(work: Work) -> dict[str, str]:
    """Return what a command amounts to, for a dry run."""
    lengths, counts = np.unique(work.manifest.table["frames"].to_numpy(), return_counts=True)
    num_windows = sum(len(work.windows(int(n))) * int(count) for n, count in zip(lengths, counts, strict=True))
    length = work.read.sampling.frames
    plan = "one ends with each frame" if work.teacher.ends_with_label else f"every {work.hop}, stride {work.stride}"
    return {
        "clips": f"{len(work.manifest):,}",
        "frames": f"{int(lengths @ counts):,}, each read once and labelled",
        "windows": f"{num_windows:,} of {length} frames ({plan})",
        "forward passes": f"{num_windows * (1 + work.config.mirror):,} clips of {length}x{work.read.size}x"
        f"{work.read.size}" + (", half of them mirrored" if work.config.mirror else ""),
        "answers": "of each frame" if work.teacher.task.per_frame else "of whole windows",
        "parts": f"{math.ceil(len(work.manifest) / work.config.part_clips):,}",
        "parameters": f"{sum(parameter.numel() for parameter in work.teacher.task.parameters()):,}",
    }


def main(argv: Sequence[str]) -> None:
    """Read the command line and relabel."""
    flags = {"csv": "write annotation files of all frames too; for a finished folder as well"}
    call = parse(RelabelConfig, argv, __doc__, flags=flags)
    if call.dry_run:
        print(dump(call.config))
        table([{"size": name, "value": value} for name, value in relabel_sizes(opened(call.config)).items()])
        return
    output = call.output or Path("output/relabelled")
    with interruptible(Run(output), kept=f"finished parts kept in {output / 'parts'}"):
        found = relabel(call.config, output, "csv" in call.flags)
    if found:
        tell(found)


if __name__ == "__main__":
    run_program(main)
