"""Predictions: a task over a stream of views, one row a view, then one row a video.

The probabilities of a video's views are averaged (as MAE-DFER's evaluation does: softmax, then the mean), gaze by its
mean direction, because angles cannot be averaged across the back of the head. A view given twice counts once. Truth
comes from the manifest, never from the batch, and a video without a prediction is an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from mien.platform.loop import Precision, autocast
from mien.platform.scores import angles, directions, matrix
from mien.platform.storage import storing

TRUTH = ("video", "subject", "dataset", "label", "pitch", "yaw")


class PredictionError(ValueError):
    """Predictions that do not cover what was to be predicted."""


@torch.inference_mode()
def predict(
    task: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    device: torch.device,
    precision: Precision = "fp32",
    last_frame: bool = False,
) -> pa.Table:
    """Return one row a view: row, view, and what the task predicts of probabilities, pred_pitch and pred_yaw.

    Batches hold arrays or tensors; `view` is 0 where there is none. Of a task that gives each frame a gaze, that of a
    view is their mean direction, or with `last_frame`, where clips end with the frame of their label, the last one's.
    The task is left in evaluation mode.
    """
    plain: Any = task.eval()
    parts = []
    for batch in batches:
        tensors = {
            name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in batch.items()
        }
        with autocast(device, precision):
            answer = plain.predict({name: value.to(device, non_blocking=True) for name, value in tensors.items()})
        rows = tensors["row"].cpu().numpy()
        columns = {"row": rows, "view": tensors["view"].cpu().numpy() if "view" in tensors else np.zeros_like(rows)}
        if "probabilities" in answer:
            columns["probabilities"] = lists(answer["probabilities"].float().cpu().numpy())
        if "gaze" in answer:
            gaze = answer["frame_gaze"][:, -1] if last_frame and "frame_gaze" in answer else answer["gaze"]
            columns["pred_pitch"], columns["pred_yaw"] = gaze.float().cpu().numpy().T
        parts.append(pa.table(columns))
    if not parts:
        raise PredictionError("there must be something to predict, but the stream held no batch")
    return pa.concat_tables(parts)


@torch.inference_mode()
def window_gaze(
    task: nn.Module, clip: np.ndarray, device: torch.device, precision: Precision, mirror: bool
) -> np.ndarray:
    """Return a gaze task's answers (v, b, t, 2) of v views to windows (b, t, h, w, c), float64 pitch and yaw.

    A model of whole clips gives one a window, (v, b, 1, 2). With `mirror` there are two views, the second seen in a
    mirror and turned back. The task is left in evaluation mode.
    """
    plain: Any = task.eval()
    shown = torch.from_numpy(clip).to(device)
    views = [shown, shown.flip(3)] if mirror else [shown]
    with autocast(device, precision):
        answer = plain.predict({"clip": torch.cat(views)})
    found = answer["frame_gaze"] if "frame_gaze" in answer else answer["gaze"][:, None]
    angles_rad = found.double().cpu().numpy().reshape(len(views), len(clip), -1, 2)
    angles_rad[1:, ..., 1] *= -1
    return angles_rad


def merge(views: pa.Table, manifest: pa.Table, rows: Sequence[int] | np.ndarray) -> pa.Table:
    """Return one row a video for the manifest lines `rows`, in their order: truth, mean prediction, number of views.

    Raises PredictionError, naming the videos, unless exactly these lines were predicted.
    """
    keys = np.stack([views["row"].to_numpy(), views["view"].to_numpy()], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)  # sorted by row, so a video's views stand together
    views = views.take(first)
    lines, starts, counts = np.unique(views["row"].to_numpy(), return_index=True, return_counts=True)
    cover_exactly(lines, np.asarray(rows), manifest)
    place = np.searchsorted(lines, rows)
    truth = manifest.select(TRUTH).take(rows)
    columns = {"row": np.asarray(rows)} | {name: truth[name] for name in TRUTH}
    if "probabilities" in views.column_names:
        sums = np.add.reduceat(matrix(views["probabilities"]), starts)
        columns["probabilities"] = lists((sums / counts[:, None])[place])
    if "pred_pitch" in views.column_names:
        angles_rad = np.stack([views["pred_pitch"].to_numpy(), views["pred_yaw"].to_numpy()], axis=1).astype(np.float64)
        mean_rad = angles(np.add.reduceat(directions(angles_rad), starts))[place].astype(np.float32)
        columns["pred_pitch"], columns["pred_yaw"] = mean_rad.T
    return pa.table(columns | {"views": counts[place]})


def cover_exactly(found: np.ndarray, wanted: np.ndarray, manifest: pa.Table) -> None:
    """Raise PredictionError unless the lines found are the lines wanted."""
    for wrong, words in (
        (np.setdiff1d(wanted, found), "were not predicted"),
        (np.setdiff1d(found, wanted), "do not belong"),
    ):
        if len(wrong):
            videos = ", ".join(manifest["video"].take(wrong[:10]).to_pylist())
            raise PredictionError(f"every video must be predicted, and no other, but {len(wrong)} {words}: {videos}")


def lists(values: np.ndarray) -> pa.ListArray:
    """Return the rows of a matrix as a column of float32 lists."""
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, values.ravel().astype(np.float32))


def write(table: pa.Table, path: Path) -> None:
    """Write predictions as Parquet, whole or not at all."""
    with storing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        pq.write_table(table, temporary)
        temporary.rename(path)


def read(path: Path) -> pa.Table:
    """Read predictions."""
    return pq.read_table(path)
