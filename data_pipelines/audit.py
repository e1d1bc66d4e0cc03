"""An audit of a manifest: what would make scores on it wrong, or hard to compare with those of others.

The checks on persons, parts and classes stand in `audit_parts`, on lengths, sizes and rates in `audit_inputs`, on faces
in `audit_faces`; here are duplicates and unreadable clips. A duplicate across train and test weighs more than one
inside train.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from mien.data_pipelines import audit_faces, audit_inputs, audit_parts
from mien.data_pipelines.audit_parts import CROSSINGS, PART_NAMES, TRAIN, VAL, Parts
from mien.data_pipelines.contents import Advance, Contents, contents
from mien.data_pipelines.duplicates import equal_pairs, joined, near_pairs
from mien.data_pipelines.findings import SEVERITIES, Finding, Severity, listing, some
from mien.data_pipelines.manifest import Manifest, located
from mien.data_pipelines.splits import SplitConfig
from mien.data_pipelines.unreadable import DropLimit


class CheckConfig(BaseModel, frozen=True, extra="forbid"):
    """What is looked at, and how parts are made."""

    split: SplitConfig = SplitConfig()
    read: Literal["none", "some", "all"] = Field(
        "some",
        description="frames decoded of each clip: some = five, which finds most damage and all duplicates; all = every "
        "frame; none = the manifest alone, no file is opened",
    )
    clip_frames: int = Field(16, ge=1, description="frames a model takes; shorter clips are counted")
    faces: int = Field(
        300,
        ge=0,
        description="clips, evenly spaced, in whose middle frame a face is looked for, where the detector is installed "
        "and files are opened; 0: none",
    )
    threads: int = Field(8, ge=1, description="clips read side by side")


Same = Literal["frames of one file", "bytes", "pictures", "still pictures"]


@dataclass(frozen=True)
class Duplicate:
    """Clips that hold the same: `rows` are manifest lines, `same` what of them is equal."""

    rows: tuple[int, ...]
    same: Same
    where: str  # train and test, val and test, train and val, or one part
    folds: tuple[str, ...]  # where two parts share it; none inside one part
    labels: tuple[int, ...]  # the different labels that it bears

    @property
    def crosses(self) -> bool:
        """Say whether two parts share it."""
        return bool(self.folds)


@dataclass(frozen=True)
class Audit:
    """Everything that was found, the worst first, and the figures beside it."""

    findings: tuple[Finding, ...]
    duplicates: tuple[Duplicate, ...]
    unreadable: tuple[tuple[int, str], ...]  # (line, reason)
    class_counts: dict[str, dict[str, list[int]]]
    inputs: dict[str, dict[str, Any]]  # a dataset: frames, sizes, fps: what a score depends on
    faces: dict[str, Any] | None  # how much of the frame they fill (`audit_faces.FaceShares.summary`), if measured

    @property
    def errors(self) -> int:
        """Return how many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)


def audit(manifest: Manifest, config: CheckConfig, advance: Advance | None = None) -> Audit:
    """Check a manifest and, unless `config.read` is none, its files."""
    parts, findings = audit_parts.parts_of(manifest, config.split)
    counts = audit_parts.class_counts(parts, manifest)
    findings += audit_parts.shared(parts, manifest, config.split.protocol)
    findings += audit_parts.class_names(manifest) + audit_parts.balance(counts, manifest)
    inputs = {name: audit_inputs.inputs(manifest, name) for name in sorted(set(manifest.column("dataset")))}
    findings += audit_inputs.lengths(manifest, config.clip_frames) + audit_inputs.looks(inputs)
    held = None
    if config.read != "none":
        held = contents(manifest, config.read == "all", config.threads, advance)
        findings += _unreadable(manifest, held) + audit_inputs.other_sizes(manifest, held)
        findings += audit_inputs.several_sizes(manifest, held)
    groups = _duplicates(manifest, parts, held)
    findings += _repeated(manifest, parts, groups)
    if manifest.rejected:
        told = some(f"{item.path}: {item.reason}" for item in manifest.rejected)
        findings.append(Finding("rejected", "note", "files were left out by the reader", len(manifest.rejected), told))
    faces, of_faces = audit_faces.audit_faces(manifest, held, config.faces, config.threads)
    findings += of_faces
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    unreadable = tuple(sorted(held.unreadable.items())) if held else ()
    return Audit(tuple(findings), tuple(groups), unreadable, counts, inputs, faces)


def _duplicates(manifest: Manifest, parts: Parts, held: Contents | None) -> list[Duplicate]:
    """Return the groups of clips that hold the same, those that parts share first."""
    paths = [str(located(manifest.root, path)) for path in manifest.column("path")]
    starts = manifest.column("start")
    clips = list(zip(paths, starts, manifest.column("frames"), strict=True))
    equal, alike = [equal_pairs(clips)], []
    if held is not None:
        rows = held.readable
        near, sure = near_pairs(held.frames[rows], held.sizes[rows].min(axis=1))
        near = rows[near]
        # Clips that overlap in one file look alike, and are meant to.
        apart = np.array([paths[a] != paths[b] or starts[a] == starts[b] for a, b in near], bool)
        equal += [equal_pairs(held.digests), near[sure & apart]]
        alike.append(near[~sure & apart])
    copies = joined(equal)
    group_of = {row: number for number, group in enumerate(copies) for row in group}
    doubtful = [pairs[[group_of.get(a, -1) != group_of.get(b, -2) for a, b in pairs]] for pairs in alike]
    labels = manifest.column("label")
    found = []
    for group, still in [(group, False) for group in copies] + [(group, True) for group in joined(doubtful)]:
        same: Same = "still pictures" if still else "pictures"
        if len({clips[row] for row in group}) == 1:
            same = "frames of one file"
        elif held is not None and len({held.digests[row] for row in group}) == 1:
            same = "bytes"
        where, folds = _place(parts, group)
        borne = tuple(sorted({labels[row] for row in group} - {None}))
        found.append(Duplicate(tuple(group), same, where, tuple(folds), borne))
    order = [_words(crossing) for crossing in CROSSINGS]

    def weight(group: Duplicate) -> tuple[bool, int]:
        return group.same == "still pictures", order.index(group.where) if group.crosses else len(order)

    return sorted(found, key=weight)


