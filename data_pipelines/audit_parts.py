"""An audit's checks on who is where, from the manifest alone: persons and files shared, classes absent, their names.

Every fold is split as training would split it, so what is found is what a run with these settings would get. Where that
is refused, the refusal is a finding, and the official parts are looked at instead.
"""

from collections import defaultdict
from collections.abc import Sequence
from importlib import import_module
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from mien.data_pipelines.findings import Finding, Severity, listing, some
from mien.data_pipelines.manifest import Manifest
from mien.data_pipelines.preparers import DATASETS
from mien.data_pipelines.splits import Split, SplitConfig, SplitError, folds, split

NOWHERE, TRAIN, VAL, TEST = 0, 1, 2, 3
PART_NAMES = {TRAIN: "train", VAL: "val", TEST: "test"}
CROSSINGS = ((TRAIN, TEST), (VAL, TEST), (TRAIN, VAL))  # pairs of parts that may share nothing, the worst first
FEW_CLIPS = 10  # of a class in one test part: one clip more or less moves its recall by a tenth


class Parts(NamedTuple):
    """The parts of every fold: `codes` (folds, clips) holds TRAIN, VAL or TEST; NOWHERE where a clip is in none."""

    names: tuple[str, ...]
    codes: np.ndarray


def parts_of(manifest: Manifest, config: SplitConfig) -> tuple[Parts, list[Finding]]:
    """Return the parts of every official fold, and what is wrong with their making."""
    if not _labelled(manifest):
        note = Finding("parts", "note", "nothing is labelled: clips to pretrain on, which have no parts to compare")
        return Parts((), np.empty((0, len(manifest)), np.int8)), [note]
    findings: list[Finding] = []
    numbers: Sequence[int | None] = folds(manifest) or [None]
    codes = np.zeros((len(numbers), len(manifest)), np.int8)
    refused: dict[str, list[str]] = defaultdict(list)
    same: dict[str, int] = {}
    names = tuple("official parts" if number is None else f"fold {number}" for number in numbers)
    for name, number, code in zip(names, numbers, codes, strict=True):
        try:
            found = split(manifest, number, config)
        except SplitError as error:
            refused[str(error)].append(name)
            found = _official(manifest, number)
        if len(both := np.intersect1d(found.val, found.test)):
            same[name] = len(both)
        code[found.train], code[found.val], code[found.test] = TRAIN, VAL, TEST  # what validates and tests is tested
    for message, where in refused.items():
        remedy = "put the parts right, or choose another split.protocol; below, the official parts are looked at"
        findings.append(Finding("parts", "error", f"cannot be split: {message}", len(where), tuple(where), remedy))
    if same:
        what = "clips validate and test (validation is the test part, as protocol 'paper' wants it)"
        told = tuple(f"{name}: {count:,} clips" for name, count in same.items())
        remedy = "for comparison with published figures only; split.protocol=honest takes validation out of train"
        findings.append(Finding("validation", "warning", what, sum(same.values()), told, remedy))
    if not (codes == TEST).any():
        findings.append(Finding("parts", "note", "no clip is tested: there is neither a test part nor a fold"))
    return Parts(names, codes), findings


def _labelled(manifest: Manifest) -> bool:
    return any(manifest.table[name].null_count < len(manifest) for name in ("label", "pitch"))


def _official(manifest: Manifest, fold: int | None) -> Split:
    named = np.array([part or "" for part in manifest.column("split")])
    test = named == "test"
    if fold is not None:
        test |= np.array([tested == fold for tested in manifest.column("fold")])
    val = (named == "val") & ~test
    train, validation, tested = (np.flatnonzero(chosen) for chosen in (~test & ~val, val, test))
    return Split(train, validation, tested, "official", "clip")


def meeting(parts: Parts, rows: Sequence[int], one: int, other: int) -> list[str]:
    """Return the folds in which some of `rows` are in part `one` and others of them in part `other`."""
    here = parts.codes[:, rows]
    return [parts.names[k] for k in np.flatnonzero((here == one).any(axis=1) & (here == other).any(axis=1))]


def shared(parts: Parts, manifest: Manifest, protocol: str) -> list[Finding]:
    """Return persons, and files cut into clips, that two parts share."""
    people: dict[str, list[int]] = defaultdict(list)
    files: dict[str, list[int]] = defaultdict(list)
    several = len(set(manifest.column("dataset"))) > 1
    starts = manifest.column("start")
    columns = (manifest.column(name) for name in ("dataset", "subject", "path"))
    for index, (dataset, subject, path) in enumerate(zip(*columns, strict=True)):
        if subject is not None:
            people[f"{dataset}/{subject}" if several else subject].append(index)
        files[path].append(index)
    cut = {path: rows for path, rows in files.items() if len({starts[row] for row in rows}) > 1}
    findings = _crossed(parts, people, "subjects", "persons", protocol)
    findings += _crossed(parts, cut, "files", "files cut into clips", protocol)
    unknown = manifest.table["subject"].null_count
    if unknown and len(parts.names):
        what = "clips do not say who is seen, so persons that parts share cannot be found"
        remedy = "where persons are known, give them to the reader; if not, say so beside every score"
        findings.append(Finding("subjects", "warning", what, unknown, remedy=remedy))
    return findings


def _crossed(parts: Parts, groups: dict[str, list[int]], check: str, things: str, protocol: str) -> list[Finding]:
    findings = []
    for one, other in CROSSINGS:
        found = {key: where for key, rows in groups.items() if (where := meeting(parts, rows, one, other))}
        if not found:
            continue
        severity: Severity = "warning" if (one, other) == (VAL, TEST) else "error"
        remedy = "move all clips of each to one part, or make folds anew: prepare.py … folds=5 keeps them whole"
        if protocol == "leaky" and (one, other) == (TRAIN, VAL):
            severity, remedy = "note", "what protocol 'leaky' is there to show; split.protocol=honest keeps them apart"
        what = f"{things} are in {PART_NAMES[one]} and in {PART_NAMES[other]}"
        told = some(f"{key} ({listing(where)})" for key, where in found.items())
        findings.append(Finding(check, severity, what, len(found), told, remedy))
    return findings


