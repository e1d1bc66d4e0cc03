"""An audit's checks on what goes into a model: lengths, sizes and rates of the clips.

They decide scores as much as a model does: the authors of MAE-DFER name 16 time-normalised frames, other crops, another
size or frame rate to people who cannot reproduce their figures (its issues 1, 14, 21 to 23).
"""

from collections import Counter
from typing import Any

import numpy as np

from mien.data_pipelines.contents import Contents
from mien.data_pipelines.findings import Finding, some
from mien.data_pipelines.manifest import Manifest

SAMPLED_FRAMES = 16  # of the time-normalised copies of DFEW and others


def other_sizes(manifest: Manifest, held: Contents) -> list[Finding]:
    """Return clips whose frames are not as large as their manifest says."""
    columns = zip(manifest.column("height"), manifest.column("width"), strict=True)
    videos = manifest.column("video")
    wrong = [
        f"{videos[row]}: {seen[1]}x{seen[0]}, manifest {size[1]}x{size[0]}"
        for row, (size, seen) in enumerate(zip(columns, held.sizes.tolist(), strict=True))
        if row not in held.unreadable and tuple(seen) != size
    ]
    what = "clips have another size than the manifest says"
    remedy = "the files have changed since they were prepared: prepare them again"
    return [Finding("sizes", "warning", what, len(wrong), some(wrong), remedy)] if wrong else []


def several_sizes(manifest: Manifest, held: Contents) -> list[Finding]:
    """Return clips whose frames differ in size: they can be read, and are worth knowing of."""
    if not held.several_sizes:
        return []
    videos = manifest.column("video")
    told = some(videos[row] for row in held.several_sizes)
    what = "clips hold frames of several sizes, as crops of a head that comes nearer do; they are read at one"
    return [Finding("sizes", "note", what, len(held.several_sizes), told)]


def inputs(manifest: Manifest, dataset: str) -> dict[str, Any]:
    """Return what a score depends on besides the model: lengths, sizes and rates of one dataset's clips."""
    rows = np.flatnonzero([name == dataset for name in manifest.column("dataset")])
    table = manifest.table.take(rows)
    frames = np.array(table["frames"])
    sizes = Counter(zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True))
    rates = Counter(None if rate is None else round(rate, 2) for rate in table["fps"].to_pylist())
    return {
        "clips": len(rows),
        "frames": {"min": int(frames.min()), "median": float(np.median(frames)), "max": int(frames.max())},
        "sizes": [{"width": w, "height": h, "clips": count} for (w, h), count in sizes.most_common()],
        "fps": [{"fps": rate, "clips": count} for rate, count in rates.most_common()],
    }


def lengths(manifest: Manifest, clip_frames: int) -> list[Finding]:
    """Return clips that are shorter than a model's, and sets that were thinned out to 16 frames beforehand."""
    frames, videos = manifest.column("frames"), manifest.column("video")
    short = [index for index, count in enumerate(frames) if count < clip_frames]
    findings = []
    if short:
        short.sort(key=lambda index: frames[index])
        told = some(f"{videos[index]} ({frames[index]})" for index in short)
        what = f"clips are shorter than {clip_frames} frames, and their last frames are repeated"
        remedy = "harmless if few; set clip_frames to what your model takes"
        findings.append(Finding("frames", "note", what, len(short), told, remedy))
    if set(frames) == {SAMPLED_FRAMES} and manifest.classes:
        what = f"every clip has exactly {SAMPLED_FRAMES} frames, as time-normalised copies have"
        remedy = "prepare whole clips: released checkpoints reach 46/50 instead of 63/75 on such copies of DFEW"
        findings.append(Finding("frames", "warning", what, len(frames), remedy=remedy))
    return findings


def looks(inputs: dict[str, dict[str, Any]]) -> list[Finding]:
    """Return sizes and rates that differ inside a dataset."""
    findings = []
    for dataset, of in inputs.items():
        told = some(f"{size['width']}x{size['height']} ({size['clips']:,})" for size in of["sizes"])
        if len(of["sizes"]) > 1:
            what = f"sizes of frames in {dataset}"
            remedy = "clips are resized to the model's square: unequal shapes are distorted unequally"
            findings.append(Finding("sizes", "note", what, len(told), told, remedy))
        rates = [rate["fps"] for rate in of["fps"] if rate["fps"]]
        if len(rates) > 1 and max(rates) > 1.2 * min(rates):
            told = some(f"{rate['fps'] or 'unknown'} ({rate['clips']:,})" for rate in of["fps"])
            what = f"frame rates in {dataset}: a stride in frames is another time for each"
            findings.append(Finding("fps", "warning", what, len(of["fps"]), told, "bring the clips to one rate"))
    return findings
