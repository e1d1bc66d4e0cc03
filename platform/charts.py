"""Charts as inline SVG: records go in, a string of markup comes out.

Nothing here needs a script, a font or a network. Every colour is a CSS class or variable that `pages.py` defines for
light and dark, so one drawing serves both and prints. Charts are drawn 440 units wide, half a page column: beside one
another on a desk, one below the other on a phone, with text that stays readable in both.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH = 440
LETTER = 6.2  # width of a letter at the charts' 12 px, for the room a label needs


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a value, the interval around it, and a second value drawn hollow."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    second: float | None = None
    strong: bool = False


def tidy(value: float | None, digits: int = 3) -> str:
    """Write a number as briefly as a reader needs it: 0.512, 12,000, 1e-5; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and abs(value) < 1e-2:
        mantissa, exponent = f"{value:.{max(digits - 1, 0)}e}".split("e")
        short = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{short}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that lie within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((1, 2, 2.5, 5, 10), key=lambda factor: abs(math.log(power * factor / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def named(marks: Sequence[float]) -> list[tuple[float, str]]:
    """Return tick marks with their labels, with as many digits as it takes to say where they stand."""
    gap = min((b - a for a, b in itertools.pairwise(marks)), default=math.inf)
    for digits in range(3, 9):
        names = [tidy(mark, digits) for mark in marks]
        if all(abs(float(name.replace(",", "")) - mark) < gap / 50 for name, mark in zip(names, marks, strict=True)):
            break
    return list(zip(marks, names, strict=True)) if len(marks) else []


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the straight map of [low, high] on [start, end]; everything lands in the middle if low equals high."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def write(x: float, y: float, words: object, css: str = "", anchor: str = "start", turn: float = 0) -> str:
    """Return a text element; `css` names classes, `turn` rotates it about its own anchor in degrees."""
    rotate = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}"{rotate}>{escape(str(words))}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """Return a straight line of the given class."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>'


def dot(x: float, y: float, radius: float, css: str, tip: str = "", style: str = "") -> str:
    """Return a circle with an optional tool tip."""
    look = f' style="{style}"' if style else ""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{css}"{look}>{title}</circle>'


def drawing(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    """Wrap parts in an svg element that scales with its column and is read aloud as `label`."""
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width * 1.15:.0f}px"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def intervals(
    rows: Sequence[Interval],
    label: str,
    domain: tuple[float, float] | None = (0.0, 1.0),
    reference: tuple[float, str] | None = None,
    css: str = "accent",
    digits: int = 3,
) -> str:
    """Draw one row a value: a dot on its interval, its figures at the right, a dashed reference through all rows.

    Args:
        rows: values top to bottom; one without a value keeps its row and says so.
        label: what the chart shows, for those who cannot see it.
        domain: ends of the axis, or None to start at zero and end above everything shown.
        reference: a value that all rows are to be judged against, and its name.
        css: colour class of dots and intervals.
        digits: decimals of the figures.
    """
    shown = [v for row in rows for v in (row.value, row.low, row.high, row.second) if v is not None]
    low, high = domain or (0.0, max([*shown, reference[0] if reference else 0.0, 1e-9]) * 1.08)
    left = 14 + LETTER * max(len(row.label) for row in rows)
    long = LETTER * max(len(f"{v:.{digits}f}") for v in [*shown, 0.0])  # of one figure
    right = WIDTH - (38 + 3.2 * long if any(row.low is not None for row in rows) else 24 + long)
    pitch, top = 30, 8
    bottom = top + pitch * len(rows)
    place = scale(low, high, left, right)
    parts = [rule(place(tick), top, place(tick), bottom, "grid") for tick in ticks(low, high)]
    parts += [write(place(tick), bottom + 16, tidy(tick), "tick", "middle") for tick in ticks(low, high)]
    height = bottom + 24
    if reference:
        parts.append(rule(place(reference[0]), top, place(reference[0]), bottom, "reference"))
        parts.append(
            write(place(reference[0]), bottom + 32, f"{reference[1]} {reference[0]:.{digits}f}", "note", "middle")
        )
        height += 16
    for index, row in enumerate(rows):
        y = top + pitch * (index + 0.5)
        parts.append(write(left - 14, y + 4, row.label, "name strong" if row.strong else "name", "end"))
        if row.value is None:
            parts.append(write(left, y + 4, "not measured", "note"))
            continue
        figures = f"{row.value:.{digits}f}"
        if row.low is not None and row.high is not None:
            parts.append(rule(place(row.low), y, place(row.high), y, f"whisker {css}"))
            parts.append(write(WIDTH, y + 4, f"{row.low:.{digits}f} – {row.high:.{digits}f}", "note", "end"))
        if row.second is not None:
            parts.append(dot(place(row.second), y, 4, f"hollow {css}", f"{row.second:.{digits}f}"))
        parts.append(dot(place(row.value), y, 5, css, f"{row.label}: {figures}"))
        parts.append(write(right + 14, y + 4, figures, "figure strong" if row.strong else "figure"))
    return drawing(WIDTH, height, label, parts)


def bars(
    rows: Sequence[tuple[str, float | None, str]],
    label: str,
    domain: tuple[float, float] | None = (0.0, 1.0),
    references: Sequence[tuple[float, str]] = (),
    css: str = "accent",
) -> str:
    """Draw horizontal bars of (name, value, words at the right), with dashed references; None is said, not drawn."""
    low, high = domain or (0.0, max([value for _, value, _ in rows if value is not None] + [1e-9]))
    left = 14 + LETTER * max(len(name) for name, _, _ in rows)
    right = WIDTH - 12 - LETTER * max(len(words) for _, _, words in rows)
    place = scale(low, high, left, right)
    pitch, top = 28, 6 + 15 * len(references)
    bottom = top + pitch * len(rows)
    parts = []
    for index, (name, value, words) in enumerate(rows):
        y = top + pitch * index
        parts.append(write(left - 10, y + 18, name, "name", "end"))
        if value is None:
            parts.append(write(left + 4, y + 18, words or "none", "note"))
            continue
        parts.append(f'<rect x="{left:.1f}" y="{y + 6}" width="{right - left:.1f}" height="16" class="track"/>')
        width = max(place(value) - left, 1)
        parts.append(f'<rect x="{left:.1f}" y="{y + 6}" width="{width:.1f}" height="16" class="{css}"/>')
        parts.append(write(WIDTH, y + 18, words, "figure", "end"))
    for index, (value, name) in enumerate(references):
        parts.append(rule(place(value), 15 * index + 14, place(value), bottom, "reference"))
        beyond = place(value) + LETTER * (len(name) + 2) > WIDTH
        parts.append(
            write(place(value) + (-5 if beyond else 5), 15 * index + 12, name, "note", "end" if beyond else "start")
        )
    return drawing(WIDTH, bottom + 6, label, parts)


def confusion(matrix: Sequence[Sequence[float]], classes: Sequence[str]) -> str:
    """Draw a confusion matrix (rows are the truth): counts in cells, shaded by their share of the row.

    Raises:
        ValueError: the matrix is not square over the classes.
    """
    counts = np.asarray(matrix, dtype=float)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"a confusion matrix over {len(classes)} classes must be square, got shape {counts.shape}")
    longest = LETTER * max(len(name) for name in classes)
    left, side = longest + 12, max((WIDTH - longest - 48) / len(classes), 26)
    slanted = longest > side - 4
    top = longest * 0.68 + 22 if slanted else 24
    totals = left + side * len(classes) + 36
    reach = (
        left + side * (len(classes) - 0.5) + 0.75 * LETTER * len(classes[-1]) + 8
    )  # where the last slanted name ends
    width = max(totals, reach) if slanted else totals
    parts = [write(totals, top - 8, "clips", "note", "end")]
    for row, name in enumerate(classes):
        total, y = counts[row].sum(), top + side * row
        centre = left + side * (row + 0.5)
        turned = write(centre - 2, top - 8, name, "name", "start", -42) if slanted else ""
        parts.append(turned or write(centre, top - 8, name, "name", "middle"))
        parts.append(write(left - 8, y + side / 2 + 4, name, "name", "end"))
        parts.append(write(totals, y + side / 2 + 4, f"{total:,.0f}", "note", "end"))
        for column, other in enumerate(classes):
            share = counts[row, column] / total if total else 0.0
            x = left + side * column
            box = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{side - 2:.1f}" height="{side - 2:.1f}" rx="2"'
            tip = f"<title>{escape(name)} taken for {escape(other)}: {counts[row, column]:,.0f} ({share:.0%})</title>"
            parts.append(
                f'<g><rect {box} class="track"/><rect {box} class="heat" fill-opacity="{share:.3f}"/>{tip}</g>'
            )
            css = "on" if share > 0.55 else "cell" if counts[row, column] else "cell nought"
            parts.append(write(x + side / 2, y + side / 2 + 4, f"{counts[row, column]:.0f}", css, "middle"))
    return drawing(width, top + side * len(classes) + 4, "confusion matrix, rows are the truth", parts)
