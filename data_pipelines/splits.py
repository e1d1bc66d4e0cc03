"""Who trains, who validates, who is tested: official tests, and a validation part carved out of train.

On emotion sets the published system has no validation part: it selects and reports on the same clips. Here validation
comes out of train, by whole persons where persons are known and by whole files where they are not, in the proportions
of the classes. An official validation part (Gaze360 has one, and the published system selects on it) is validated on
as it is, and never trained on. For comparison, `paper` gives the published protocol and `leaky` a validation part that
shares its persons with train; every split says which it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from mien.data_pipelines.manifest import SCHEMA, Manifest


class SplitError(ValueError):
    """A manifest cannot be split as asked."""


class SplitConfig(BaseModel, frozen=True, extra="forbid"):
    """How validation is chosen."""

    protocol: Literal["honest", "paper", "leaky"] = Field(
        "honest",
        description="honest = the official validation part, or else one carved out of train, by persons; paper = the "
        "official one, or else the test part, as published; leaky = carved out of train clip by clip, its persons seen "
        "in training: only to show how much that flatters",
    )
    validation_ratio: float = Field(
        0.1, gt=0, lt=1, description="honest, leaky: share of each class of train that validates"
    )
    seed: int = Field(0, ge=0, description="which persons or files validate")


@dataclass(frozen=True)
class Split:
    """Manifest lines, int64 and ascending, of the three parts; `test` is empty where the manifest names none."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    protocol: str  # honest, paper or leaky
    group: str  # what stays whole between train and val: subject or clip


def folds(manifest: Manifest) -> list[int]:
    """Return the official folds of a manifest, ascending; none is an empty list."""
    return sorted({fold for fold in manifest.column("fold") if fold is not None})


def split(manifest: Manifest, fold: int | None, config: SplitConfig) -> Split:
    """Return the parts for one official fold, or for the official test part where `fold` is None.

    No protocol trains on an official validation part; a leaky split, which carves its own, leaves it out. Raises
    SplitError where fold, classes or groups do not allow it.
    """
    parts = np.array([part or "" for part in manifest.column("split")])
    if fold is None:
        if folds(manifest):
            raise SplitError(f"{manifest.name} is tested by folds: choose one of {folds(manifest)}")
        is_test = parts == "test"
    elif not folds(manifest):
        raise SplitError(
            f"a fold can only be chosen where there are some, but {manifest.name} has none and got fold {fold}: set "
            "data.fold=null to take its own train and test parts, or prepare it with folds=5 to make folds"
        )
    else:
        if fold not in folds(manifest):
            raise SplitError(f"the fold must be one of {folds(manifest)}, which {manifest.name} has, but got {fold}")
        is_test = np.array([tested == fold for tested in manifest.column("fold")]) | (parts == "test")
    is_val = (parts == "val") & ~is_test
    rest, official, test = (np.flatnonzero(chosen) for chosen in (~is_test & ~is_val, is_val, is_test))
    if not len(rest):
        raise SplitError(
            f"some clips must train, but all {len(manifest)} of {manifest.name} validate or test: add a train part"
        )
    _check_classes(manifest, rest)
    if config.protocol == "leaky":
        chosen = _carve(np.arange(len(rest)), _labels(manifest)[rest], config.validation_ratio, config.seed)
        return Split(rest[~chosen], rest[chosen], test, "leaky", "clip")
    groups = _groups(manifest)
    whole = "subject" if None not in manifest.column("subject") else "clip"
    if config.protocol == "paper":
        if not len(official) and not len(test):
            raise SplitError(
                f"the paper's protocol validates on the official validation or test part, but {manifest.name} names "
                "none: set data.split.protocol=honest, or choose a fold"
            )
        return Split(rest, official if len(official) else test, test, "paper", whole)
    if len(official):
        train, val = rest, official
    else:
        chosen = _carve(groups[rest], _labels(manifest)[rest], config.validation_ratio, config.seed)
        train, val = rest[~chosen], rest[chosen]
    if not len(val) or not len(train):
        raise SplitError(
            f"validation needs at least one group of clips beside train, but {manifest.name} has "
            f"{len(np.unique(groups[rest]))} outside test whose removal leaves every class in train: "
            "add persons or videos, or choose another validation_ratio"
        )
    _check_classes(manifest, train)
    shared = np.intersect1d(groups[train], groups[val])
    if len(shared):  # only an official validation part can do this
        raise SplitError(
            f"train and val must not share a {whole}, but {manifest.name}'s official parts share {len(shared)}"
        )
    return Split(train, val, test, "honest", whole)


