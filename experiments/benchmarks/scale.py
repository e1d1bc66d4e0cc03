"""How a study of a thousand trials goes on 64 nodes of 8 GPUs: what the driver costs, what grows, what answers.

    python experiments/benchmarks/scale.py [--output DIR] [key=value ...]

Nothing is trained, and GPUs are numbers in Ray's books. First the driver alone, at full size: Ray Tune's controller,
our searcher, scheduler, records and table with all trials that 512 GPUs hold at a time, whose actors are simulated in
the driver and answer at once (`simulated_actors.py`). Then real actors and tasks on one node with the books of 64, as
many at a time as this machine has memory for, while the dashboard is asked for its pages. Figures come for each tenth
of the trials, so that what grows with their number shows. `DIR/scale.json` holds them.
"""

import json
import random
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mien.experiments.benchmarks.memory import memory
from mien.experiments.benchmarks.simulated_actors import dashboard_seconds, simulated
from mien.experiments.tune_dfew import SPACE
from mien.platform import cluster
from mien.platform.cluster import ClusterConfig
from mien.platform.config import dump, parse, run_program
from mien.platform.progress import live_table
from mien.platform.storage import write_whole
from mien.platform.study import Record, StudyConfig
from mien.platform.tune import run_study
from mien.platform.watching import Watch, trial_rows

PAGES = ("/api/jobs/", "/logical/actors", "/api/v0/tasks?limit=100&detail=true", "/nodes?view=summary")


class ScaleConfig(BaseModel, frozen=True, extra="forbid"):
    """How large the study is, simulated and real."""

    trials: int = Field(1000, description="trials of the simulated study", gt=0)
    folds: int = Field(5, description="folds of a trial", gt=0)
    nodes: int = Field(64, description="nodes of 8 GPUs in Ray's books", gt=0)
    real_trials: int = Field(40, description="trials of the study with processes; 0: none", ge=0)
    real_at_once: int = Field(4, description="of these at a time: each is two processes of about 200 MiB", gt=0)
    fold_seconds: float = Field(0.0, description="that a fold of these takes, doing nothing", ge=0)
    cluster: ClusterConfig = Field(
        ClusterConfig(num_cpus=4, num_gpus=512, object_store_gib=0.2, dashboard=True),
        description="num_cpus: processes at a time; num_gpus as `nodes` have",
    )


def scores(config: Mapping[str, Any], fold: int) -> dict[str, float]:
    """Return scores that follow from the configuration and the fold."""
    draw = random.Random(f"{config['id']} {fold}")
    return {"uar": draw.random(), "war": draw.random(), "angular_error_deg": 20 * draw.random()}


def judge(params: dict[str, Any], fold: str, folder: Path, context: Any) -> dict[str, float]:
    """Take the time of a fold, and score it; runs in a trial's task."""
    time.sleep(context["fold_seconds"])
    return scores({"id": str(sorted(params.items()))}, int(fold))


class Marks:
    """What time and memory are each time that another tenth of the trials has ended."""

    def __init__(self, trials: int) -> None:
        self.trials, self.found = trials, list[dict[str, float]]()
        self._began, self._cpu = time.monotonic(), time.process_time()

    def heard(self, records: Sequence[Record]) -> None:
        """Hear of all records, as a study's table does."""
        ended = sum(record["state"] != "running" for record in records)
        if ended >= self.trials * (len(self.found) + 1) / 10:
            seconds, cpu = time.monotonic() - self._began, time.process_time() - self._cpu
            mark = {"ended": ended, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}
            self.found.append(mark | {"driver_mib": round(memory()["driver"])})
            print(json.dumps(self.found[-1]), flush=True)


