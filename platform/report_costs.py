"""The sections of a report that show what it took to get there: time by stage, environment, commands, settings."""

import json
from collections.abc import Mapping
from datetime import datetime

from mien.platform.charts import tidy
from mien.platform.pages import Html, Section, join, missing, paragraph, table
from mien.platform.records import Record, Run, Study, find, flat


def _instant(value: object) -> float | None:
    """Return a moment that is written as seconds or in ISO 8601 as seconds, or None."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def _duration(seconds: float | None) -> str | None:
    """Write seconds as a person would say them."""
    if seconds is None:
        return None
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _stage(
    name: str, seconds: float | None, environment: Mapping[str, object], speed: float | None, what: str
) -> list[object]:
    """Return a line of the cost table."""
    cpus = find(environment, "cpus")
    hours = seconds * cpus / 3600 if seconds is not None and isinstance(cpus, int | float) else None
    return [
        name,
        _duration(seconds),
        None if hours is None else tidy(hours, 2),
        None if speed is None else tidy(speed),
        what,
    ]


def cost(study: Study | None, alone: Run | None = None) -> Section:
    """Return what each stage took."""
    rows = []
    if alone:
        rows.append(_stage("this run", alone.seconds(), alone.environment, alone.clips_per_second(), _steps(alone)))
    if study and study.pretraining:
        run = study.pretraining
        rows.append(_stage("pretraining", run.seconds(), run.environment, run.clips_per_second(), _steps(run)))
    if study:
        trials = [trial for trial in study.trials if isinstance(trial.get("seconds"), int | float)]
        speeds = sorted(s for s in (run.clips_per_second() for run in study.folds.values()) if s is not None)
        starts = [s for s in (_instant(trial.get("started")) for trial in study.trials) if s is not None]
        ends = [s for s in (_instant(trial.get("ended")) for trial in study.trials) if s is not None]
        wall = max(ends) - min(starts) if starts and ends else None
        total = sum(trial["seconds"] for trial in trials) if trials else None
        what = (
            f"{len(study.trials)} trials, whose own times add up to {_duration(total)}"
            if total
            else f"{len(study.trials)} trials"
        )
        rows.append(
            _stage("search", wall or total, study.environment, speeds[len(speeds) // 2] if speeds else None, what)
        )
    if study and study.test:
        test = study.test
        seconds = find(test.scores, "seconds") or find(test.environment, "seconds")
        rows.append(_stage("test", seconds, test.environment or study.environment, None, "the winner, once"))
    rows = [row for row in rows if row[1] is not None or row[3] is not None]
    if not rows:
        return Section("Cost", (missing("No times were recorded."),))
    caption = (
        "Time is that of all steps, or from first to last trial. Core-hours are that time by all cores the program "
    )
    caption += (
        "was given, busy or not. Clips/s is the batch over the median step, waiting for data included; in a search, "
    )
    caption += "of the winner's folds."
    return Section("Cost", (table(["stage", "time", "core-hours", "clips/s", ""], rows, "lnnnl", caption=caption),))


def _steps(run: Run) -> str:
    """Say how many steps a run has taken."""
    steps = [line["step"] for line in run.metrics if isinstance(line.get("step"), int | float)]
    return f"{max(steps):,.0f} steps" if steps else "no step recorded"


def environment(records: Mapping[str, Record], configs: Mapping[str, Record]) -> Section:
    """Return versions, commit and devices of each program, the commands that made it all, and complete settings."""
    known = {name: record for name, record in records.items() if record}
    parts: list[Html] = []
    if known:
        columns = {
            name: {k: v for k, v in flat(record) if k not in ("command", "resumed")} for name, record in known.items()
        }
        keys = list(dict.fromkeys(key for column in columns.values() for key in column))
        shown = [[key, *(_plain(column.get(key)) for column in columns.values())] for key in keys]
        parts.append(table(["", *columns], shown, "l" + "w" * len(columns)))
        commands = {name: record["command"] for name, record in known.items() if record.get("command")}
        if commands:
            text = "\n".join(f"# {name}\n{command}" for name, command in commands.items())
            parts.append(join(Html("<h3>The commands that made it</h3><pre>"), text, Html("</pre>")))
        resumed = {name: len(record["resumed"]) for name, record in known.items() if record.get("resumed")}
        words = ", ".join(f"{name} {number} time(s)" for name, number in resumed.items())
        parts += [paragraph(f"Interrupted and resumed: {words}.")] if words else []
    else:
        parts.append(missing("No environment was recorded."))
    for name, config in configs.items():
        if config:
            text = "\n".join(f"{key}: {_plain(value)}" for key, value in flat(config))
            head = Html(f"<details><summary>every setting of {name}</summary><pre>")
            parts.append(join(head, text, Html("</pre></details>")))
    return Section("Environment", tuple(parts))


def _plain(value: object) -> str:
    """Write a setting or a fact on one line."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
