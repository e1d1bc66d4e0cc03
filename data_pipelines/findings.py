"""What an audit has found: one rule that the data break, or one thing to know about them."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Severity = Literal["error", "warning", "note"]  # a score is wrong · a score may mislead · to be known
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SHOWN = 20  # examples that a finding keeps


@dataclass(frozen=True)
class Finding:
    """One line of an audit's table."""

    check: str  # short name of what was looked at: subjects, duplicates, classes, ...
    severity: Severity
    what: str
    count: int | None = None  # of what `what` speaks of; None where nothing is counted
    examples: tuple[str, ...] = ()
    remedy: str = ""


def some(examples: Iterable[str]) -> tuple[str, ...]:
    """Return the first few examples, as a finding keeps them."""
    return tuple(islice(examples, SHOWN))


def listing(names: Iterable[object]) -> str:
    """Return names as a list in words."""
    return ", ".join(map(str, names))
