"""A fingerprint of clips: what decides scores besides the model, in some forty numbers that every run keeps.

Made of the manifest alone, with no file opened, so that a million clips take a second. Face shares are the exception:
an audit measures them, and a fingerprint of the same manifest takes them over from its record.

Which numbers matter is what the authors of MAE-DFER answer to people who cannot reproduce theirs (its issues 1, 14, 21
to 23): frames a clip, whose crops, the frames' size, and time.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mien.data_pipelines.decode import IMAGES
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.reading import ReadConfig
from mien.data_pipelines.video_files import VIDEOS

Fingerprint = dict[str, Any]  # plain data; a key that is absent or None is not known

VERSION = 1
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
MEDIAN = QUANTILES.index(0.5)
COLUMNS = ["path", "dataset", "subject", "label", "pitch", "frames", "fps", "height", "width"]  # that are looked at

# What is known of the published checkpoints' input: their recipes' settings, the frames of VoxCeleb2 (the pre-crop
# tells their size), and that emotion clips were whole, not thinned out to 16 frames (MAE-DFER, issues 1 and 14).
_PUBLISHED_READ = {"frames": 16, "stride": 4, "size": 160, "ablate": "none"}
PUBLISHED: dict[str, Fingerprint] = {
    "pretraining": {
        "version": VERSION,
        "name": "the published pretraining",
        "datasets": {"voxceleb2": 1_091_726},
        "clips": 1_091_726,
        "height": [224] * len(QUANTILES),
        "width": [224] * len(QUANTILES),
        "read": _PUBLISHED_READ | {"rule": "pretrain", "precrop": "voxceleb2", "augment": "pretrain"},
    },
    "fine-tuning": {
        "version": VERSION,
        "name": "the published fine-tuning",
        "as_long_as_clip": 0.0,
        "read": _PUBLISHED_READ | {"rule": "finetune", "precrop": "none", "augment": "finetune"},
        "protocol": "paper",
    },
}


def fingerprint(
    manifest: Manifest,
    rows: Sequence[int] | np.ndarray | None = None,
    read: ReadConfig | None = None,
    *,
    parts: Mapping[str, int] | None = None,
    protocol: str | None = None,
    path: str | Path | None = None,
) -> Fingerprint:
    """Return the fingerprint of the manifest lines `rows`, of all by default; the same for any order of the lines.

    Args:
        manifest: the clips' manifest, whose own hash is kept too.
        rows: the lines that are trained or judged on.
        read: how clips are read from them, where they are.
        parts: number of clips of each part that the manifest was split in.
        protocol: by which rule it was.
        path: where the manifest stands, so that an audit beside it can tell of its faces.
    """
    table = manifest.table.select(COLUMNS)
    if rows is not None:
        table = table.take(pa.array(np.asarray(rows, np.int64)))
    frames = table["frames"].to_numpy()
    fps = table["fps"].drop_null().to_numpy()
    found: Fingerprint = {
        "version": VERSION,
        "name": manifest.name,
        "manifest": manifest.fingerprint(),
        "clips": len(table),
        "datasets": _counts(table["dataset"]),
        "parts": None if parts is None else dict(parts),
        "protocol": protocol,
        "classes": list(manifest.classes),
        "class_counts": np.bincount(table["label"].drop_null().to_numpy(), minlength=len(manifest.classes)).tolist(),
        "gazed": len(table) - table["pitch"].null_count,
        "subjects": None if table["subject"].null_count else pc.count_distinct(table["subject"]).as_py(),
        "sources": sources(table["path"]),
        "frames": quantiles(frames),
        "fps": quantiles(fps),
        "fps_known": round(len(fps) / max(len(table), 1), 4),
        "height": quantiles(table["height"].to_numpy()),
        "width": quantiles(table["width"].to_numpy()),
        "faces": None if path is None else measured_faces(manifest, path),
        "crop_margin": _margin(manifest.notes),
        "notes": list(manifest.notes),
    }
    if read is None:
        return found
    sampling = read.sampling
    stride = 1 if sampling.ends_with_label else sampling.stride  # such clips are of consecutive frames
    return found | {
        "shorter_than_span": _share(frames < stride * sampling.frames),
        "as_long_as_clip": _share(frames == sampling.frames),
        "read": {
            "rule": sampling.rule,
            "frames": sampling.frames,
            "stride": stride,
            "views": sampling.views,
            "ablate": sampling.ablate,
            "size": read.size,
            "precrop": read.augment.precrop,
            "augment": read.augment.kind,
        },
    }


def quantiles(values: np.ndarray) -> list[float] | None:
    """Return values that occur at QUANTILES, or None where there are none."""
    if not len(values):
        return None
    found = np.quantile(values, QUANTILES, method="inverted_cdf").astype(np.float64)
    return [int(value) if value.is_integer() else round(value, 4) for value in found.tolist()]


def sources(paths: pa.ChunkedArray) -> dict[str, int]:
    """Return how many paths are of each kind, by their names alone: video, image, shard, or a frame folder."""
    kinds = {
        "shard": r"\.parquet#\d+\+\d+$",
        "video": _ending(VIDEOS),
        "image": _ending(IMAGES),
    }
    left, found = len(paths), {}
    for kind, pattern in kinds.items():
        found[kind] = pc.sum(pc.match_substring_regex(paths, pattern)).as_py() or 0
        left -= found[kind]
    return {kind: count for kind, count in (found | {"frame folder": left}).items() if count}


def measured_faces(manifest: Manifest, path: str | Path) -> dict[str, Any] | None:
    """Return the face shares that an audit of this very manifest left beside it (`NAME_audit/audit.json`), or None."""
    path = Path(path)
    record = path.with_name(f"{path.stem}_audit") / "audit.json"
    if not record.is_file():
        return None
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:  # an audit writes it whole or not at all: this is no audit's
        return None
    if told.get("fingerprint") != manifest.fingerprint():
        return None
    faces = told.get("faces")
    return faces and {name: faces[name] for name in ("clips", "without", "shares")}


def _ending(suffixes: frozenset[str]) -> str:
    return r"(?i)\.(" + "|".join(sorted(suffix[1:] for suffix in suffixes)) + ")$"


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(column.combine_chunks()).to_pylist()
    return {item["values"]: item["counts"] for item in sorted(counted, key=lambda item: str(item["values"]))}


def _share(chosen: np.ndarray) -> float:
    return round(float(chosen.mean()), 4) if len(chosen) else 0.0


def _margin(notes: Sequence[str]) -> float | None:
    """Return the margin of the crops, where crop_faces.py noted one."""
    found = [re.search(r"cropped .*margin (\d+\.?\d*)", note) for note in notes]
    margins = {float(match[1]) for match in found if match}
    return margins.pop() if len(margins) == 1 else None
