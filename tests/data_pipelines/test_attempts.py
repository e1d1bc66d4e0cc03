"""A clip that ends the process of its task twice is given up with a reason; one that did so once is tried again."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mien.data_pipelines.attempts import Attempts
from mien.data_pipelines.decode import DecodeError

TASK = """
import os, sys, time
from pathlib import Path
from mien.data_pipelines import attempts
attempts.time_limit = lambda size: 0.5
with attempts.Attempts("task", Path(sys.argv[1])) as task:
    for clip in range(6):
        try:
            with task.at(clip, f"{clip}.mp4") as goes_on:
                if clip == 2:
                    os.abort()
                if clip == 4:
                    time.sleep(30)
                if clip == 5:  # it takes longer than a clip may, and says that it goes on
                    for _ in range(5):
                        time.sleep(0.3)
                        goes_on()
        except attempts.DecodeError as error:
            print(error)
"""


def test_clips_that_abort_and_hang_are_given_up_after_two_attempts_each(tmp_path: Path) -> None:
    codes, told = [], ""
    for _ in range(5):
        ended = subprocess.run(
            [sys.executable, "-c", TASK, str(tmp_path)], check=False, capture_output=True, text=True, timeout=60
        )
        codes.append(ended.returncode)
        told = ended.stdout
    assert codes == [-6, -6, 1, 1, 0]
    reason = "ended the process that read it, or hung, 2 times: it is given up"
    assert told.splitlines() == [f"2.mp4: {reason}", f"4.mp4: {reason}"]
    assert not any(tmp_path.iterdir())  # nothing is left of a task that ended well


def test_a_process_that_ends_between_clips_blames_none(tmp_path: Path) -> None:
    for _ in range(3):
        task = Attempts("task", tmp_path).__enter__()
        with task.at(0, "a.mp4"):
            pass
        # The process ends here: nothing is closed.
    with Attempts("task", tmp_path) as task, task.at(0, "a.mp4"):
        pass


def test_the_note_of_a_task_that_never_came_again_goes_after_an_hour(tmp_path: Path) -> None:
    for name, hours in (("gone", 1.1), ("just gone", 0.9), ("late", 2.0)):
        Attempts(name, tmp_path).__enter__()  # the process ends here
        os.utime(tmp_path / name, (time.time() - 3600 * hours,) * 2)
    with Attempts("late", tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["just gone", "late"]
    assert [path.name for path in tmp_path.iterdir()] == ["just gone"]


def test_an_error_of_the_clip_is_its_own(tmp_path: Path) -> None:
    with Attempts("task", tmp_path) as task:
        for _ in range(3):
            with pytest.raises(DecodeError, match="is empty"), task.at(0, "a.mp4"):
                raise DecodeError("a.mp4", "is empty")
    assert not any(tmp_path.iterdir())
