"""The sections of a report that show a search: its trials as a table, their settings side by side, the alpha front."""

from collections.abc import Sequence
from typing import Any

from mien.platform.charts import tidy
from mien.platform.pages import Html, Section, figure, join, missing, paragraph, table
from mien.platform.records import Record, Study, find, spread
from mien.platform.search_charts import Line, Trade, front, is_number, parallel

LOWER_IS_BETTER = ("angular_error_deg", "loss")
WORDS = {"uar": "UAR", "war": "WAR", "angular_error_deg": "gaze error in °"}
SHOWN = 30  # rows of the trial table before the rest is folded away
MOST_AXES = 8


def words_of(metric: str) -> str:
    """Return a metric's name as a reader knows it."""
    return WORDS.get(metric, metric.replace("_", " "))


def short(keys: Sequence[str]) -> dict[str, str]:
    """Return each dotted key's last part, or the whole key where two would read alike."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def varied(trials: Sequence[Record]) -> list[str]:
    """Return the settings that differ between trials, alpha first."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.get("params") or {}))
    several = [key for key in keys if len({repr((trial.get("params") or {}).get(key)) for trial in trials}) > 1]
    return sorted(several or keys, key=lambda key: not key.endswith("alpha"))


def alpha_of(trial: Record) -> float | None:
    """Return the trial's weight of the classification loss, or None."""
    found = [value for key, value in (trial.get("params") or {}).items() if key.rsplit(".", 1)[-1].endswith("alpha")]
    return float(found[0]) if found and isinstance(found[0], int | float) else None


def folds_of(trial: Record, metric: str) -> list[float]:
    """Return a metric of the trial's finished folds."""
    return [float(fold[metric]) for fold in (trial.get("folds") or {}).values() if fold.get(metric) is not None]


def mean_of(trial: Record, metric: str) -> float | None:
    """Return the trial's mean of a metric over its finished folds, as recorded or else computed, or None."""
    recorded = (trial.get("mean") or {}).get(metric)
    values = folds_of(trial, metric)
    return float(recorded) if recorded is not None else sum(values) / len(values) if values else None


def ordered(study: Study, metric: str) -> list[Record]:
    """Return the trials, the winner first, then complete ones from good to bad, then pruned, running and failed."""
    ranks = {"complete": 0, "pruned": 1, "running": 2}
    sign = 1 if metric in LOWER_IS_BETTER else -1
    winner = study.winning_trial()

    def place(trial: Record) -> tuple[Any, ...]:
        value = mean_of(trial, metric)
        return trial is not winner, ranks.get(str(trial.get("state")), 3), value is None, sign * (value or 0)

    return sorted(study.trials, key=place)


def _with_interval(trial: Record, metric: str) -> str | None:
    """Write a trial's mean over folds with the half width of its interval, where three folds or more are done."""
    value, done = mean_of(trial, metric), folds_of(trial, metric)
    if value is None:
        return None
    digits = 1 if metric.endswith("deg") else 3
    half = spread(done)[2] if len(done) > 2 else float("nan")  # two folds give an interval wider than the scale
    return f"{value:.{digits}f}" + (f" ± {half:.{digits}f}" if half == half else "")


def _setting(value: object) -> str:
    """Write a setting briefly."""
    return tidy(value) if isinstance(value, float) else "–" if value is None else str(value)


