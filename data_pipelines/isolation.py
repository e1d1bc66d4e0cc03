"""Files looked at in processes of their own, so that no file can end, hang or bloat the program that asked.

The decoders are written in C, and files come from anywhere. A process reads one file after another and is kept for
more; one that ends, or takes longer or more memory than a file may, costs that file and nothing else: it gets its
reason, and a new process goes on. Preparing and auditing read this way, because they meet every file first; footage is
cropped likewise (`face_worker`), and data tasks of Ray, which are processes already, have `attempts`.
"""

import atexit
import os
import pickle
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from mien.data_pipelines import shards
from mien.data_pipelines.video_files import DecodeError, time_limit

MEMORY_BYTES = 4 * 2**30  # of a process that reads files
START_SECONDS = 120.0  # until it must be ready, however busy the machine is
PROGRAM = "from mien.data_pipelines.isolation import child; child()"
_LENGTH_BYTES = 8

_Result = TypeVar("_Result")
_idle: list["_Child"] = []
_lock = threading.Lock()


class IsolationError(ValueError):
    """A process that reads files cannot be started at all."""


class _EndedError(Exception):
    """The process ended or fell silent; the text says how."""


def isolated(path: str | Path, function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Return function(*arguments), called in another process, about the file `path`; both travel pickled.

    Raises DecodeError where the function does, and where the process ends or takes too long.
    """
    with _lock:
        child = _idle.pop() if _idle else None
    child = child or _Child()
    try:
        # The decoder's own limit comes first.
        result = child.call((function, arguments), time_limit(shards.size(path)) * 2)
    except _EndedError as error:
        child.end()
        raise DecodeError(path, str(error)) from error
    except BaseException:
        child.end()
        raise
    with _lock:
        _idle.append(child)
    if isinstance(result, MemoryError):
        raise DecodeError(path, f"takes more than {MEMORY_BYTES / 2**30:g} GiB of memory to read")
    if isinstance(result, DecodeError):
        raise result
    return result


def close() -> None:
    """End the processes that wait for files."""
    with _lock:
        children, _idle[:] = list(_idle), []
    for child in children:
        child.end()


atexit.register(close)


def reader(program: str, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process that runs a line of Python to read files; it has pipes, and a file for its last words."""
    # It must find this package as we do, also where Ray has put it into a folder of its own.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    environment |= {"OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "SILENT"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=errors, env=environment)


def last_words(code: int, errors: IO[bytes]) -> str:
    """Return the last line that a process left of itself, or else its exit code."""
    errors.seek(0)
    told = errors.read()[-2000:].decode(errors="replace").strip()
    return told.splitlines()[-1] if told else f"exit code {code}"


class _Child:
    """A process that calls functions."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self._process = reader(PROGRAM, self._errors)
        try:
            self._answer(START_SECONDS)
        except _EndedError as error:
            self.end()
            raise IsolationError(f"a process that reads files must start, but it does not: {error}") from error

    def call(self, work: tuple[Callable[..., Any], tuple[Any, ...]], seconds: float) -> Any:
        """Return what a function answers; raises _EndedError."""
        assert self._process.stdin is not None
        try:
            _send(self._process.stdin, work)
        except BrokenPipeError as error:
            raise self._ended() from error
        return self._answer(seconds)

    def end(self) -> None:
        """Kill it: nothing that anybody waits for is left in it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):  # it did not read all
                    stream.close()

    def _answer(self, seconds: float) -> Any:
        stream = self._process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:  # plain select takes no file number above 1023
            selector.register(stream, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise _EndedError(f"did not answer for {seconds:.0f} s, and the process that read it was ended")
        try:
            return pickle.loads(_received(stream))
        except EOFError as error:
            raise self._ended() from error

    def _ended(self) -> _EndedError:
        return _EndedError(f"ended the process that read it: {last_words(self._process.wait(), self._errors)}")


def child() -> None:
    """Be the process: call what comes from standard input, and answer on standard output."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the program that asked ends it
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _send(output, None)
    while True:
        try:
            function, arguments = pickle.loads(_received(sys.stdin.buffer))
        except EOFError:
            return
        try:
            answer = function(*arguments)
        except DecodeError as error:
            answer = error
        except MemoryError as error:
            answer = error
        _send(output, answer)


def _send(stream: BinaryIO | Any, what: Any) -> None:
    content = pickle.dumps(what)
    stream.write(len(content).to_bytes(_LENGTH_BYTES, "little") + content)
    stream.flush()


def _received(stream: BinaryIO | Any) -> bytes:
    """Read what `_send` wrote; raises EOFError where the other end is gone."""
    length = int.from_bytes(_exactly(stream, _LENGTH_BYTES), "little")
    return _exactly(stream, length)


def _exactly(stream: BinaryIO | Any, length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return bytes(content)
