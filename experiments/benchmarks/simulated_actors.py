"""Trials without processes: in the place of Ray Tune's manager of actors, for its controller and ours at any size.

Tune's controller decides, asks our searcher and scheduler, and writes its state, as it does on a cluster; but an actor
that it starts is there at once, and a fold's scores come back at once. So what is measured is the driver alone.
"""

import random
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.air.execution._internal import TrackedActor
from ray.tune.execution import tune_controller

from mien.platform.trial import PREFIX

Scores = Callable[[dict[str, Any], int], Mapping[str, float]]
Event = Callable[[], None]
CONTROLLER: Any = tune_controller  # where its manager is put in another's place


class SimulatedActors:
    """What Tune's controller asks of `RayActorManager`; events come in a random order, as on a cluster."""

    def __init__(self, folds: list[str], scores: Scores, at_once: int) -> None:
        self.folds, self.scores, self.at_once = folds, scores, at_once
        self.most = 0  # actors that were alive at a time
        self._pending: deque[Any] = deque()
        self._live_actors_to_ray_actors_resources: dict[Any, tuple[None, None]] = {}
        self._configs: dict[Any, dict[str, Any]] = {}
        self._done: dict[Any, int] = {}
        self._events: list[tuple[Any, Event]] = []
        self._random, self._made = random.Random(0), 0

    num_pending_actors = property(lambda self: len(self._pending))
    num_live_actors = property(lambda self: len(self._live_actors_to_ray_actors_resources))
    num_total_actors = property(lambda self: self.num_pending_actors + self.num_live_actors)
    num_actor_tasks = property(lambda self: len(self._events))

    def add_actor(self, cls: Any, resource_request: Any, kwargs: dict[str, Any], **callbacks: Any) -> Any:
        """Let an actor wait for its turn."""
        self._made += 1
        tracked: Any = TrackedActor(self._made, **callbacks)
        self._configs[tracked], self._done[tracked] = kwargs["config"], 0
        self._pending.append(tracked)
        return tracked

    def next(self, timeout: float | None = None) -> bool:
        """Let one thing happen; return whether there was one."""
        live = self._live_actors_to_ray_actors_resources
        if self._pending and len(live) < self.at_once:
            tracked = self._pending.popleft()
            live[tracked] = (None, None)
            self.most = max(self.most, len(live))
            tracked._on_start(tracked)
            return True
        if not self._events:
            return False
        index = self._random.randrange(len(self._events))
        self._events[index], self._events[-1] = self._events[-1], self._events[index]
        self._events.pop()[1]()
        return True

    def schedule_actor_task(
        self, tracked_actor: Any, method_name: str, args: Any = None, kwargs: Any = None, **callbacks: Any
    ) -> None:
        """Answer a call of an actor's method later."""
        on_result = callbacks.get("on_result")
        if on_result is not None:
            result = self._judge(tracked_actor) if method_name == "train" else None
            self._events.append((tracked_actor, lambda: on_result(tracked_actor, result)))

    def _judge(self, tracked: Any) -> dict[str, Any]:
        """Return a fold's result, with what Tune adds to it."""
        self._done[tracked] += 1
        done, config = self._done[tracked], self._configs[tracked]
        scores = {f"{PREFIX}{name}": value for name, value in self.scores(config, done).items()}
        tune = {"training_iteration": done, "done": False, "time_this_iter_s": 1.0, "time_total_s": float(done)}
        return {"fold": self.folds[done - 1], **scores, "fold_seconds": 1.0, **tune, "config": config}

    def remove_actor(self, tracked_actor: Any, kill: bool = False, stop_future: Any = None) -> bool:
        """End an actor."""
        self.clear_actor_task_futures(tracked_actor)
        self._live_actors_to_ray_actors_resources.pop(tracked_actor, None)
        if tracked_actor in self._pending:
            self._pending.remove(tracked_actor)
        if tracked_actor._on_stop:
            self._events.append(
                (tracked_actor, lambda: tracked_actor._on_stop and tracked_actor._on_stop(tracked_actor))
            )
        return True

    def clear_actor_task_futures(self, tracked_actor: Any) -> None:
        """Forget what an actor was asked."""
        self._events = [event for event in self._events if event[0] != tracked_actor]

    def is_actor_started(self, tracked_actor: Any) -> bool:
        """Return whether an actor is alive."""
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: Any) -> bool:
        """Return that none has failed."""
        return False

    def get_live_actors_resources(self) -> dict[str, float]:
        """Return nothing: there are no resources."""
        return {}

    def cleanup(self) -> None:
        """Nothing is to be cleaned up."""


@contextmanager
def simulated(folds: list[str], scores: Scores, at_once: int) -> Iterator[SimulatedActors]:
    """Let every controller that is made inside the block have simulated actors."""
    actors, module, before = SimulatedActors(folds, scores, at_once), CONTROLLER, CONTROLLER.RayActorManager
    module.RayActorManager = lambda resource_manager: actors
    try:
        yield actors
    finally:
        module.RayActorManager = before


def dashboard_seconds(path: str) -> float:
    """Return how long the dashboard of the connected cluster takes to answer; raises OSError where it does not."""
    token = Path("~/.ray/auth_token").expanduser()
    headers = {"Authorization": f"Bearer {token.read_text(encoding='utf-8').strip()}"} if token.is_file() else {}
    url = f"http://{ray._private.worker.get_dashboard_url()}{path}"
    began = time.monotonic()
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        answer.read()
    return time.monotonic() - began
