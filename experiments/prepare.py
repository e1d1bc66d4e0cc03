"""Turn a dataset as its owner ships it into a manifest that every other program reads.

    python experiments/prepare.py dfew root=/data/DFEW --output output/dfew
    python experiments/prepare.py videos root=my_videos --output output/my_videos
    python experiments/prepare.py synthetic --output output/world          # renders the world first

The first word names the dataset, the settings after it are its reader's; `python experiments/prepare.py dfew --help`
lists them. Where a dataset has no official folds, `folds=5` makes five, each person (or file) in one of them. Writes
`DIR/manifest.parquet` and, for the synthetic world, `DIR/unlabelled.parquet` beside it. What a reader could not use is
listed in `DIR/rejected.jsonl`.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from mien.data_pipelines import splits, synthetic_layouts
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.preparers import DATASETS
from mien.data_pipelines.synthetic import WorldConfig
from mien.platform.config import ConfigError, parse, run_program
from mien.platform.progress import progress, table
from mien.platform.storage import storing, write_whole

LABELLED, UNLABELLED = "manifest.parquet", "unlabelled.parquet"


def prepare(name: str, config: BaseModel, output: Path, folds: int | None = None) -> Manifest:
    """Read one dataset, perhaps make folds, and write its manifest; return it."""
    manifest = DATASETS[name][1](config)
    if folds is not None:
        manifest = splits.make_folds(manifest, folds, seed=0)
    with storing(output):
        output.mkdir(parents=True, exist_ok=True)
        manifest.write(output / LABELLED)
    tell(manifest, output / LABELLED)
    if manifest.rejected:
        lines = (json.dumps({"path": item.path, "reason": item.reason}) + "\n" for item in manifest.rejected)
        write_whole(output / "rejected.jsonl", "".join(lines))
        print(f"{len(manifest.rejected)} files could not be used: {output / 'rejected.jsonl'}")
    return manifest


def prepare_world(config: WorldConfig, output: Path) -> None:
    """Render the synthetic world (or what is missing of it), and read it as DFEW and VoxCeleb2 are read."""
    root = output / "world"
    with progress("rendering", unit="clips") as bar:
        for done in synthetic_layouts.write(config, root, processes=os.cpu_count() or 1):
            bar.total = done.total
            bar.advance(done.done - bar.done)
    parts = {LABELLED: ("dfew", root / "dfew"), UNLABELLED: ("voxceleb2", root / "voxceleb2")}
    for file, (name, folder) in parts.items():
        if not folder.is_dir() or (output / file).exists():
            continue
        settings, read = DATASETS[name]
        extra = {"gaze": "annotations/gaze.csv"} if name == "dfew" else {}
        manifest = read(settings(root=str(folder.resolve()), **extra))
        manifest.write(output / file)
        tell(manifest, output / file)


def tell(manifest: Manifest, file: Path) -> None:
    """Print what a manifest holds."""
    subjects = {subject for subject in manifest.column("subject") if subject is not None}
    gaze = sum(angle is not None for angle in manifest.column("pitch"))
    print(f"{file}: {len(manifest):,} clips of {manifest.name}, {len(subjects)} subjects, {gaze:,} with gaze")
    for note in manifest.notes:
        print(f"  note: {note}")
    labels, folds = manifest.column("label"), manifest.column("fold")
    if manifest.classes:
        rows = []
        for fold in sorted({fold for fold in folds if fold is not None}) or [None]:
            counts = Counter(label for label, here in zip(labels, folds, strict=True) if here == fold)
            first = {"tested in": "all" if fold is None else f"fold {fold}"}
            rows.append(first | {name: counts[index] for index, name in enumerate(manifest.classes)})
        table(rows)


def main(argv: Sequence[str]) -> None:
    """Read the command line and prepare."""
    names = ["synthetic", *DATASETS]
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nDatasets: {', '.join(names)}")
        return
    name, *rest = argv
    if name not in names:
        raise ConfigError(f"the first word must name a dataset, one of {', '.join(names)}; got {name!r}")
    folds = [word.removeprefix("folds=") for word in rest if word.startswith("folds=")]
    if not all(count.isdecimal() for count in folds):
        raise ConfigError(f"folds must be a whole number, as in folds=5; got {folds[-1]!r}")
    rest = [word for word in rest if not word.startswith("folds=")]
    call = parse(WorldConfig if name == "synthetic" else DATASETS[name][0], rest, __doc__)
    if call.dry_run:
        print(call.config)
        return
    output = call.output or Path("output") / name
    if isinstance(call.config, WorldConfig):
        prepare_world(call.config, output)
    else:
        prepare(name, call.config, output, int(folds[-1]) if folds else None)


if __name__ == "__main__":
    run_program(main)
