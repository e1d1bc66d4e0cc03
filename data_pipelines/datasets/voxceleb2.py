"""VoxCeleb2 (Chung et al. 2018), the pretraining set: ROOT/dev/mp4/ID/VIDEO/CLIP.mp4, unlabelled, the person known.

The published run used 1,091,726 of its 1,092,009 files, after taking out 283 broken ones by hand; `broken` is such a
list, one path a line, and a file that it does not name and that cannot be read is in `rejected` with its reason. Its
frames are 224x224; `augment.precrop: voxceleb2` cuts them as published.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from mien.data_pipelines.annotation_files import cleaned
from mien.data_pipelines.datasets.videos import find_videos, video_rows
from mien.data_pipelines.manifest import Manifest, build
from mien.data_pipelines.probing import DatasetError, Progress


class Voxceleb2Config(BaseModel, frozen=True, extra="forbid"):
    """Where VoxCeleb2 is."""

    name: Literal["voxceleb2"] = "voxceleb2"
    root: str = Field("data/voxceleb2", description="folder that holds dev/mp4/ID/VIDEO/CLIP.mp4")
    parts: tuple[str, ...] = Field(("dev",), min_length=1, description="parts to read: dev, test")
    broken: str | None = Field(
        None, description="text file under root with the path of a broken clip in each line; these are taken out"
    )
    threads: int = Field(8, ge=1, description="files looked at side by side")


def read(config: Voxceleb2Config, progress: Progress | None = None) -> Manifest:
    """Return a row for each readable clip, its subject the person's id."""
    root = Path(config.root)
    paths = []
    for part in config.parts:
        folder = root / part / "mp4"
        found = [path for path in find_videos(folder) if path.count("/") == 2]
        if not found:
            raise DatasetError(
                f"VoxCeleb2 must lie as {root}/{part}/mp4/ID/VIDEO/CLIP.mp4, but there is no such file under "
                f"{folder.absolute()}: ask for the data at https://www.robots.ox.ac.uk/~vgg/data/voxceleb/ and unpack "
                "them there, or set root"
            )
        paths += [f"{part}/mp4/{path}" for path in found]
    paths, notes = _without_broken(paths, root / config.broken) if config.broken else (paths, [])
    rows, rejected = video_rows(paths, root, config.threads, progress)
    for row in rows:
        row["dataset"] = "voxceleb2"
        row["video"] = row["path"].partition("/mp4/")[2].removesuffix(".mp4")
        row["subject"] = row["video"].split("/")[0]
    return build(rows, (), root, "voxceleb2", rejected, notes)


def _without_broken(paths: list[str], listing: Path) -> tuple[list[str], list[str]]:
    """Return the paths that `listing` does not name, and notes on those and on its lines that name no clip.

    A line is a path that ends in ID/VIDEO/CLIP, with or without .mp4; blank lines and what follows a # do not count.
    """
    try:
        text = listing.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"the list of broken files must be readable text, but {listing.absolute()} is not: {error}: set broken to "
            "its place under root, or leave it out"
        ) from error
    lines = (cleaned(line.partition("#")[0].strip()).removesuffix(".mp4") for line in text.splitlines())
    named = {"/".join(line.split("/")[-3:]): line for line in lines if line}
    ids = {path: path.partition("/mp4/")[2].removesuffix(".mp4") for path in paths}
    kept = [path for path in paths if ids[path] not in named]
    unknown = [named[name] for name in sorted(named.keys() - set(ids.values()))]
    notes = [f"taken out as broken by {listing.name}: {len(paths) - len(kept)}"]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        notes.append(f"lines of {listing.name} that name no clip here: {len(unknown)} ({shown})")
    if not kept:
        raise DatasetError(
            f"some clip must be whole, but {listing.absolute()} names all {len(paths)}: set broken to another list"
        )
    return kept, notes
