"""Which clip a data task was at when its process ended, so that the task's next attempt can pass it over.

Ray runs a task again whose process died, without end, and a clip that no process survives would be tried for ever. So a
task writes down what it is about to read, in a small file on its machine; the next attempt finds it there. A clip at
which two attempts ended is given up with a DecodeError, like any other that cannot be read. Two, because a process may
end for other reasons, such as a machine out of memory. A clip that hangs ends its process after twice the time that
its decoder would allow it. Files of tasks that ended well are removed, and those of tasks that never came again,
because what wanted their clips was gone too, by whichever task begins there an hour later.
"""

import faulthandler
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from mien.data_pipelines import shards
from mien.data_pipelines.video_files import DecodeError, time_limit

DEATHS = 2  # attempts that may end at a clip
FORGOTTEN_SECONDS = 3600.0  # since the last clip of a task that has not come again: it never will
_BEGUN, _DONE = b"=", b"."  # lines between the clips' names: an attempt begins; the clip named before was survived


class Attempts:
    """The attempts of one data task, `name`, which no other task of any run has.

    An id of Ray's is no such name: the next cluster on a machine, or one beside it, gives the same ones again.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self._file = (folder or Path(tempfile.gettempdir()) / f"mien-attempts-{os.getuid()}") / name
        self._deaths: Counter[bytes] = Counter()
        self._log = -1

    def __enter__(self) -> "Attempts":
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for note in self._file.parent.iterdir():
            with suppress(FileNotFoundError):  # its task has just ended
                if note != self._file and note.stat().st_mtime < time.time() - FORGOTTEN_SECONDS:
                    note.unlink()
        self._log = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        lines = os.read(self._log, self._file.stat().st_size + 1).splitlines()
        ends = [last for last, following in pairwise([*lines, _BEGUN]) if following == _BEGUN]
        self._deaths.update(last for last in ends if last not in (_BEGUN, _DONE))
        os.write(self._log, _BEGUN + b"\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._log)
        self._file.unlink(missing_ok=True)

    @contextmanager
    def at(self, clip: int, path: str | Path) -> Iterator[Callable[[], None]]:
        """Read clip number `clip`, the file `path`; raises DecodeError where that ended the process too often.

        Yields what is to be called when work on a long clip goes on: its time then begins anew.
        """
        name = str(clip).encode()
        if self._deaths[name] >= DEATHS:
            raise DecodeError(path, f"ended the process that read it, or hung, {DEATHS} times: it is given up")
        os.write(self._log, name + b"\n")
        seconds = 2 * time_limit(shards.size(path))

        def goes_on() -> None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=2)

        goes_on()
        try:
            yield goes_on
        finally:
            faulthandler.cancel_dump_traceback_later()
            os.write(self._log, _DONE + b"\n")
