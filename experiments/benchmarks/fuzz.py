"""Whether any broken file can end, hang or escape the record of what reads it.

    python experiments/benchmarks/fuzz.py [--output DIR] [key=value ...]

Breaks some hundred files of every kind (`damage.py`), and lets them be read by everything that reads files: preparing,
an audit, the training stream through Ray, an evaluation, all frames as relabelling reads them, and face cropping. All
but preparing are told by a manifest that the files are whole. Afterwards each file must have been read or be in the
record with its reason, at every stage; the numbers say how many were, and how many ended or hung a process on the way,
which the programs must survive, and with these decoders none should. Ends with 1 where a file is neither.
"""

import faulthandler
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mien.data_pipelines import clips, contents
from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.blocks import StreamConfig
from mien.data_pipelines.datasets.videos import VideosConfig
from mien.data_pipelines.decode import DecodeError
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.preparers import DATASETS
from mien.data_pipelines.probing import probe_all
from mien.data_pipelines.reading import EvaluationDecodeError, ReadConfig
from mien.data_pipelines.sampling import SamplingConfig
from mien.experiments import crop_faces
from mien.experiments.benchmarks import damage
from mien.experiments.benchmarks.damage import Broken
from mien.experiments.crop_faces import CropFacesConfig
from mien.platform import cluster
from mien.platform.cluster import ClusterConfig
from mien.platform.config import dump, parse, rebuild, run_program
from mien.platform.progress import table
from mien.platform.storage import write_whole

READ = "read"  # the outcome of a file that was; of others it is the reason
ENDINGS = ("ended the process", "did not answer", "gave no new frame", "takes longer")


class FuzzConfig(BaseModel, frozen=True, extra="forbid"):
    """What is broken, and how long it may keep a stage."""

    files: int = Field(500, ge=1, description="broken files, beside six that are no readable files at all")
    seed: int = Field(0, description="of the damages")
    batch_size: int = Field(16, ge=2, description="clips of a training step; about half of them are whole")
    stage_seconds: float = Field(900, gt=0, description="longest time of a stage; then the program ends with its stack")
    cluster: ClusterConfig = ClusterConfig(object_store_gib=0.5)


Outcomes = dict[str, str]  # path -> READ or the reason


def prepare(root: Path, broken: Sequence[Broken]) -> Outcomes:
    """Look at every file as `prepare.py` does; what stands in shards is not prepared."""
    settings = VideosConfig(root=str(root), files="both")
    made = DATASETS["videos"][1](settings, None)
    found = dict.fromkeys(map(str, made.column("path")), READ) | {item.path: item.reason for item in made.rejected}
    folders = [one.path for one in broken if one.kind == "folder"]
    for path, told in probe_all(folders, root, settings.threads).items():
        found[path] = told.reason if isinstance(told, DecodeError) else READ
    return found


def audit(manifest: Manifest) -> Outcomes:
    """Read every frame as an audit does."""
    read = contents.contents(manifest, every_frame=True, threads=2)
    paths = manifest.column("path")
    return {str(path): read.unreadable.get(line, READ) for line, path in enumerate(paths)}