def _words(crossing: tuple[int, int]) -> str:
    return " and ".join(PART_NAMES[part] for part in crossing)


def _place(parts: Parts, rows: Sequence[int]) -> tuple[str, list[str]]:
    """Return the worst two parts that rows are in at once, with the folds in which they are; or the one part."""
    for crossing in CROSSINGS:
        if where := audit_parts.meeting(parts, rows, *crossing):
            return _words(crossing), where
    inside = {PART_NAMES[code] for code in np.unique(parts.codes[:, rows]).tolist() if code}
    return ("train" if "train" in inside else next(iter(inside), "one part")), []


def _repeated(manifest: Manifest, parts: Parts, groups: Sequence[Duplicate]) -> list[Finding]:
    videos = manifest.column("video")
    classes = manifest.classes

    def told(group: Duplicate) -> str:
        names = listing(videos[row] for row in group.rows[:4]) + (" …" if len(group.rows) > 4 else "")
        return f"{names} (same {group.same}{'; ' if group.folds else ''}{listing(group.folds)})"

    alike = [group for group in groups if group.same == "still pictures"]
    groups = [group for group in groups if group.same != "still pictures"]
    findings = _copied(parts, groups)
    for crossing in CROSSINGS:
        here = [group for group in groups if group.crosses and group.where == _words(crossing)]
        severity: Severity = "warning" if crossing == (TRAIN, VAL) else "error"
        what = f"groups of duplicates are in {_words(crossing).replace(' and ', ' and in ')}"
        remedy = "a model is judged on what it has seen: keep one clip of each group, or all of them in one part"
        if here:
            findings.append(Finding("duplicates", severity, what, len(here), some(map(told, here)), remedy))
    if inside := [group for group in groups if not group.crosses]:
        what = "groups of duplicates are inside one part, and weigh twice or more"
        told_inside = some(map(told, inside))
        findings.append(Finding("duplicates", "warning", what, len(inside), told_inside, "keep one clip of each group"))
    if alike:
        shared = sum(group.crosses for group in alike)
        what = "groups of clips look alike, but hardly move: copies, or still faces"
        what += f"; two parts share {shared:,} of them" if shared else ""
        remedy = "look at their strips, and treat copies as duplicates"
        severity = "warning" if shared else "note"
        findings.append(Finding("duplicates", severity, what, len(alike), some(map(told, alike)), remedy))
    for severity, kind, these in (("error", "duplicates", groups), ("warning", "clips that look alike", alike)):
        if torn := [group for group in these if len(group.labels) > 1]:
            named = (f"{told(group)}: {listing(classes[label] for label in group.labels)}" for group in torn)
            what = f"groups of {kind} bear different labels"
            remedy = "at most one label is right: look at the strips and correct the others, or leave the group out"
            findings.append(Finding("labels", severity, what, len(torn), some(named), remedy))
    return findings


def _copied(parts: Parts, groups: Sequence[Duplicate]) -> list[Finding]:
    """Return the finding that a whole validation part is a copy of tested clips under other names."""
    copied = np.zeros(parts.codes.shape, bool)
    for group in groups:
        rows = list(group.rows)
        copied[:, rows] |= (parts.codes[:, rows] == audit_parts.TEST).any(axis=1, keepdims=True)
    val = parts.codes == VAL
    where = [
        f"{name} ({count:,} of {count:,} clips)"
        for name, count, copies in zip(parts.names, val.sum(axis=1), (val & copied).sum(axis=1), strict=True)
        if count and count == copies
    ]
    if not where:
        return []
    remedy = "what is chosen on validation is then chosen on test: take validation out of train"
    what = "validation parts are copies of test clips"
    return [Finding("validation", "error", what, len(where), some(where), remedy)]


def _unreadable(manifest: Manifest, held: Contents) -> list[Finding]:
    if not held.unreadable:
        return []
    videos = manifest.column("video")
    told = some(f"{videos[row]}: {reason}" for row, reason in sorted(held.unreadable.items()))
    limit = DropLimit().max_dropped_ratio
    pretraining = manifest.table["label"].null_count == manifest.table["pitch"].null_count == len(manifest)
    few = pretraining and len(held.unreadable) <= limit * len(manifest)
    remedy = "repair them, or prepare the manifest again without them: an evaluation stops at the first"
    if few:
        remedy = f"pretraining passes over them and counts them, up to {limit:.0%}"
    what = "clips cannot be read"
    return [Finding("unreadable", "warning" if few else "error", what, len(held.unreadable), told, remedy)]
