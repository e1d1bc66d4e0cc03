"""The table to which every dataset is reduced: one row a clip, whatever the raw layout was.

A reader under `datasets/` turns a raw layout into rows; everything after it (splits, sampling, decoding, predictions)
knows the manifest alone. It is kept as one Parquet file whose metadata hold what is not a row: the class names, the
folder that paths are relative to, what the reader rejected and what it decided on its own.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mien.data_pipelines.roots import located, outside, shared_root
from mien.data_pipelines.unfinished import unfinished

SCHEMA_VERSION = 2  # 1 had no column behind `fold`, and is read as if they were null
FIRST_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("video", pa.string(), nullable=False),  # unique id of the clip
        pa.field("path", pa.string(), nullable=False),  # absolute, or relative to the manifest's root
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("subject", pa.string()),  # who is seen; null where the dataset does not say
        pa.field("label", pa.int64()),  # index into `classes`
        pa.field("pitch", pa.float32()),  # radians, up positive
        pa.field("yaw", pa.float32()),  # radians, atan2(x, -z) with x to the left in the image
        pa.field("start", pa.int64(), nullable=False),  # first frame of the clip inside its file or folder
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("fps", pa.float32()),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("split", pa.string()),  # the official part; null where folds or our own split decide
        pa.field("fold", pa.int64()),  # the official fold, from 1, in which this clip is tested
        # Version 2: what a teacher who told the gaze does not know, and the gaze of frames, for models that give each
        # frame an answer; lists with a place for each of the clip's frames, null where it is unknown.
        pa.field("gaze_spread", pa.float32()),  # radians, how far its answers lie apart; null where gaze was measured
        pa.field("frame_pitch", pa.list_(pa.float32())),
        pa.field("frame_yaw", pa.list_(pa.float32())),
        pa.field("frame_spread", pa.list_(pa.float32())),
    ]
)
_LATER = SCHEMA.names[SCHEMA.get_field_index("fold") + 1 :]
PARTS = ("train", "val", "test")
_METADATA_KEY = b"mien"


class ManifestError(ValueError):
    """A manifest, or what a dataset's files said, breaks a rule; the text names the rule and the first offenders."""