def train(manifest: Manifest, read: ReadConfig, config: FuzzConfig) -> Outcomes:
    """Take an epoch of the training stream."""
    tolerant = StreamConfig(max_dropped_ratio=1.0, block_clips=config.batch_size)
    steps = -(-len(manifest) // config.batch_size)
    rows = range(len(manifest))
    found: dict[int, str] = {}
    for batch, dropped in clips.stream(
        manifest, rows, read, tolerant, seed=config.seed, batch_size=config.batch_size, steps=steps
    ):
        found |= dict.fromkeys(batch["row"].tolist(), READ) | {one["row"]: one["reason"] for one in dropped}
    return by_path(manifest, found)


def evaluate(manifest: Manifest, read: ReadConfig, config: FuzzConfig) -> Outcomes:
    """Evaluate: first all, which must fail naming each clip that cannot be read; then the others, which must not."""
    names = {str(clips.locate(row, read.root)): line for line, row in enumerate(manifest.rows())}
    found: dict[int, str] = {}
    stream = StreamConfig(block_clips=config.batch_size)
    try:
        for _ in clips.evaluation_views(manifest, range(len(manifest)), read, stream, batch_size=config.batch_size):
            pass
    except EvaluationDecodeError as error:
        for failure in error.failures:
            # A clip in a shard is named with the file that it was behind its place.
            (line,) = {line for name, line in names.items() if f"{failure.path}/".startswith(f"{name}/")}
            found[line] = failure.reason
    left = [line for line in range(len(manifest)) if line not in found]
    for batch in clips.evaluation_views(manifest, left, read, stream, batch_size=config.batch_size):
        found |= dict.fromkeys(batch["row"].tolist(), READ)
    return by_path(manifest, found)


def relabel(manifest: Manifest, read: ReadConfig) -> Outcomes:
    """Read all frames as relabelling does; of a clip that lies in two blocks, the worse outcome counts."""
    found: dict[int, str] = {}
    for batch in clips.video_frames(manifest, range(len(manifest)), read, StreamConfig(block_clips=8)):
        for row, fine, reason in zip(batch["row"].tolist(), batch["ok"], batch["reason"], strict=True):
            if not fine or row not in found:
                found[row] = READ if fine else str(reason)
    return by_path(manifest, found)


def crop(manifest: Manifest, output: Path) -> Outcomes:
    """Crop the middle of every frame, as if a face were there; shards are no raw footage."""
    plain = manifest.take([line for line, path in enumerate(manifest.column("path")) if "#" not in str(path)])
    output.mkdir(parents=True)
    plain.write(output / "raw.parquet")
    settings = {"manifest": str(output / "raw.parquet"), "faces": {"detector": "whole", "size": 32, "sheet_frames": 1}}
    records = crop_faces.run(rebuild(CropFacesConfig, settings), output / "crops")
    told = {record["name"]: READ if record["state"] == "cropped" else record["reason"] for record in records}
    names = {str(path): crop_faces.faces.safe_name(str(path)) for path in plain.column("path")}
    return {path: told[name] for path, name in names.items() if name in told}


def by_path(manifest: Manifest, found: dict[int, str]) -> Outcomes:
    """Return outcomes by path instead of by line."""
    paths = manifest.column("path")
    return {str(paths[line]): outcome for line, outcome in found.items()}


def fuzz(config: FuzzConfig, output: Path) -> dict[str, Any]:
    """Break files in the folder `output` and let everything read them; return the figures."""
    shutil.rmtree(output, ignore_errors=True)
    root = output / "files"
    broken = damage.break_files(root, config.files, config.seed)
    manifest = damage.manifest_of(root, broken, whole=len(broken))
    sampling = SamplingConfig(frames=8, stride=2)
    read = ReadConfig(sampling=sampling, augment=AugmentConfig(kind="none"), size=32, root=manifest.root)
    stages: dict[str, Callable[[], Outcomes]] = {
        "prepare": lambda: prepare(root, broken),
        "audit": lambda: audit(manifest),
        "train": lambda: train(manifest, read, config),
        "evaluate": lambda: evaluate(manifest, read, config),
        "relabel": lambda: relabel(manifest, read),
        "crop faces": lambda: crop(manifest, output / "faces"),
    }
    found: dict[str, Any] = {"files": len(broken), "stages": {}}
    with cluster.connect(config.cluster):
        for name, stage in stages.items():
            began = time.monotonic()
            faulthandler.dump_traceback_later(config.stage_seconds, exit=True)
            outcomes = stage()
            faulthandler.cancel_dump_traceback_later()
            found["stages"][name] = figures(name, broken, outcomes) | {"seconds": round(time.monotonic() - began, 1)}
            table([{"stage": name} | {key: value for key, value in found["stages"][name].items() if key != "reasons"}])
    return found


def figures(stage: str, broken: Sequence[Broken], outcomes: Outcomes) -> dict[str, Any]:
    """Return what came of the broken files at a stage: how many were read, have a reason, or escaped the record."""
    # Nobody reads shards raw, and a manifest cannot hold a name that is not UTF-8.
    left_out = {"prepare": {"shard"}, "crop faces": {"shard"}}.get(stage, set())
    asked = [one for one in broken if one.kind not in left_out]
    if stage != "prepare":
        asked = [one for one in asked if one.damage != "name not UTF-8"]
    told = [outcomes.get(one.path) for one in asked]
    reasons = [outcome for outcome in told if outcome not in (None, READ)]
    return {
        "files": len(asked),
        "read": told.count(READ),
        "with a reason": len(reasons),
        "without a word": [one.path for one, outcome in zip(asked, told, strict=True) if outcome is None],
        "ended or hung": [
            f"{one.path}: {x}" for one, x in zip(asked, told, strict=True) if x and x.startswith(ENDINGS)
        ],
        "reasons": dict(Counter(shortened(reason) for reason in reasons if reason).most_common(15)),
    }


def shortened(reason: str) -> str:
    """Return the kind of a reason: without names and numbers."""
    return " ".join(word for word in reason.split() if not any(letter.isdigit() for letter in word))[:70]


def main(argv: Sequence[str]) -> None:
    """Read the command line, break, read and print."""
    call = parse(FuzzConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output = (call.output or Path("output/benchmarks/fuzz")).absolute()
    found = fuzz(call.config, output)
    print(json.dumps(found, indent=1))
    write_whole(output / "fuzz.json", json.dumps(found, indent=1) + "\n")
    if any(stage["without a word"] for stage in found["stages"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
