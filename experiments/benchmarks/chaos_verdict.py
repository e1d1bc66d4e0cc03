"""What a disturbed job left, beside what an undisturbed one left: equal, or what differs in words."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.trial import TrialState

from mien.data_pipelines.manifest import Manifest
from mien.experiments.benchmarks.raylets import Raylets
from mien.platform import checkpoint, used
from mien.platform.run import records

GONE_SECONDS = 90.0  # that Ray has to end what a job had
ASK = """
import json
from mien.platform.cluster import ClusterConfig, connect, remains
with connect(ClusterConfig(address={address!r})):
    print(json.dumps(remains()))
"""
RAYS_OWN = ".validate_storage_marker"  # in every session of Ray Tune
VOLATILE = ("seconds", "wait_seconds")  # of a step's record
OURS_TO_KEEP = ("IDLE", "TrainController", "DashboardAgent", "RuntimeEnvAgent", "Watcher", "Coordinator", "Actor")


def kind_of(command: str) -> str:
    """Return what a process of the cluster is to a job: worker, task, or nothing that is killed."""
    name = command.removeprefix("ray::")
    if name == command or any(word in name for word in OURS_TO_KEEP):
        return ""
    return "worker" if name.startswith(("RayTrainWorker", "Trial", "trial")) and " fold " not in name else "task"


def compare_runs(peace: Path, war: Path) -> dict[str, Any]:
    """Return what differs between two runs of one recipe: weights, records, and each one's account of clips."""
    differs = weights_differ(peace, war) + records_differ(peace, war)
    config = yaml.safe_load((war / "config.yaml").read_text(encoding="utf-8"))
    rows = range(len(Manifest.read(config["data"]["manifest"])))
    loop = config["loop"]
    for name, run in (("in peace", peace), ("disturbed", war)):
        differs += [f"{name}: {words}" for words in used.wrong(run, rows, loop["steps"], loop["batch_size"])]
    clips = sum(map(len, used.steps(war).values()))
    return {"steps": loop["steps"], "clips": clips, "epochs": round(clips / len(rows), 2), "differs": differs}


def compare_studies(peace: Path, war: Path) -> dict[str, Any]:
    """Return what differs between two studies of one recipe: trials, scores, winner, and every fold's run."""
    differs = []
    found = {name: study_of(path) for name, path in (("in peace", peace), ("disturbed", war))}
    wanted = yaml.safe_load((war / "config.yaml").read_text(encoding="utf-8"))["study"]["trials"]
    for name, trials in found.items():
        states = [trial.state for trial in trials]
        if states != [TrialState.COMPLETE] * wanted:
            differs.append(
                f"{name}: {len(states)} trials, {[state.name for state in states]}, and {wanted} were asked for"
            )
        ids = [trial.user_attrs.get("id") for trial in trials]
        if len(set(ids)) != len(ids):
            differs.append(f"{name}: a configuration was run twice")
    tried = [{trial.number: (trial.params, trial.values) for trial in trials} for trials in found.values()]
    differs += [f"trial {number} differs" for number in tried[0] if tried[0][number] != tried[1].get(number)]
    if (peace / "winner.json").read_bytes() != (war / "winner.json").read_bytes():
        differs.append("the winners differ")
    runs = sorted(path.parent.relative_to(peace) for path in peace.glob("trials/*/fold_*/scores.json"))
    other = sorted(path.parent.relative_to(war) for path in war.glob("trials/*/fold_*/scores.json"))
    if runs != other:
        differs.append(f"folds that were finished differ: {set(map(str, runs)) ^ set(map(str, other))}")
    clips = 0
    for place in set(runs) & set(other):
        differs += [f"{place}: {words}" for words in records_differ(peace / place, war / place)]
        if used.steps(peace / place) != used.steps(war / place):
            differs.append(f"{place}: other clips were learned from")
        clips += sum(map(len, used.steps(war / place).values()))
    return {"trials": wanted, "folds": len(other), "clips": clips, "differs": differs}


def study_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that Optuna knows of a study."""
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}").get_trials()


def weights_differ(peace: Path, war: Path) -> list[str]:
    """Return a sentence when the last weights are not equal to the bit."""
    one, other = (checkpoint.weights(path) for path in (peace, war))
    largest = max((float((one[name] - other[name]).abs().max()) for name in one), default=0.0)
    same = all(torch.equal(value, other[name]) for name, value in one.items())
    return [] if same else [f"weights differ, by {largest:.2g} at most"]


def records_differ(peace: Path, war: Path) -> list[str]:
    """Return a sentence when two runs' records are not equal, apart from times."""
    one, other = ([timeless(line) for line in records(path / "metrics.jsonl")] for path in (peace, war))
    if one == other:
        return []
    unequal = [a["step"] for a, b in zip(one, other, strict=False) if a != b]
    return [f"records differ: {len(one)} and {len(other)} lines, unequal at steps {unequal[:5]}"]


def timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without what depends on the machine."""
    return {name: value for name, value in record.items() if name.rpartition("/")[2] not in VOLATILE}


def left(cluster: Raylets, output: Path) -> list[str]:
    """Return what a job that has ended left: in Ray, as processes, and as temporary files."""
    until = time.monotonic() + GONE_SECONDS
    while True:
        busy = [words for words in cluster.processes().values() if kind_of(words) or "TrainController" in words]
        # In a process of its own: this one cannot change the token that it shows.
        ask = [sys.executable, "-c", ASK.format(address=cluster.address)]
        said = subprocess.run(ask, env=cluster.environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        remains = json.loads(said.splitlines()[-1])
        if not (busy or remains) or time.monotonic() > until:
            break
        time.sleep(1)
    hidden = [path for path in output.rglob(".*") if path.name != RAYS_OWN]  # how what is not whole yet is called
    return [*busy, *remains, *(os.path.relpath(path, output) for path in hidden)]


def notes(cluster: Raylets) -> int:
    """Return how many notes of where a data task was wait for a next attempt; old ones go with the next task."""
    return len([*cluster.files.rglob("mien-attempts-*/*")])
