"""Cut the faces out of raw videos: a clip for each person and shot, and a manifest of the clips.

    python experiments/crop_faces.py root=my_videos --output output/my_faces
    python experiments/crop_faces.py manifest=output/raw/manifest.parquet faces.keep=main --output output/raw_faces

Takes a folder of videos or a manifest, whose labels, persons and folds go over to the clips. The detector comes with
requirements-face.txt; `faces.detector=whole` needs none and crops the middle of clips that are cropped already. Writes

    DIR/manifest.parquet    the clips, for every other program
    DIR/videos.jsonl        a line for each video: its clips, or the reason why there are none
    DIR/clips/…             an mp4 or a folder of frames for each clip
    DIR/sheets/…            a picture of each video with the boxes drawn: look at some of them
    DIR/records/…           what makes the command go on where it was interrupted

Ray runs a task for every few videos, on this machine or on a cluster whose machines see the same folders. Run again, it
does what is missing or has changed; videos that could not be read are tried again with `retry=true`.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, model_validator

from mien.data_pipelines import faces, manifest
from mien.data_pipelines.blocks import MIB, Block, Execution, StreamConfig, Task, as_block
from mien.data_pipelines.datasets.videos import find_videos
from mien.data_pipelines.face_detector import DETECTORS, DetectorMissingError
from mien.data_pipelines.face_worker import GuardConfig, Job, WorkerError, crop_all
from mien.data_pipelines.faces import FacesConfig, Record
from mien.data_pipelines.manifest import Manifest, Rejected, located
from mien.data_pipelines.probing import printable
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.folder_lock import FolderLock
from mien.platform.progress import progress
from mien.platform.storage import storing, write_whole

TASK_VIDEOS, TASK_BYTES = 16, 2**28  # of one Ray task at most: its process takes a second to start
CARRIED = ("dataset", "subject", "label", "split", "fold", "pitch", "yaw")  # what a clip has from its video


class CropFacesConfig(BaseModel, frozen=True, extra="forbid"):
    """Which videos, and how their faces are cropped."""

    root: str | None = Field(None, description="folder of videos, with all folders in it")
    manifest: str | None = Field(None, description="manifest of raw videos, instead of root")
    retry: bool = Field(False, description="try again the videos that could not be read")
    faces: FacesConfig = FacesConfig()
    guard: GuardConfig = GuardConfig()
    task_cpus: float = Field(1.0, gt=0, description="CPUs that Ray counts for a task; one is all that it uses")
    cluster: ClusterConfig = ClusterConfig(object_store_gib=0.1)

    @model_validator(mode="after")
    def _one_source(self) -> "CropFacesConfig":
        if (self.root is None) == (self.manifest is None):
            raise ValueError("videos must come from root=FOLDER or from manifest=FILE: give one of the two")
        return self


def sources(config: CropFacesConfig) -> tuple[list[Job], dict[str, dict[str, Any]], tuple[str, ...]]:
    """Return the videos, what is known of each by its name in the output, and the class names."""
    if config.manifest is None:
        root = Path(config.root or "")
        if not root.is_dir():
            raise ConfigError(f"root must be a folder of videos, but there is none at {root.absolute()}")
        paths = find_videos(root)
        if not paths:
            raise ConfigError(f"root must hold videos, at any depth, but there is none under {root.absolute()}")
        return [Job(str((root / path).absolute()), printable(path)) for path in paths], {}, ()
    given = Manifest.read(config.manifest)
    jobs: dict[str, Job] = {}
    known: dict[str, dict[str, Any]] = {}
    for row in given.rows():
        job = Job(source_of(given.root, row["path"]), faces.safe_name(row["path"]))
        about = {name: row[name] for name in CARRIED}
        before = known.setdefault(job.name, about)
        # Clips of one file: what all of them say holds for the file.
        known[job.name] = {name: value if value == before[name] else None for name, value in about.items()}
        jobs[job.name] = job
    return list(jobs.values()), known, given.classes


def source_of(root: str, path: str) -> str:
    """Return where a manifest's video stands."""
    place = located(root, path)
    if isinstance(place, str):
        raise ConfigError(
            f"videos are cropped from a disk, but {place} is none; copy them to one, and prepare them there"
        )
    return str(place.absolute())


def pending(jobs: Sequence[Job], output: Path, config: CropFacesConfig) -> list[Job]:
    """Return the videos without a record that holds good for these settings and for the file as it is."""
    left = []
    for job in jobs:
        record = faces.read_record(output, job.name) or {}
        same = record.get("made_from") == faces.made_from(Path(job.source), config.faces)
        if not same or (config.retry and record["state"] == "unreadable"):
            left.append(job)
    return left


def grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return the videos in groups, each for one task."""
    most = min(TASK_VIDEOS, max(1, len(jobs) // 64))  # few videos are better spread
    groups: list[list[Job]] = []
    size = 0
    for job in jobs:
        source = Path(job.source)
        more = source.stat().st_size if source.is_file() else 0
        if not groups or len(groups[-1]) == most or size + more > TASK_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(job)
        size += more
    return groups


def work(jobs: list[Job], output: Path, config: CropFacesConfig) -> list[Block]:
    """Crop a group of videos; runs in a Ray task. An error that would be every video's is returned as text."""
    error = ""
    try:
        crop_all(jobs, output, config.faces, config.guard)
    except (DetectorMissingError, WorkerError) as told:
        error = str(told)
    return [as_block({"videos": np.array([len(jobs)]), "error": np.array([error], object)})]


def run(config: CropFacesConfig, output: Path) -> list[Record]:
    """Crop what is not cropped yet, and return the records of all videos in their order."""
    jobs, known, classes = sources(config)
    DETECTORS[config.faces.detector](config.faces.tracks.keep_score)  # says now what is missing
    output = output.absolute()
    with storing(output):
        output.mkdir(parents=True, exist_ok=True)
    with FolderLock(output):
        left = pending(jobs, output, config)
        groups = grouped(left)
        if groups:
            # The longest wait is for one group, and nobody knows how long its videos are: the guard watches over them.
            stream = StreamConfig(task_cpus=config.task_cpus, stall_seconds=10 * 24 * 3600.0)
            with connect(config.cluster), progress("cropping", len(jobs), "videos", done=len(jobs) - len(left)) as bar:
                execution = Execution(
                    lambda n: Task(partial(work, groups[n], output, config), 1), len(groups), MIB, stream, 1
                )
                for batch in execution.batches(1, batches_per_block=1):
                    if batch["error"][0]:
                        raise ConfigError(str(batch["error"][0]))
                    bar.advance(int(batch["videos"][0]))
        records = [faces.read_record(output, job.name) or {} for job in jobs]
        write_whole(output / "videos.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        rows = [row for record in records for row in clip_rows(record, known.get(record["name"], {}), config)]
        if not rows:
            reasons = "".join(f"\n  {record['name']}: {record['reason']}" for record in records[:10])
            raise ConfigError(f"some video must show a face, but none of {len(records)} does:{reasons}")
        rejected = [Rejected(record["name"], record["reason"]) for record in records if not record["tracks"]]
        of = config.faces
        note = f"faces cropped by {of.detector}, margin {of.margin:g}, {of.size} pixels"
        with storing(output):
            manifest.build(rows, classes, output, rows[0]["dataset"], rejected, [note]).write(
                output / "manifest.parquet"
            )
        return records


def clip_rows(record: Record, known: dict[str, Any], config: CropFacesConfig) -> list[dict[str, Any]]:
    """Return the manifest rows of a video's clips."""
    size = config.faces.size
    rows = []
    for number, track in enumerate(record["tracks"]):
        about = {"video": f"{record['name']}#{number}", "path": track["path"], "frames": track["frames"]}
        rows.append({"dataset": "faces"} | known | about | {"fps": record["fps"], "height": size, "width": size})
    return rows


def tell(records: Sequence[Record], output: Path) -> None:
    """Print what came of the videos."""
    tracks = sum(len(record["tracks"]) for record in records)
    frames, seen = (sum(record.get(name, 0) for record in records) for name in ("frames", "frames_with_face"))
    share = f"{seen / frames:.1%}" if frames else "none"
    seconds = sum(record.get("seconds", 0.0) for record in records if record.get("frames"))
    print(
        f"{output / 'manifest.parquet'}: {tracks:,} clips of {len(records):,} videos; {share} of the frames show a face"
    )
    if seconds:
        print(f"{frames:,} frames, {frames / seconds:,.0f} a second and core; look at {output / 'sheets'}")
    for state in ("no face", "unreadable"):
        some = [record for record in records if record["state"] == state]
        if some:
            print(f"{state}: {len(some)}, the first {some[0]['name']}: {some[0]['reason']} ({output / 'videos.jsonl'})")


def main(argv: Sequence[str]) -> None:
    """Read the command line and crop."""
    call = parse(CropFacesConfig, argv, __doc__)
    output = call.output or Path("output/faces")
    if call.dry_run:
        print(dump(call.config))
        jobs = sources(call.config)[0]
        print(f"{len(jobs):,} videos, {len(pending(jobs, output, call.config)):,} of them to be cropped")
        return
    tell(run(call.config, output), output)


if __name__ == "__main__":
    run_program(main)
