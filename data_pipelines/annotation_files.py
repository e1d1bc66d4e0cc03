"""Annotation files of the MAE-DFER family: one line a clip or frame, a path and what is known of it.

    path label            path pitch yaw            path label pitch yaw            path x y z
    path label emotion    path pitch yaw emotion                                    from its relabelling scripts

Labels count from 0 (-1 is unknown); angles are radians; x y z is the unit vector of the gaze. An emotion is the class
that relabelling gave; where a label stands beside it, the label is what stood there before, and is not used. White
space separates; a path that holds some stands in quotes or before a tab.

A file does not say which of these it is, unless its first line names the columns. Without names, the numbers must
leave one reading: three are a vector where every line has length one, and begin or end with a class where every line
has a whole number there. Where they leave two, as two columns of whole numbers do, the file is refused with a question.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Columns = Literal["auto", "label", "angles", "vector", "label_angles", "label_emotion", "angles_emotion"]
MEANING: dict[str, tuple[str, ...]] = {  # of readings that fit a file equally badly, the first is taken as meant
    "label": ("label",),
    "angles": ("pitch", "yaw"),
    "label_emotion": ("label", "emotion"),
    "vector": ("x", "y", "z"),
    "label_angles": ("label", "pitch", "yaw"),
    "angles_emotion": ("pitch", "yaw", "emotion"),
}
_WIDTHS = {len(names) for names in MEANING.values()}
_NAMES = {name for names in MEANING.values() for name in names}
_QUOTES = "put a path with spaces in quotes"


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


class _Header(NamedTuple):
    line: _Line
    kind: str


class _Rule(NamedTuple):
    rule: str
    remedy: str
    ok: np.ndarray  # bool (lines,)


def read_records(
    files: Sequence[Path], columns: Columns = "auto", num_classes: int | None = None, setting: str = "columns"
) -> tuple[list[Record], str]:
    """Return the lines of all files, which have the same columns, and the name of these columns as taken.

    `setting` is what `columns` is called where a user sets it. Raises AnnotationError for the first line with missing
    or surplus columns, a label that is not a whole number or not below `num_classes`, or angles that are not finite
    radians; and where `columns` is auto and the files leave it open what their numbers are.
    """
    lines: list[_Line] = []
    kind: str | None = None if columns == "auto" else columns
    for file in files:
        header, found = _lines(file, setting)
        if header and kind and header.kind != kind:
            rule = f"names of columns agree with {setting} and with other files, path {' '.join(MEANING[kind])}"
            remedy = f"correct them, or set {setting}={header.kind} for all files"
            raise _error(header.line, rule, f"names path {' '.join(MEANING[header.kind])}", remedy)
        kind = header.kind if header else kind
        lines += found
    if not lines:
        raise AnnotationError(
            f"{', '.join(map(str, files))}: an annotation file must hold lines, but there are none: write `path label` "
            "for each clip, or choose another file"
        )
    first = lines[0]
    for line in lines:
        if len(line.values) != len(first.values):
            raise _error(
                line,
                "lines must have the same columns in all files",
                f"has {1 + len(line.values)} columns where {first.file}:{first.number} has {1 + len(first.values)}",
                f"write them alike, and {_QUOTES}",
            )
    values = np.array([line.values for line in lines])
    others = [name for name, names in MEANING.items() if len(names) == values.shape[1] and name != kind]
    _check([_finite(values)], lines)
    guessed = kind is None and len(others) > 1
    kind = kind or _decided(values, first, setting)
    names = MEANING[kind]
    if len(names) != values.shape[1]:
        rule, said = f"{setting}: {kind} means path {' '.join(names)}", f"has {values.shape[1]} numbers"
        raise _error(first, rule, said, f"set {setting} to {_either(others)}")
    _check(_rules(kind, values, num_classes), lines, _guess(kind, setting) if guessed else "")
    labels: list[int | None] = [None] * len(lines)
    known_class = next((names.index(name) for name in ("emotion", "label") if name in names), None)
    if known_class is not None:
        labels = [int(label) if label >= 0 else None for label in values[:, known_class]]
    angles = vector_to_angles(values) if kind == "vector" else None
    if "pitch" in names:
        angles = values[:, names.index("pitch") :][:, :2]
    records = []
    for i, line in enumerate(lines):
        pitch, yaw = (None, None) if angles is None else map(float, angles[i])
        records.append(Record(line.file, line.number, line.path, labels[i], pitch, yaw))
    return records, kind


def cleaned(path: str, prefix: str = "") -> str:
    """Return a written path in the form of the manifest, without `prefix`."""
    path = path.replace("\\", "/")
    path = path.removeprefix(prefix).lstrip("/") if prefix and path.startswith(prefix) else path
    return re.sub(r"^(\./)+", "", path).rstrip("/")


def vector_to_angles(vectors: np.ndarray) -> np.ndarray:
    """Return pitch and yaw `(n, 2)` in radians of unit vectors `(n, 3)`: x left in the image, y up, z away."""
    x, y, z = np.asarray(vectors, np.float64).T
    return np.stack([np.arcsin(np.clip(y, -1, 1)), np.arctan2(x, -z)], axis=1)


def angles_to_vector(angles: np.ndarray) -> np.ndarray:
    """Return the unit vectors `(n, 3)` of pitch and yaw `(n, 2)` in radians."""
    pitch, yaw = np.asarray(angles, np.float64).T
    return np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), -np.cos(pitch) * np.cos(yaw)], axis=1)


def _lines(file: Path, setting: str) -> tuple[_Header | None, list[_Line]]:
    """Return the names of columns, where the first line that is not blank gives them, and the other lines."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(
            f"{file}: an annotation file must be readable text, but: {error}: correct its path, or save it as UTF-8"
        ) from error
    header: _Header | None = None
    lines: list[_Line] = []
    for number, written in enumerate(text.splitlines(), start=1):
        if not written.strip():
            continue
        path, values = _fields(written)
        line = _Line(file, number, path, ())
        # Only a line that uses our names is taken for names: any other could be a clip.
        if not lines and header is None and _NAMES.intersection(map(str.lower, values)):
            header = _Header(line, _named(line, tuple(map(str.lower, values)), setting))
            continue
        try:
            line = line._replace(values=tuple(map(float, values)))
        except ValueError:
            raise _error(
                line, "all after the path are numbers", f"says {written!r}", f"{_QUOTES}, and take out other words"
            ) from None
        if len(values) not in _WIDTHS:
            rule = "a line is a path and one to three numbers, separated by white space"
            raise _error(line, rule, f"is {written!r}", f"write it so, or take it out; {_QUOTES}")
        lines.append(line)
    return header, lines


