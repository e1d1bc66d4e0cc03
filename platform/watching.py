"""How a study or a run stands, from its folder alone: for whoever waits, on any machine that sees the storage.

Nothing here asks the cluster. A trial's record is read again only when it has changed, and of a run's records only the
end of the file, so a look costs the same after a thousand trials. When the newest record is older than it should be,
the run seems dead: its processes may be lost, or hang, or only wait for a device.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from mien.platform.progress import clock, text
from mien.platform.records import RecordsError, find

Record = dict[str, Any]
TAIL_BYTES = 8192  # of metrics.jsonl: some lines
SHOWN = 24  # trials of a table
LOWER_IS_BETTER = ("angular_error_deg",)


@dataclass(frozen=True)
class View:
    """What is to be shown of a folder: a line on the whole, a table of trials, a line for each run that is going on."""

    title: str
    rows: list[Record]
    lines: list[str]
    finished: bool
    newest: float  # when the newest record was written, seconds since 1970
    command: str  # that goes on with it

    def status(self) -> str:
        """Return whether it is finished or, if not, how old the newest record is."""
        return "finished" if self.finished else f"last record {clock(max(time.time() - self.newest, 0))} ago"

    def warning(self, silent_seconds: float) -> str | None:
        """Return that it seems dead, and what to do, or None."""
        if self.finished or time.time() - self.newest < silent_seconds:
            return None
        since = datetime.fromtimestamp(self.newest).astimezone().isoformat(" ", "seconds")
        return (
            f"no record since {since}: it seems dead. Look into Ray's dashboard and logs; if nothing of it runs any "
            f"more, it goes on with: {self.command}"
        )


@dataclass
class Watch:
    """Looks at one folder, again and again. Raises RecordsError if it holds neither a study nor a run."""

    folder: Path
    _read: dict[Path, tuple[int, Record]] = field(default_factory=dict)

    def look(self) -> View:
        """Return how it stands now."""
        place = self._place()
        return self._study(place) if (place / "trials").is_dir() else self._run(place)

    def _place(self) -> Path:
        inside = [self.folder / name for name in ("study", "pretrain")]
        for place in (self.folder, *inside):
            if (place / "trials").is_dir() or (place / "environment.json").is_file():
                return place
        found = ", ".join(sorted(path.name for path in self.folder.iterdir())[:8]) if self.folder.is_dir() else ""
        raise RecordsError(
            f"{self.folder}: only the folder of a study or of a run can be watched, found {found or 'nothing'}; give "
            "the folder that a program's --output names (it makes environment.json there when it starts)"
        )

    def _study(self, place: Path) -> View:
        read = [self._json(path) for path in place.glob("trials/*/trial.json")]
        trials = sorted((trial for trial in read if trial), key=lambda trial: trial["number"])
        names = objectives(_yaml(place))
        lines, written = [], [place / "trials" / trial["id"] / "trial.json" for trial in trials]
        for trial in trials:
            if trial["state"] == "running":
                folds = sorted((place / "trials" / trial["id"]).glob("fold_*"), key=lambda path: path.stat().st_mtime)
                for fold in folds[-1:]:
                    lines.append(f"trial {trial['number']:04} {fold.name}: {progress_of(fold)}")
                    written.append(fold / "metrics.jsonl")
        best = best_trial(trials, names[0])
        of = find(_yaml(place).get("study", {}), "trials")
        finished = (place / "winner.json").is_file() and not lines
        told = [f"study {place.absolute().name}: {told_states(trials)}" + (f" of {of}" if of else "")]
        told += [f"best is trial {best['number']:04}, {names[0]} {text(best['mean'][names[0]])}"] if best else []
        return self._view(place, told, trial_rows(trials, names[0]), lines, finished, written)

    def _run(self, place: Path) -> View:
        step, total = last_record(place).get("step", 0), total_steps(place)
        finished = (place / "scores.json").is_file() or (total is not None and step >= total)
        told = [f"run {place.absolute().name}: {progress_of(place)}"]
        return self._view(place, told, [], [], finished, [place / "metrics.jsonl"])

    def _view(
        self, place: Path, told: list[str], rows: list[Record], lines: list[str], finished: bool, written: list[Path]
    ) -> View:
        newest = max(path.stat().st_mtime for path in (*written, place / "environment.json") if path.is_file())
        here = self._json(place / "environment.json") or {}
        return View(" · ".join(told), rows, lines, finished, newest, str(here.get("command", "the same command")))

    def _json(self, path: Path) -> Record | None:
        """Return a JSON object, read again only if the file is another one; None while it is absent."""
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        if self._read.get(path, (None,))[0] != changed:
            self._read[path] = (changed, json.loads(path.read_text(encoding="utf-8")))
        return self._read[path][1]


def objectives(config: Mapping[str, Any]) -> list[str]:
    """Return the names of what a study is for, from its config."""
    named = find(config, "objective") or "uar"
    return [named] if isinstance(named, str) else list(named)


def best_trial(trials: Sequence[Record], objective: str) -> Record | None:
    """Return the complete trial with the best mean, or None; of equals the first."""
    complete = [trial for trial in trials if trial["state"] == "complete" and objective in trial["mean"]]
    sign = -1 if objective in LOWER_IS_BETTER else 1
    return max(complete, key=lambda trial: sign * trial["mean"][objective], default=None)


def told_states(trials: Sequence[Record]) -> str:
    """Return how many trials there are of each state."""
    states = Counter(trial["state"] for trial in trials)
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "no trial yet"


def trial_rows(trials: Sequence[Record], objective: str = "uar", shown: int = SHOWN) -> list[Record]:
    """Return the table of a study: of many trials those that run, the best one and the newest, in their order."""
    if len(trials) > shown:
        best = best_trial(trials, objective)
        first = [trial for trial in trials if trial["state"] == "running"] + ([best] if best else [])
        rest = [trial for trial in reversed(trials) if trial["state"] != "running" and trial is not best]
        trials = sorted((first + rest)[:shown], key=lambda trial: trial["number"])
    return [
        {
            "trial": trial["number"],
            "state": trial["state"],
            **{key.rpartition(".")[2]: value for key, value in trial["params"].items()},
            "folds": len(trial["folds"]),
            "UAR": trial["mean"].get("uar"),
            "degrees": trial["mean"].get("angular_error_deg"),
            "seconds": round(trial["seconds"]),
        }
        for trial in trials
    ]


def progress_of(run: Path) -> str:
    """Return how far a run is and how fast, from its last records."""
    record, total = last_record(run), total_steps(run)
    if not record:
        return "no record yet"
    of = "" if total is None else f"/{total:,}"
    parts = [f"step {record['step']:,}{of}"]
    if seconds := record.get("train/seconds"):
        batch = find(_yaml(run), "batch_size")
        parts += [f"{text(batch / seconds)} clips/s"] if batch else []
        parts.append(f"waiting {record.get('train/wait_seconds', 0) / seconds:.0%}")
        parts += [f"about {clock((total - record['step']) * seconds)} left"] if total and total > record["step"] else []
    scores = {key.rpartition("/")[2]: value for key, value in record.items() if key.startswith("val/")}
    parts += [f"{name} {text(scores[name])}" for name in ("uar", "angular_error_deg") if name in scores]
    parts += [f"loss {text(record['train/loss'])}"] if "train/loss" in record else []
    dropped = run / "dropped.jsonl"
    parts += [f"{dropped.read_bytes().count(10):,} dropped"] if dropped.is_file() else []
    return " · ".join(parts)


def last_record(run: Path) -> Record:
    """Return the last values of metrics.jsonl: its last lines, the later ones over the earlier; empty without any."""
    path = run / "metrics.jsonl"
    found: Record = {}
    if path.is_file():
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")
        for line in lines[:-1]:  # the last is empty, or being written
            if line.startswith(b'{"step"') and line.endswith(b"}"):
                found |= json.loads(line)
    return found


def total_steps(run: Path) -> int | None:
    """Return a run's optimiser steps, or None where its records do not tell."""
    loop = find(_yaml(run), "loop") or {}
    if loop.get("steps"):
        return int(loop["steps"])
    inputs = run / "inputs.json"
    told = json.loads(inputs.read_text(encoding="utf-8")) if inputs.is_file() else {}
    clips = ((told.get("trained_on") or {}).get("parts") or {}).get("train")
    if not clips or not loop.get("batch_size"):
        return None
    return int(loop["epochs"]) * max(int(clips) // int(loop["batch_size"]), 1)


def _yaml(folder: Path) -> Record:
    path = folder / "config.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
