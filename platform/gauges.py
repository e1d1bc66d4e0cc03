"""Gauges and counters on Ray's metrics endpoint: what the records say of a run now, for Prometheus and Grafana.

Every number that goes to `metrics.jsonl` is a gauge of its name, `train/loss` being `ray_mien_train_loss`, with the
study, the trial and the run folder it belongs to. Each node serves those of its processes on its own port. Where there
is no Ray session nothing happens: records are what counts, and training never waits for these.
"""

import re
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

TAGS = ("study", "trial", "run")
TOLD = {
    "trial_uar": "a trial's mean UAR over its folds so far, on validation",
    "trial_war": "a trial's mean WAR over its folds so far, on validation",
    "trial_angular_error_deg": "a trial's mean gaze error over its folds so far, on validation, degrees",
    "trial_folds": "folds that a trial has been judged on",
    "trials": "trials of a study by their state",
    "clips_per_second": "clips of the last recorded step over its seconds",
    "wait_ratio": "share of the last recorded step that was spent waiting for clips",
    "gpu_memory_bytes": "most memory that PyTorch has held on a worker's device",
    "clips_dropped": "clips that could not be read",
    "restarts": "times that a trial, or the workers of a training, were started again after a loss",
}

REPEATER, REPEAT_SECONDS = "gauges", 5

_belongs: dict[str, str] = {}
_made: dict[str, Any] = {}
_values: dict[tuple[Any, ...], tuple[float, dict[str, str]]] = {}
_lock = threading.RLock()


def belong(**tags: str) -> None:
    """Say which study and trial this process works for from now on; what it said for others is not served any more."""
    with _lock:
        _values.clear()
        _belongs.clear()
        _belongs.update(tags)


def connected() -> bool:
    """Return whether this process is in a Ray session; never starts or imports Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def show(values: Mapping[str, float | None], **tags: str) -> None:
    """Set gauges; what is None, as a number that JSON cannot hold, is not served any more."""
    if not connected():
        return
    belongs = _belongs | tags
    with _lock:
        for name, value in values.items():
            key = (name, *sorted(belongs.items()))
            _values.pop(key, None)
            if value is not None:
                _values[key] = (value, belongs)
                _metric("Gauge", name, belongs).set(value, belongs)
        if not any(thread.name == REPEATER for thread in threading.enumerate()):
            threading.Thread(target=_repeat, name=REPEATER, daemon=True).start()


def count(name: str, **tags: str) -> None:
    """Add one to a counter."""
    if connected():
        _metric("Counter", name, tags).inc(1, _belongs | tags)


def _repeat() -> None:
    """Send all values again and again while there is a session: Ray forgets a gauge after twenty seconds."""
    while connected():
        with _lock:
            for (name, *_), (value, tags) in _values.items():
                _metric("Gauge", name, tags).set(value, tags)
        time.sleep(REPEAT_SECONDS)
    with _lock:
        _values.clear()


def _metric(kind: str, name: str, tags: Mapping[str, str]) -> Any:
    if name not in _made:
        from ray.util import metrics

        keys = (*TAGS, *(tag for tag in tags if tag not in TAGS))
        about = TOLD.get(name, f"{name} of the last record in metrics.jsonl")
        _made[name] = getattr(metrics, kind)(f"mien_{re.sub(r'[^a-zA-Z0-9_]', '_', name)}", about, tag_keys=keys)
        _made[name].set_default_tags(dict.fromkeys(TAGS, ""))
    return _made[name]
