"""Turn a dataset as its owner ships it into a manifest that every other program reads.

    python experiments/prepare.py dfew root=/data/DFEW --output output/dfew
    python experiments/prepare.py videos root=my_videos --output output/my_videos
    python experiments/prepare.py synthetic --output output/world          # renders the world first
    python experiments/prepare.py join manifests='[a.parquet, b.parquet]'  # classes meet by name

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

from pydantic import BaseModel, Field, create_model

from mien.data_pipelines import joining, splits, synthetic_layouts
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.preparers import DATASETS
from mien.data_pipelines.synthetic import WorldConfig
from mien.platform.config import ConfigError, dump, parse, run_program
from mien.platform.progress import progress, table
from mien.platform.storage import storing, write_whole

LABELLED, UNLABELLED = "manifest.parquet", "unlabelled.parquet"


def with_folds(settings: type[BaseModel]) -> type[BaseModel]:
    """Return a reader's settings with one more: folds that its dataset does not have."""
    meaning = "folds of our own, for a dataset without; each person is in one of them"
    return create_model(
        settings.__name__, __base__=settings, folds=(int | None, Field(None, description=meaning, ge=2))
    )


def read(name: str, config: BaseModel) -> Manifest:
    """Read one dataset, or join several, and make folds if they are asked for."""
    if isinstance(config, joining.JoinConfig):
        manifest = joining.read(config)
    else:
        with progress("reading", unit="files") as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.advance(done - bar.done)

            manifest = DATASETS[name][1](config, advance)
    folds = getattr(config, "folds", None)
    return manifest if folds is None else splits.make_folds(manifest, folds, seed=0)


def write(manifest: Manifest, output: Path) -> None:
    """Write a manifest, and beside it what its reader could not use."""
    with storing(output):
        output.mkdir(parents=True, exist_ok=True)
        manifest.write(output / LABELLED)
    if manifest.rejected:
        lines = (json.dumps({"path": item.path, "reason": item.reason}) + "\n" for item in manifest.rejected)
        write_whole(output / "rejected.jsonl", "".join(lines))
        print(f"{len(manifest.rejected)} files could not be used: {output / 'rejected.jsonl'}")


def prepare_world(config: WorldConfig, output: Path) -> None:
    """Render the synthetic world (or what is missing of it), and read it as DFEW and VoxCeleb2 are read."""
    root = output / "world"
    with progress("rendering", unit="clips") as bar, storing(output):
        for done in synthetic_layouts.write(config, root, processes=os.cpu_count() or 1):
            bar.total = done.total
            bar.advance(done.done - bar.done)
    parts = {LABELLED: ("dfew", root / "dfew"), UNLABELLED: ("voxceleb2", root / "voxceleb2")}
    for file, (name, folder) in parts.items():
        if not folder.is_dir() or (output / file).exists():
            continue
        settings, reader = DATASETS[name]
        extra = {"gaze": "annotations/gaze.csv"} if name == "dfew" else {}
        manifest = reader(settings(root=str(folder.resolve()), **extra))
        with storing(output):
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
    settings: dict[str, type[BaseModel]] = {"synthetic": WorldConfig, "join": with_folds(joining.JoinConfig)}
    settings |= {name: with_folds(config) for name, (config, _) in DATASETS.items()}
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nDatasets: {', '.join(settings)}")
        return
    name, *rest = argv
    if name not in settings:
        raise ConfigError(f"the first word must name a dataset, one of {', '.join(settings)}; got {name!r}")
    call = parse(settings[name], rest, __doc__)
    if call.dry_run:
        print(dump(call.config))
    output = call.output or Path("output") / name
    if isinstance(call.config, WorldConfig):
        if call.dry_run:
            labelled = call.config.identities * call.config.clips_per_identity
            videos = call.config.unlabelled_identities * call.config.videos_per_identity
            print(f"{labelled:,} labelled clips, {videos:,} unlabelled videos, {call.config.tracks:,} gaze tracks")
            return
        prepare_world(call.config, output)
        return
    manifest = read(name, call.config)
    tell(manifest, output / LABELLED)
    if not call.dry_run:
        write(manifest, output)


if __name__ == "__main__":
    run_program(main)
