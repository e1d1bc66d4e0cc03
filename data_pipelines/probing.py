"""What readers of raw datasets share: files looked at side by side, and the error for a layout that is not there.

Here files are met for the first time, so each is looked at in another process, with limits (`isolation`).
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from mien.data_pipelines.decode import DecodeError, Probe, probe
from mien.data_pipelines.isolation import isolated
from mien.data_pipelines.manifest import Rejected
from mien.data_pipelines.threads import in_order

FILES_PER_PROCESS = 32  # below this, a process costs more to start than it saves
Progress = Callable[[int, int], None]  # files looked at so far, files in all


class DatasetError(ValueError):
    """A dataset on disk is not as its reader needs it; the text says where it looked and what to do."""


def probe_all(
    paths: Iterable[str], root: Path, threads: int, progress: Progress | None = None
) -> dict[str, Probe | DecodeError]:
    """Return length and size of every path under `root`, or why it cannot be read."""
    paths = list(dict.fromkeys(paths))
    threads = min(threads, 1 + len(paths) // FILES_PER_PROCESS)

    def look(path: str) -> Probe | DecodeError:
        if printable(path) != path:
            return DecodeError(printable(path), "has a name that is not UTF-8, which no manifest can hold: rename it")
        try:
            return isolated(root / path, probe, root / path)
        except DecodeError as error:
            return error

    found: dict[str, Probe | DecodeError] = {}
    for path, result in zip(paths, in_order(look, paths, threads, ahead=8 * threads), strict=True):
        found[path] = result
        if progress:
            progress(len(found), len(paths))
    return found


def printable(path: str) -> str:
    """Return a path with what is not UTF-8 in it as escapes: Linux takes any bytes for a name."""
    return path.encode("utf-8", "backslashreplace").decode()


def listed(rejected: list[Rejected]) -> str:
    """Return the first few rejected files for an error's text, each on a line with its reason."""
    shown = "".join(f"\n  {path}: {reason}" for path, reason in rejected[:5])
    return shown + (f"\n  and {len(rejected) - 5} more" if len(rejected) > 5 else "")
