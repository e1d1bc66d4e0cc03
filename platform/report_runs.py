"""The sections of a report that show how a model came about: learning curves and reconstructions."""

import math
from collections.abc import Mapping

from mien.platform.curves import Series, lines
from mien.platform.pages import Html, Section, figure, image, join, missing, pair
from mien.platform.pictures import shrink
from mien.platform.records import Run

SHEET_BYTES = 700_000


def _curve(run: Run, name: str, words: str, caption: str, colour: str = "s0") -> list[Html]:
    """Return one run's line of one name, or nothing if it has none."""
    steps, values = run.values(name)
    if sum(math.isfinite(value) for value in values) < 2:
        return []
    return [figure(lines([Series(words, steps, values)], words, colours=[colour]), caption, words)]


def _fold_curves(folds: Mapping[str, Run], name: str, words: str, caption: str) -> list[Html]:
    """Return a line a fold of one name, or nothing if no fold has it."""
    series = [Series(f"fold {fold}", *run.values(name)) for fold, run in folds.items()]
    series = [one for one in series if sum(math.isfinite(value) for value in one.y) > 1]
    return [figure(lines(series, words), caption, words)] if series else []


def curves(pretraining: Run | None, folds: Mapping[str, Run], alone: Run | None = None) -> Section:
    """Return the learning curves of pretraining, of the winner's folds, or of one run alone."""
    parts: list[Html] = []
    title = "Learning curves"
    if alone:
        drawn = _curve(alone, "loss", "Training loss", "Mean of neighbouring steps; the band spans lowest to highest.")
        drawn += _curve(alone, "lr", "Learning rate", "The schedule as it was applied.", "s5")
        for name, words in (
            ("class_loss", "Classification loss"),
            ("gaze_loss", "Gaze loss"),
            ("val/uar", "Validation UAR"),
        ):
            drawn += _curve(
                alone, name, words, "A part of the training loss." if "loss" in name else "After each validation."
            )
        return Section(
            title,
            (pair(*drawn),) if drawn else (missing("Fewer than two steps with a finite loss have been recorded."),),
        )
    if pretraining:
        drawn = _curve(
            pretraining, "loss", "Pretraining loss", "Mean of neighbouring steps; the band spans lowest to highest."
        )
        drawn += _curve(pretraining, "lr", "Pretraining learning rate", "The schedule as it was applied.", "s5")
        parts.append(pair(*drawn) if drawn else missing("The pretraining run has recorded no step."))
    else:
        parts.append(missing("No pretraining run: the study names none, or its folder is not there."))
    drawn = _fold_curves(folds, "loss", "Fine-tuning loss", "The winner, one line a fold; means of neighbouring steps.")
    drawn += _fold_curves(folds, "val/uar", "Validation UAR", "The winner, one line a fold, at each validation.")
    drawn += _fold_curves(
        folds, "val/angular_error_deg", "Validation gaze error °", "The winner, one line a fold; low is good."
    )
    parts.append(pair(*drawn) if drawn else missing("The winner's folds have recorded no step."))
    return Section(title, tuple(parts))


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
