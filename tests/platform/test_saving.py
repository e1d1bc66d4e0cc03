"""Checkpoints that are written in the background are those that training would have waited for."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mien.platform import checkpoint, saving
from mien.platform.loop import LoopConfig, LoopState, start, train
from mien.platform.optim import OptimConfig
from mien.platform.saving import Saver
from mien.platform.storage import StorageError

LOOP = LoopConfig(steps=9, batch_size=2, precision="fp32", ema_decay=0.9)
OPTIM = OptimConfig(warmup_steps=0, lr=0.1, scale_lr=False)


class TinyTask(torch.nn.Module):
    num_layers = 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)

    def parameter_layers(self) -> dict[str, int]:
        return {name: 1 for name, _ in self.named_parameters()}

    def undecayed(self) -> set[str]:
        return set()

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(batch["clip"]).square().mean()}


def steps(task: TinyTask, state: LoopState) -> Any:
    batch = {"clip": torch.ones(2, 4)}
    return train(task, state, [batch] * 9, LOOP, OPTIM, num_clips=2)


class Slow:
    """A disk on which a checkpoint is written when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let, self.writing, self.most = threading.Semaphore(0), 0, 0
        write = checkpoint.write

        def slow(*args: Any) -> Path:
            self.writing += 1
            self.most = max(self.most, self.writing)
            assert self.let.acquire(timeout=20)
            path = write(*args)
            self.writing -= 1
            return path

        monkeypatch.setattr(saving.checkpoint, "write", slow)


def test_what_is_written_later_is_the_state_of_its_step_and_one_is_in_flight_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, disk = TinyTask(), Slow(monkeypatch)
    state = start(task, LOOP, OPTIM)
    kept = {}
    with Saver(tmp_path / "there", {"a": 1}, background=True) as saver:
        for record in steps(task, state):
            if record["step"] in (3, 6):
                kept[record["step"]] = {name: value.clone() for name, value in task.state_dict().items()}
                if record["step"] == 6:
                    disk.let.release()  # the first is waited for before the second begins
                saver.save(task, state)
        assert not (tmp_path / "there" / "step_00000006").exists()
        disk.let.release()
    assert disk.most == 1
    monkeypatch.undo()
    for step, weights in kept.items():
        path = tmp_path / "there" / f"step_{step:08d}"
        assert all(torch.equal(value, weights[name]) for name, value in checkpoint.weights(path).items())
    # Going on from it is going on: the optimiser's moments and the average are those of the step, too.
    again = TinyTask()
    resumed = start(again, LOOP, OPTIM)
    assert checkpoint.restore(tmp_path / "there" / "step_00000006", again, resumed) == {"a": 1}
    list(train(again, resumed, [{"clip": torch.ones(2, 4)}] * 3, LOOP, OPTIM, num_clips=2))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in task.state_dict().items())
    assert state.ema is not None and resumed.ema is not None
    assert all(torch.equal(value, resumed.ema[name]) for name, value in state.ema.items())


def test_what_fails_in_the_background_is_raised_and_the_older_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TinyTask()
    state = start(task, LOOP, OPTIM)
    running = steps(task, state)
    next(running)
    with Saver(tmp_path, {}, background=True) as saver:
        saver.save(task, state)
        saver.wait()
        next(running)
        monkeypatch.setattr(
            saving.checkpoint, "write_tensors", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
        )
        saver.save(task, state)
        with pytest.raises(StorageError, match="the disk is full"):
            saver.wait()
        saver.check()  # said once
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    saver.save(task, state)
    with pytest.raises(StorageError, match="the disk is full"), saver:
        pass


def test_an_error_of_training_is_told_before_one_of_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TinyTask()
    state = start(task, LOOP, OPTIM)
    next(steps(task, state))
    monkeypatch.setattr(saving.checkpoint, "write", lambda *args: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(ValueError, match="the loss"), Saver(tmp_path, {}, background=True) as saver:
        saver.save(task, state)
        raise ValueError("the loss must be finite")