def run(config: ScaleConfig, trials: int, at_once: int, output: Path) -> dict[str, Any]:
    """Run a study of no-op trials with its records and its table; return time, memory and storage."""
    shutil.rmtree(output, ignore_errors=True)
    marks, began, cpu = Marks(trials), time.monotonic(), time.process_time()
    study = StudyConfig(trials=trials, concurrency=at_once, cpus_per_trial=0.5, gpus_per_trial=1)
    with live_table("trials") as show:

        def heard(records: list[Record]) -> None:
            marks.heard(records)
            show(trial_rows(records))

        names = [str(fold + 1) for fold in range(config.folds)]
        run_study(judge, SPACE, names, study, output, {"fold_seconds": config.fold_seconds}, heard)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    records = [json.loads(path.read_text(encoding="utf-8")) for path in output.glob("trials/*/trial.json")]
    looking = time.monotonic()
    Watch(output).look()
    folds = sum(len(record["folds"]) for record in records)
    return {
        "trials": trials,
        "folds": folds,
        "states": {state: sum(one["state"] == state for one in records) for state in ("complete", "pruned", "failed")},
        "seconds": round(seconds, 1),
        "seconds_a_trial": round(seconds / trials, 3),
        "cpu_seconds_a_trial": round(cpu / trials, 3),  # of the driver; the clock of a busy machine says less
        # One driver decides on all: GPUs wait for it where their folds, all together, come faster than this.
        "cpu_seconds_a_fold": round(cpu / max(folds, 1), 3),
        "by_tenth": marks.found,
        "watch_seconds": round(time.monotonic() - looking, 2),
        "storage": storage(output, trials),
    }


def storage(output: Path, trials: int) -> dict[str, float]:
    """Return the files and KiB a trial of a study's folder, by what wrote them, without the folds' own run folders."""
    parts = {
        "study.db": [output / "study.db"],
        "trials": [*output.glob("trials/**/*")],
        "tune": [*output.rglob("tune/**/*")],
    }
    found: dict[str, float] = {}
    for name, paths in parts.items():
        files = [path for path in paths if path.is_file()]
        found[f"{name}_kib_a_trial"] = round(sum(path.stat().st_size for path in files) / 1024 / trials, 2)
        found[f"{name}_files_a_trial"] = round(len(files) / trials, 2)
    return found


class Asking(threading.Thread):
    """Asks the dashboard for its pages, one after another, and notes how long each takes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[str, list[float]] = {page: [] for page in PAGES}
        self.unanswered = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """Ask until `end`."""
        while not self._ended.wait(2):
            for page in PAGES:
                try:
                    self.seconds[page].append(dashboard_seconds(page))
                except OSError:
                    self.unanswered += 1

    def end(self) -> dict[str, Any]:
        """Stop asking; return how often it was answered, and the middle and the longest time, seconds."""
        self._ended.set()
        self.join()
        found: dict[str, Any] = {
            page: {"answers": len(each), "middle": sorted(each)[len(each) // 2], "longest": max(each)}
            for page, each in self.seconds.items()
            if each
        }
        return found | {"unanswered": self.unanswered}


def scale(config: ScaleConfig, output: Path) -> dict[str, Any]:
    """Measure both studies in the folder `output`."""
    found: dict[str, Any] = {"gpus": 8 * config.nodes}
    with cluster.connect(config.cluster):
        names = [str(fold + 1) for fold in range(config.folds)]
        with simulated(names, scores, at_once=8 * config.nodes) as actors:
            found["driver"] = run(config, config.trials, 8 * config.nodes, output / "simulated")
        found["driver"]["at_once"] = actors.most
        if config.real_trials:
            asking = Asking()
            asking.start()
            found["processes"] = run(config, config.real_trials, config.real_at_once, output / "real")
            found["dashboard_seconds"] = asking.end()
    return found


def main(argv: Sequence[str]) -> None:
    """Read the command line, measure and print."""
    call = parse(ScaleConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output = (call.output or Path("output/benchmarks/scale")).absolute()
    found = scale(call.config, output)
    print(json.dumps(found, indent=1))
    write_whole(output / "scale.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
