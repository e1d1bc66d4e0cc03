"""A checkpoint is whole or does not count, is of this model or is refused, and never runs code."""

import json
import os
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mien.platform import checkpoint, storage
from mien.platform.checkpoint import CheckpointError
from mien.platform.loop import LoopConfig, LoopState, start, train, weights_of
from mien.platform.optim import OptimConfig
from mien.platform.storage import StorageError

OPTIM = OptimConfig(warmup_steps=0)


class TinyTask(nn.Module):
    num_layers = 1

    def __init__(self, classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.block = nn.Linear(4, width)
        self.again = self.block
        self.head = nn.Linear(width, classes)
        self.register_buffer("table", torch.ones(2), persistent=False)

    def parameter_layers(self) -> dict[str, int]:
        return {name: 1 for name, _ in self.named_parameters()}

    def undecayed(self) -> set[str]:
        return set()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.head(self.block(batch["clip"])), batch["label"])}


def trained(ema: float | None = None, classes: int = 3, seed: int = 0) -> tuple[TinyTask, LoopState]:
    """A task after one step."""
    torch.manual_seed(seed)
    config = LoopConfig(steps=1, batch_size=2, precision="fp32", ema_decay=ema)
    task = TinyTask(classes)
    state = start(task, config, OPTIM)
    batch = {"clip": torch.randn(2, 4), "label": torch.tensor([0, 1])}
    list(train(task, state, [batch], config, OPTIM, num_clips=2))
    return task, state


def test_a_checkpoint_says_what_it_is_of_and_holds_its_weights_once(tmp_path: Path) -> None:
    task, state = trained(ema=0.5)
    about = {"config": {"task": {"name": "tiny"}}, "classes": ["a", "b"], "manifest": "0123"}
    path = checkpoint.save(tmp_path / "checkpoints", 123, task, state, about)
    assert path == tmp_path / "checkpoints" / "step_00000123"
    assert sorted(file.name for file in path.iterdir()) == [
        "complete",
        "config.json",
        "ema.safetensors",
        "loop.pt",
        "weights.safetensors",
    ]
    # A checkpoint, the folder of checkpoints and the run folder mean the same.
    for place in (path, path.parent, tmp_path):
        assert checkpoint.about(place) == about
        assert checkpoint.weights(place).keys() == {"block.weight", "block.bias", "head.weight", "head.bias"}
    assert torch.equal(checkpoint.weights(path)["head.weight"], task.head.weight)
    assert state.ema is not None
    assert torch.equal(checkpoint.weights(path, ema=True)["head.weight"], state.ema["head.weight"])


def test_only_the_newest_are_kept_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    task, state = trained()
    for step in (9, 99_999_999, 100_000_000, 5_000_000_000):
        checkpoint.save(tmp_path, step, task, state, {}, keep=2)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step_100000000", "step_5000000000"]
    assert checkpoint.newest(tmp_path) == tmp_path / "step_5000000000"


def test_what_a_run_left_beyond_the_step_it_went_on_from_is_removed(tmp_path: Path) -> None:
    task, state = trained()
    for step in (5, 10, 6):
        checkpoint.save(tmp_path, step, task, state, {}, keep=2)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step_00000005", "step_00000006"]


def damage_flip(path: Path) -> None:
    file = path / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def damage_cut(path: Path) -> None:
    os.truncate(path / "loop.pt", 100)


def damage_remove(path: Path) -> None:
    (path / "config.json").unlink()


def damage_marker(path: Path) -> None:
    (path / "complete").write_text("{")


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_remove, damage_marker])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(damage: Any, tmp_path: Path) -> None:
    task, state = trained()
    before, last = (checkpoint.save(tmp_path, step, task, state, {}) for step in (1, 2))
    damage(last)
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append) == before
    assert len(said) == 1 and str(last) in said[0] and "going back" in said[0]
    with pytest.warns(UserWarning, match="step_00000002"):
        checkpoint.newest(tmp_path)
    for use in (checkpoint.weights, lambda path: checkpoint.restore(path, task, state)):
        with pytest.raises(CheckpointError, match=r"corrupt|not whole"):
            use(last)


def test_a_folder_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") is None
    with pytest.raises(CheckpointError, match="holds none"):
        checkpoint.weights(tmp_path)
    with pytest.raises(CheckpointError, match="not whole"):
        checkpoint.restore(tmp_path / "step_00000001", *trained())


