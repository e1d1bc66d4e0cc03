"""The gaze of each frame from several answers about it: their mean direction, and how far they lie apart.

A teacher looks at a frame in overlapping windows and in a mirror. Its answers are averaged as directions, because
angles cannot be averaged across the back of the head. Their spread is what it does not know: the angular deviation
sqrt(2 (1 - R)), R the length of the mean of the unit vectors (Zar, Biostatistical Analysis, circular statistics), in
radians. It is the root of the mean squared chord to the mean direction, so for answers that nearly agree the root mean
square of their angles to it. It tells of disagreement only: an error that all answers share is not seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import spearmanr

from mien.platform.predict import TRUTH
from mien.platform.scores import angles, angular_error, columns, directions, scores

FRAMES = pa.schema(
    [
        pa.field("row", pa.int64()),  # line of the manifest
        pa.field("video", pa.string()),
        pa.field("frame", pa.int64()),  # from 0 in the clip
        pa.field("pitch", pa.float32()),  # radians, as spread
        pa.field("yaw", pa.float32()),
        pa.field("spread", pa.float32()),  # null where there is one answer
    ]
)


class FrameGaze:
    """Answers about the frames of one clip, summed as they come."""

    def __init__(self, num_frames: int) -> None:
        self._sums = np.zeros((num_frames, 3))
        self._counts = np.zeros(num_frames, np.int64)

    def add(self, frames: np.ndarray, angles_rad: np.ndarray) -> None:
        """Take in the answers (v, n, 2) of v views, pitch and yaw, about the frames (n,); (v, 1, 2) is about all."""
        views, told, _ = angles_rad.shape
        vectors = directions(angles_rad.reshape(-1, 2)).reshape(views, told, 3).sum(axis=0)
        np.add.at(self._sums, frames, np.broadcast_to(vectors, (len(frames), 3)))
        np.add.at(self._counts, frames, views)

    def angles(self) -> np.ndarray:
        """Return the mean direction of each frame, (n, 2) pitch and yaw in radians; every frame must have an answer."""
        assert self._counts.all()
        return angles(self._sums)

    def spread(self) -> np.ndarray:
        """Return how far each frame's answers lie apart, (n,) in radians, 0 to sqrt(2); NaN where there is but one."""
        length = np.linalg.norm(self._sums, axis=1) / self._counts
        return np.where(self._counts > 1, np.sqrt(2 * np.clip(1 - length, 0, None)), np.nan)


def frames_table(rows: Sequence[int], videos: Sequence[str], gazes: Mapping[int, FrameGaze]) -> pa.Table:
    """Return the frames of the manifest lines `rows`, whose clips are called `videos`, as FRAMES has them."""
    parts = []
    for row, video in zip(rows, videos, strict=True):
        angles_rad = gazes[row].angles()
        columns = {"row": [row] * len(angles_rad), "video": [video] * len(angles_rad), "frame": range(len(angles_rad))}
        columns |= {"pitch": angles_rad[:, 0], "yaw": angles_rad[:, 1], "spread": gazes[row].spread()}
        arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in FRAMES]
        parts.append(pa.Table.from_arrays(arrays, schema=FRAMES))
    return pa.concat_tables(parts) if parts else FRAMES.empty_table()


def clip_means(frames: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (manifest lines (n,), mean directions (n, 2), mean spreads (n,)) of whole clips' frames.

    Frames without a spread are left out of its mean, which is NaN where none has one.
    """
    lines, starts = np.unique(frames["row"].to_numpy(), return_index=True)
    if not len(lines):
        return lines, np.empty((0, 2)), np.empty(0)
    vectors, spread = directions(columns(frames, "pitch", "yaw")), columns(frames, "spread")[:, 0]
    known = np.isfinite(spread)
    totals, counts = (np.add.reduceat(values, starts) for values in (np.where(known, spread, 0), known.astype(int)))
    mean_spread = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    return lines, angles(np.add.reduceat(vectors, starts)), mean_spread


def clips_table(manifest: pa.Table, angles_rad: np.ndarray, spread: np.ndarray) -> pa.Table:
    """Return one row a manifest line: what was known of the clip, pred_pitch and pred_yaw (NaN: none), spread."""
    found = {"row": np.arange(len(manifest))} | {name: manifest[name] for name in TRUTH}
    for name, values in (("pred_pitch", angles_rad[:, 0]), ("pred_yaw", angles_rad[:, 1]), ("spread", spread)):
        found[name] = pa.array(values, pa.float32(), from_pandas=True)
    return pa.table(found)


def agreement(clips: pa.Table, classes: Sequence[str]) -> dict[str, Any] | None:
    """Return the error of new gazes against the clips' own beside the best constant's; None where no clip has both.

    `sure_error_deg` and `unsure_error_deg` are the errors of the halves with the smaller and the larger spread, alike
    where the spread says nothing about the error; `spread_error_correlation` is Spearman's rank correlation of both.
    """
    both = clips.filter(pc.and_(pc.is_valid(clips["pitch"]), pc.is_valid(clips["pred_pitch"])))
    if not len(both):
        return None
    found = scores(both, classes, seed=0)
    errors = angular_error(columns(both, "pitch", "yaw"), columns(both, "pred_pitch", "pred_yaw"))
    spread = columns(both, "spread")[:, 0]
    order, half = np.argsort(spread, kind="stable"), len(both) // 2
    if half and not both["spread"].null_count:
        found["sure_error_deg"], found["unsure_error_deg"] = (
            float(errors[part].mean()) for part in (order[:half], order[-half:])
        )
        varied = len(set(spread)) > 1 and len(set(errors)) > 1  # of a constant there is no rank
        found["spread_error_correlation"] = float(spearmanr(spread, errors).statistic) if varied else 0.0
    return found
