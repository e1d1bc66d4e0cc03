"""The section of a report that shows what was learnt from and judged on, and what was left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mien.platform.pages import Html, Section, missing, pair, paragraph, table
from mien.platform.records import Record, Run

SHOWN_DROPPED = 8


@dataclass(frozen=True)
class Clips:
    """What a manifest holds, in numbers: the report's own view of data that it may not open."""

    name: str
    fingerprint: str
    classes: Sequence[str]
    clips: int
    subjects: int | None
    labelled: int
    gaze: int
    parts: Mapping[str, int]  # clips of each official split or test fold
    per_class: Mapping[str, Mapping[str, int]]  # part -> class -> clips
    rejected: Sequence[tuple[str, str]]  # (path, reason) of files that the reader could not use
    notes: Sequence[str]


def data(
    sources: Sequence[Clips], runs: Mapping[str, Run], folds: Mapping[str, Run], tests: Mapping[str, Record]
) -> Section:
    """Return what was learnt and judged from: counts a part and a class, fingerprints, what was left out and why.

    Args:
        sources: the manifests that were found.
        runs: every run by a name, for the clips that it dropped.
        folds: the winner's runs, for the sizes of their validation sets.
        tests: each fold's test scores.
    """
    parts: list[Html] = []
    if sources:
        rows = [
            [
                s.name,
                f"{s.clips:,}",
                None if s.subjects is None else f"{s.subjects:,}",
                f"{s.labelled:,}",
                f"{s.gaze:,}",
                Html(f"<code>{s.fingerprint}</code>"),
            ]
            for s in sources
        ]
        header = ["manifest", "clips", "subjects", "with a class", "with gaze", "fingerprint"]
        caption = "Equal fingerprints are equal clips and labels in equal order."
        parts.append(table(header, rows, "lnnnnl", caption=caption))
    else:
        parts.append(missing("The manifests are not where the config says, so their counts cannot be shown."))
    tables: list[Html] = []
    for source in sources:
        if source.per_class:
            names = [part for part in source.parts if part in source.per_class]
            rows = [[c, *(f"{source.per_class[p].get(c, 0):,}" for p in names)] for c in source.classes]
            rows.append(["all", *(f"{source.parts[part]:,}" for part in names)])
            caption = f"{source.name}: clips of each class in each official part; each fold is where a clip is tested."
            marks = [""] * len(source.classes) + ["total"]
            tables.append(table(["class", *names], rows, "l" + "n" * len(names), marks, caption))
    tables += _fold_sizes(folds, tests)
    parts += [pair(*tables)] if tables else []
    parts += _left_out(sources, runs)
    return Section("Data", tuple(parts))


def _fold_sizes(folds: Mapping[str, Run], tests: Mapping[str, Record]) -> list[Html]:
    """Return how many clips each of the winner's folds trained, validated and tested on."""
    rows = []
    for name, run in folds.items():
        scores = run.scores or {}
        sizes = (scores.get("num_train_clips"), scores.get("num_clips"), tests.get(name, {}).get("num_clips"))
        rows.append([f"Fold {name}", *(None if size is None else f"{size:,}" for size in sizes)])
    if not any(row[2] for row in rows):
        return []
    caption = "Clips of the winner's folds: learned from, and scored."
    return [table(["", "train", "validation", "test"], rows, "lnnn", caption=caption)]


def _left_out(sources: Sequence[Clips], runs: Mapping[str, Run]) -> list[Html]:
    """Return the files that the readers rejected and the clips that could not be read, counted by reason."""
    rejected = [(source.name, path, reason) for source in sources for path, reason in source.rejected]
    dropped = [
        (name, str(one.get("video") or one.get("path") or one.get("row")), str(one.get("reason", "no reason recorded")))
        for name, run in runs.items()
        for one in run.dropped
    ]
    parts = [paragraph(f"Said by the reader of {s.name}: ", "; ".join(s.notes), ".") for s in sources if s.notes]
    if not rejected and not dropped:
        return [*parts, paragraph("No clip was dropped in any run that this report has seen.")]
    both = [*rejected, *dropped]
    counts = Counter(where for where, _, _ in both)
    words = ", ".join(f"{number:,} in {where}" for where, number in counts.items())
    caption = f"The first {SHOWN_DROPPED} of {len(both):,}." if len(both) > SHOWN_DROPPED else ""
    grid = table(["where", "clip or file", "reason"], both[:SHOWN_DROPPED], "lww", caption=caption)
    return [*parts, paragraph(f"Left out: {len(both):,} ({words}). None was replaced by another clip."), grid]
