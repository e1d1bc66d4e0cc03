"""Clips to test a training with: a few of every class, and labels that say nothing.

A training that learns shuffled labels and yet foretells the true ones of validation has seen them by another way
(Zhang et al., arXiv:1611.03530, on what a network can learn by heart).
"""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa

from mien.data_pipelines.manifest import Manifest


def few(manifest: Manifest, rows: np.ndarray, count: int) -> np.ndarray:
    """Return so many of the manifest lines `rows`, ascending: of all classes in turns."""
    labels = np.array([-1 if label is None else label for label in manifest.column("label")])[rows]
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turns = [place for turn in itertools.zip_longest(*places) for place in turn if place is not None]
    return np.sort(rows[turns[:count]])


def with_shuffled_labels(manifest: Manifest, rows: np.ndarray, seed: int) -> Manifest:
    """Return the manifest with the labels and gazes of the lines `rows` dealt anew among them; frames' own are gone."""
    order = np.arange(len(manifest))
    order[rows] = np.random.default_rng(seed).permutation(rows)
    table = manifest.table
    for name in ("label", "pitch", "yaw", "gaze_spread"):
        table = table.set_column(table.column_names.index(name), table.schema.field(name), table[name].take(order))
    for name in ("frame_pitch", "frame_yaw", "frame_spread"):  # as long as their own clips, so they fit no others
        field = table.schema.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.nulls(len(table), field.type))
    return replace(manifest, table=table)
