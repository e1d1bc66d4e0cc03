"""Checkpoints written while training goes on: a copy is taken between two steps, and a thread writes it.

At most one is in flight: the next begins when the one before is on the disk, so memory holds one copy and checkpoints
appear in their order. What goes wrong in the thread is raised by the next call. The files are those that
`checkpoint.save` would have written.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from mien.platform import checkpoint
from mien.platform.loop import LoopState


class Saver:
    """Writes the checkpoints of one run, in the background or before it goes on; leaving it waits for the last."""

    def __init__(self, folder: Path, about: Mapping[str, Any], *, background: bool) -> None:
        self._folder, self._about, self._background = folder, about, background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds = 0.0  # that writing the last one took

    def save(self, task: nn.Module, state: LoopState) -> None:
        """Write the state of this step; of one that is still being written the end is waited for first."""
        self.wait()
        taken = checkpoint.snapshot(task, state, copy=self._background)
        self._thread = threading.Thread(target=self._write, args=(state.step, taken), name="checkpoint")
        self._thread.start()
        del taken  # the thread alone holds the copy, and lets it go
        if not self._background:
            self.wait()

    def busy(self) -> bool:
        """Return whether one is being written."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what went wrong, without waiting."""
        if not self.busy():
            self.wait()

    def wait(self) -> None:
        """Return when everything is on the disk; raises StorageError."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None:  # that error is the one to be told
            self._thread.join()

    def _write(self, step: int, taken: checkpoint.Snapshot) -> None:
        began = time.perf_counter()
        try:
            checkpoint.write(self._folder, step, taken, self._about)
            self.seconds = time.perf_counter() - began
        except BaseException as error:  # noqa: BLE001  (raised again, in the thread that trains)
            self._error = error
