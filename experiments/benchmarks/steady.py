"""Whether reading clips keeps memory flat: 20,000 of them, mp4 files and JPEG folders in turns, in one process.

    python experiments/benchmarks/steady.py [--output DIR] [key=value ...]

Writes a few videos and folders, and takes batches of the training stream from them, without Ray, so that what grows is
the reading's own. Prints the process's memory at the `marks`.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines.augment import AugmentConfig
from mien.data_pipelines.manifest import Manifest, build
from mien.data_pipelines.reading import ReadConfig, local_batches
from mien.data_pipelines.rekey import h264
from mien.data_pipelines.sampling import SamplingConfig
from mien.experiments.benchmarks.memory import memory
from mien.platform.config import dump, parse, run_program
from mien.platform.progress import progress
from mien.platform.storage import write_whole


class SteadyConfig(BaseModel, frozen=True, extra="forbid"):
    """What is read, and when the memory is looked at."""

    marks: tuple[int, ...] = Field((200, 1000, 5000, 10_000, 15_000, 20_000), description="clips read by then")
    sources: int = Field(40, ge=2, description="files and folders; every other one is a video")
    side: int = Field(112, ge=16, description="their pixels, height and width")
    source_frames: int = Field(64, ge=1, description="frames of each")
    batch_size: int = Field(16, ge=1, description="clips of a batch")
    threads: int = Field(1, ge=1, description="clips read side by side")
    read: ReadConfig = Field(
        ReadConfig(sampling=SamplingConfig(rule="pretrain"), augment=AugmentConfig(kind="pretrain"), size=96),
        description="how clips are read",
    )


def write_sources(config: SteadyConfig, root: Path) -> Manifest:
    """Write videos and folders of moving noise; return their manifest."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    rows = []
    for number in range(config.sources):
        noise = np.random.default_rng(number).integers(0, 256, (config.side, config.side + 64, 3), dtype=np.uint8)
        soft = cv2.GaussianBlur(noise, (0, 0), 2)
        frames = np.stack([soft[:, at % 64 : at % 64 + config.side] for at in range(config.source_frames)])
        path = root / (f"{number:03d}" if number % 2 else f"{number:03d}.mp4")
        if number % 2:
            path.mkdir()
            for place, frame in enumerate(frames):
                cv2.imwrite(str(path / f"{place:05d}.jpg"), frame[..., ::-1])
        else:
            path.write_bytes(h264([frames], 25, keyframe_every=12 + number, crf=18))
        size = {"height": config.side, "width": config.side}
        rows.append({"video": path.name, "path": path.name, "dataset": "noise", "frames": len(frames), **size})
    return build(rows, (), root.resolve(), "noise")


def steady(config: SteadyConfig, root: Path) -> dict[str, Any]:
    """Read; return the MiB of this process's own pages at every mark, and the clips a second."""
    manifest = write_sources(config, root)
    read = config.read.model_copy(update={"root": manifest.root})
    held: dict[int, float] = {}
    done, began = 0, time.perf_counter()
    batches = local_batches(manifest, range(len(manifest)), config.batch_size, 0, read, threads=config.threads)
    with progress("reading", config.marks[-1], "clips") as bar:
        for batch, dropped in batches:
            assert not dropped
            done += len(batch["row"])
            bar.advance(len(batch["row"]))
            held |= {mark: round(memory()["driver"], 1) for mark in config.marks if mark <= done and mark not in held}
            if done >= config.marks[-1]:
                break
    batches.close()
    return {"clips": done, "clips_a_second": done / (time.perf_counter() - began), "mib_by_clips": held}


def main(argv: Sequence[str]) -> None:
    """Read the command line, read clips and print."""
    call = parse(SteadyConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output = (call.output or Path("output/benchmarks/steady")).absolute()
    found = steady(call.config, output / "sources")
    print(json.dumps(found, indent=1))
    write_whole(output / "steady.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
