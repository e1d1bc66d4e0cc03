"""Pack a manifest's clips into a few large files, which a disk reads in a row and an object store can hold.

    python experiments/pack.py manifest=output/dfew/manifest.parquet --output output/dfew_packed
    python experiments/pack.py manifest=output/vox/manifest.parquet --output output/vox_rekeyed layout=h264
    python experiments/pack.py --output output/dfew_packed --verify

Writes Parquet shards into DIR, and `DIR/manifest.parquet`, whose rows name clips in them: every program takes it like
any other manifest. Clips that cannot be read are listed in `DIR/rejected.jsonl`. The same command goes on where it was
stopped, and makes shards anew that are missing; what was rejected stays so, unless DIR/parts is removed.

Shards may be moved: `data.root` names their folder, which may be a URL (`data.root=s3://bucket/dfew_packed`, with the
fsspec package of that store installed, here s3fs).

layout=h264 re-keys videos: a keyframe every 16 frames, so that a clip in the middle is decoded from nearby. `--verify`
packs nothing but reads all of DIR's clips, or root's, against their checksums; where one is damaged, it is named and
the exit code is 1.

Ray Data runs a task for each part of the clips; on a cluster of several machines DIR must be a folder they share.
"""

import json
import math
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field

from mien.data_pipelines import packing
from mien.data_pipelines.attempts import Attempts
from mien.data_pipelines.blocks import MIB, Block, Execution, StreamConfig, Task, as_block
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.packing import Clip, PackConfig
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.config import ConfigError, dump, parse, plain, run_program
from mien.platform.progress import progress
from mien.platform.run import Run, interruptible
from mien.platform.storage import readable, storing, write_whole


class ProgramConfig(PackConfig, frozen=True, extra="forbid"):
    """Which manifest is packed, and how."""

    manifest: str = Field("output/dfew/manifest.parquet", description="manifest made by prepare.py")
    root: str | None = Field(None, description="folder of the clips, where it has moved since prepare.py")
    task_cpus: float = Field(1.0, gt=0, description="CPUs that Ray counts for a part")
    stall_seconds: float = Field(3600.0, gt=0, description="longest wait for a part, seconds; then an error")
    cluster: ClusterConfig = ClusterConfig()


def pack(config: ProgramConfig, output: Path) -> Manifest:
    """Pack what is not packed yet; return the manifest of what was packed."""
    manifest = Manifest.read(config.manifest, config.root)
    # What is packed belongs to the rows as well as to the settings.
    with Run.start(output, plain(config) | {"fingerprint": manifest.fingerprint()}, seed=0):
        parts = packing.parts(packing.plan(manifest, config), config)
        missing = [number for number in range(len(parts)) if not packing.is_whole(output, number)]
        if missing:
            with connect(config.cluster), storing(output):
                run_parts(config, [(number, parts[number]) for number in missing], output.resolve())
        packed, rejected = packing.packed_manifest(manifest, config, output)
        write_whole(output / "rejected.jsonl", "".join(json.dumps(row) + "\n" for row in rejected))
        if packed is None:
            raise ValueError(
                f"at least one clip must be readable, but none of {len(manifest):,} is; see "
                f"{output / 'rejected.jsonl'}, and give root=FOLDER if the clips have moved"
            )
        with storing(output):
            packed.write(output / "manifest.parquet")
        assert len(manifest) == len(packed) + len(rejected)
        print(f"{len(manifest):,} clips = {len(packed):,} packed + {len(rejected):,} rejected: {output}")
        print(f"  {packed.notes[-1]}")
        shards = list(output.glob("shard-*.parquet"))
        print(f"  {len(shards):,} shards, {readable(sum(shard.stat().st_size for shard in shards))}")
        if rejected:
            print(f"  {rejected[0]['path']}: {rejected[0]['reason']}")
            print(f"  all that was rejected: {output / 'rejected.jsonl'}")
        return packed


def run_parts(config: ProgramConfig, parts: Sequence[tuple[int, Sequence[Clip]]], output: Path) -> None:
    """Pack parts by Ray Data, a task each."""
    stream = StreamConfig(task_cpus=config.task_cpus, stall_seconds=config.stall_seconds)
    run = uuid.uuid4().hex
    settings = PackConfig(**config.model_dump(include=set(PackConfig.model_fields)))

    def task(index: int) -> Task:
        number, clips = parts[index]
        return Task(partial(run_part, clips, number, settings, output, run), rows=1)

    execution = Execution(task, len(parts), block_bytes=MIB, config=stream, workers=1)
    with progress("packing", sum(len(clips) for _, clips in parts), "clips") as bar:
        for done in execution.batches(1, batches_per_block=1):
            bar.advance(int(done["packed"][0] + done["rejected"][0]), rejected=int(done["rejected"][0]))


def run_part(clips: Sequence[Clip], number: int, config: PackConfig, output: Path, run: str) -> list[Block]:
    """Pack a part, and return its counts as a block; runs in a data task."""
    with Attempts(f"{run}-{number}") as attempts:
        counts = packing.pack_part(clips, number, config, output, attempts)
    return [as_block({name: np.array([count], np.int64) for name, count in counts.items()})]


def verify(output: Path, root: str) -> int:
    """Read every clip of a packed manifest, print those that are damaged, and return how many these are."""
    manifest = Manifest.read(output / "manifest.parquet", root)
    bad = 0
    with progress("verifying", len(set(manifest.column("path"))), "clips") as bar:
        for error in packing.damaged(manifest):
            bar.advance()
            if error is not None:
                bad += 1
                print(error)
    print(f"{bad:,} damaged or missing clips: {root}")
    if bad:
        print("  remove the shards named, and run the command that packed them: it makes them anew")
    return bad


def main(argv: Sequence[str]) -> None:
    """Read the command line, and pack or verify."""
    flags = {"verify": "pack nothing; read all packed clips of --output against their checksums"}
    call = parse(ProgramConfig, argv, __doc__, flags=flags)
    if "verify" in call.flags:
        if call.output is None:
            raise ConfigError("--verify needs the folder that was packed: add --output DIR")
        if verify(call.output, call.config.root or str(call.output)):
            raise SystemExit(1)
        return
    output = call.output or Path("output/packed")
    if call.dry_run:
        manifest = Manifest.read(call.config.manifest, call.config.root)
        clips = packing.plan(manifest, call.config)
        print(dump(call.config))
        print(f"{len(manifest):,} rows need {len(clips):,} packed clips, {sum(c.frames for c in clips):,} frames")
        print(f"{math.ceil(len(clips) / call.config.part_clips):,} parts, each by a task of its own")
        return
    with interruptible(Run(output), kept=f"whole parts kept in {output / 'parts'}"):
        pack(call.config, output)


if __name__ == "__main__":
    run_program(main)
