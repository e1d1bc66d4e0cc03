"""The lists that come with a dataset: which clip has which label, and which fold tests it.

A line is a clip and its label, with a comma, semicolon, tab or white space between; names may be padded or not, have
a video's suffix or not, and stand behind folders with either separator.
"""

import re
from collections.abc import Callable
from pathlib import Path

from mien.data_pipelines.probing import DatasetError

Table = dict[str, int]  # a clip's label, from 0


def pairs(path: Path) -> list[tuple[int, tuple[str, str]]]:
    """Return (line number, (first, second)) of a table of two columns; spaces around them do not matter.

    Without a comma, semicolon or tab, the last word of a line is the second column: a path may hold spaces.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        fields = [field.strip().strip('"') for field in re.split(r"[,;\t]", line)] if line.strip() else []
        fields = fields[0].rsplit(maxsplit=1) if len(fields) == 1 else fields
        if len(fields) == 2:
            found.append((number, (fields[0].strip('"'), fields[1])))
        elif fields:
            raise DatasetError(
                f"{path}:{number}: a line has two columns, but this one has {len(fields)}, {line!r}: correct it, or "
                "take it out"
            )
    return found


def numbered_clip(name: str) -> str:
    """Return the id of a clip that is a number of five digits from any way it is written: 7, 00007, clips\\7.mp4."""
    stem = name.replace("\\", "/").rpartition("/")[2].partition(".")[0]
    return f"{int(stem):05d}" if stem.isdecimal() else stem


def read_list(
    path: Path, title: str, rule: str, label: Callable[[str], int | None], clip: Callable[[str], str] = numbered_clip
) -> Table:
    """Return the labels in a file of lines `name label`, with or without names of columns.

    `label` and `clip` tell what a label and a name mean; a label that means nothing breaks `rule`.
    """
    table: Table = {}
    for number, (name, text) in pairs(path):
        if number == 1 and "label" in text.lower():
            continue
        meant = label(text)
        if meant is None:
            raise DatasetError(
                f"{path}:{number}: a {title} label is {rule}, but this line says {text!r}: correct it, or restore the "
                "official file"
            )
        if clip(name) in table:
            raise DatasetError(
                f"{path}:{number}: a clip has one line, but {name} has another one above: take one of them out"
            )
        table[clip(name)] = meant
    return table


def fold_files(folder: Path, train: str, test: str) -> dict[int, tuple[Path, Path]]:
    """Return the train and test file of every fold; `*` in their patterns stands for the fold's number."""
    found: list[dict[int, Path]] = []
    for pattern in (train, test):
        number = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))
        matches = ((number.fullmatch(path.relative_to(folder).as_posix()), path) for path in folder.glob(pattern))
        found.append({int(match[1]): path for match, path in matches if match})
    if not found[1] or set(found[0]) != set(found[1]):
        raise DatasetError(
            f"{folder} must hold {train.replace('*', 'K')} and {test.replace('*', 'K')} for the same folds K, but "
            f"train has {sorted(found[0])} and test has {sorted(found[1])}: restore the official files"
        )
    return {fold: (found[0][fold], found[1][fold]) for fold in sorted(found[1])}


def read_folds(folder: Path, files: dict[int, tuple[Path, Path]], read: Callable[[Path], Table]) -> tuple[Table, Table]:
    """Return label and fold of every clip, after checking that the official files agree with one another."""
    label_of: Table = {}
    fold_of: Table = {}
    trained: dict[int, set[str]] = {}
    for fold, (train, test) in files.items():
        for path in (train, test):
            table = read(path)
            differ = [name for name, label in table.items() if label_of.setdefault(name, label) != label]
            _agree(path, "gives clips the label that other files give them", differ)
            if path == train:
                trained[fold] = set(table)
                continue
            _agree(path, "tests no clip that another fold tests", [name for name in table if name in fold_of])
            fold_of |= dict.fromkeys(table, fold)
    _agree(folder, "tests every clip in some fold", set(label_of) - set(fold_of))
    for fold, names in trained.items():
        tested = {name for name, tests in fold_of.items() if tests == fold}
        _agree(files[fold][0], "trains on no clip that its fold tests", names & tested)
        _agree(files[fold][0], "trains on every clip that its fold does not test", set(label_of) - names - tested)
    return label_of, fold_of


def _agree(path: Path, rule: str, offenders: list[str] | set[str]) -> None:
    if offenders:
        shown = ", ".join(sorted(offenders)[:5])
        raise DatasetError(
            f"an official split {rule}, but {path} breaks this for {len(offenders)} clips: {shown}: restore the "
            "official files"
        )
