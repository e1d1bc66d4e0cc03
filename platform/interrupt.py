"""How a program, a worker or a fold is told to save its state or to stop: by SIGTERM, or because its node will end.

Nothing here needs Ray or PyTorch.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LAST_SECONDS = 20.0  # before a node's end, when what runs there saves once more


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which a scheduler or a machine that shuts down asks a program to end."""


@dataclass
class Interrupt:
    """What a training run was asked for between two steps: to save its state soon, or to stop after saving it."""

    asked: bool = False  # to stop: save, and raise KeyboardInterrupt
    save: bool = False  # to save and go on; cleared by whoever did
    terminated: bool = False  # it was SIGTERM that asked
    steps: int = 0  # that were made since the start; who asks can see that they go on

    def stop(self) -> None:
        """Ask to stop, as SIGTERM does."""
        self.asked = self.terminated = True

    def error(self) -> KeyboardInterrupt:
        """Return what is to be raised after stopping."""
        return Terminated() if self.terminated else KeyboardInterrupt()


@contextmanager
def on_sigterm(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` when SIGTERM comes; elsewhere than in the main thread, which alone can, nothing changes.

    Ray replaces a handler that was set before it was started.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_now() -> None:
    """Raise Terminated."""
    raise Terminated


TOLD = Interrupt()  # this process's, where a training is run by what was started for it


@dataclass
class Notice:
    """That this node is to be taken away: what runs there saves when it hears of that, and once more near the end."""

    heard: set[str] = field(default_factory=set)

    def hear(self, nodes: str, deadline_ms: int | None) -> None:
        """Take a notice, as often as it is seen; the deadline is in milliseconds since 1970, if there is one."""
        left = None if not deadline_ms else deadline_ms / 1000 - time.time()
        for word, due in (("drained", True), ("soon", left is not None and left < LAST_SECONDS)):
            if due and word not in self.heard:
                self.heard.add(word)
                TOLD.save = True
                when = "" if left is None else f", in {max(left, 0):.0f} s"
                print(f"node(s) {nodes} will be taken away{when}: saving", flush=True)
