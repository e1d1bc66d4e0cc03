"""Annotation lines of every frame of a clip, as the MAE-DFER family's combined training reads them.

    frame_path label pitch yaw        one space between, radians, label -1 where it is unknown, no names of columns

A frame of a folder goes by its file's own path. A frame inside a video has none: it is written VIDEO#N, N the frame's
number in the file from 0, which no reader of images will take for one. A path with a space stands in quotes.

    FOLDER/merged.csv             all frames
    FOLDER/videos/VIDEO.csv       those of one clip, VIDEO its id with what no file name can hold as %2F
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from mien.data_pipelines.decode import IMAGES, frame_files
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import locate
from mien.data_pipelines.unfinished import unfinished


def frame_paths(row: dict[str, Any], root: str) -> list[str]:
    """Return what each frame of a manifest row's clip is called, relative where the row's path is."""
    place, path = Path(locate(row, root)), row["path"]
    numbers = range(row["start"], row["start"] + row["frames"])
    if place.is_dir():
        names = [file.name for file in frame_files(place)]
        return [(Path(path) / names[number]).as_posix() for number in numbers]
    if place.suffix.lower() in IMAGES:
        return [path]
    return [f"{path}#{number}" for number in numbers]


def frame_lines(row: dict[str, Any], root: str, angles_rad: np.ndarray) -> Iterator[str]:
    """Yield a line for each frame of a clip with its pitch and yaw, (frames, 2) in radians."""
    label = -1 if row["label"] is None else row["label"]
    for path, (pitch, yaw) in zip(frame_paths(row, root), angles_rad.tolist(), strict=True):
        quoted = f'"{path}"' if " " in path else path
        yield f"{quoted} {label} {pitch:.6f} {yaw:.6f}\n"


def write(folder: Path, manifest: Manifest, tables: Iterable[pa.Table]) -> None:
    """Write the frames of tables with row, pitch and yaw, each of whole clips, as annotation files: all or none."""
    with unfinished(folder) as part:
        (part / "videos").mkdir(parents=True)
        _write(part, manifest, tables)


def _write(folder: Path, manifest: Manifest, tables: Iterable[pa.Table]) -> None:
    with (folder / "merged.csv").open("w", encoding="utf-8") as merged:
        for table in tables:
            angles_rad = np.stack([table[name].to_numpy() for name in ("pitch", "yaw")], axis=1)
            lines, starts = np.unique(table["row"].to_numpy(), return_index=True)
            for line, angles in zip(lines.tolist(), np.split(angles_rad, starts[1:]), strict=True):
                row = manifest.row(line)
                text = "".join(frame_lines(row, manifest.root, angles))
                (folder / "videos" / f"{quote(row['video'], safe='')}.csv").write_text(text, encoding="utf-8")
                merged.write(text)
