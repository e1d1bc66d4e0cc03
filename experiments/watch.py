"""Watch a study or a run go on, from anywhere that sees its folder: the live table, without the cluster.

    python experiments/watch.py output/study_dfew
    python experiments/watch.py /shared/pretrain --once      # as it stands now; exit code 1 if it seems dead

In a terminal the table is live; elsewhere lines come when something has changed. It ends when the study or run does.
What has left no record for `silent_seconds` is said to seem dead, with the command that goes on.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from pydantic import BaseModel, Field
from rich.console import Group
from rich.live import Live
from rich.text import Text

from mien.platform.config import dump, parse, run_program
from mien.platform.progress import plain_table, rich_table, terminal
from mien.platform.watching import View, Watch


class WatchConfig(BaseModel, frozen=True, extra="forbid"):
    """What is watched, and how often."""

    folder: str = Field(
        "output/study_dfew", description="folder of a study or of a run; may be given as the first word"
    )
    seconds: float = Field(2.0, gt=0, description="seconds from one look to the next")
    silent_seconds: float = Field(
        600.0, gt=0, description="seconds without a new record after which it seems dead; more than a fold's validation"
    )


def lines(view: View, silent_seconds: float) -> list[str]:
    """Return a view as plain lines; they change when something has happened."""
    warning = view.warning(silent_seconds)
    return [view.title, *plain_table(view.rows), *view.lines, *([warning] if warning else [])]


def picture(view: View, silent_seconds: float) -> Group:
    """Return a view for a terminal."""
    warning = view.warning(silent_seconds)
    title = f"{view.title} · {view.status()}"
    parts = [rich_table(view.rows, title) if view.rows else Text(title), *map(Text, view.lines)]
    return Group(*parts, *([Text(warning, "bold red")] if warning else []))


def watch(config: WatchConfig) -> None:
    """Show the folder until it is finished."""
    watching, shown = Watch(Path(config.folder)), list[str]()
    with Live() if terminal() else nullcontext() as live:
        while not (view := watching.look()).finished:
            show(view, config.silent_seconds, shown, live)
            time.sleep(config.seconds)
        show(view, config.silent_seconds, shown, live)
        print(view.status(), flush=True)


def show(view: View, silent_seconds: float, shown: list[str], live: Live | None) -> None:
    """Show a view in a terminal or, elsewhere, the lines that are not among those `shown` last, and keep them."""
    if live is not None:
        live.update(picture(view, silent_seconds))
        return
    now = lines(view, silent_seconds)
    for line in now:
        if line not in shown:
            print(line, flush=True)
    shown[:] = now


def main(argv: Sequence[str]) -> None:
    """Read the command line and watch."""
    call = parse(WatchConfig, argv, __doc__, first="folder", flags={"once": "show how it stands, and stop"})
    if call.dry_run:
        print(dump(call.config))
        return
    if "once" not in call.flags:
        watch(call.config)
        return
    view = Watch(Path(call.config.folder)).look()
    print("\n".join([*lines(view, call.config.silent_seconds), view.status()]))
    if view.warning(call.config.silent_seconds):
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
