"""watch.py: in a terminal and elsewhere, alive, finished and dead."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mien.experiments import watch
from mien.platform.config import settings

WORDS = ["seconds=0.1", "silent_seconds=100"]


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """The folder of a run of two steps, of which one is done."""
    (tmp_path / "config.yaml").write_text("{loop: {steps: 2, batch_size: 4}}", encoding="utf-8")
    (tmp_path / "environment.json").write_text('{"command": "python experiments/pretrain.py"}', encoding="utf-8")
    step(tmp_path, 1)
    return tmp_path


def step(folder: Path, number: int) -> None:
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": number, "train/loss": 0.5}) + "\n")


def test_once_tells_how_it_stands_and_fails_where_it_seems_dead(
    running: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch.main([str(running), "--once", *WORDS])
    assert capsys.readouterr().out.startswith(f"run {running.name}: step 1/2 · loss 0.5\nlast record 0:0")
    for path in running.iterdir():
        os.utime(path, (time.time() - 200, time.time() - 200))
    with pytest.raises(SystemExit) as ended:
        watch.main([str(running), "--once", *WORDS])
    assert ended.value.code == 1
    assert "it seems dead" in capsys.readouterr().out


def test_it_goes_on_until_the_run_is_finished_and_prints_what_is_new(
    running: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def rest(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            step(running, 2)

    monkeypatch.setattr(watch.time, "sleep", rest)
    watch.main([str(running), *WORDS])
    assert looks == [0.1] * 3
    name = f"run {running.name}: step"
    assert capsys.readouterr().out == f"{name} 1/2 · loss 0.5\n{name} 2/2 · loss 0.5\nfinished\n"


def test_it_needs_neither_ray_nor_pytorch(running: Path) -> None:
    words = f"import sys; from mien.experiments import watch; watch.main([{str(running)!r}, '--once'])"
    loaded = "sys.exit(not sys.modules.keys().isdisjoint({'ray', 'torch'}))"
    subprocess.run([sys.executable, "-c", f"{words}; {loaded}"], check=True, timeout=100)


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        importlib.import_module("mien.experiments.watch").main(["--help"])
    shown = capsys.readouterr().out
    assert "--once" in shown and all(f"  {setting.key} (" in shown for setting in settings(watch.WatchConfig))
