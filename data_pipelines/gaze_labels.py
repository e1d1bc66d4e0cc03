"""Gaze in a manifest: told by a model, with what the model does not know, and that of each frame of a clip.

A model that gives each frame an answer learns from the columns `frame_pitch` and `frame_yaw`. They come from a teacher
(`with_gaze`), or from the manifest itself where its clips end with the frame that bears their label, as Gaze360's do
(`with_gaze_of_frames`): the frame that one clip ends with stands in the clips that end a little later.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mien.data_pipelines.manifest import SCHEMA, Manifest, checked

ANGLES = ("pitch", "yaw")
Columns = dict[str, np.ndarray | pa.Array]


def with_gaze(
    manifest: Manifest,
    angles_rad: np.ndarray,
    note: str,
    spread_rad: np.ndarray | None = None,
    frames: pa.Table | None = None,
) -> Manifest:
    """Return the manifest with other gazes, pitch and yaw (clips, 2) in radians, NaN where unknown, and a note.

    `spread_rad` (clips,) is how far the answers of who told them lie apart, NaN where unknown. `frames` has the columns
    row (the manifest's line), pitch, yaw and spread of all frames of some clips, by row; other clips' are unknown.
    """
    columns: Columns = {"pitch": angles_rad[:, 0], "yaw": angles_rad[:, 1]}
    columns["gaze_spread"] = np.full(len(manifest), np.nan) if spread_rad is None else spread_rad
    for name in (*ANGLES, "spread"):
        if frames is None:
            columns[f"frame_{name}"] = pa.nulls(len(manifest), SCHEMA.field(f"frame_{name}").type)
        else:
            counts = np.bincount(frames["row"].to_numpy(), minlength=len(manifest))
            columns[f"frame_{name}"] = _lists(frames[name].to_numpy(), counts, counts > 0)
    return _with_columns(replace(manifest, notes=(*manifest.notes, note)), columns)


def with_gaze_of_frames(manifest: Manifest) -> Manifest:
    """Return a manifest of clips that end with the frame of their label with the gaze of all their frames.

    A frame's gaze is known where another clip of the same file, part and fold ends with it: none comes from the other
    side of an official split.
    """
    table = manifest.table
    places = [table[name].combine_chunks().dictionary_encode(null_encoding="encode") for name in ("path", "split")]
    path, split = (place.indices.to_numpy() for place in places)
    fold = pc.fill_null(table["fold"], 0).to_numpy()
    starts, counts = table["start"].to_numpy(), table["frames"].to_numpy()
    # One number for each (file, part, fold, frame), so that frames are found by bisection.
    _, group = np.unique(np.stack([path, split, fold]), axis=1, return_inverse=True)
    width = int((starts + counts).max())
    known = np.flatnonzero(pc.is_valid(table["pitch"]).to_numpy())
    keys = group.reshape(-1)[known] * width + starts[known] + counts[known] - 1
    order = np.argsort(keys, kind="stable")
    keys, known = keys[order], known[order]
    ends = np.cumsum(counts)
    within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    wanted = np.repeat(group.reshape(-1) * width + starts, counts) + within
    found = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    there = keys[found] == wanted if len(keys) else np.zeros(len(wanted), bool)
    columns: Columns = {}
    for name in ANGLES:
        values = np.full(len(wanted), np.nan)
        values[there] = table[name].to_numpy()[known[found[there]]]
        columns[f"frame_{name}"] = _lists(values, counts, np.ones(len(table), bool))
    return _with_columns(manifest, columns)


def _lists(values: np.ndarray, counts: np.ndarray, known: np.ndarray) -> pa.ListArray:
    """Return a column of lists of `counts` (rows,) values each, NaN as null; null where the row is not `known`."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    flat = pa.array(values, pa.float32(), from_pandas=True)
    return pa.ListArray.from_arrays(offsets, flat, type=SCHEMA.field("frame_yaw").type, mask=pa.array(~known))


def _with_columns(manifest: Manifest, columns: Columns) -> Manifest:
    table = manifest.table
    for name, values in columns.items():
        place = SCHEMA.get_field_index(name)
        column = pa.array(values, SCHEMA.field(place).type, from_pandas=True)  # NaN becomes null
        table = table.set_column(place, SCHEMA.field(place), column)
    return checked(replace(manifest, table=table))
