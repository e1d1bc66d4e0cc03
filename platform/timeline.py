"""A picture of what a model said of the faces of a video over time: probabilities stacked, pitch and yaw as lines.

One strip a face, those that are longest in view, each over the video's whole time. However long the video, a strip has
a few hundred columns, each the mean of the frames that it stands for.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from mien.platform.face_overlay import CLASS_COLOURS, FACE_COLOURS, Colour
from mien.platform.scores import angles, directions

COLUMNS = 800
MOST_FACES = 6
NOTE_LETTERS = 165  # that a line below the strips holds
PITCH, YAW = "#2a6fdb", "#d1495b"


class Course(NamedTuple):
    """One face's answers: `time` (n,) in seconds, probabilities (n, K) and gaze (n, 2) in radians, or None."""

    number: int
    time: np.ndarray
    probabilities: np.ndarray | None
    gaze: np.ndarray | None
    short: bool


def binned(course: Course, seconds: float, columns: int = COLUMNS) -> Course:
    """Return a course of one entry for each of `columns` parts of the video's time in which there are frames.

    Probabilities are averaged, gaze as directions. A course with fewer frames than columns comes back as it is.
    """
    if len(course.time) <= columns:
        return course
    parts = np.minimum((course.time / max(seconds, 1e-9) * columns).astype(int), columns - 1)
    _, starts, counts = np.unique(parts, return_index=True, return_counts=True)

    def means(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts) / counts.reshape(-1, *(1,) * (values.ndim - 1))

    probabilities = None if course.probabilities is None else means(course.probabilities)
    gaze = None if course.gaze is None else angles(np.add.reduceat(directions(course.gaze), starts))
    return course._replace(time=means(course.time), probabilities=probabilities, gaze=gaze)


def save(
    path: Path,
    courses: Sequence[Course],
    classes: Sequence[str],
    seconds: float,
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """Write the picture as PNG; `notes` are lines below it. Without a face it says so."""
    chosen = sorted(
        sorted(courses, key=lambda course: -len(course.time))[:MOST_FACES], key=lambda course: course.number
    )
    kinds = [
        (course, kind)
        for course in chosen
        for kind, values in (("classes", course.probabilities), ("gaze", course.gaze))
        if values is not None
    ]
    lines = [line for note in notes for line in textwrap.wrap(note, NOTE_LETTERS, subsequent_indent="    ")]
    below = 0.7 + 0.19 * len(lines)  # inches
    tall = 1.0 + (1.55 * len(kinds) or 1.5) + below
    figure = matplotlib.figure.Figure(figsize=(11, tall), dpi=110, facecolor="white")
    left_out = f", the {len(chosen)} longest of {len(courses)} faces" if len(chosen) < len(courses) else ""
    figure.suptitle(title + left_out, x=0.01, y=1 - 0.12 / tall, ha="left", va="top", fontsize=13, fontweight="bold")
    frame = {"left": 0.085, "right": 0.845, "top": 1 - 0.62 / tall, "bottom": below / tall, "hspace": 0.28}
    axes = np.ravel(figure.subplots(max(len(kinds), 1), 1, sharex=True, gridspec_kw=frame))
    for ax, (course, kind) in zip(axes, kinds, strict=False):
        _strip(ax, binned(course, seconds), kind, classes)
    if not kinds:
        axes[0].text(0.5, 0.5, "no face was found", ha="center", va="center", transform=axes[0].transAxes, fontsize=14)
        axes[0].set_yticks([])
    axes[-1].set_xlim(0, max(seconds, 1e-3))
    axes[-1].set_xlabel("seconds")
    for place, line in enumerate(lines):
        y = (below - 0.55 - 0.19 * place) / tall
        figure.text(0.01, y, line, ha="left", va="top", fontsize=8.5, color="#444")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    figure.savefig(draft, format="png")
    draft.replace(path)


def _strip(ax: Axes, course: Course, kind: str, classes: Sequence[str]) -> None:
    face = _shade(FACE_COLOURS[course.number % len(FACE_COLOURS)])
    name = f"#{course.number}" + " (short)" * course.short
    time, step = course.time, _step(course.time)
    edges = np.append(time, time[-1] + step)
    if kind == "classes":
        assert course.probabilities is not None
        values = np.vstack([course.probabilities, course.probabilities[-1:]])
        colours = [_shade(CLASS_COLOURS[k % len(CLASS_COLOURS)]) for k in range(len(classes))]
        ax.stackplot(edges, values.T, colors=colours, labels=classes, step="post", linewidth=0)
        ax.set_ylim(0, 1)
        ax.set_ylabel(f"{name}\nprobability", color=face)
        ax.legend(*(part[::-1] for part in ax.get_legend_handles_labels()), **LEGEND)
    else:
        assert course.gaze is not None
        degrees = np.degrees(np.vstack([course.gaze, course.gaze[-1:]]))
        # Where yaw goes over the back of the head, a line through the middle would tell of gazes that were not.
        degrees[1:][np.abs(np.diff(degrees[:, 1])) > 180] = np.nan
        ax.plot(edges, degrees[:, 1], color=YAW, label="yaw, + left", drawstyle="steps-post", linewidth=1.4)
        ax.plot(edges, degrees[:, 0], color=PITCH, label="pitch, + up", drawstyle="steps-post", linewidth=1.4)
        ax.axhline(0, color="#999", linewidth=0.7)
        most = max(30.0, 1.1 * float(np.nanmax(np.abs(degrees))))
        ax.set_ylim(-most, most)
        ax.set_ylabel(f"{name}\ngaze, degrees", color=face)
        ax.legend(**LEGEND)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


LEGEND = {
    "loc": "upper left", "bbox_to_anchor": (1.005, 1.05), "frameon": False, "fontsize": 8.5, "labelspacing": 0.25,
    "handlelength": 1.1,
}  # fmt: skip


def _step(time: np.ndarray) -> float:
    return float(np.median(np.diff(time))) if len(time) > 1 else 0.04


def _shade(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = (value / 255 for value in colour)
    return red, green, blue
