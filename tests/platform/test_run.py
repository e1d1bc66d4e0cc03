"""The run folder belongs to one config, and its records are those of a run that was never interrupted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mien.platform.run import Run, RunError, config_hash, interruptible, records
from mien.platform.storage import StorageError

CONFIG: dict[str, Any] = {"optim": {"lr": 1e-5, "betas": (0.9, 0.999)}, "task": {"name": "tiny"}, "steps": None}


def test_a_run_folder_says_with_what_and_by_which_command_it_was_made(tmp_path: Path) -> None:
    Run.start(tmp_path / "run", CONFIG, seed=7, command="python experiments/x.py 'a b'")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {
        "optim": {"lr": 1e-5, "betas": [0.9, 0.999]},
        "task": {"name": "tiny"},
        "steps": None,
    }
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["seed"] == 7
    assert found["command"] == "python experiments/x.py 'a b'"
    assert found["versions"].keys() == {"mien", "python", "ray", "torch", "numpy", "optuna"}
    assert found.keys() == {"commit", "command", "seed", "started", "versions", "platform", "cpus", "devices"}


def test_the_same_config_goes_on_and_keeps_what_was_said_first(tmp_path: Path) -> None:
    Run.start(tmp_path, CONFIG, seed=7, command="first")
    for command in ("second", "third"):
        Run.start(tmp_path, CONFIG, seed=7, command=command)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert [found["command"], *(start["command"] for start in found["resumed"])] == ["first", "second", "third"]


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    Run.start(tmp_path, CONFIG, seed=7)
    kept = (tmp_path / "config.yaml").read_bytes()
    other = {"optim": {"lr": 2e-5, "betas": (0.9, 0.999)}, "task": {"name": "tiny", "alpha": 1}, "steps": None}
    with pytest.raises(RunError) as caught:
        Run.start(tmp_path, other, seed=7)
    said = str(caught.value)
    assert "optim.lr: 1e-05 there, 2e-05 given" in said
    assert "task.alpha: absent there, 1 given" in said
    assert "betas" not in said and "steps" not in said and "another --output" in said
    assert (tmp_path / "config.yaml").read_bytes() == kept


def test_a_config_is_named_by_its_content_alone() -> None:
    turned = {key: CONFIG[key] for key in reversed(CONFIG)}
    assert config_hash(CONFIG) == config_hash(turned) == config_hash(json.loads(json.dumps(CONFIG)))
    assert config_hash(CONFIG) != config_hash({**CONFIG, "steps": 1})


def test_records_get_their_splits_name_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.log({"step": 1, "loss": 2.5, "lr": 1e-4})
        run.log({"step": 1, "uar": 0.5, "gap": float("nan"), "none": None}, split="val")
        run.dropped({"row": 3, "reason": "truncated"})
    assert records(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 2.5, "train/lr": 1e-4},
        {"step": 1, "val/uar": 0.5, "val/gap": None, "val/none": None},
    ]
    assert records(tmp_path / "dropped.jsonl") == [{"row": 3, "reason": "truncated"}]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes() and b"val/gap" not in events.read_bytes()


def test_a_record_is_on_disk_when_the_program_is_killed_at_once(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from mien.platform.run import Run
Run(Path({str(tmp_path)!r})).log({{"step": 1, "loss": 2.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert records(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 2.0}]


def test_resuming_forgets_what_came_after_and_a_line_cut_short(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step, "loss": step})
        run.dropped({"row": 0, "position": step * 8})
    run.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/l')
    run = Run(tmp_path)
    run.truncate_after(2, position=16)
    run.log({"step": 3, "loss": 30.0})
    run.close()
    assert [record["train/loss"] for record in records(tmp_path / "metrics.jsonl")] == [1, 2, 30]
    assert [record["position"] for record in records(tmp_path / "dropped.jsonl")] == [8]


def test_a_trial_appears_among_the_hyper_parameters(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        run.hparams({"optim.lr": 1e-3, "regions": [2, 5]}, {"uar": 0.5})
    (events,) = (tmp_path / "tensorboard" / "trial").iterdir()
    assert b"optim.lr" in events.read_bytes()


def test_an_output_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/run: writing failed .*another --output"):
        Run.start(tmp_path / "file" / "run", CONFIG, seed=0)


def test_a_full_disk_while_logging_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=f"{tmp_path}: the disk is full"):
        Run(tmp_path).log({"step": 1, "loss": 1.0})


STOPPED = """
import signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from mien.platform import checkpoint
from mien.platform.run import Run, interruptible
run = Run(Path({folder!r}))
if {saves}:
    from test_checkpoint import trained
    checkpoint.save(run.checkpoints, 5, *trained(), {{}})
with interruptible(run, "python experiments/pretrain.py --output x", between_steps={between_steps}) as interrupt:
    print("ready", flush=True)
    while not interrupt.asked:
        time.sleep(0.01)
    checkpoint.save(run.checkpoints, 6, *trained(), {{}})
    raise KeyboardInterrupt
"""


@pytest.mark.parametrize(
    ("saves", "between_steps", "said"),
    [
        (True, False, "step_00000005; resume"),
        (True, True, "step_00000006; resume"),
        (False, False, "no checkpoint yet"),
    ],
)
def test_ctrl_c_says_where_the_state_is_and_how_to_go_on(
    saves: bool, between_steps: bool, said: str, tmp_path: Path
) -> None:
    program = STOPPED.format(
        tests=str(Path(__file__).parent), folder=str(tmp_path), saves=saves, between_steps=between_steps
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said in stderr.splitlines()[-1]
    assert stderr.endswith("resume with: python experiments/pretrain.py --output x\n")
    assert "Traceback" not in stderr


def test_other_errors_pass_and_the_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"), interruptible(Run(tmp_path), between_steps=True):
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is before