def fewer_labels(manifest: Manifest, rows: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Return a share of the manifest lines `rows`, ascending: so many of each class, at least one."""
    labels = _labels(manifest)[rows]
    rng = np.random.default_rng(seed)
    kept = []
    for label in np.unique(labels):
        here = rows[labels == label]
        kept.append(rng.permutation(here)[: max(round(ratio * len(here)), 1)])
    return np.sort(np.concatenate(kept))


def make_folds(manifest: Manifest, k: int, seed: int) -> Manifest:
    """Return the manifest with `k` folds of our own, each person in one of them and classes spread evenly."""
    groups, labels = _groups(manifest), _labels(manifest)
    members, counts = _counts(groups, labels)
    if not 2 <= k <= len(members):
        raise SplitError(
            f"folds must be from 2 to {len(members)}, the persons or files of {manifest.name}, but got {k}"
        )
    share = counts.sum(axis=0) / k
    filled = np.zeros((k, counts.shape[1]))
    fold = np.empty(len(manifest), np.int64)
    order = np.random.default_rng(seed).permutation(len(members))
    for group in order[np.argsort(-counts[order].sum(axis=1), kind="stable")]:  # the large ones first
        before, after = (((state - share) ** 2 / share).sum(axis=1) for state in (filled, filled + counts[group]))
        best = int(np.argmin(after - before))
        filled[best] += counts[group]
        fold[members[group]] = best + 1
    columns = {"fold": pa.array(fold), "split": pa.nulls(len(manifest), pa.string())}
    table = manifest.table
    for name, column in columns.items():
        place = SCHEMA.get_field_index(name)
        table = table.set_column(place, SCHEMA.field(place), column)
    return replace(manifest, table=table)


def shared_subjects(
    manifest: Manifest, one: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray
) -> list[str]:
    """Return the known persons who are seen in both parts, the leak that an official split may have."""
    subjects = manifest.column("subject")
    return sorted({s for s in (subjects[i] for i in one) if s} & {s for s in (subjects[i] for i in other) if s})


def _groups(manifest: Manifest) -> np.ndarray:
    """Return the group of every clip, int64: clips of one person, or of one file where the person is not known."""
    columns = (manifest.column(name) for name in ("dataset", "subject", "path"))
    keys = [(dataset, subject is None, subject or path) for dataset, subject, path in zip(*columns, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.int64)


def _labels(manifest: Manifest) -> np.ndarray:
    """Return the label of every clip, unknown ones as one class more."""
    return np.array([len(manifest.classes) if label is None else label for label in manifest.column("label")])


def _counts(groups: np.ndarray, labels: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the members of every group and its clips of each class that occurs, (groups, classes)."""
    names, places = np.unique(groups, return_inverse=True)
    _, classes = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(names), classes.max() + 1))
    np.add.at(counts, (places, classes), 1)
    order = np.argsort(places, kind="stable")
    return np.split(order, np.cumsum(np.bincount(places))[:-1]), counts


def _carve(groups: np.ndarray, labels: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """Return which clips validate, bool: whole groups, taken at random while each class comes nearer to `ratio`.

    No group is taken that would leave a class without training clips.
    """
    members, counts = _counts(groups, labels)
    total = counts.sum(axis=0)
    target = ratio * total
    filled = np.zeros_like(total)
    chosen = np.zeros(len(groups), bool)

    def distance(state: np.ndarray) -> float:
        return float(((state - target) ** 2 / target).sum())

    allowed = [
        group for group in np.random.default_rng(seed).permutation(len(members)) if (counts[group] < total).all()
    ]
    for group in allowed:
        taken = filled + counts[group]
        if distance(taken) < distance(filled) and (taken < total).all():
            filled = taken
            chosen[members[group]] = True
    if allowed and not chosen.any():  # every group is larger than the part asked for
        chosen[members[min(allowed, key=lambda group: distance(counts[group]))]] = True
    return chosen


def _check_classes(manifest: Manifest, rows: np.ndarray) -> None:
    labels = manifest.column("label")
    present = {labels[row] for row in rows} - {None}
    missing = [name for label, name in enumerate(manifest.classes) if label not in present]
    if present and missing:
        raise SplitError(
            f"every class must have clips to train on, but {manifest.name} has none of {', '.join(missing)}"
        )