def class_counts(parts: Parts, manifest: Manifest) -> dict[str, dict[str, list[int]]]:
    """Return the clips of each class, in the classes' order, by fold and part: {"fold 1": {"train": [...], ...}}."""
    labels = np.array([-1 if label is None else label for label in manifest.column("label")])
    size = len(manifest.classes)
    return {
        name: {
            word: np.bincount(labels[(code == part) & (labels >= 0)], minlength=size).tolist()
            for part, word in PART_NAMES.items()
            if (code == part).any()
        }
        for name, code in zip(parts.names, parts.codes, strict=True)
    }


def balance(counts: dict[str, dict[str, list[int]]], manifest: Manifest) -> list[Finding]:
    """Return classes that a part lacks or has few of, and how unequal classes are."""
    classes = manifest.classes
    if not classes or not counts:
        return []
    findings = []
    remedies = {
        "train": "it can never be predicted: take other folds, or leave the class out of `classes`",
        "val": "selection does not see it: take another split.validation_ratio or split.seed",
        "test": "UAR is then a mean over fewer classes, and no longer comparable with other folds",
    }
    for part, remedy in remedies.items():
        missing = [
            f"{classes[label]} ({name})"
            for name, of in counts.items()
            for label, clips in enumerate(of.get(part, []))
            if clips == 0
        ]
        if missing:
            severity: Severity = "error" if part == "train" else "warning"
            what = f"times a class has no clip in a {part} part"
            findings.append(Finding("classes", severity, what, len(missing), some(missing), remedy))
    few = [
        f"{classes[label]} ({clips} in {name})"
        for name, of in counts.items()
        for label, clips in enumerate(of.get("test", []))
        if 0 < clips < FEW_CLIPS
    ]
    if few:
        remedy = "one clip moves its recall by a tenth and more: compare means over all folds, with intervals"
        what = f"times a class has fewer than {FEW_CLIPS} test clips"
        findings.append(Finding("classes", "note", what, len(few), some(few), remedy))
    first = next(iter(counts.values()))
    total = np.sum([first[part] for part in first], axis=0)
    if total.min() > 0:
        most, least = int(total.argmax()), int(total.argmin())
        ratio = total[most] / total[least]
        what = f"the most frequent class has {ratio:.1f} times the clips of the rarest"
        if most == least:  # all are equal
            what = f"every class has {total[most]:,} clips"
        told = tuple(f"{classes[label]} ({total[label]:,})" for label in ([most, least] if most != least else []))
        remedy = "look at UAR beside WAR, which the frequent classes decide" if ratio > 1.5 else ""
        findings.append(Finding("balance", "note", what, examples=told, remedy=remedy))
    if unknown := manifest.table["label"].null_count:
        findings.append(Finding("classes", "note", "clips have no class, and are not learned from", unknown))
    return findings


def class_names(manifest: Manifest) -> list[Finding]:
    """Return class lists that are not their dataset's own, and clips in a folder named as another class."""
    classes = manifest.classes
    findings = []
    for dataset in sorted(set(manifest.column("dataset"))) if classes else []:
        known = known_classes(dataset)
        if known is None or known == classes:
            continue
        told = (f"manifest: {listing(classes)}", f"{dataset}: {listing(known)}")
        if sorted(map(str.lower, known)) == sorted(map(str.lower, classes)):
            wrong = sum(one.lower() != other.lower() for one, other in zip(known, classes, strict=True))
            what = f"classes stand at another place than in {dataset}'s list: a label means another emotion there"
            severity: Severity = "error" if wrong else "note"
            what = what if wrong else f"classes are written otherwise than in {dataset}'s list"
            remedy = "write the classes in the dataset's order, or prepare it with its own reader"
            findings.append(Finding("class list", severity, what, wrong or len(classes), told, remedy))
        else:
            what = f"classes are not among {dataset}'s {len(known)}, or are absent of them"
            different = len(set(known) ^ set(classes))
            remedy = "scores are not comparable with published ones unless the classes are the same"
            findings.append(Finding("class list", "warning", what, different, told, remedy))
    return findings + _folders(manifest)


def known_classes(dataset: str) -> tuple[str, ...] | None:
    """Return the class names of a dataset that has a reader with such a list, in the order of their ids."""
    if dataset not in DATASETS:
        return None
    listed = getattr(import_module(DATASETS[dataset][1].__module__), "CLASSES", None)
    return listed if isinstance(listed, tuple) and all(isinstance(name, str) for name in listed) else None


def _folders(manifest: Manifest) -> list[Finding]:
    """Compare labels with folders that are named as a class: ROOT/Angry/00001.mp4 with the label of Sad."""
    places = {name.lower(): label for label, name in enumerate(manifest.classes)}
    wrong = []
    columns = (manifest.column(name) for name in ("video", "path", "label"))
    for video, path, label in zip(*columns, strict=True):
        named = {places[part.lower()] for part in PurePosixPath(path).parts if part.lower() in places}
        if label is not None and named and label not in named:
            wrong.append(f"{video}: {manifest.classes[label]}, in {path}")
    if not wrong:
        return []
    remedy = "names and labels contradict each other: look at some clips, then put the class list or the labels right"
    what = "clips lie in a folder named after another class"
    return [Finding("labels", "error", what, len(wrong), some(wrong), remedy)]