def _named(line: _Line, names: tuple[str, ...], setting: str) -> str:
    """Return which columns have these names; other orders than ours are refused, as yaw before pitch would be."""
    for kind, meaning in MEANING.items():
        if names == meaning:
            return kind
    raise _error(
        line,
        f"names of columns are path and {_either([' '.join(meaning) for meaning in MEANING.values()])}",
        f"names {' '.join(names)}",
        f"bring the columns into such an order, or take out the names and set {setting}",
    )


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


def _decided(values: np.ndarray, first: _Line, setting: str) -> str:
    """Return which columns the numbers are: the reading that fits every line or, where none does, the likeliest."""
    readings = {kind: _rules(kind, values) for kind, names in MEANING.items() if len(names) == values.shape[1]}
    bad = {kind: int((~np.all([rule.ok for rule in rules], axis=0)).sum()) for kind, rules in readings.items()}
    fitting = [kind for kind, lines in bad.items() if not lines]
    if "label_emotion" in fitting and "angles" not in fitting:
        fitting.insert(0, "angles")  # whole numbers too large for radians can be degrees, which must not become classes
    if len(fitting) > 1:
        meanings = " or as ".join(f"path {' '.join(MEANING[kind])}" for kind in fitting)
        raise _error(
            first,
            "the numbers of a file must have one meaning",
            f"and all others can be read as {meanings}",
            f"set {setting} to {_either(fitting)}",
        )

    def likely(kind: str) -> tuple[int, bool]:
        # A column that can be a class is one, even where the angles beside it are wrong.
        classes = [rule.ok.all() for rule in readings[kind] if "whole number" in rule.rule]
        return bad[kind], not (classes and all(classes))

    return min(readings, key=likely)


def _guess(kind: str, setting: str) -> str:
    return f"; lines were taken as path {' '.join(MEANING[kind])}, which fits best: set {setting} if they are not"


def _finite(values: np.ndarray) -> _Rule:
    return _Rule("numbers are finite", "leave out the line of a clip whose gaze is unknown", np.isfinite(values).all(1))


def _rules(kind: str, values: np.ndarray, num_classes: int | None = None) -> list[_Rule]:
    """Return what must hold of columns read as `kind`, each rule with whether it does, line by line."""
    rules = []
    columns = dict(zip(MEANING[kind], values.T, strict=True))
    if kind == "vector":
        unit = np.abs(np.linalg.norm(values, axis=1) - 1) < 1e-3
        rules.append(_Rule("x y z has length 1", "divide it by its length", unit))
    for article, name in (("a", "label"), ("an", "emotion")):
        if name in columns:
            column = columns[name]
            whole = (column == np.rint(column)) & (column >= -1)
            rules.append(
                _Rule(f"{article} {name} is a whole number, from 0 or -1 for unknown", f"correct the {name}", whole)
            )
            if num_classes is not None and (name == "emotion" or kind != "label_emotion"):
                rule = f"{article} {name} is below {num_classes}, the number of classes"
                rules.append(_Rule(rule, f"name its class in `classes`, or correct the {name}", column < num_classes))
    if "pitch" in columns:
        within = (np.abs(columns["pitch"]) <= math.pi / 2 + 1e-4) & (np.abs(columns["yaw"]) <= math.pi + 1e-4)
        rules.append(_Rule("pitch and yaw are radians, within ±pi/2 and ±pi", "convert degrees to radians", within))
    return rules


def _check(rules: list[_Rule], lines: Sequence[_Line], more: str = "") -> None:
    """Raise AnnotationError, ending in `more`, for the first line that breaks the first broken rule."""
    for rule, remedy, ok in rules:
        bad = np.flatnonzero(~ok)
        if len(bad):
            said = " ".join(f"{value:g}" for value in lines[bad[0]].values)
            raise _error(lines[bad[0]], rule, f"says {said}", remedy + more)


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _error(line: _Line, rule: str, given: str, remedy: str) -> AnnotationError:
    return AnnotationError(f"{line.file}:{line.number}: {rule}, but this line {given}: {remedy}")
