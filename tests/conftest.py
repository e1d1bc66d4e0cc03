"""What all tests share: one Ray cluster a session, fast tests first, and a bound on every test's time."""

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType

import pytest

from mien.data_pipelines import isolation
from mien.platform.cluster import ClusterConfig, connect

# A shell that starts this in its background makes it ignore Ctrl-C, and all its children with it; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Seconds after which a test is ended with the line it stood on; generous, for a machine that is shared.
SECONDS = {"plain": 120, "ray": 480, "smoke": 900, "gpu": 600, "cluster": 2400}


def kind(item: pytest.Item) -> str:
    """Return the slowest kind a test is marked as."""
    return next((name for name in ("cluster", "smoke", "ray", "gpu") if item.get_closest_marker(name)), "plain")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what fails fast first; the order within a kind is kept."""
    items.sort(key=lambda item: ("plain", "gpu", "ray", "smoke", "cluster").index(kind(item)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End a test that takes too long: by an exception in it or, if it is deaf to that, by ending the session."""
    limit = SECONDS[kind(item)]

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{item.nodeid} took more than {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    faulthandler.dump_traceback_later(limit + 60, exit=True)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def descendants(pid: int) -> set[int]:
    """Return the process ids of all living children of `pid`, and of their children."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command's name stands in brackets and may hold anything; state and parent follow it.
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we were looking
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Return those of `pids` that still run (a zombie does not)."""
    running = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.add(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return running


def wait_until_gone(pids: set[int], seconds: float = 30) -> set[int]:
    """Wait until none of `pids` runs; return those that still do when the time is over."""
    until = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.1)
    return alive(pids)


class Processes:
    """How tests watch over the processes they start."""

    living = staticmethod(descendants)
    wait_until_gone = staticmethod(wait_until_gone)

    @staticmethod
    def end(pids: set[int]) -> None:
        """End what is left of `pids`; Ray's two agents, for one, stay for a minute after their node was killed."""
        for pid in alive(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def processes() -> Processes:
    """Return what lists, awaits and ends child processes."""
    return Processes()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Be connected to one local cluster of four logical CPUs, which ends with the session and leaves nothing behind."""
    resource_tracker.ensure_running()  # a process pool starts it, and it stays until we end: not one of Ray's
    before = descendants(os.getpid())
    with connect(ClusterConfig(num_cpus=4, object_store_gib=0.5)):
        yield
        isolation.close()  # processes that read files wait for more as long as this one lives: they are not Ray's
        started = descendants(os.getpid()) - before
    left = wait_until_gone(started)
    assert not left, f"processes of the test cluster outlived it: {sorted(left)}"
