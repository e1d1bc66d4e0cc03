"""The account of clips says exactly what was learned from, and what is wrong with it."""

import json
from pathlib import Path

import pytest
import torch

from mien.platform import used
from mien.platform.used import Used


def account(folder: Path, lines: dict[int, list[tuple[int, list[int]]]]) -> None:
    (folder / "clips").mkdir(parents=True)
    for rank, steps in lines.items():
        text = "".join(json.dumps({"step": step, "rows": rows}) + "\n" for step, rows in steps)
        (folder / "clips" / f"rank_{rank}.jsonl").write_text(text)


def test_a_worker_notes_the_batch_that_its_step_took_and_forgets_what_is_done_again(tmp_path: Path) -> None:
    notes = Used(tmp_path, rank=1)
    batches = [{"row": torch.tensor([2 * step, 2 * step + 1])} for step in range(3)]
    for step, _ in enumerate(notes.noted(batches), start=1):
        notes.write(step)
    assert used.steps(tmp_path) == {1: [0, 1], 2: [2, 3], 3: [4, 5]}
    Used.truncate_after(tmp_path, 1)
    assert used.steps(tmp_path) == {1: [0, 1]}


def test_epochs_in_which_each_clip_comes_once_are_right_whatever_their_order_and_workers(tmp_path: Path) -> None:
    account(tmp_path, {0: [(1, [3]), (2, [0]), (3, [2])], 10: [(3, [3])], 2: [(1, [1]), (2, [2])]})
    assert used.steps(tmp_path) == {1: [3, 1], 2: [0, 2], 3: [2, 3]}
    assert used.wrong(tmp_path, range(4), total_steps=3, batch_size=2) == []


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([(1, [0, 1])], "step 2 is not in the account"),
        ([(1, [0, 1]), (2, [2, 3]), (2, [2, 3])], "step 2 has 4 clips, not 2"),
        ([(1, [0, 1]), (2, [1, 3])], "epoch 0 has 1 clips more than once and 1 never"),
        ([(1, [0, 1]), (2, [2, 3]), (3, [0, 0])], "step 3 is in the account of 2 steps"),
    ],
)
def test_what_is_lost_or_learned_twice_is_said(tmp_path: Path, steps: list[tuple[int, list[int]]], words: str) -> None:
    account(tmp_path, {0: steps})
    assert words in used.wrong(tmp_path, range(4), total_steps=2, batch_size=2)
