"""The account of a run: which clips each optimiser step learned from, so that anyone can count them.

`clips/rank_<r>.jsonl` holds a line a step and worker, `{"step": 7, "rows": [...]}` with the manifest's lines, written
after the step was taken. A run that goes on from a checkpoint forgets what came after it, like every other record; so
the account is that of the steps that made the weights, whoever died on the way.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mien.platform.loop import Batch
from mien.platform.run import append, cut, records
from mien.platform.storage import storing

FOLDER = "clips"


class Used:
    """What one worker writes of the account."""

    def __init__(self, output: Path, rank: int) -> None:
        self._path = output / FOLDER / f"rank_{rank}.jsonl"
        self._rows: list[int] = []

    def noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, keeping the lines of the last one in mind."""
        for batch in batches:
            self._rows = batch["row"].tolist()
            yield batch

    def write(self, step: int) -> None:
        """Write down that the last batch was learned from; raises StorageError."""
        with storing(self._path.parent):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        append(self._path, {"step": step, "rows": self._rows})

    @staticmethod
    def truncate_after(output: Path, step: int) -> None:
        """Forget the steps after `step`, of all workers that there ever were."""
        for path in (output / FOLDER).glob("rank_*.jsonl"):
            cut(path, "step", step + 1)


def steps(output: Path) -> dict[int, list[int]]:
    """Return the manifest lines of each step, in the order of the workers; a step that stands twice has them twice."""
    found: dict[int, list[int]] = {}
    for path in sorted((output / FOLDER).glob("rank_*.jsonl"), key=lambda path: int(path.stem.removeprefix("rank_"))):
        for line in records(path):
            found.setdefault(line["step"], []).extend(line["rows"])
    return dict(sorted(found.items()))


def wrong(output: Path, rows: Sequence[int], total_steps: int, batch_size: int) -> list[str]:
    """Return what is wrong with an account, a sentence each: nothing where each epoch has each of `rows` once.

    The last epoch may be unfinished. For runs whose clips can all be read, one of each video (`num_samples`).
    """
    by_step, wanted = steps(output), set(rows)
    found = [f"step {step} is not in the account" for step in range(1, total_steps + 1) if step not in by_step]
    for step, here in by_step.items():
        if step > total_steps:
            found.append(f"step {step} is in the account of {total_steps} steps")
        if len(here) != batch_size:
            found.append(f"step {step} has {len(here)} clips, not {batch_size}")
    line = [row for here in by_step.values() for row in here]
    for epoch, first in enumerate(range(0, len(line), len(rows))):
        seen = Counter(line[first : first + len(rows)])
        twice = sum(count > 1 for count in seen.values())
        never = len(wanted - seen.keys()) if first + len(rows) <= len(line) else 0
        if twice or never:
            found.append(f"epoch {epoch} has {twice} clips more than once and {never} never")
    return found
