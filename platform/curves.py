"""Learning curves as inline SVG, drawn with the parts of `charts.py`."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mien.platform.charts import LETTER, WIDTH, dot, drawing, named, rule, scale, ticks, tidy, write

COLOURS = ("s0", "s1", "s2", "s3", "s4", "s5")
MAX_POINTS = 220  # more than this in a chart and neighbours are averaged
LEAST_POINTS = 70  # to which a line is thinned where it shares the chart
LETTERING = 13  # least distance of two names below one another


@dataclass(frozen=True)
class Series:
    """One line of a line chart; points whose y is not finite leave a gap. `band` is the low and the high of each."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


def _thin(series: Series, most: int) -> np.ndarray:
    """Average neighbours until at most `most` points are left: rows of x, mean, lowest and highest y of each bin."""
    x, y = np.asarray(series.x, dtype=float), np.asarray(series.y, dtype=float)
    finite = np.isfinite(y) & np.isfinite(x)
    size = max(1, math.ceil(len(x) / most))
    bins = [slice(start, start + size) for start in range(0, len(x), size)]
    kept = [(x[b], y[b][finite[b]]) for b in bins]
    full = np.array([(xs.mean(), *((ys.mean(), ys.min(), ys.max()) if len(ys) else (np.nan,) * 3)) for xs, ys in kept])
    return full.reshape(-1, 4).T


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return SVG path data through the points, lifted over those that are not finite."""
    data, lifted = [], True
    for x, y in points:
        if math.isfinite(y):
            data.append(f"{'M' if lifted else 'L'}{x:.1f} {y:.1f}")
        lifted = not math.isfinite(y)
    return "".join(data)


def lines(
    series: Sequence[Series],
    label: str,
    x_label: str = "step",
    height: int = 210,
    reference: tuple[float, str] | None = None,
    colours: Sequence[str] = COLOURS,
) -> str:
    """Draw one line a series, named at its end; long ones as means of neighbours, a single one on its min-max band."""
    most = max(MAX_POINTS // len(series), LEAST_POINTS)
    thin = [_thin(one, most) for one in series]
    bands = [[_thin(Series("", one.x, edge), most)[:2] for edge in one.band or ()] for one in series]
    every = np.concatenate([part[1] for part in thin] + [edge[1] for band in bands for edge in band])
    every = every[np.isfinite(every)]
    if not len(every):
        return drawing(WIDTH, 40, label, [write(0, 24, "no finite value was recorded", "note")])
    x_all = np.concatenate([part[0] for part in thin])
    bounds = [float(every.min()), float(every.max()), *([reference[0]] if reference else [])]
    low, high = min(bounds), max(bounds)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = (max(low - pad, 0.0) if low >= 0 else low - pad), high + pad
    several = len(series) > 1
    y_ticks = named(ticks(low, high))
    left = 10 + LETTER * max(len(words) for _, words in y_ticks)
    right = WIDTH - (12 + LETTER * max(len(one.name) for one in series) if several else 8)
    top, bottom = 8, height - (36 if x_label else 22)
    to_x, to_y = scale(float(x_all.min()), float(x_all.max()), left, right), scale(low, high, bottom, top)
    parts = []
    for tick, words in y_ticks:
        parts += [
            rule(left, to_y(tick), right, to_y(tick), "grid"),
            write(left - 6, to_y(tick) + 4, words, "tick", "end"),
        ]
    for tick in ticks(float(x_all.min()), float(x_all.max())):
        parts.append(
            write(to_x(tick), bottom + 16, tidy(tick, 4), "tick", "end" if to_x(tick) > right - 12 else "middle")
        )
    if x_label:
        parts.append(write(right, height - 4, x_label, "note", "end"))
    if reference:
        parts.append(rule(left, to_y(reference[0]), right, to_y(reference[0]), "reference"))
        parts.append(write(left + 4, to_y(reference[0]) - 4, reference[1], "note"))
    ends: list[tuple[float, str, str]] = []
    for one, (x, mean, lowest, highest), band, colour in zip(
        series, thin, bands, itertools.cycle(colours), strict=False
    ):
        if not several and len(one.x) > MAX_POINTS:
            there = np.isfinite(mean)
            over = [(to_x(a), min(max(to_y(b), top), bottom)) for a, b in zip(x[there], highest[there], strict=True)]
            under = [(to_x(a), min(max(to_y(b), top), bottom)) for a, b in zip(x[there], lowest[there], strict=True)]
            parts.append(f'<path d="{_path(over + under[::-1])}Z" class="band series {colour}"/>')
        edges = [[(to_x(a), to_y(b)) for a, b in zip(*edge, strict=True) if math.isfinite(b)] for edge in band]
        if edges and all(edges):
            parts.append(f'<path d="{_path(edges[1] + edges[0][::-1])}Z" class="band series {colour}"/>')
        points = [(to_x(a), to_y(b)) for a, b in zip(x, mean, strict=True)]
        parts.append(f'<path d="{_path(points)}" class="line series {colour}"/>')
        solid = [point for point in points if math.isfinite(point[1])]
        if len(solid) <= 12:
            parts += [dot(a, b, 2.5, f"series {colour}") for a, b in solid]
        ends += [(solid[-1][1], one.name, colour)] if several and solid else []
    heights: list[float] = []
    for y, _, _ in sorted(ends):
        heights.append(max(y, heights[-1] + LETTERING) if heights else y)
    for index in reversed(range(len(heights))):  # pushed down from above, then up from the bottom
        below = heights[index + 1] - LETTERING if index + 1 < len(heights) else bottom
        heights[index] = min(heights[index], below)
    for height_of, (_, name, colour) in zip(heights, sorted(ends), strict=True):
        parts.append(write(right + 6, height_of + 4, name, f"name series {colour}"))
    return drawing(WIDTH, height, label, parts)