class Rejected(NamedTuple):
    """A file that a reader could not use, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """Clips of one or several datasets, in a fixed order: row numbers are what every later table joins on."""

    table: pa.Table
    classes: tuple[str, ...]
    root: str
    name: str
    rejected: tuple[Rejected, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.table.num_rows

    def rows(self) -> list[dict[str, Any]]:
        """Return every row as a dict; null is None."""
        return self.table.to_pylist()

    def row(self, index: int) -> dict[str, Any]:
        """Return one row as a dict, without touching the others."""
        return {name: self.table.column(name)[index].as_py() for name in SCHEMA.names}

    def column(self, name: str) -> list[Any]:
        """Return one column as a list; null is None."""
        return self.table.column(name).to_pylist()

    def take(self, indices: Sequence[int] | np.ndarray) -> "Manifest":
        """Return the manifest of the rows `indices`, in that order; row numbers start anew."""
        return replace(self, table=self.table.take(pa.array(np.asarray(indices, dtype=np.int64))).combine_chunks())

    def fingerprint(self) -> str:
        """Return a hash of the rows and classes: equal where the clips are, wherever their folder stands.

        A column of a later version counts where it says something, so a manifest keeps its fingerprint.
        """
        text = io.BytesIO()
        said = [name for name in SCHEMA.names if name not in _LATER or self.table[name].null_count < len(self)]
        lists = [name for name in said if pa.types.is_list(SCHEMA.field(name).type)]
        pa.csv.write_csv(self.table.select([name for name in said if name not in lists]), text)
        for name in lists:
            lengths = pc.fill_null(pc.list_value_length(self.table[name]), -1).to_numpy()
            text.write(name.encode() + lengths.tobytes() + pc.list_flatten(self.table[name]).to_numpy().tobytes())
        head = json.dumps([FIRST_VERSION, self.classes]).encode()
        return hashlib.sha256(head + text.getvalue()).hexdigest()[:16]

    def write(self, path: str | Path) -> None:
        """Write Parquet to `path`, whole or not at all."""
        path = Path(path)
        about = {
            "schema_version": SCHEMA_VERSION,
            "classes": self.classes,
            "root": self.root,
            "name": self.name,
            "rejected": self.rejected,
            "notes": self.notes,
        }
        with unfinished(path) as part:
            pq.write_table(self.table.replace_schema_metadata({_METADATA_KEY: json.dumps(about)}), part)

    @staticmethod
    def read(path: str | Path, root: str | None = None) -> "Manifest":
        """Read what `write` wrote; `root` replaces the folder that paths are relative to, where the data have moved.

        Raises ManifestError also where a path leaves the root: somebody else's manifest shall not have us read what
        its maker liked. A root of one's own, `/` at the widest, says that it may.
        """
        path = Path(path)
        if not path.is_file():
            raise ManifestError(
                f"a manifest must exist before it is read, but there is no file {path}: prepare it first"
            )
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ManifestError(f"a manifest must be a Parquet file, but {path} is not one: {error}") from error
        about = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))
        version = about.get("schema_version")
        if version not in (FIRST_VERSION, SCHEMA_VERSION):
            raise ManifestError(
                f"a manifest's schema version must be {FIRST_VERSION} or {SCHEMA_VERSION}, but {path} has {version}: "
                "prepare it again"
            )
        for name in _LATER if version == FIRST_VERSION else ():
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
        made = checked(
            Manifest(
                table=table.replace_schema_metadata(None).cast(SCHEMA).combine_chunks(),
                classes=tuple(about["classes"]),
                root=about["root"] if root is None else root,
                name=about["name"],
                rejected=tuple(Rejected(*item) for item in about["rejected"]),
                notes=tuple(about["notes"]),
            )
        )
        if path_outside := outside(made.root, made.table["path"].combine_chunks()):
            raise ManifestError(
                f"{path}: clips must lie below the root that paths start from, {made.root}, but there is "
                f"{path_outside}. If you trust who made it, allow it by a root that holds all: data.root=/ for files, "
                "or the address that all begin with"
            )
        return made


def build(
    rows: Iterable[Mapping[str, Any]],
    classes: Sequence[str],
    root: str | Path,
    name: str,
    rejected: Iterable[Rejected] = (),
    notes: Iterable[str] = (),
) -> Manifest:
    """Return the checked manifest of `rows`; a row may leave out what may be null, and `start` (0)."""
    rows = [{"start": 0, **row} for row in rows]
    unknown = {key for row in rows for key in row} - set(SCHEMA.names)
    if unknown:
        raise ManifestError(f"{name}: rows may have the columns {SCHEMA.names}, but got {sorted(unknown)}")
    try:
        columns = [pa.array([row.get(field.name) for row in rows], type=field.type) for field in SCHEMA]
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ManifestError(f"{name}: a row holds a value of the wrong type: {error}") from error
    table = pa.Table.from_arrays(columns, schema=SCHEMA)
    return checked(Manifest(table, tuple(classes), str(root), name, tuple(rejected), tuple(notes)))


def concat(manifests: Sequence[Manifest]) -> Manifest:
    """Return one manifest of several, in their order; where ids meet, every id gets its dataset in front.

    Classes must agree (a manifest without classes joins any). Roots that differ are written into the paths, and what
    they share is the new root: nothing, where files are joined with addresses.
    """
    assert manifests
    classes = {manifest.classes for manifest in manifests if manifest.classes}
    if len(classes) > 1:
        given = "; ".join(f"{m.name}: {', '.join(m.classes)}" for m in manifests)
        raise ManifestError(f"manifests that are joined must have the same classes in the same order, but got {given}")
    roots = {manifest.root for manifest in manifests}
    tables = [m.table if len(roots) == 1 else _with_absolute_paths(m) for m in manifests]
    table = pa.concat_tables(tables).combine_chunks()
    if pc.count_distinct(table["video"]).as_py() < table.num_rows:
        table = table.set_column(
            0, SCHEMA.field("video"), pc.binary_join_element_wise(table["dataset"], table["video"], "/")
        )
    return checked(
        Manifest(
            table=table,
            classes=classes.pop() if classes else (),
            root=shared_root(roots),
            name="+".join(manifest.name for manifest in manifests),
            rejected=tuple(item for manifest in manifests for item in manifest.rejected),
            notes=tuple(note for manifest in manifests for note in manifest.notes),
        )
    )


def _with_absolute_paths(manifest: Manifest) -> pa.Table:
    root = manifest.root if "://" in manifest.root else str(Path(manifest.root).absolute())
    paths = pa.array([str(located(root, path)) for path in manifest.column("path")], type=pa.string())
    return manifest.table.set_column(1, SCHEMA.field("path"), paths)


def checked(manifest: Manifest) -> Manifest:
    """Return `manifest`, or raise a ManifestError for the first rule that it breaks."""
    table, name, num_classes = manifest.table, manifest.name, len(manifest.classes)

    def check(ok: pa.ChunkedArray | np.ndarray, rule: str, *columns: str, remedy: str = "") -> None:
        """Raise, showing the first rows for which `ok` is false, and `remedy`; null counts as fine."""
        ok = np.asarray(pc.fill_null(ok, True) if isinstance(ok, pa.ChunkedArray) else ok)
        bad = np.flatnonzero(~ok)
        if len(bad):
            shown = ", ".join(
                f"{table['video'][i].as_py()} (" + ", ".join(f"{c}={table[c][i].as_py()}" for c in columns) + ")"
                for i in map(int, bad[:5])
            )
            raise ManifestError(f"{name}: {rule}, but {len(bad)} of {len(table)} rows break it: {shown}{remedy}")

    if len(table) == 0:
        raise ManifestError(f"{name}: a manifest must hold at least one clip, but there is none under {manifest.root}")
    if len(set(manifest.classes)) < num_classes:
        raise ManifestError(f"{name}: class names must differ, but got {', '.join(manifest.classes)}")
    for field in SCHEMA:
        if not field.nullable:
            check(pc.is_valid(table[field.name]), f"{field.name} must be known", "path")
    counts = pc.value_counts(table["video"].combine_chunks())
    twice = pc.filter(counts.field("values"), pc.greater(counts.field("counts"), 1))
    check(pc.invert(pc.is_in(table["video"], value_set=twice)), "video ids must be unique", "path")
    for column, least in (("start", 0), ("frames", 1), ("height", 1), ("width", 1), ("fold", 1)):
        check(pc.greater_equal(table[column], least), f"{column} must be at least {least}", column)
    check(pc.greater(table["fps"], 0), "fps must be above 0 or null", "fps")
    check(
        pc.is_in(pc.fill_null(table["split"], PARTS[0]), value_set=pa.array(PARTS)),
        f"split must be one of {PARTS}",
        "split",
    )
    label = table["label"]
    classes = f"in 0..{num_classes - 1}, the {num_classes} classes, or null" if num_classes else "null without classes"
    check(
        pc.and_(pc.greater_equal(label, 0), pc.less(label, num_classes)),
        f"label must be {classes}",
        "label",
        remedy="; name every class in `classes`, or correct the labels",
    )
    for angle, largest in (("pitch", math.pi / 2), ("yaw", math.pi)):
        rule = f"{angle} must be finite, in radians and within ±{largest:.4f}; unknown is null, not NaN"
        check(pc.and_(pc.is_finite(table[angle]), pc.less_equal(pc.abs(table[angle]), largest + 1e-4)), rule, angle)
    check(
        pc.equal(pc.is_valid(table["pitch"]), pc.is_valid(table["yaw"])), "pitch and yaw come together", "pitch", "yaw"
    )
    spread = table["gaze_spread"]
    check(pc.and_(pc.is_finite(spread), pc.greater_equal(spread, 0)), "gaze_spread must be at least 0", "gaze_spread")
    for column in ("frame_pitch", "frame_yaw", "frame_spread"):
        length = pc.list_value_length(table[column])
        check(pc.equal(length, table["frames"]), f"{column} must hold a value for each frame, or null", "frames")
    return manifest
