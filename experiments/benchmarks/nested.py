"""A study whose trials are larger than one device: each fold on several workers, pruned by ASHA, to its end.

    python experiments/benchmarks/nested.py [--output DIR] [key=value ...]

A tiny model on the synthetic world, so the time is that of starting workers: what a trial on several costs before it
learns anything. Prints how the trials ended, the seconds of a fold, and what Ray still holds afterwards, which must be
nothing; writes `nested.json`.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from mien.experiments import prepare, tune_dfew
from mien.experiments.benchmarks.chaos_jobs import WORLD, search
from mien.experiments.tune_dfew import TuneConfig
from mien.platform import cluster
from mien.platform.cluster import ClusterConfig
from mien.platform.config import dump, load, parse, run_program
from mien.platform.storage import write_whole


class NestedConfig(BaseModel, frozen=True, extra="forbid"):
    """How large the study is."""

    trials: int = Field(12, ge=1, description="trials of the study, over two folds each")
    workers: int = Field(2, ge=2, description="workers of a trial")
    cpus: int = Field(4, ge=1, description="logical CPUs of the cluster, one for each worker")
    steps: int = Field(4, ge=1, description="optimiser steps of a fold")
    left_seconds: float = Field(60.0, ge=0, description="that Ray has to take down what the last trials had")


def study(config: NestedConfig, output: Path) -> dict[str, Any]:
    """Run the study; return how it went."""
    prepare.prepare_world(WORLD, output / "world")
    job = search(output, output / "world", config.steps, config.trials, checkpoint_every=2, address="local")
    own: dict[str, Any] = {
        "trials": config.trials,
        "workers_per_trial": config.workers,
        "grace_folds": 1,
        "cpus_per_trial": 1,
    }
    own |= {"objective": "angular_error_deg"}  # of so short a training it tells trials apart, so some are pruned
    settings = {f"study.{name}": value for name, value in own.items()} | {"study.concurrency": None, "study.retries": 1}
    tuned = load(TuneConfig, output / "recipe.yaml", settings)
    with cluster.connect(ClusterConfig(num_cpus=config.cpus, object_store_gib=0.2, dashboard=True)):
        began = time.monotonic()
        winner = tune_dfew.study(tuned, job.output)
        seconds = time.monotonic() - began
        until = time.monotonic() + config.left_seconds
        while (left := cluster.remains()) and time.monotonic() < until:
            time.sleep(1)
    trials = [json.loads(path.read_text(encoding="utf-8")) for path in job.output.glob("trials/*/trial.json")]
    folds = [trial["seconds"] / len(trial["folds"]) for trial in trials if trial["folds"]]
    return {
        "trials": dict(Counter(trial["state"] for trial in trials)),
        "folds": sum(len(trial["folds"]) for trial in trials),
        "seconds": round(seconds),
        "seconds_a_fold": round(statistics.median(folds), 1),
        "winner": winner["trial"],
        "left": left,
    }


def main(argv: Sequence[str]) -> None:
    """Read the command line, run the study and print."""
    call = parse(NestedConfig, argv, __doc__)
    if call.dry_run:
        print(dump(call.config))
        return
    output = (call.output or Path("output/benchmarks/nested")).absolute()
    found = study(call.config, output)
    print(json.dumps(found, indent=1))
    write_whole(output / "nested.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
