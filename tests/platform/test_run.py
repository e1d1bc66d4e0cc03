"""The run folder belongs to one config, and its records are those of a run that was never interrupted."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mien.platform import checkpoint
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
    assert found.keys() == {"commit", "command", "seed", "started", "versions", "host", "platform", "cpus", "devices"}


def test_the_same_config_goes_on_and_keeps_what_was_said_first(tmp_path: Path) -> None:
    Run.start(tmp_path, CONFIG, seed=7, command="first")
    for command in ("second", "third"):
        Run.start(tmp_path, CONFIG, seed=7, command=command)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert [found["command"], *(start["command"] for start in found["resumed"])] == ["first", "second", "third"]


class Earlier(BaseModel, extra="forbid"):
    """A program's settings, before an update."""

    lr: float = 1e-5


class Later(Earlier):
    """And after it."""

    clip: float | None = None


def test_a_folder_of_an_earlier_version_goes_on_where_new_settings_keep_their_defaults(tmp_path: Path) -> None:
    Run.start(tmp_path, Earlier(lr=0.5), seed=7)
    Run.start(tmp_path, Later(lr=0.5), seed=7)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"lr": 0.5, "clip": None}
    for other, told in ((Later(lr=0.5, clip=1.0), "clip: None there, 1.0 given"), (Later(), "lr: 0.5 there, 1e-05")):
        with pytest.raises(RunError, match=told):
            Run.start(tmp_path, other, seed=7)
    with pytest.raises(RunError, match="clip: None there, absent given"):  # back to a version that lacks it
        Run.start(tmp_path, Earlier(lr=0.5), seed=7)


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


def test_a_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        for step in (1, 2):
            run.log({"step": step, "loss": 2.0})
            assert len(records(tmp_path / "metrics.jsonl")) == step


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


COMMAND = "python experiments/pretrain.py --output x"


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)  # the handler runs between two instructions


def test_ctrl_c_says_where_the_state_is_and_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    for kept, said in ((None, "no checkpoint yet"), (run.checkpoints / "step_00000005", "step_00000005")):
        monkeypatch.setattr(checkpoint, "newest", lambda folder, kept=kept: kept)
        with pytest.raises(SystemExit) as caught, interruptible(run, COMMAND):
            press_ctrl_c()
        assert caught.value.code == 130
        last = capsys.readouterr().err.splitlines()[-1]
        assert said in last and last.endswith(f"; resume with: {COMMAND}")


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "file:///run"])
def test_an_address_is_no_run_folder(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for output in (Path(address), Path(address).absolute()):
        with pytest.raises(RunError, match=r"is an address.*--output on NFS"):
            Run.start(output, CONFIG, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_a_program_of_many_runs_says_what_it_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), interruptible(Run(tmp_path), COMMAND, kept="finished folds are kept"):
        press_ctrl_c()
    assert capsys.readouterr().err == f"\nfinished folds are kept; resume with: {COMMAND}\n"


def test_the_first_ctrl_c_waits_for_the_step_and_the_second_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []
    with pytest.raises(SystemExit) as caught, interruptible(Run(tmp_path), COMMAND, between_steps=True) as interrupt:
        assert not interrupt.asked
        press_ctrl_c()
        done.append(interrupt.asked)
        press_ctrl_c()
        done.append("not reached")
    assert done == [True]
    assert caught.value.code == 130
    assert "finishing this step; Ctrl-C again stops at once" in capsys.readouterr().err


def test_other_errors_pass_and_the_handler_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="mine"), interruptible(Run(tmp_path), between_steps=True):
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_ends_a_program_as_ctrl_c_does_with_a_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, interruptible(Run(tmp_path), COMMAND):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert caught.value.code == 143 and capsys.readouterr().err.endswith(f"; resume with: {COMMAND}\n")
    with pytest.raises(SystemExit) as caught, interruptible(Run(tmp_path), between_steps=True) as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert interrupt.asked
        raise interrupt.error()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
