"""The sections of a report on what went in: how the judged clips differ from those learned from, and other clips."""

from collections.abc import Mapping, Sequence
from typing import Any

from mien.platform.pages import Html, Section, paragraph, table
from mien.platform.records import Record, Run

SCORES = (("uar", 3), ("war", 3), ("angular_error_deg", 1))


def inputs(test: Run | None) -> list[Section]:
    """Return the section on why scores may differ from others, where the test compared its clips."""
    parts: list[Html] = []
    for name, of in _datasets(test).items():
        if "why" in of:
            parts += _why(of, name)
    return [Section("Why your number may differ", tuple(parts))] if parts else []


def elsewhere(others: Sequence[Run]) -> list[Section]:
    """Return the section on scores of the same models on other manifests, where that was tried."""
    rows: list[list[object]] = []
    parts: list[Html] = []
    for other in others:
        for of in _datasets(other).values():
            pooled = of.get("pooled") or {}
            values = [(pooled.get(score), digits) for score, digits in SCORES]
            figures = [None if value is None else f"{value:.{digits}f}" for value, digits in values]
            low, high = (pooled.get("intervals") or {}).get("uar") or (None, None)
            between = None if low is None else f"{low:.3f} – {high:.3f}"
            first: Record = next(iter((of.get("inputs") or {}).values()), {})
            name = first.get("name") or other.folder.name
            rows.append([name, f"{pooled.get('num_clips', 0):,}", *figures, between])
            parts += _why(of, name)
    if not rows:
        return []
    caption = "The model on clips of manifests that it was not trained on; classes are matched by their names."
    grid = table(["manifest", "clips", "UAR", "WAR", "°", "95 % of UAR"], rows, "lnnnnn", caption=caption)
    return [Section("On other clips", (grid, *parts))]


def _datasets(test: Run | None) -> Mapping[str, Record]:
    """Return what a test found by dataset, under no name where there is one."""
    record: dict[str, Any] = (test.scores if test else None) or {}
    return record.get("datasets") or ({"": record} if record else {})


def _why(of: Record, name: str) -> list[Html]:
    """Return a table for each of what a model was trained and pretrained on, and what was left out."""
    parts = []
    for known, report in of.get("why", {}).items():
        title = f"{name}, against" if name else "Against"
        title += f" what the model was {known}"
        if not report["recorded"]:
            parts.append(paragraph(f"{title}: not recorded in the checkpoint, so the clips cannot be compared."))
            continue
        blank = f" Not compared, since not known of both: {', '.join(report['unknown'])}." if report["unknown"] else ""
        if not report["differences"]:
            parts.append(paragraph(f"{title}: nothing that is known to matter differs.{blank}"))
            continue
        rows = [[one["what"], one["there"], one["here"], one["effect"]] for one in report["differences"]]
        header = ["what differs", known, "here", "what is known of it"]
        parts.append(table(header, rows, "lwww", caption=f"{title}.{blank}"))
    return parts + [paragraph(f"{name}: " if name else "", note, ".") for note in of.get("notes", [])]
