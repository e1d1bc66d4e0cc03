"""What a run or a study left on disk, read back for reports: never printed text, always its records.

A run folder holds `config.yaml`, `environment.json`, `metrics.jsonl`, `dropped.jsonl`, `scores.json`,
`predictions/<split>.parquet` and pictures; a study folder holds `trials/<id>/trial.json` with a run folder a fold,
`winner.json` and `test/`. A record that is absent is None or empty. One that cannot be read, such as the line that a
killed run was writing, is left out and named in `problems`, so that a report can say so.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Record = dict[str, Any]

# Quantiles 0.975 of Student's t for 1 to 10 degrees of freedom; beyond that the normal one is near enough.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class RecordsError(ValueError):
    """The folder holds no records to report on."""


@dataclass(frozen=True)
class Run:
    """The records of one run: pretraining, fine-tuning on one split, or a test."""

    folder: Path
    config: Record
    environment: Record
    metrics: list[Record]
    dropped: list[Record]
    scores: Record | None
    pictures: list[Path]
    mistakes: list[Record]
    openings: int  # how often the test clips were looked at, if this is a test
    motion: Record  # scores of the test clips by what was done to their frames
    problems: list[str] = field(default_factory=list)

    def values(self, name: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of the lines of metrics.jsonl with a name, `loss` being `train/loss`; null is NaN."""
        rows = [line for line in self.metrics if isinstance(line.get("step"), int | float)]
        key = next((key for key in (f"train/{name}", name) if any(key in line for line in rows)), name)
        rows = [line for line in rows if key in line]
        values = [line[key] if isinstance(line[key], int | float) else math.nan for line in rows]
        return [float(line["step"]) for line in rows], [float(value) for value in values]

    def seconds(self) -> float | None:
        """Return the seconds of all steps, from the mean of those that were recorded, or None."""
        steps, seconds = self.values("seconds")
        seconds = [value for value in seconds if math.isfinite(value)]
        return max(steps) * sum(seconds) / len(seconds) if seconds else None

    def clips_per_second(self) -> float | None:
        """Return clips trained on a second: the batch over the median seconds of a step, or None."""
        batch = find(self.config, "batch_size")
        seconds = sorted(value for value in self.values("seconds")[1] if math.isfinite(value))
        if not isinstance(batch, int | float) or not seconds or seconds[len(seconds) // 2] <= 0:
            return None
        return float(batch) / seconds[len(seconds) // 2]


@dataclass(frozen=True)
class Study:
    """The records of a search: its trials, the winner with its folds, the winner's test, and where it started from."""

    folder: Path
    config: Record
    environment: Record
    trials: list[Record]
    winner: Record | None
    folds: dict[str, Run]
    test: Run | None
    pretraining: Run | None
    problems: list[str] = field(default_factory=list)

    def winning_trial(self) -> Record | None:
        """Return the record of the winner among the trials, or None."""
        return next((t for t in self.trials if self.winner and str(t.get("id")) == str(self.winner.get("trial"))), None)

    def objectives(self) -> list[str]:
        """Return the names of what the search was for, `uar` if it does not say."""
        named = (
            (self.winner or {}).get("objective") or find(self.config, "objective") or find(self.config, "objectives")
        )
        return [str(name) for name in named] if isinstance(named, list) else [str(named or "uar")]


def find(record: object, key: str) -> Any:
    """Return the value of a key wherever it stands in nested records, the outermost first, or None."""
    level: list[object] = [record]
    while level:
        for one in level:
            if isinstance(one, Mapping) and one.get(key) is not None:
                return one[key]
        level = [inner for one in level if isinstance(one, Mapping) for inner in one.values()]
    return None


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested records; lists are values."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return mean, standard deviation and half width of the mean's 95 % t-interval; NaN where one value is too few."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    quantile = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
    return mean, deviation, quantile * deviation / math.sqrt(len(values))


def _json(path: Path, problems: list[str]) -> Any:
    """Return a JSON file's content, None if it is absent or, with a problem noted, unreadable."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read ({error})")
        return None


def _record(path: Path, problems: list[str]) -> Record:
    """Return a JSON object, empty if it is absent, unreadable or something else."""
    content = _json(path, problems)
    return content if isinstance(content, dict) else {}


def _lines(path: Path, problems: list[str]) -> list[Record]:
    """Return the JSON objects of a file with one a line; unreadable lines are left out and counted."""
    if not path.is_file():
        return []
    records, unreadable = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            unreadable += 1
            continue
        records += [record] if isinstance(record, dict) else []
    if unreadable:
        problems.append(f"{path.parent.name}/{path.name}: {unreadable} unreadable line(s) left out")
    return records


def _yaml(path: Path, problems: list[str]) -> Record:
    """Return a YAML mapping, empty if it is absent or, with a problem noted, unreadable."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read ({type(error).__name__})")
        return {}
    return content if isinstance(content, dict) else {}


def read_run(folder: Path) -> Run:
    """Return a run folder's records."""
    problems: list[str] = []
    scores = _json(folder / "scores.json", problems)
    mistakes = _json(folder / "mistakes" / "mistakes.json", problems)
    return Run(
        folder=folder,
        config=_yaml(folder / "config.yaml", problems),
        environment=_record(folder / "environment.json", problems),
        metrics=_lines(folder / "metrics.jsonl", problems),
        dropped=_lines(folder / "dropped.jsonl", problems),
        scores=scores if isinstance(scores, dict) else None,
        pictures=sorted(folder.glob("reconstructions/step_*.png"), key=lambda path: (len(path.name), path.name)),
        mistakes=[one for one in mistakes if isinstance(one, dict)] if isinstance(mistakes, list) else [],
        openings=sum(line.get("file") in (None, "scores.json") for line in _lines(folder / "opened.jsonl", problems)),
        motion=_record(folder / "motion.json", problems),
        problems=problems,
    )


def read_study(folder: Path) -> Study:
    """Return a study folder's records, with those of the pretraining run that its config names."""
    problems: list[str] = []
    config = _yaml(folder / "config.yaml", problems)
    trials = [_record(path, problems) for path in sorted(folder.glob("trials/*/trial.json"))]
    trials = sorted(
        (trial for trial in trials if trial), key=lambda trial: (trial.get("number") or 0, str(trial.get("id")))
    )
    winner = _json(folder / "winner.json", problems)
    winner = winner if isinstance(winner, dict) else None
    folds = {}
    if winner:
        places = sorted(
            folder.glob(f"trials/{winner.get('trial')}/*fold_*"), key=lambda place: (len(place.name), place.name)
        )
        folds = {place.name.replace("fold_", ""): read_run(place) for place in places if place.is_dir()}
    test = read_run(folder / "test") if (folder / "test").is_dir() else None
    pretrained = find(config, "pretrained")
    source = run_of(Path(str(pretrained)), folder) if pretrained else None
    study = Study(
        folder=folder,
        config=config,
        environment=_record(folder / "environment.json", problems),
        trials=trials,
        winner=winner,
        folds=folds,
        test=test,
        pretraining=read_run(source) if source else None,
        problems=problems,
    )
    for run in (*folds.values(), test, study.pretraining):
        problems += run.problems if run else []
    return study


def run_of(checkpoint: Path, study: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, also if it and the study were moved together, or None."""
    moved = [study.parent.joinpath(*checkpoint.parts[index:]) for index in range(1, len(checkpoint.parts))]
    for place in (checkpoint, study.parent / checkpoint, *moved):
        for folder in (place, *list(place.parents)[:3]):  # the run, its checkpoints, a step, a file in it
            if (folder / "metrics.jsonl").is_file() and (folder / "config.yaml").is_file():
                return folder
    return None


def read(folder: Path) -> Study | Run:
    """Return the records of a folder: of a study, of a run, or of the study in its subfolder `study`.

    Raises:
        RecordsError: there is neither.
    """
    for place in (folder, folder / "study"):
        if (place / "trials").is_dir() or (place / "winner.json").is_file():
            return read_study(place)
    if any((folder / name).is_file() for name in ("metrics.jsonl", "scores.json")):
        return read_run(folder)
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
    raise RecordsError(
        f"{folder}: a report needs the folder of a study (with trials/) or of a run (with metrics.jsonl or "
        f"scores.json), found {found or 'nothing'}; give the folder that a program's --output named"
    )