def trials(study: Study) -> Section:
    """Return the table of all trials; the winner is marked, pruned, running and failed ones are there and say so."""
    if not study.trials:
        return Section("Trials", (missing("No trial has been recorded yet."),))
    objectives = study.objectives()
    metrics = [*objectives, *(name for name in WORDS if name not in objectives)]
    metrics = [name for name in metrics if any(mean_of(trial, name) is not None for trial in study.trials)]
    keys = varied(study.trials)
    names = short(keys)
    planned = find(study.config, "folds")
    number = len(planned) if isinstance(planned, list) else planned if isinstance(planned, int) else 0
    number = max([number, *(len(trial.get("folds") or {}) for trial in study.trials)])
    winner = study.winning_trial()
    rows, marks = [], []
    for trial in ordered(study, objectives[0]):
        params = trial.get("params") or {}
        state = "winner" if trial is winner else str(trial.get("state", "unknown"))
        seconds = trial.get("seconds")
        row = [trial.get("number", trial.get("id")), *(_with_interval(trial, name) for name in metrics)]
        row += [f"{len(trial.get('folds') or {})}/{number}", state, None if seconds is None else f"{seconds:,.0f}"]
        rows.append([*row, *(_setting(params.get(key)) for key in keys)])
        marks.append(state)
    header = ["#", *(words_of(name) for name in metrics), "folds", "state", "seconds", *(names[key] for key in keys)]
    numeric = [all(is_number((trial.get("params") or {}).get(key, 0)) for trial in study.trials) for key in keys]
    align = "n" * (len(metrics) + 2) + "ln" + "".join("n" if yes else "l" for yes in numeric)
    fixed = {key: value for key, value in (study.trials[0].get("params") or {}).items() if key not in keys}
    caption = "Means over the folds done, on validation, ± the half width of their 95 % t-interval. "
    caption += (
        "Pruned trials were stopped early because their first folds were poor, so their means are over fewer folds."
    )
    if fixed:
        caption += (
            " The same in all trials: " + ", ".join(f"{key} = {_setting(value)}" for key, value in fixed.items()) + "."
        )
    parts = [table(header, rows[:SHOWN], align, marks, caption)]
    if len(rows) > SHOWN:
        rest = table(header, rows[SHOWN:], align, marks[SHOWN:])
        summary = Html(f"<details><summary>the other {len(rows) - SHOWN} trials</summary>")
        parts.append(join(summary, rest, Html("</details>")))
    for trial in study.trials:
        error = str(trial.get("error") or "").strip()
        if error:
            words = f"Trial {trial.get('number', trial.get('id'))} failed: {error.splitlines()[-1][:300]}"
            parts.append(paragraph(words, css="alert"))
    return Section("Trials", tuple(parts))


def settings(study: Study) -> Section:
    """Return every trial's settings as a line to its objective."""
    title, metric = "Settings", study.objectives()[0]
    keys = varied(study.trials)[:MOST_AXES]
    judged = [trial for trial in study.trials if mean_of(trial, metric) is not None]
    if len(judged) < 2 or not keys:
        words = "Two trials with a result and settings that differ are needed to compare settings; there are fewer."
        return Section(title, (missing(words),))
    names = short(keys)
    winner = study.winning_trial()
    lines = [
        Line(
            f"trial {trial.get('number', trial.get('id'))}",
            trial.get("params") or {},
            mean_of(trial, metric),
            str(trial.get("state", "unknown")),
            trial is winner,
        )
        for trial in study.trials
        if trial.get("params")
    ]
    lower = metric in LOWER_IS_BETTER
    drawing = parallel(lines, [(key, names[key]) for key in keys], words_of(metric), lower)
    caption = f"One line a trial, from its settings to its validation {words_of(metric)} at the right; strong colours "
    caption += "are good" + ", the thick line won" * any(line.winner for line in lines)
    caption += ", dashed ones were pruned" * any(line.state == "pruned" for line in lines)
    caption += ", dotted ones have no result" * any(line.value is None for line in lines)
    caption += (
        ". Where a setting matters, strong lines meet at one height. Few values stand at even steps, wide ranges "
    )
    caption += "are logarithmic."
    return Section(title, (figure(drawing, caption, least=760),))


def alpha_front(study: Study) -> Section:
    """Return UAR against gaze error, one point a trial named by its alpha, with the Pareto front."""
    title = "Classes against gaze"
    both = [t for t in study.trials if None not in (mean_of(t, "uar"), mean_of(t, "angular_error_deg"))]
    if not both:
        return Section(
            title, (missing("No gaze labels in this study, so there is no trade between classes and gaze."),)
        )
    winner = study.winning_trial()
    points = []
    for trial in both:
        alpha = alpha_of(trial)
        halves = [
            spread(folds_of(trial, name))[2] if folds_of(trial, name) else 0.0 for name in ("angular_error_deg", "uar")
        ]
        error_half, uar_half = (half if half == half else 0.0 for half in halves)
        name = f"α {tidy(alpha)}" if alpha is not None else f"trial {trial.get('number')}"
        error, uar = mean_of(trial, "angular_error_deg"), mean_of(trial, "uar")
        assert error is not None and uar is not None
        points.append(Trade(name, error, uar, error_half, uar_half, str(trial.get("state")), trial is winner))
    drawing = front(points, "UAR against gaze error, by alpha", "gaze error in degrees", "UAR")
    caption = (
        "Validation means over folds; α weighs the classification loss against the gaze loss. Filled points and the "
    )
    caption += (
        "stair are the Pareto front of complete trials: nothing beats them in both. Crosses are 95 % t-intervals over "
    )
    caption += "folds, the ring is the winner."
    return Section(title, (figure(drawing, caption, least=600),))