def test_another_model_is_refused_with_names_and_both_shapes_and_nothing_is_changed(tmp_path: Path) -> None:
    task, state = trained()
    path = checkpoint.save(tmp_path, 1, task, state, {})
    other, other_state = trained(classes=5, seed=1)
    before = {name: value.clone() for name, value in weights_of(other).items()}
    with pytest.raises(CheckpointError, match=r"head\.weight is \(3, 8\) there and \(5, 8\) here; head\.bias is"):
        checkpoint.restore(path, other, other_state)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(other).items())

    other.extra = nn.Linear(2, 2)
    other.head = nn.Linear(8, 3)
    del other.block
    with pytest.raises(CheckpointError, match=r"block\.weight only there; .*extra\.weight only here"):
        checkpoint.restore(path, other, other_state)


def test_an_average_is_neither_lost_nor_made_up(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, *trained(), {})
    with pytest.raises(CheckpointError, match=r"has none of averaged weights and loop\.ema_decay asks for one"):
        checkpoint.restore(path, *trained(ema=0.9))
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        checkpoint.weights(path, ema=True)


def test_other_parameter_groups_are_refused(tmp_path: Path) -> None:
    task, state = trained()
    path = checkpoint.save(tmp_path, 1, task, state, {})
    task.head.requires_grad_(False)
    with pytest.raises(CheckpointError, match="other parameter groups"):
        checkpoint.restore(path, task, start(task, LoopConfig(), OPTIM))


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.mkdir, ("sprung",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, state = trained()
    path = checkpoint.save(tmp_path, 1, task, state, {})
    with (path / "loop.pt").open("wb") as file:
        pickle.dump(Trap(), file, protocol=2)
    files = {file.name: {"bytes": file.stat().st_size, "crc32": checkpoint.crc32(file)} for file in path.glob("*.*")}
    (path / "complete").write_text(json.dumps(files))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="must hold plain tensors and numbers"):
        checkpoint.restore(path, task, state)
    assert not (tmp_path / "sprung").exists()


def test_a_disk_too_small_is_said_beforehand_with_both_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, state = trained()
    before = checkpoint.save(tmp_path, 1, task, state, {})
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 100)
    with pytest.raises(
        StorageError, match=rf"{tmp_path}: the disk is full: 820 bytes needed, 100 bytes free; .*--output"
    ):
        checkpoint.save(tmp_path, 2, task, state, {})
    assert [path.name for path in tmp_path.iterdir()] == [before.name]


@pytest.mark.parametrize("limit", [100, 800])
def test_a_write_that_fails_half_way_leaves_no_half_checkpoint(limit: int, tmp_path: Path) -> None:
    # A limit on the size of files fails inside safetensors (100 bytes) and torch.save (800) as a full disk does.
    task, state = trained()
    before = checkpoint.save(tmp_path, 1, task, state, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StorageError, match=f"{tmp_path}: writing failed"):
            checkpoint.save(tmp_path, 2, task, state, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [before.name]
    assert checkpoint.newest(tmp_path) == before


def test_what_a_crash_left_is_no_checkpoint_and_is_cleared_by_the_next(tmp_path: Path) -> None:
    task, state = trained()
    first = checkpoint.save(tmp_path, 1, task, state, {})
    shutil.copytree(first, tmp_path / ".step_00000002.new")
    (tmp_path / ".step_00000002.new" / "complete").unlink()
    assert checkpoint.newest(tmp_path) == first
    second = checkpoint.save(tmp_path, 3, task, state, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]


def test_a_step_saved_again_takes_the_old_ones_place(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, *trained(), {"which": "old"})
    path = checkpoint.save(tmp_path, 1, *trained(), {"which": "new"})
    assert checkpoint.about(path) == {"which": "new"}


def test_a_finished_run_keeps_its_newest_weights_alone(tmp_path: Path) -> None:
    task, state = trained(ema=0.5)
    for step in (1, 2):
        path = checkpoint.save(tmp_path / "checkpoints", step, task, state, {"config": {}})
    for _ in range(2):  # a second time changes nothing
        checkpoint.settle(tmp_path / "checkpoints")
        assert [place.name for place in checkpoint.steps(tmp_path / "checkpoints")] == ["step_00000002"]
        assert "loop.pt" not in {file.name for file in path.iterdir()}
        checkpoint.verify(path)
        assert torch.equal(checkpoint.weights(tmp_path)["head.weight"], task.head.weight)
        assert checkpoint.weights(tmp_path, ema=True) and checkpoint.about(tmp_path) == {"config": {}}
    checkpoint.settle(tmp_path / "nothing")
