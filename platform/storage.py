"""Writing that fails clearly: a full disk, a read-only folder or a missing permission is said with its remedy.

What is written here is either there whole or not at all: to a temporary name, to the disk, then renamed.
"""

import errno
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(OSError):
    """The folder could not be written to; the message says why and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def storing(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn the errors of writing below `folder` into a StorageError; `needed` bytes are looked for first."""
    try:
        if needed is not None and needed > free_bytes(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(error.errno, explain(folder, error, needed)) from error


def explain(folder: Path, error: OSError, needed: int | None) -> str:
    """Say what is wrong with a folder, in words for whoever started the program."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        size = "" if needed is None else f"{readable(needed)} needed, "
        rule = f"the disk is full: {size}{readable(free_bytes(folder))} free"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        rule = f"the folder cannot be written to ({os.strerror(error.errno)})"
    else:
        rule = f"writing failed ({error})"
    return f"{folder}: {rule}; put that right and run the same command to go on, or give another --output"


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that holds, or would hold, a folder."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def readable(count: float) -> str:
    """Write a number of bytes as a person would."""
    power = min(int(math.log2(max(count, 1))) // 10, 4)
    return f"{count / 1024**power:.{min(power, 1)}f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader, and a crash, sees the old one or the new one and nothing between."""
    with storing(path.parent):
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
