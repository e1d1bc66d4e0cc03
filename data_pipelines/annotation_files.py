"""Annotation files of the MAE-DFER family: one line a clip or frame, a path and what is known of it.

    path label            path pitch yaw            path label pitch yaw            path x y z

Labels count from 0 (-1 is unknown); angles are radians; x y z is the unit vector of the gaze. White space separates; a
path that holds some stands in quotes or before a tab. A file does not say which of the four it is: three numbers are a
vector if every line has length one, label and angles if every line begins with a whole number, and a question if both.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Columns = Literal["auto", "label", "angles", "vector", "label_angles"]
MEANING: dict[str, tuple[str, ...]] = {
    "label": ("label",),
    "angles": ("pitch", "yaw"),
    "vector": ("x", "y", "z"),
    "label_angles": ("label", "pitch", "yaw"),
}
_WIDTHS = (1, 2, 3)


class AnnotationError(ValueError):
    """A line of an annotation file cannot be used; the text begins with file and line."""


class Record(NamedTuple):
    """One line: the path as written, and what is known."""

    file: Path
    line: int
    path: str
    label: int | None
    pitch: float | None
    yaw: float | None

    @property
    def where(self) -> str:
        """File and line, for errors."""
        return f"{self.file}:{self.line}"


class _Line(NamedTuple):
    file: Path
    number: int
    path: str
    values: tuple[float, ...]


def read_records(
    files: Sequence[Path], columns: Columns = "auto", num_classes: int | None = None
) -> tuple[list[Record], str]:
    """Return the lines of all files, which have the same columns, and the name of these columns as taken.

    Raises AnnotationError for the first line with missing or surplus columns, a label that is not a whole number or not
    below `num_classes`, or angles that are not finite radians.
    """
    lines = [line for file in files for line in _lines(file)]
    if not lines:
        raise AnnotationError(f"{', '.join(map(str, files))}: an annotation file must hold lines, but there are none")
    first = lines[0]
    for line in lines:
        if len(line.values) != len(first.values):
            raise _error(
                line,
                "lines must have the same columns in all files",
                f"has {1 + len(line.values)} columns where {first.file}:{first.number} has {1 + len(first.values)}",
            )
    values = np.array([line.values for line in lines])
    kind = _decided(values, first) if columns == "auto" else columns
    names = MEANING[kind]
    if len(names) != values.shape[1]:
        raise _error(first, f"columns: {kind} means path {' '.join(names)}", f"has {values.shape[1]} numbers")
    for rule, ok in _rules(kind, values, num_classes):
        bad = np.flatnonzero(~ok)
        if len(bad):
            raise _error(lines[bad[0]], rule, f"says {_said(lines[bad[0]])}")
    labels: list[int | None] = [None] * len(lines)
    if names[0] == "label":
        labels = [int(label) if label >= 0 else None for label in values[:, 0]]
    angles = vector_to_angles(values) if kind == "vector" else values[:, -2:] if kind != "label" else None
    records = []
    for i, line in enumerate(lines):
        pitch, yaw = (None, None) if angles is None else map(float, angles[i])
        records.append(Record(line.file, line.number, line.path, labels[i], pitch, yaw))
    return records, kind


def vector_to_angles(vectors: np.ndarray) -> np.ndarray:
    """Return pitch and yaw `(n, 2)` in radians of unit vectors `(n, 3)`: x left in the image, y up, z away."""
    x, y, z = np.asarray(vectors, np.float64).T
    return np.stack([np.arcsin(np.clip(y, -1, 1)), np.arctan2(x, -z)], axis=1)


def angles_to_vector(angles: np.ndarray) -> np.ndarray:
    """Return the unit vectors `(n, 3)` of pitch and yaw `(n, 2)` in radians."""
    pitch, yaw = np.asarray(angles, np.float64).T
    return np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), -np.cos(pitch) * np.cos(yaw)], axis=1)


def _lines(file: Path) -> list[_Line]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{file}: an annotation file must be readable text, but: {error}") from error
    lines = []
    for number, written in enumerate(text.splitlines(), start=1):
        if not written.strip():
            continue
        path, values = _fields(written)
        try:
            lines.append(_Line(file, number, path, tuple(map(float, values))))
        except ValueError:
            if number == 1 and not any(map(_is_number, values)):
                continue  # names of columns
            raise _error(_Line(file, number, path, ()), "all after the path are numbers", f"says {written!r}") from None
        if len(values) not in _WIDTHS:
            raise _error(
                lines[-1], "a line is a path and one to three numbers, separated by white space", f"is {written!r}"
            )
    return lines


def _fields(written: str) -> tuple[str, list[str]]:
    """Return the path and the words behind it."""
    quoted = re.match(r"""\s*(["'])(.*?)\1(.*)""", written)
    if quoted:
        return quoted[2], quoted[3].split()
    if "\t" in written.strip():
        path, _, rest = written.strip().partition("\t")
        return path.strip(), rest.split()
    path, *values = written.split()
    return path, values


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _decided(values: np.ndarray, first: _Line) -> str:
    """Return which columns the numbers are."""
    if values.shape[1] < 3:
        return "label" if values.shape[1] == 1 else "angles"
    vector, labelled = (all(ok.all() for _, ok in _rules(kind, values, None)) for kind in ("vector", "label_angles"))
    if vector == labelled:
        given = "every line can be read as both" if vector else "the lines can be read as neither"
        raise _error(
            first, "three numbers are x y z or label pitch yaw", f"leaves it open: {given}; say which by `columns`"
        )
    return "vector" if vector else "label_angles"


def _rules(kind: str, values: np.ndarray, num_classes: int | None) -> list[tuple[str, np.ndarray]]:
    """Return what must hold of columns read as `kind`, each rule with whether it does, line by line."""
    with np.errstate(invalid="ignore"):
        rules = [
            ("numbers are finite: leave out the line of a clip whose gaze is unknown", np.isfinite(values).all(axis=1))
        ]
        if kind == "vector":
            rules.append(("x y z has length 1", np.abs(np.linalg.norm(values, axis=1) - 1) < 1e-3))
        if kind in ("label", "label_angles"):
            label = values[:, 0]
            rules.append(
                ("a label is a whole number, from 0 or -1 for unknown", (label == np.rint(label)) & (label >= -1))
            )
            if num_classes is not None:
                rules.append((f"a label is below {num_classes}, the number of classes", label < num_classes))
        if kind in ("angles", "label_angles"):
            pitch, yaw = np.abs(values[:, -2:]).T
            within = (pitch <= math.pi / 2 + 1e-4) & (yaw <= math.pi + 1e-4)
            rules.append(("pitch and yaw are radians, within ±pi/2 and ±pi", within))
    return rules


def _said(line: _Line) -> str:
    return " ".join(f"{value:g}" for value in line.values)


def _error(line: _Line, rule: str, given: str) -> AnnotationError:
    return AnnotationError(f"{line.file}:{line.number}: {rule}, but this line {given}")
