"""Charts of a search as inline SVG: every trial's settings side by side, and the front of two objectives.

They are drawn with the parts of `charts.py`, and like those they need no script and are coloured by the page.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mien.platform.charts import LETTER, dot, drawing, named, rule, scale, ticks, tidy, write

FEW = 8  # distinct values up to which an axis shows each of them at an even step
DECADES = 8.0  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Line:
    """One trial across its settings: the objective it reached, None where it reached none, and how it ended."""

    name: str
    settings: Mapping[str, Any]
    value: float | None
    state: str = "complete"
    winner: bool = False


@dataclass(frozen=True)
class Trade:
    """One trial between two objectives: an error (low is good) and a score (high is good), each with its spread."""

    name: str
    error: float
    score: float
    error_spread: float = 0.0
    score_spread: float = 0.0
    state: str = "complete"
    winner: bool = False


def is_number(value: object) -> bool:
    """Say whether a setting is a number to be placed on an axis; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def axis(values: Sequence[Any], bottom: float, top: float) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Place one setting's values between bottom and top: evenly if few or not numbers, by logarithm if far apart.

    Returns the place of any of the values, and the labelled places. On a logarithmic axis zero stands apart below.
    """
    numeric = all(is_number(value) for value in values)
    distinct = sorted(set(values)) if numeric else sorted(set(values), key=str)
    if not numeric or len(distinct) <= FEW:
        place = scale(0, len(distinct) - 1, bottom, top)
        marks = [(place(i), tidy(value) if is_number(value) else str(value)) for i, value in enumerate(distinct)]
        return lambda value: place(distinct.index(value)), marks
    low, high = float(distinct[0]), float(distinct[-1])
    smallest = float(next((value for value in distinct if value > 0), 0))
    if low < 0 or high / smallest < (DECADES if low > 0 else 8 * DECADES):
        place = scale(low, high, bottom, top)
        return lambda value: place(value), [(place(tick), name) for tick, name in named(ticks(low, high, 5))]
    floor = bottom - 24 if low == 0 else bottom
    log = scale(math.log10(smallest), math.log10(high), floor, top)
    decades = range(math.floor(math.log10(smallest)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) < 4 else (1,)
    rounds = [step * 10.0**decade for decade in decades for step in steps]
    marks = [(log(math.log10(mark)), tidy(mark)) for mark in rounds if smallest <= mark <= high]
    return lambda value: log(math.log10(value)) if value > 0 else bottom, marks + [(bottom, "0")] * (low == 0)


def parallel(
    trials: Sequence[Line], axes: Sequence[tuple[str, str]], objective: str, lower_is_better: bool = False
) -> str:
    """Draw each trial as a line over its settings to its objective, stronger the better; the winner is thick.

    Args:
        trials: pruned ones are dashed; those without an objective are dotted and end at the last setting.
        axes: (key in `settings`, words above the axis), left to right.
        objective: words above the last axis.
        lower_is_better: turns the colours and the last axis over.
    """
    width, top, bottom, height, left = 900, 44, 290, 312, 60
    step = (width - left - 60) / max(len(axes), 1)
    crowded = any(LETTER * len(name) > step - 8 for _, name in axes)  # then names stand at two heights in turn
    values = [trial.value for trial in trials if trial.value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    parts, columns, names = [], [], []
    for index, (key, name) in enumerate(axes):
        x = left + step * index
        place, marks = axis([trial.settings.get(key) for trial in trials], bottom, top)
        columns.append((x, key, place))
        parts += [
            rule(x, top - 8, x, bottom + 8, "axis"),
            write(x, top - 22 - 13 * (crowded and index % 2), name, "name", "middle"),
        ]
        names += [write(x - 9, y + 4, words, "tick halo", "end") for y, words in marks]
    last = left + step * len(axes)
    judge = scale(low, high, *((top, bottom) if lower_is_better else (bottom, top)))
    good = scale(low, high, *((100, 0) if lower_is_better else (0, 100)))
    parts += [rule(last, top - 8, last, bottom + 8, "axis"), write(last, top - 22, objective, "name strong", "middle")]
    parts += [
        write(last + 11, judge(t) + 4, name, "tick") for t, name in (named(ticks(low, high, 5)) if values else [])
    ]
    ordered = sorted(trials, key=lambda t: (t.winner, t.value is not None, good(t.value) if t.value is not None else 0))
    for rank, trial in enumerate(ordered):
        nudge = (rank / max(len(ordered) - 1, 1) - 0.5) * 10  # lines through one value lie side by side
        places = [(x, place(trial.settings.get(key)) - nudge) for x, key, place in columns]
        shade, css, tip = "--p:0%", "trial failed", f"{trial.name}, {trial.state}: no objective"
        if trial.value is not None:
            places.append((last, judge(trial.value)))
            shade, css = f"--p:{good(trial.value):.0f}%", f"trial {'winner' if trial.winner else trial.state}"
            tip = f"{trial.name}, {trial.state}: {tidy(trial.value)}"
            parts.append(dot(last, judge(trial.value), 5 if trial.winner else 3, "shade", tip, shade))
        data = "".join(
            f"C{(x1 + x2) / 2:.1f} {y1:.1f} {(x1 + x2) / 2:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
            for (x1, y1), (x2, y2) in itertools.pairwise(places)
        )
        if data:
            start = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
            title = f"<title>{escape(tip)}</title>"
            parts.append(f'<path d="{start}{data}" class="{escape(css)}" style="{shade}">{title}</path>')
    return drawing(width, height, f"every trial's settings and its {objective}", parts + names)


def pareto(trials: Sequence[Trade]) -> list[Trade]:
    """Return the complete trials that no other complete one beats in error or score without losing in the other."""
    rivals = [trial for trial in trials if trial.state == "complete"]
    best = [
        one
        for one in rivals
        if not any(
            other.error <= one.error
            and other.score >= one.score
            and (other.error < one.error or other.score > one.score)
            for other in rivals
        )
    ]
    return sorted(best, key=lambda trial: (trial.error, trial.score))


def _labels(
    trials: Sequence[Trade], best: Sequence[Trade], places: Sequence[tuple[float, float]], span: tuple[float, float]
) -> list[str]:
    """Name points where the name hits no point and no other name; one that finds no room is left to its tool tip."""
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    parts = []
    for trial, (x, y) in zip(trials, places, strict=True):
        long = LETTER * len(trial.name)
        for dx, dy, anchor in ((10, -7, "start"), (10, 15, "start"), (-10, -7, "end"), (-10, 15, "end")):
            start = x + dx - (long if anchor == "end" else 0)
            box = (start, y + dy - 10, start + long, y + dy + 3)
            hit = any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)
            if not hit and span[0] <= box[0] and box[2] <= span[1]:
                taken.append(box)
                css = "name strong halo" if trial.winner else "name halo" if trial in best else "note halo"
                parts.append(write(x + dx, y + dy, trial.name, css, anchor))
                break
    return parts


def front(trials: Sequence[Trade], label: str, error_name: str, score_name: str) -> str:
    """Draw trials by error and score, each with its name, and the Pareto front of the complete ones as a stair.

    Spreads are drawn for points on the front; the winner is ringed, trials off the front are hollow.
    """
    if not trials:
        raise ValueError("a front needs at least one trial with both objectives, got none")
    width, left, right, top, bottom, height = 640, 48, 626, 34, 330, 372
    best = pareto(trials)
    errors = [
        e for t in trials for e in (t.error, *((t.error - t.error_spread, t.error + t.error_spread) * (t in best)))
    ]
    scores = [
        s for t in trials for s in (t.score, *((t.score - t.score_spread, t.score + t.score_spread) * (t in best)))
    ]
    pads = [(max(v) - min(v)) * 0.08 or 0.05 * abs(v[0]) or 1.0 for v in (errors, scores)]
    x_low, x_high, y_low, y_high = (
        min(errors) - pads[0],
        max(errors) + pads[0],
        min(scores) - pads[1],
        max(scores) + pads[1],
    )
    to_x, to_y = scale(x_low, x_high, left, right), scale(y_low, y_high, bottom, top)
    parts = []
    for tick, name in named(ticks(y_low, y_high)):
        parts += [
            rule(left, to_y(tick), right, to_y(tick), "grid"),
            write(left - 7, to_y(tick) + 4, name, "tick", "end"),
        ]
    for tick, name in named(ticks(x_low, x_high, 6)):
        parts += [
            rule(to_x(tick), top, to_x(tick), bottom, "grid"),
            write(to_x(tick), bottom + 16, name, "tick", "middle"),
        ]
    parts += [write(right, height - 6, f"{error_name}, low is good", "note", "end")]
    parts += [write(0, 14, f"{score_name}, high is good", "note")]
    stairs = [(to_x(trial.error), to_y(trial.score)) for trial in best]
    if len(stairs) > 1:
        start = f"M{stairs[0][0]:.1f} {stairs[0][1]:.1f}"
        parts.append(f'<path d="{start}{"".join(f"H{x:.1f}V{y:.1f}" for x, y in stairs[1:])}" class="line stair"/>')
    for trial, (x, y) in zip(best, stairs, strict=True):
        reach = (to_x(trial.error - trial.error_spread), to_x(trial.error + trial.error_spread))
        parts.append(rule(reach[0], y, reach[1], y, "spread"))
        parts.append(
            rule(x, to_y(trial.score - trial.score_spread), x, to_y(trial.score + trial.score_spread), "spread")
        )
    ranked = sorted(trials, key=lambda t: (not t.winner, t not in best, -t.score))
    places = [(to_x(trial.error), to_y(trial.score)) for trial in ranked]
    for trial, (x, y) in reversed(list(zip(ranked, places, strict=True))):
        tip = f"{trial.name}, {trial.state}: {score_name} {tidy(trial.score)}, {error_name} {tidy(trial.error)}"
        parts.append(dot(x, y, 5, "accent" if trial in best else "hollow faint", tip))
        if trial.winner:
            parts.append(dot(x, y, 9, "ring", tip))
    parts += _labels(ranked, best, places, (left, right + 8))
    return drawing(width, height, label, parts)
