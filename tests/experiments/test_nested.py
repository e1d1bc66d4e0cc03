"""Trials of several workers: a real study of them ends, and Ray has everything back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.ray
def test_a_study_of_trials_on_two_workers_ends_and_leaves_nothing_reserved(tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "nested.py"), "--output", str(tmp_path)]
    # Two at a time take every CPU, so that whatever is kept back would make the third wait for ever.
    ended = subprocess.run(
        [*program, "trials=3", "steps=3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=440,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    found = json.loads((tmp_path / "nested.json").read_text())
    assert sum(found["trials"].values()) == 3 and found["trials"].get("failed", 0) == 0
    assert found["left"] == []
    # Each worker learned from its half of every batch.
    (first, second) = sorted(next(tmp_path.glob("study/trials/*/fold_1/clips")).iterdir())
    lines = [[json.loads(line) for line in path.read_text().splitlines()] for path in (first, second)]
    assert [[(line["step"], len(line["rows"])) for line in part] for part in lines] == [[(1, 4), (2, 4), (3, 4)]] * 2
