"""The sections of a report that show how a model came about: learning curves and reconstructions."""

import math
from collections.abc import Mapping

from mien.platform.curves import MAX_POINTS, Series, lines
from mien.platform.pages import Html, Section, figure, image, join, missing, pair
from mien.platform.pictures import shrink
from mien.platform.records import Run

TITLE = "Learning curves"
SHEET_BYTES = 700_000


def _curve(run: Run, name: str, words: str, what: str, colour: str = "s0") -> list[Html]:
    """Return one run's line of one name, or nothing if it has fewer than two points."""
    steps, values = run.values(name)
    if sum(math.isfinite(value) for value in values) < 2:
        return []
    thinned = " The line is the mean of neighbouring steps, the band spans lowest to highest."
    caption = what + thinned * (len(steps) > MAX_POINTS)
    return [figure(lines([Series(words, steps, values)], words, colours=[colour]), caption, words)]


def _fold_curves(folds: Mapping[str, Run], name: str, words: str, what: str) -> list[Html]:
    """Return a line a fold of one name, or nothing if no fold has two points."""
    series = [Series(f"fold {fold}", *run.values(name)) for fold, run in folds.items()]
    series = [one for one in series if sum(math.isfinite(value) for value in one.y) > 1]
    return [figure(lines(series, words), f"The winner, one line a fold. {what}", words)] if series else []


def _probe_curve(run: Run) -> list[Html]:
    """Return the lines of what classifiers on frozen features scored, or nothing if there was no probe."""
    series, last = [], []
    for words, name in (("linear", "probe/uar_linear"), ("neighbours", "probe/uar_knn")):
        (steps, values), (_, low), (_, high) = (run.values(f"{name}{end}") for end in ("", "_low", "_high"))
        band = (low, high) if len(low) == len(high) == len(steps) else None  # runs of earlier versions have none
        if len(steps) > 1:
            series.append(Series(words, steps, values, band))
            last += [f"{words} {values[-1]:.3f}" + (f" [{low[-1]:.3f}, {high[-1]:.3f}]" if band else "")]
    words = "Validation UAR of frozen features"
    caption = "Classifiers on labelled clips, from before the first step on; the encoder learns nothing from them. "
    caption += "Bands are 95 % bootstrap intervals over the people judged. At the end: " + ", ".join(last) + "."
    return [figure(lines(series, words), caption, words)] if series else []


def run_curves(run: Run, kind: str) -> list[Html]:
    """Return the curves of one run; `kind` tells them from those of another run."""
    drawn = _curve(run, "loss", f"{kind} loss".strip().capitalize(), "What was minimised, at each recorded step.")
    drawn += _curve(run, "lr", f"{kind} learning rate".strip().capitalize(), "The schedule as it was applied.", "s5")
    drawn += _curve(run, "class_loss", "Classification loss", "A part of the loss.", "s0")
    drawn += _curve(run, "gaze_loss", "Gaze loss", "A part of the loss.", "s1")
    drawn += _probe_curve(run)
    return drawn + _curve(run, "val/uar", "Validation UAR", "After each validation.")


def curves(pretraining: Run | None, folds: Mapping[str, Run], alone: Run | None = None) -> Section:
    """Return the learning curves of pretraining, of the winner's folds, or of one run alone."""
    if alone:
        drawn = run_curves(alone, "")
        return Section(TITLE, (pair(*drawn) if drawn else missing("Fewer than two steps with a loss were recorded."),))
    first = missing("No pretraining run: the study names none, or its folder is not there.")
    if pretraining:
        drawn = run_curves(pretraining, "Pretraining")
        first = pair(*drawn) if drawn else missing("The pretraining run has recorded no step.")
    drawn = _fold_curves(folds, "loss", "Fine-tuning loss", "Points are means of neighbouring steps.")
    drawn += _fold_curves(folds, "val/uar", "Validation UAR", "After each validation.")
    drawn += _fold_curves(folds, "val/angular_error_deg", "Validation gaze error in °", "Low is good.")
    return Section(TITLE, (first, pair(*drawn) if drawn else missing("The winner's folds have recorded no step.")))


def reconstructions(run: Run | None, problems: list[str]) -> Section:
    """Return the last sheet of reconstructions, and the first to compare it with."""
    title = "Reconstructions"
    if run is None or not run.pictures:
        reason = "No pretraining run was found" if run is None else "The pretraining run left no reconstructions"
        return Section(title, (missing(f"{reason}, so there is nothing to see here."),))
    chosen = [run.pictures[-1]] + ([run.pictures[0]] if len(run.pictures) > 1 else [])
    parts = []
    for path in chosen:
        digits = path.stem.removeprefix("step_")
        step = f"{int(digits):,}" if digits.isdigit() else digits
        try:
            sheet = image(shrink(path.read_bytes(), SHEET_BYTES, 1800), f"reconstructions after step {step}")
        except (OSError, ValueError) as error:
            problems.append(f"{path.name} cannot be shown ({error})")
            continue
        if path == chosen[0]:
            caption = (
                f"After step {step}. Clips that the model saw only in part: what went in, what was left of it, and "
            )
            caption += "what it made of the rest, as appearance and as motion between neighbouring frames."
            parts.append(figure(sheet, caption, least=680))
        else:
            fold = Html("<details><summary>the first sheet, to compare with</summary>")
            parts.append(join(fold, figure(sheet, f"After step {step}.", least=680), Html("</details>")))
    return Section(title, tuple(parts) or (missing("The sheets of reconstructions cannot be read."),))
