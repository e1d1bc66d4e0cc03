"""The sections of a report that show what was found: the test with its intervals, folds, confusions, mistakes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mien.platform.charts import Interval, bars, confusion, intervals
from mien.platform.pages import Html, Section, figure, image, join, missing, pair, paragraph, strong, table
from mien.platform.pictures import shrink
from mien.platform.records import Record, Run, spread
from mien.platform.report_verdict import Outcome

SCORES = (("uar", "UAR"), ("war", "WAR"), ("f1_weighted", "F1 weighted"), ("f1_macro", "F1 macro"))
MOTION = {
    "none": "as they are",
    "shuffled": "in any order",
    "reversed": "backwards",
    "still": "the middle one, again and again",
}
MOST_MISTAKES = 12
PICTURE_BYTES = 120_000


def result(found: Outcome | None, title: str, absent: str) -> Section:
    """Return the section of scores with their intervals, against chance and against a constant gaze."""
    if found is None:
        return Section(title, (missing(absent),))
    parts = []
    if found.scores.get("uar") is not None:
        rows = []
        for name, words in SCORES:
            low, high = found.interval(name) or (None, None)
            rows.append(Interval(words, found.scores.get(name), low, high, strong=name == "uar"))
        whom = "subjects" if found.scores.get("num_subjects") else "clips"
        caption = (
            f"Each dot is a score over all {found.split} clips, each band its 95 % bootstrap interval over {whom}. "
        )
        caption += "UAR is the mean of the classes' recalls, WAR the share of clips that are right. "
        matrix = np.asarray(found.scores.get("confusion") or [[0]], dtype=float)
        if matrix.sum():
            caption += (
                f"Always naming the most common class would give a WAR of {matrix.sum(1).max() / matrix.sum():.3f}."
            )
        if len(found.folds) > 1 and "uar" in found.mean and "war" in found.mean:
            caption += f" The mean over folds, as published totals are made: UAR {found.mean['uar']:.3f}, "
            caption += f"WAR {found.mean['war']:.3f}."
        chance = (found.chance, "chance UAR") if found.chance else None
        parts.append(figure(intervals(rows, "scores with intervals", reference=chance), caption, "Classes"))
    else:
        parts.append(missing("No class labels were scored."))
    error, constant = found.scores.get("angular_error_deg"), found.scores.get("constant_error_deg")
    if error is not None:
        low, high = found.interval("angular_error_deg") or (None, None)
        rows = [Interval("angle off", error, low, high, strong=True)]
        parts_of = list((found.scores.get("subsets") or {}).items())[1:]
        rows += [Interval(name, part.get("angular_error_deg"), None, None) for name, part in parts_of]
        reference = (constant, "constant") if constant else None
        drawing = intervals(rows, "angular error in degrees", None, reference, "warm", 1)
        caption = "Mean angle between the true and the predicted direction, in degrees; low is good. "
        caption += f"The dashed line is the error of always answering {found.constant}." if constant else ""
        if parts_of:
            caption += " front180: clips that look at most 90° to a side; front_facing: at most 20°. There, always the "
            caption += "same answer would be off by "
            caption += " and ".join(f"{part['constant_error_deg']:.1f}° ({name})" for name, part in parts_of) + "."
        parts.append(figure(drawing, caption, "Gaze"))
    else:
        parts.append(missing("No gaze labels in this study."))
    absent_classes = [name for name, value in (found.scores.get("per_class") or {}).items() if value is None]
    note = (
        [paragraph("Absent from the truth, so not counted: ", ", ".join(absent_classes), ".")] if absent_classes else []
    )
    return Section(title, (pair(*parts), *note))


def motion(test: Run | None) -> list[Section]:
    """Return the section on what spoilt motion costs, where that was tried."""
    rows: list[list[object]] = []
    for kind, datasets in (test.motion if test else {}).items():
        for name, found in datasets.items():
            values = [found.get(score) for score in ("uar", "war", "angular_error_deg")]
            figures = [None if v is None else f"{v:.{digits}f}" for v, digits in zip(values, (3, 3, 1), strict=True)]
            low, high = (found.get("intervals") or {}).get("uar") or (None, None)
            between = None if low is None else f"{low:.3f} – {high:.3f}"
            rows.append([MOTION.get(kind, kind), name or None, *figures, between])
    if not rows:
        return []
    caption = "Test clips as they are, and with their motion spoilt: what is lost is what the model takes from motion."
    header = ["frames", "of", "UAR", "WAR", "°", "95 % of UAR"]
    return [Section("Motion", (table(header, rows, "llnnnn", caption=caption),))]


def _row(name: str, validation: Record, test: Record, gaze: bool) -> list[object]:
    """Return a fold's line of figures."""
    both = [validation.get("uar"), validation.get("war"), test.get("uar"), test.get("war")]
    both += [validation.get("angular_error_deg"), test.get("angular_error_deg"), test.get("constant_error_deg")] * gaze
    figures = [None if value is None else f"{value:.{3 if i < 4 else 1}f}" for i, value in enumerate(both)]
    counts = [None if value is None else f"{value:,}" for value in (test.get("num_clips"), test.get("num_subjects"))]
    return [name, *figures, *counts]


