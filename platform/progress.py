"""Progress for whoever waits: live where there is a terminal, else plain lines now and then.

A line says how much is done, the rate, the time left and whatever values the caller gives (`loss 0.52`). Live parts may
be nested, a table of trials above the bar of steps.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rich
from rich.live import Live
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0
BAR_LETTERS = 16

Row = Mapping[str, Any]


class Progress:
    """How far one piece of work is; made by `progress`."""

    def __init__(self, label: str, total: int | None, unit: str, done: int, quiet: bool = False) -> None:
        self.label, self.total, self.unit, self.done, self.quiet = label, total, unit, done, quiet
        self.values: dict[str, Any] = {}
        self._before, self._began = done, time.monotonic()
        self._next_line = self._began + SECONDS_BETWEEN_LINES

    def advance(self, count: int = 1, **values: Any) -> None:
        """Count what was done, and give values to show beside it."""
        self.done += count
        self.values |= values
        if not self.quiet and not terminal() and time.monotonic() >= self._next_line:
            print(self.line(), flush=True)
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def line(self) -> str:
        """Return the state as text."""
        seconds = time.monotonic() - self._began
        rate = (self.done - self._before) / seconds if seconds > 0 else 0.0
        parts = [f"{self.label} {self.done:,}" + ("" if self.total is None else f"/{self.total:,}") + f" {self.unit}"]
        parts.append(f"{text(rate)} {self.unit}/s")
        if self.total is not None and self.done < self.total:
            parts.append(f"{clock((self.total - self.done) / rate)} left" if rate else "time left unknown")
        else:
            parts.append(f"took {clock(seconds)}")
        return " · ".join(parts + [f"{name} {text(value)}" for name, value in self.values.items()])

    def __rich__(self) -> Text:
        full = BAR_LETTERS * min(self.done, self.total or 0) // (self.total or 1)
        rest = BAR_LETTERS - full
        parts = (("━" * full, "green"), ("━" * rest, "bright_black"), " ", self.line())
        return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


@contextmanager
def progress(
    label: str, total: int | None = None, unit: str = "steps", done: int = 0, quiet: bool = False
) -> Iterator[Progress]:
    """Show how the work inside advances; `done` of it was there before, as after a resume; `quiet` shows nothing."""
    bar = Progress(label, total, unit, done, quiet)
    if quiet:
        yield bar
    elif terminal():
        with Live(bar):
            yield bar
    else:
        try:
            yield bar
        finally:
            print(bar.line(), flush=True)


@contextmanager
def live_table(title: str) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Yield a function that shows all rows, each time it is called; where nothing is live, only rows that are new."""
    if terminal():
        with Live() as live:
            yield lambda rows: live.update(rich_table(rows, title))
    else:
        shown: list[Row] = []  # by value: a row does not come again because a column has become wider

        def show(rows: Sequence[Row]) -> None:
            new = [row for row in rows if row not in shown]
            lines = plain_table(rows)
            heading = [] if shown and rows and list(shown[0]) == list(rows[0]) else lines[:1]
            for line in heading + [line for row, line in zip(rows, lines[1:], strict=True) if row in new]:
                print(line, flush=True)
            shown[:] = rows

        yield show


def table(rows: Sequence[Row], title: str = "") -> None:
    """Print rows as a table; the first row's keys are its columns."""
    if terminal():
        rich.print(rich_table(rows, title))
    else:
        print("\n".join([*([title] if title else []), *plain_table(rows)]), flush=True)


def rich_table(rows: Sequence[Row], title: str) -> Table:
    """Return rows as a table for a terminal."""
    made = Table(title=title, title_justify="left", box=rich.box.SIMPLE_HEAD)
    for name in rows[0] if rows else ():
        numbers = all(isinstance(row.get(name), int | float | None) for row in rows)
        made.add_column(name, justify="right" if numbers else "left")
    for row in rows:
        made.add_row(*(text(row.get(name)) for name in rows[0]))
    return made


def plain_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table, columns aligned."""
    if not rows:
        return []
    cells = [list(rows[0]), *([text(row.get(name)) for name in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def text(value: Any) -> str:
    """Write a value as briefly as it can be read."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def clock(seconds: float) -> str:
    """Write a time as 3:05 or 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def terminal() -> bool:
    """Say whether standard output can show something live."""
    console = rich.get_console()
    return console.is_terminal and not console.is_dumb_terminal
