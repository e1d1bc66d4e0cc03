"""Silence is noticed, and told with who stands where; steps that go on are not."""

import threading
import time
from pathlib import Path

from mien.platform import watchdog
from mien.platform.watchdog import Pulse, Watchdog, cause, forget


def stand_still(ready: threading.Event, go: threading.Event, found: list[Pulse], folder: Path) -> None:
    found.append(Pulse(folder, 2, seconds=0.05))
    ready.set()
    go.wait(30)


def test_a_thread_that_makes_no_step_is_told_with_its_line_and_forgotten_when_it_goes_on(tmp_path: Path) -> None:
    ready, go, found = threading.Event(), threading.Event(), list[Pulse]()
    thread = threading.Thread(target=stand_still, args=(ready, go, found, tmp_path))
    thread.start()
    assert ready.wait(30)
    (pulse,) = found
    pulse.look(3)
    assert Watchdog(tmp_path, 0.05).silence() is None
    time.sleep(0.1)
    pulse.look(3)
    said = Watchdog(tmp_path, 0.05).silence()
    assert said is not None and "worker 2 on " in said and "after 3 step(s)" in said and "stand_still" in said
    assert "trainer.silence_seconds" in said
    pulse.look(4)
    assert Watchdog(tmp_path, 0.05).silence() is None
    go.set()
    thread.join(30)


def test_a_process_without_signs_of_life_is_told_and_one_that_goes_on_is_not(tmp_path: Path) -> None:
    dog, pulse = Watchdog(tmp_path, 0.2), Pulse(tmp_path, 0, seconds=60)
    pulse.look(0)
    for _ in range(5):
        dog.looked = -watchdog.BEAT_SECONDS
        pulse.touched = -watchdog.BEAT_SECONDS
        pulse.look(0)
        assert dog.silence() is None
        time.sleep(0.1)
    time.sleep(0.3)
    dog.looked = -watchdog.BEAT_SECONDS
    said = dog.silence()
    assert said is not None and said.startswith("worker 0 has given no sign of life")


def test_who_waits_for_others_is_not_the_cause() -> None:
    waiting = {"rank": 0, "host": "a", "steps": 7, "stack": ["train (loop.py:1)", "all_reduce (x.py:2)"]}
    reading = {"rank": 1, "host": "b", "steps": 7, "stack": ["train (loop.py:1)", "read (nfs.py:9)"]}
    said = cause([waiting, reading])
    assert "worker 1 on b after 7 step(s)" in said and "read (nfs.py:9) < train" in said
    assert "worker 0" not in said and "1 other(s) wait" in said
    said = cause([waiting, waiting | {"rank": 1}])
    assert "worker 0" in said and "worker 1" in said and "wait for one another" in said


def test_signs_of_workers_that_a_start_with_fewer_lacks_are_removed(tmp_path: Path) -> None:
    for name in ("alive_0", "alive_3", "silent_2.json", "started_3"):
        (tmp_path / name).touch()
    forget(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive_0", "started_3"]
