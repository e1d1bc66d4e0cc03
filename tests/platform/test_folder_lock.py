"""One process at a time writes in a folder, and one that was killed stands in nobody's way."""

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mien.platform import folder_lock
from mien.platform.folder_lock import FILE, FolderLock, LockedError
from mien.platform.run import Run, RunError
from mien.platform.storage import StorageError

# Starts a run, says so, and ends when it is told to.
DRIVER = """
import sys
from pathlib import Path
from mien.platform.run import Run
with Run.start(Path(sys.argv[1]), {"lr": 0.1}, seed=0):
    print("has it", flush=True)
    sys.stdin.readline()
print("gave it back", flush=True)
sys.stdin.readline()
"""
# The same, after starting what may be started meanwhile: a fork that lives on, and a program that is given all files.
PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from mien.platform.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
forked = os.fork()
if not forked:
    time.sleep(60)
    os._exit(0)
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
print(forked, started.pid, flush=True)
sys.stdin.readline()
"""
# A fork that opens another file and then leaves the block, as an exception in it does.
FORKED = """
import os, sys
from pathlib import Path
from mien.platform.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1])) as lock:
    child = os.fork()
    if not child:
        other = os.open(Path(sys.argv[1]) / "other", os.O_RDWR)
        lock.release()
        os._exit(other != lock._handle)
    print(os.waitpid(child, 0)[1], flush=True)
    sys.stdin.readline()
"""
# As a program on a cluster of its own.
WITH_RAY = """
import sys
from pathlib import Path
import ray
from mien.platform.cluster import ClusterConfig, connect
from mien.platform.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1])), connect(ClusterConfig(num_cpus=1, object_store_gib=0.1)):
    ray.get(ray.remote(lambda: 1).remote())
    print("worked", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def program(text: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a program with a folder; it is killed at the end if it still runs."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), str(folder)], stdin=pipe, stdout=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a second one say at once that it is refused."""
    monkeypatch.setattr(folder_lock, "ENDING_SECONDS", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_second_program_is_refused_with_who_has_the_folder_until_the_first_gives_it_back(tmp_path: Path) -> None:
    with program(DRIVER, tmp_path) as first:
        assert line(first) == "has it"
        who = rf"process {first.pid} on {re.escape(socket.gethostname())} since 20\S+ \(it is 20\S+\)"
        said = rf"^one program at a time writes in a folder, but .* is written to by {who}.*wait.*kill {first.pid};"
        with pytest.raises(LockedError, match=re.compile(said, re.IGNORECASE)):
            Run.start(tmp_path, {"lr": 0.1}, seed=0)
        assert "resumed" not in json.loads((tmp_path / "environment.json").read_text()), "the refused one wrote nothing"
        assert Run(tmp_path).output == tmp_path  # who reads needs nothing
        go_on(first)
        assert line(first) == "gave it back"
        Run.start(tmp_path, {"lr": 0.1}, seed=0).close()


@pytest.mark.usefixtures("impatient")
def test_the_folder_of_a_killed_program_is_free_at_once_though_its_children_live_on(
    tmp_path: Path, processes: Any
) -> None:
    with program(PARENT, tmp_path) as first:
        children = {int(word) for word in line(first).split()}
        try:
            with pytest.raises(LockedError):
                FolderLock(tmp_path)
            first.kill()
            first.wait()
            assert json.loads((tmp_path / FILE).read_text())["pid"] == first.pid  # as a killed one leaves it
            with FolderLock(tmp_path):
                assert all(Path(f"/proc/{child}").exists() for child in children)
        finally:
            processes.end(children)


@pytest.mark.ray
def test_no_process_of_ray_gets_the_lock(tmp_path: Path, processes: Any) -> None:
    with program(WITH_RAY, tmp_path) as first:
        assert line(first) == "worked"
        started = processes.living(first.pid)
        assert len(started) >= 3  # Ray's store of states, its node, a worker
        held = {first.pid: 0} | dict.fromkeys(started, 0)
        for pid in held:
            for file in Path(f"/proc/{pid}/fd").glob("*"):
                held[pid] += os.path.realpath(file) == str(tmp_path / FILE)
        go_on(first)
        first.wait(60)
    assert held.pop(first.pid) == 1 and not any(held.values())
    processes.end(processes.wait_until_gone(started))


def test_one_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    with program(DRIVER, tmp_path) as first:
        assert line(first) == "has it"
        began, ending = time.monotonic(), threading.Timer(0.5, first.kill)
        ending.start()
        with FolderLock(tmp_path):
            assert time.monotonic() - began >= 0.5
        ending.join()


def test_one_on_another_host_is_waited_for_as_long_as_its_lock_may_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder_lock, "ENDING_SECONDS", 0.0)
    monkeypatch.setattr(folder_lock, "LEASE_SECONDS", 0.5)
    with FolderLock(tmp_path) as held:
        held._write(json.dumps({"host": "far", "pid": 7, "since": "yesterday"}))
        began = time.monotonic()
        with pytest.raises(LockedError, match="process 7 on far since yesterday"):
            FolderLock(tmp_path)
        assert time.monotonic() - began >= 0.5
    assert capsys.readouterr().out.count("waiting up to 0.5 s in case it is ending") == 1


@pytest.mark.usefixtures("impatient")
def test_a_run_that_was_refused_for_its_config_leaves_the_folder_free(tmp_path: Path) -> None:
    Run.start(tmp_path, {"lr": 0.1}, seed=0).close()
    with pytest.raises(RunError) as kept:
        Run.start(tmp_path, {"lr": 0.2}, seed=0)
    with Run.start(tmp_path, {"lr": 0.1}, seed=0) as run:
        run.log({"step": 1, "loss": 0.5})
        run.truncate_after(1)  # which begins new events, and is not the end
        with pytest.raises(LockedError):
            FolderLock(tmp_path)
    FolderLock(tmp_path).release()
    assert "lr" in str(kept.value)


def test_storage_without_locks_is_said_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with FolderLock(tmp_path):
        assert "has no locks (No locks available)" in capsys.readouterr().out


def test_storage_that_fails_is_not_taken_for_one_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(handle: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        FolderLock(tmp_path)


def test_what_is_forked_cannot_give_back_the_lock_or_harm_a_file_that_has_its_number(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    with program(FORKED, tmp_path) as first:
        assert line(first) == "0"
        assert (tmp_path / "other").read_text() == "kept"
        assert json.loads((tmp_path / FILE).read_text())["pid"] == first.pid
