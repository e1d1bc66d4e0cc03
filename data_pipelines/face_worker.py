"""Footages cropped in a process of their own, so that no file can end, hang or bloat the one that asked.

FFmpeg and OpenCV are written in C, and raw footage comes from anywhere. The process is watched: it says that it goes on
at least every second, is ended when it has been silent for long, and has a bound on its memory. What it was working on
then gets a record with the reason, and a new process goes on with the next footage.
"""

import json
import os
import resource
import selectors
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from pydantic import BaseModel, Field

from mien.data_pipelines import faces
from mien.data_pipelines.face_detector import DETECTORS, DetectorMissingError
from mien.data_pipelines.faces import FacesConfig
from mien.data_pipelines.isolation import last_words, reader

BEAT_SECONDS = 1.0
READY = b"+"
EXIT_MISSING, EXIT_OUTPUT = 3, 4  # exit codes for what no other footage would change: no detector, no place to write
PROGRAM = "from mien.data_pipelines.face_worker import child; child()"


class GuardConfig(BaseModel, frozen=True, extra="forbid"):
    """What one footage may take."""

    silent_seconds: float = Field(
        120.0, gt=0, description="longest time without a new frame, seconds; then it is ended"
    )
    memory_gib: float = Field(4.0, gt=0, description="memory of the process that reads footage, GiB")


class WorkerError(ValueError):
    """The process cannot work at all, whatever the footage: it does not start, or cannot write."""


class Job(NamedTuple):
    """One footage: where it is, and its name in the output."""

    source: str
    name: str


def crop_all(jobs: Sequence[Job], output: Path, config: FacesConfig, guard: GuardConfig) -> None:
    """Crop footages one after another; afterwards each has its record.

    Raises DetectorMissingError and WorkerError.
    """
    left = list(jobs)
    while left:
        reason = _run(left, output, config, guard)
        made = {job: faces.made_from(Path(job.source), config) for job in left}
        done = [(faces.read_record(output, job.name) or {}).get("made_from") == made[job] for job in left]
        left = left[done.index(False) :] if False in done else []
        if left:  # the process ended while it worked on the first of them
            about = {"name": left[0].name, "made_from": made[left[0]], "state": "unreadable"}
            faces.write_record(output, about | {"reason": reason, "tracks": []})
            left = left[1:]


def _run(jobs: Sequence[Job], output: Path, config: FacesConfig, guard: GuardConfig) -> str:
    """Start a process for `jobs` and wait for its end; return why it ended."""
    task = {"jobs": jobs, "output": str(output), "config": config.model_dump(), "memory_gib": guard.memory_gib}
    with tempfile.TemporaryFile() as errors:
        process = reader(PROGRAM, errors)
        with process:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(task).encode())
                process.stdin.close()
                ready, silent = _listen(process.stdout, guard.silent_seconds)
            finally:
                process.kill()  # nothing that we wait for is left in it
            code = process.wait()
        told = last_words(code, errors)
    if silent:
        return f"gave no new frame for guard.silent_seconds={guard.silent_seconds:g}"
    if code == EXIT_MISSING:
        raise DetectorMissingError(told)
    if code == EXIT_OUTPUT:
        raise WorkerError(f"crops must be written below {output}, but that failed: {told}; make room, and run it again")
    if not ready:
        raise WorkerError(f"the process that crops faces does not start: {told}; is guard.memory_gib too small?")
    return f"ended the process that read it: {told}"


def _listen(stream: IO[bytes], seconds: float) -> tuple[bool, bool]:
    """Read until the other end closes, or says nothing for `seconds`; return whether it was ready and fell silent."""
    ready = False
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while selector.select(seconds):
            heard = os.read(stream.fileno(), 4096)
            if not heard:
                return ready, False
            ready = ready or READY in heard
    return ready, True


def child() -> None:
    """Be the process: read the task from standard input, crop, and write a dot for every second that it goes on."""
    task = json.load(sys.stdin)
    most = int(task["memory_gib"] * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    config, output = FacesConfig.model_validate(task["config"]), Path(task["output"])
    try:
        detector = DETECTORS[config.detector](config.tracks.keep_score)
    except DetectorMissingError as error:
        sys.stderr.write(str(error))
        sys.stderr.flush()
        os._exit(EXIT_MISSING)
    os.write(1, READY)
    last = 0.0

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_SECONDS:
            last = time.monotonic()
            os.write(1, b".")

    for source, name in task["jobs"]:
        try:
            faces.process(Path(source), name, output, config, detector, beat)
        except OSError as error:  # of reading, it would be in the record
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            os._exit(EXIT_OUTPUT)
