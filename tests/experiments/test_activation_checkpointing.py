"""Runs with loop.activation_checkpointing end with the weights of runs without, stopped or on two workers too."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mien.experiments import finetune
from mien.models.backbone import BackboneConfig, Task
from mien.models.blocks import Blocks
from mien.models.expression import Expression, ExpressionConfig
from mien.platform import checkpoint, config
from mien.platform.loop import LoopConfig, start, train
from mien.platform.optim import OptimConfig
from mien.platform.run import Interrupt

ON = "loop.activation_checkpointing"
ENCODER = {"name": "lgi_former", "width": 16, "depth": 3, "heads": 2, "region": [2, 2, 2], "drop_path": 0.5}
BACKBONE = {"tubes": {"frames": 4, "size": 16, "patch": 4, "tubelet": 2}, "encoder": ENCODER}


def test_a_stopped_and_resumed_run_ends_with_the_same_weights_to_the_bit(
    recipes: dict[str, Path], tmp_path: Path
) -> None:
    changes = {"task.backbone.encoder.depth": 3, "drop_path": 0.5, "loop.steps": 4}
    plain = config.load(finetune.FinetuneConfig, recipes["finetune"], changes)
    saving = config.with_overrides(plain, {ON: True})
    finetune.finetune(plain, tmp_path / "plain")
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(saving, tmp_path / "saving", interrupt=Interrupt(asked=True))
    finetune.finetune(saving, tmp_path / "saving")
    expected, found = (checkpoint.weights(tmp_path / name) for name in ("plain", "saving"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def small_task() -> Task:
    torch.manual_seed(0)
    return Expression(ExpressionConfig(backbone=BackboneConfig.model_validate(BACKBONE), head_scale=1.0))


def trained(loop: LoopConfig, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    task = small_task()
    optim = OptimConfig(lr=1e-2, warmup_steps=1, scale_lr=False)
    state = start(task, loop, optim)
    assert all(part.recompute == loop.activation_checkpointing for part in task.modules() if isinstance(part, Blocks))
    wrapped: Any = DistributedDataParallel(task) if world > 1 else task
    drawn = torch.Generator().manual_seed(0)
    batch = {
        "clip": torch.randint(256, (8, 4, 16, 16, 3), dtype=torch.uint8, generator=drawn)[rank::world],
        "label": torch.arange(8)[rank::world] % 7,
    }
    list(train(wrapped, state, [batch] * 3, loop, optim, num_clips=24, rank=rank))
    return {name: value.clone() for name, value in task.state_dict().items()}


def worker(rank: int, folder: Path) -> None:
    """Train twice on every second clip, beside another worker: with all activations kept, and with few."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    loop = LoopConfig(steps=3, batch_size=8, accumulate=2)
    kept, run_again = (trained(loop.model_copy(update={"activation_checkpointing": on}), rank, 2) for on in (0, 1))
    torch.save({"kept": kept, "run again": run_again}, folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # shutting down in turn, gloo's threads can abort a process whose work is done and written


def test_two_workers_take_the_same_steps_in_bf16(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found["run again"][name], value) for name, value in found["kept"].items())


def test_the_next_training_of_the_same_task_keeps_everything_again() -> None:
    task = small_task()
    for on in (True, False):
        start(task, LoopConfig(activation_checkpointing=on), OptimConfig())
        assert task.backbone.encoder.blocks.recompute == on


def test_a_task_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear has no part with `recompute`"):
        start(nn.Linear(2, 2), LoopConfig(activation_checkpointing=True), OptimConfig())
