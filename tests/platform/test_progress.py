"""Progress is live in a terminal, plain lines elsewhere, and always says rate and time."""

import io
import re

import pytest
import rich
from rich.console import Console

from mien.platform import progress as module
from mien.platform.progress import clock, live_table, progress, table, text

ROWS = [
    {"alpha": 0.5, "fold": 1, "uar": None, "state": "running"},
    {"alpha": 1.0, "fold": 12, "uar": 0.512, "state": "done"},
]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 100 columns."""
    file = io.StringIO()
    monkeypatch.setattr(
        rich, "_console", Console(file=file, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    )
    return file


def test_without_a_terminal_lines_come_at_intervals_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("decoding", total=2000, unit="clips") as bar:
        for _ in range(20):
            now += 1
            bar.advance(50, loss=0.5)
        now += 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "decoding 250/2,000 clips · 50 clips/s · 0:35 left · loss 0.5",
        "decoding 500/2,000 clips · 50 clips/s · 0:30 left · loss 0.5",
        "decoding 750/2,000 clips · 50 clips/s · 0:25 left · loss 0.5",
        "decoding 1,000/2,000 clips · 50 clips/s · 0:20 left · loss 0.5",
        "decoding 1,000/2,000 clips · 47.6 clips/s · 0:21 left · loss 0.5",
    ]


def test_what_was_done_before_a_resume_does_not_count_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress("training", total=100, done=90) as bar:
        assert bar.line() == "training 90/100 steps · 0 steps/s · time left unknown"
        now = 5.0
        bar.advance(5)
        assert bar.line() == "training 95/100 steps · 1 steps/s · 0:05 left"
        bar.advance(5)
        assert bar.line() == "training 100/100 steps · 2 steps/s · took 0:05"


def test_work_of_unknown_length_has_a_rate_and_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", unit="videos") as bar:
        bar.advance(3)
    assert re.fullmatch(r"reading 3 videos · [\d.,e+]+ videos/s · took 0:00\n", capsys.readouterr().out)


def test_a_terminal_shows_bars_within_bars_and_the_table_above_them(screen: io.StringIO) -> None:
    with live_table("trials") as show:
        show(ROWS)
        with progress("fold 1", total=4) as outer, progress("decoding", total=8, unit="clips") as inner:
            inner.advance(8)
            outer.advance(2, loss=0.25)
    shown = screen.getvalue()
    for expected in ("trials", "0.512", "fold 1 2/4 steps", "loss 0.25", "decoding 8/8 clips", "━"):
        assert expected in shown


def test_without_a_terminal_a_live_table_prints_only_rows_that_are_new(capsys: pytest.CaptureFixture[str]) -> None:
    with live_table("trials") as show:
        show(ROWS[:1])
        show(ROWS[:1])
        show([ROWS[0] | {"fold": 2}])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["alpha", "fold", "uar", "state"],
        ["0.5", "1", "–", "running"],
        ["0.5", "2", "–", "running"],
    ]


def test_a_table_is_aligned_and_may_be_empty(capsys: pytest.CaptureFixture[str]) -> None:
    table(ROWS, "trials")
    table([])
    assert capsys.readouterr().out == (
        "trials\nalpha  fold  uar    state\n0.5    1     –      running\n1      12    0.512  done\n\n"
    )


def test_a_table_in_a_terminal_holds_every_cell(screen: io.StringIO) -> None:
    table(ROWS)
    assert all(cell in screen.getvalue() for cell in ("alpha", "running", "0.512", "12", "–"))


def test_values_and_times_are_brief() -> None:
    assert [text(value) for value in (1234567, 12345.6, 0.000123456, 3.14159, "a", None)] == [
        "1,234,567",
        "12,346",
        "0.000123",
        "3.14",
        "a",
        "–",
    ]
    assert [clock(seconds) for seconds in (0.4, 65, 3725)] == ["0:00", "1:05", "1:02:05"]
