"""One program at a time writes in a folder; two would write into each other's records.

Who writes holds a lock (`flock`) on the file `lock` there, and so it needs no tidying up: the kernel takes the lock
back when its process ends, however it ends, and the same command goes on at once. Processes that are started meanwhile
do not get it, or they would hold it longer than the one that was killed. Who only reads needs none.

On NFS (3 with its lock daemon, or 4) the server keeps the lock, and so it holds between hosts. Of a host that was lost
it is kept for another minute or two, for which the next one waits. Lustre has to be mounted with `-o flock`. An address
(s3://…) is no run folder (`Run.start` refuses it), and in a folder that object storage is mounted as (s3fs, rclone,
Mountpoint) the lock holds within one host at best: between hosts it is then for you to see that one program runs.
Where there is no lock at all, a line says so.
"""

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from mien.platform.storage import storing

FILE = "lock"
LOOK_SECONDS = 0.2
ENDING_SECONDS = 20.0  # that a process of this host may take to end once Ray's node, or its driver, was killed
LEASE_SECONDS = 150.0  # for a host that was lost; servers of NFS wait 90 for such a one by themselves
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what storage says that has none
_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()  # by this process


class LockedError(ValueError):
    """Another process writes in the folder."""


class FolderLock:
    """The right to write in a folder that is there, until `release`, or nobody has this object, or the process ends.

    Raises LockedError where another process has it, after waiting for what may be ending just now, and StorageError
    where the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with storing(folder):
            self._handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        self._end = weakref.finalize(self, os.close, self._handle)
        _held.add(self)
        try:
            self._take()
            here = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
            with storing(folder):
                self._write(json.dumps(here) + "\n")
        except BaseException:
            self._end()
            raise

    def release(self) -> None:
        """Let others write there."""
        if self._end.alive:
            try:
                with storing(self.folder):
                    self._write("")
            finally:
                self._end()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _take(self) -> None:
        began, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):  # what NFS says of a lock that somebody has
                pass
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    with storing(self.folder):
                        raise
                print(
                    f"note: {self.folder} has no locks ({error.strerror}), so nothing stops a second program from "
                    "writing there: see that only this one runs",
                    flush=True,
                )
                return
            holder = self._holder()
            seconds = ENDING_SECONDS if holder.get("host") == socket.gethostname() else LEASE_SECONDS
            if time.monotonic() - began > seconds:
                raise LockedError(_refused(self.folder, holder))
            if not told:
                told = True
                print(f"{_written(self.folder, holder)}; waiting up to {seconds:g} s in case it is ending", flush=True)
            time.sleep(LOOK_SECONDS)

    def _holder(self) -> dict[str, Any]:
        text = os.pread(self._handle, 4096, 0).decode(errors="replace")
        try:
            found: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError:  # it has the lock since just now, and is about to write who it is
            return {}
        return found

    def _write(self, text: str) -> None:
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _written(folder: Path, holder: dict[str, Any]) -> str:
    who = "process {pid} on {host} since {since}".format(**holder) if holder else "a process that does not say its name"
    return f"{folder} is written to by {who} (it is {_now()})"


def _refused(folder: Path, holder: dict[str, Any]) -> str:
    stop = f", or stop it there (kill {holder['pid']}; it saves its state first)" if holder else ""
    return (
        f"one program at a time writes in a folder, but {_written(folder, holder)}. Wait until it has ended{stop}, and "
        "run the same command to go on; or give another --output"
    )


def _let_go() -> None:
    for lock in list(_held):
        lock._end()


# What is started by `exec` loses it by O_CLOEXEC; a process that is only forked loses it here.
os.register_at_fork(after_in_child=_let_go)