def folds(found: Outcome | None, runs: Mapping[str, Run], title: str = "Folds") -> Section:
    """Return the fold table with means, deviations and intervals, and its picture."""
    tests = found.folds if found else {}
    names = sorted({*tests, *runs}, key=lambda name: (len(name), name))
    if not names:
        return Section(title, (missing("No fold of a winner has been recorded."),))
    validation = {name: (runs[name].scores or {}) if name in runs else {} for name in names}
    every = [*validation.values(), *tests.values()]
    gaze = any(scores.get("angular_error_deg") is not None for scores in every)
    rows = [_row(f"Fold {name}", validation[name], tests.get(name, {}), gaze) for name in names]
    keys = ["uar", "war"] * 2 + ["angular_error_deg", "angular_error_deg", "constant_error_deg"] * gaze
    sources = [validation, validation, tests, tests] + [validation, tests, tests] * gaze
    summary: dict[str, list[object]] = {"Mean": [], "SD": [], "95 % ±": []}
    for key, source in zip(keys, sources, strict=True):
        values = [float(scores[key]) for scores in source.values() if scores.get(key) is not None]
        digits = 3 if key in ("uar", "war") else 1
        for name, value in zip(summary, spread(values) if values else (None,) * 3, strict=True):
            summary[name].append(None if value is None or value != value else f"{value:.{digits}f}")
    rows += [[name, *values, None, None] for name, values in summary.items()] if len(names) > 1 else []
    header = [
        "",
        "val UAR",
        "val WAR",
        "test UAR",
        "test WAR",
        *["val °", "test °", "constant °"] * gaze,
        "clips",
        "subjects",
    ]
    caption = (
        "The winner's folds: trained, chosen and tested separately. SD and the t-interval of the mean are over folds; "
    )
    caption += (
        "folds share most of their training clips, so this interval is rather narrow. Degrees are the gaze error."
    )
    grid = table(header, rows, "l" + "n" * (len(header) - 1), [""] * len(names) + ["total"], caption)
    dots = []
    for name in names:
        test, second = tests.get(name, {}), validation[name].get("uar")
        low, high = (test.get("intervals") or {}).get("uar") or (None, None)
        dots.append(Interval(f"Fold {name}", test.get("uar", second), low, high, second if "uar" in test else None))
    if not any(row.value is not None for row in dots):
        return Section(title, (grid,))
    reference = (found.chance, "chance") if found and found.chance else None
    words = (
        "UAR of each fold on test (filled, with its interval) and on validation (hollow). "
        if tests
        else ("UAR of each fold on validation; the test has not been opened. ")
    )
    picture = figure(
        intervals(dots, "UAR by fold", reference=reference),
        words + "A hollow dot far right of its filled one "
        "is a fold whose settings suit its validation clips too well." * bool(tests),
    )
    return Section(title, (grid, picture))


def confusions(found: Outcome | None, title: str = "Confusions") -> Section:
    """Return the confusion matrix and the recall of each class."""
    matrix = found.scores.get("confusion") if found else None
    if not found or not matrix or len(matrix) != len(found.classes):
        return Section(title, (missing("No confusion matrix was recorded."),))
    counts = np.asarray(matrix, dtype=float)
    left = figure(
        confusion(matrix, found.classes),
        "Rows are the truth, columns the answer. Numbers are clips, shades the share of the row: a strong diagonal is "
        "good whatever the sizes of the classes.",
        f"All {found.split} clips",
    )
    rows: list[tuple[str, float | None, str]] = []
    for name, row, right in zip(found.classes, counts, np.diag(counts), strict=True):
        recall = right / row.sum() if row.sum() else None
        rows.append((name, recall, "absent" if recall is None else f"{recall:.2f} of {row.sum():.0f}"))
    references = [(found.chance, "chance")] if found.chance else []
    right_figure = figure(
        bars(rows, "recall of each class", references=references),
        "Share of each class's clips that are named rightly; the mean of these bars is the UAR of all clips together.",
        "Recall",
    )
    return Section(title, (pair(left, right_figure),))


def mistakes(test: Run | None, problems: list[str]) -> Section:
    """Return the most confident mistakes as strips of frames; a picture that is missing is noted in `problems`."""
    if test is None or not test.mistakes:
        return Section(
            "Mistakes", (missing("No mistakes were kept: evaluate.py leaves them beside the test's scores."),)
        )
    shots = []
    for one in sorted(test.mistakes, key=lambda record: -(record.get("confidence") or 0))[:MOST_MISTAKES]:
        path = test.folder / "mistakes" / Path(str(one.get("file", ""))).name
        words = join(
            strong(one.get("predicted")),
            f" with {100 * (one.get('confidence') or 0):.1f} % confidence; truth: ",
            strong(one.get("truth")),
            Html("<br>"),
            Html("<code>"),
            one.get("video"),
            Html("</code>"),
        )
        try:
            strip = image(shrink(path.read_bytes(), PICTURE_BYTES, 1200), f"frames of {one.get('video')}")
        except (OSError, ValueError) as error:
            problems.append(f"the picture of mistake {one.get('video')} cannot be shown ({error})")
            strip = missing("its picture cannot be read")
        shots.append(figure(strip, words))
    lead = f"The {len(shots)} test clips on which the model was surest and wrong, first to last frame. "
    lead += "Look for wrong labels, for faces that are cut or turned, and for classes that share frames."
    return Section("Mistakes", (paragraph(lead), Html(f'<div class="shots">{"".join(shots)}</div>')))
