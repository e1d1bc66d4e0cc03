"""Gauges: what Ray's metrics endpoint serves is what the records say; without Ray there are none, and no error."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
from torch import nn

from mien.platform import gauges
from mien.platform.run import Run, records
from mien.platform.space import Range
from mien.platform.study import StudyConfig
from mien.platform.training import speed
from mien.platform.tune import run_study

MONITORING = Path(__file__).resolve().parents[2] / "experiments" / "configs" / "monitoring"
NAME = re.compile(r"ray_mien_(\w+)")
SECONDS = 60  # that a value may take from a process to its node's endpoint: Ray sends them every ten


def scraped() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return what all nodes serve of ours, as Prometheus reads it: values by name, and by study, trial, run, state."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        for name, labels, value in re.findall(r"(?m)^ray_mien_(\w+)\{(.*)\} (\S+)$", text):
            pairs = re.findall(r'(study|trial|run|state)="(.*?)"', labels)
            found.setdefault(name, {})[tuple(sorted(pair for pair in pairs if pair[1]))] = float(value)
    return found


def served(name: str, value: float, **tags: str) -> None:
    """Wait until the endpoint serves a value; fail with what it serves otherwise."""
    until, found = time.monotonic() + SECONDS, None
    while time.monotonic() < until:
        found = scraped().get(name, {})
        if found.get(tuple(sorted(tags.items()))) == pytest.approx(value, rel=1e-12):
            return
        time.sleep(1)
    raise AssertionError(f"{name} {tags} is to be {value}, but served is {found}")


def test_what_is_shown_costs_the_same_however_much_is_served_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of a thousand trials shows some values for each of its folds."""
    sent: list[str] = []

    class Metric:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            sent.append(f"{self.name} {tags['trial']} {value}")

    monkeypatch.setattr(gauges, "connected", lambda: threading.current_thread() is threading.main_thread())
    monkeypatch.setattr(gauges, "_metric", lambda kind, name, tags: Metric(name))
    for trial in range(100):
        gauges.show({"trial_uar": 0.5, "trial_folds": 1}, trial=str(trial))
    monkeypatch.undo()
    gauges.belong()
    assert sent == [
        f"{name} {trial} {value}" for trial in range(100) for name, value in (("trial_uar", 0.5), ("trial_folds", 1))
    ]


@pytest.mark.ray
def test_the_endpoint_serves_the_last_record_of_metrics_jsonl(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "a_run").mkdir()
    with Run(tmp_path / "a_run") as run:
        for step, loss in ((1, 0.75), (2, 0.1 + 0.2)):
            run.log({"step": step, "loss": loss, "lr": 1e-7 / step})
        run.log({"step": 3, "uar": 2 / 3}, split="val")
        run.dropped({"video": "a", "path": "a.mp4", "reason": "empty", "position": 1})
        run.dropped({"video": "b", "path": "b.mp4", "reason": "empty", "position": 2})
    first, second, third = records(run.output / "metrics.jsonl")
    for name, value in (second | third).items():
        served(name.replace("/", "_"), value, run="a_run")
    served("clips_dropped_total", 2, run="a_run")
    assert first["train/lr"] != second["train/lr"]
    time.sleep(25)  # Ray forgets a gauge that is set once after twenty
    served("train_lr", second["train/lr"], run="a_run")


def judge(params: dict[str, Any], fold: str, folder: Path, context: Any) -> dict[str, float]:
    """Leave a record as a training does, and wait until it must have been sent."""
    folder.mkdir(parents=True)
    with Run(folder) as run:
        run.log({"step": 7, "loss": params["x"] / 3})
    time.sleep(context["seconds"])
    return {"uar": params["x"] + int(fold) / 100, "angular_error_deg": 10 * params["x"]}


@pytest.mark.ray
def test_trials_show_their_means_and_their_folds_what_they_record(ray_cluster: None, tmp_path: Path) -> None:
    points = ({"x": 0.25},)
    config = StudyConfig(trials=1, cpus_per_trial=0.5, start_points=points)
    folder = tmp_path / "my_study"
    run_study(judge, {"x": Range(low=0, high=1)}, ("1", "2"), config, folder, {"seconds": 12})
    (trial,) = (json.loads(path.read_text()) for path in folder.glob("trials/*/trial.json"))
    for name, value in trial["mean"].items():
        served(f"trial_{name}", value, study="my_study", trial="0000")
    served("trial_folds", 2, study="my_study", trial="0000")
    served("trials", 1, study="my_study", state="complete")
    (record,) = records(folder / "trials" / trial["id"] / "fold_2" / "metrics.jsonl")
    served("train_loss", record["train/loss"], study="my_study", trial="0000", run="fold_2")


def test_without_ray_a_run_is_recorded_as_ever_and_ray_is_not_even_loaded(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mien.platform.run import Run\n"
        f"run = Run(Path({str(tmp_path)!r})); run.log({{'step': 1, 'loss': 0.5}}); run.dropped({{'position': 0}})\n"
        "run.close(); sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
    assert records(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 0.5}]


def test_grafanas_panels_ask_for_gauges_that_there_are() -> None:
    board = json.loads((MONITORING / "grafana_mien.json").read_text(encoding="utf-8"))
    asked = {name for panel in board["panels"] for target in panel["targets"] for name in NAME.findall(target["expr"])}
    recorded = {"train_loss", "train_lr", "train_grad_norm"}  # by every step; see loop.py
    counters = {"clips_dropped", "restarts"}
    served = recorded | {f"{name}_total" if name in counters else name for name in gauges.TOLD}
    assert asked <= served
    assert served - asked == {"trial_war", "trial_folds"}
    assert board["uid"] == "rayDataDashboard"  # which Ray's Metrics tab embeds


def test_the_speed_of_a_step_is_clips_over_seconds_and_the_share_that_was_waited() -> None:
    found = speed({"seconds": 0.5, "wait_seconds": 0.125}, 16, nn.Linear(1, 1))
    assert found == {"clips_per_second": 32, "wait_ratio": 0.25}
    assert found.keys() <= gauges.TOLD.keys()
