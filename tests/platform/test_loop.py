"""The loop: pieces add up, a resumed run is the undisturbed one, and what is not finite stops it."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mien.platform import checkpoint
from mien.platform.loop import (
    LoopConfig,
    LoopState,
    NonFiniteError,
    averaged,
    start,
    step_seed,
    train,
    weights_of,
)
from mien.platform.optim import LEAST_NORM, OptimConfig, clip_by_share

OPTIM = OptimConfig(lr=1e-2, min_lr=1e-4, warmup_steps=2, scale_lr=False, layer_decay=0.8)


class TinyTask(nn.Module):
    """A classifier with dropout, a buffer and a module used under two names."""

    num_layers = 1

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.block = nn.Linear(8, 8)
        self.again = self.block
        self.norm = nn.BatchNorm1d(8) if dropout else nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)

    def parameter_layers(self) -> dict[str, int]:
        return {
            name: ["embed", "block"].index(name[:5]) if name[:5] in ("embed", "block") else 2
            for name, _ in self.named_parameters()
        }

    def undecayed(self) -> set[str]:
        return set()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.norm(self.again(self.dropout(self.block(self.embed(batch["clip"])).relu())))
        loss = nn.functional.cross_entropy(self.head(x).float(), batch["label"])
        return {"loss": loss, "class_loss": 2 * loss}


def make(config: LoopConfig, dropout: float = 0.5) -> tuple[TinyTask, LoopState]:
    torch.manual_seed(config.seed)
    task = TinyTask(dropout)
    return task, start(task, config, OPTIM)


def stream(first: int = 0, batch: int = 8) -> Iterator[dict[str, Tensor]]:
    step = first
    while True:
        generator = torch.Generator().manual_seed(step)
        clip = torch.randn(batch, 6, generator=generator)
        yield {"clip": clip, "label": (clip[:, 0] > 0).long() + (clip[:, 1] > 0)}
        step += 1


def run(task: nn.Module, state: LoopState, config: LoopConfig, steps: int = 10, batch: int = 8) -> list[dict[str, Any]]:
    records = []
    for record in train(task, state, stream(state.step, batch), config, OPTIM, num_clips=80):
        records.append(record)
        if record["step"] == steps:
            break
    return records


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in records]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_ten_steps_equal_five_and_a_restart_and_five_bit_for_bit(precision: Any, tmp_path: Path) -> None:
    config = LoopConfig(steps=10, batch_size=8, precision=precision, ema_decay=0.9, clip_grad=1.0, seed=3)
    task, state = make(config)
    whole = run(task, state, config)

    first, first_state = make(config)
    halves = run(first, first_state, config, steps=5)
    path = checkpoint.save(tmp_path, 5, first, first_state, {})
    second, second_state = make(config.model_copy(update={"seed": 999}))
    checkpoint.restore(path, second, second_state)
    halves += run(second, second_state, config)

    assert timeless(halves) == timeless(whole)
    for name, value in weights_of(task).items():
        assert torch.equal(value, weights_of(second)[name]), name
        assert state.ema is not None and second_state.ema is not None
        assert torch.equal(state.ema[name], second_state.ema[name]), name


def test_pieces_of_any_size_add_up_to_the_whole_batch() -> None:
    results = []
    for accumulate in (1, 3):
        config = LoopConfig(steps=4, batch_size=8, precision="fp32", accumulate=accumulate)
        task, state = make(config, dropout=0)
        results.append((run(task, state, config), weights_of(task)))
    (whole, weights), (pieces, weights_of_pieces) = results
    for expected, found in zip(timeless(whole), timeless(pieces), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    for name, value in weights.items():
        assert torch.allclose(value, weights_of_pieces[name], atol=1e-5), name


def test_more_pieces_than_clips_is_one_clip_a_piece_and_no_clip_is_an_error() -> None:
    config = LoopConfig(steps=4, batch_size=8, precision="fp32", accumulate=5)
    task, state = make(config, dropout=0)
    assert len(run(task, state, config, batch=2)) == 4
    task, state = make(config, dropout=0)
    with pytest.raises(ValueError, match=r"none of this worker's could be read; see dropped\.jsonl"):
        run(task, state, config, batch=0)


def test_a_record_holds_the_means_of_the_tasks_scalars_and_the_rates() -> None:
    config = LoopConfig(steps=4, batch_size=8, precision="fp32")
    task, state = make(config)
    records = run(task, state, config)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["lr"] for record in records[:3]] == [0, 1e-2, 1e-2]
    for record in records:
        assert record["class_loss"] == pytest.approx(2 * record["loss"])
        assert record["skipped"] == 0
        assert 0 <= record["wait_seconds"] <= record["seconds"]
        assert record["grad_norm"] > 0


def test_the_clipped_step_is_smaller_and_the_norm_before_it_is_recorded() -> None:
    norms = []
    for clip_grad in (None, 1e-3):
        config = LoopConfig(steps=1, batch_size=8, precision="fp32", clip_grad=clip_grad)
        task, state = make(config, dropout=0)
        optim = OPTIM.model_copy(update={"warmup_steps": 0})
        (record,) = train(task, state, stream(), config, optim, num_clips=80)
        norms.append(record["grad_norm"])
        left = torch.stack([value.grad.norm() for value in task.parameters() if value.grad is not None]).norm()
        assert left == pytest.approx(min(record["grad_norm"], clip_grad or math.inf), rel=1e-2)
    assert norms[0] == norms[1]


def test_gradients_are_clipped_to_a_share_of_the_weights_of_each_unit() -> None:
    matrix, bias, still = (nn.Parameter(torch.ones(shape)) for shape in ((2, 4), (3,), (2,)))
    matrix.grad = torch.tensor([[3.0] * 4, [0.01] * 4])
    bias.grad = torch.tensor([0.0, 30.0, 40.0])
    clip_by_share([matrix, bias, still], share=0.1)
    # Norms: the rows' weights 2, the vector's sqrt(3).
    assert matrix.grad.norm(dim=1).tolist() == pytest.approx([0.2, 0.02])
    assert bias.grad.norm().item() == pytest.approx(0.1 * 3**0.5) and bias.grad[1] / bias.grad[2] == pytest.approx(0.75)
    assert still.grad is None


def test_weights_of_zero_still_learn_where_gradients_are_clipped_by_share() -> None:
    head = nn.Parameter(torch.zeros(1, 4))
    head.grad = torch.ones(1, 4)
    clip_by_share([head], share=0.1)
    assert head.grad.norm().item() == pytest.approx(0.1 * LEAST_NORM)


def test_a_run_clips_by_share_and_differs_by_it_alone() -> None:
    losses = []
    for share in (None, 1e-3, 1e6):
        config = LoopConfig(steps=10, batch_size=8, precision="fp32", clip_grad_share=share)
        task, state = make(config)
        losses.append([record["loss"] for record in run(task, state, config)])
    assert losses[0] == losses[2] != losses[1]


def test_epochs_count_whole_batches_and_steps_take_their_place() -> None:
    assert LoopConfig(epochs=3, batch_size=96).total_steps(9356) == 3 * 97
    assert LoopConfig(epochs=3, batch_size=96).total_steps(50) == 3
    assert LoopConfig(epochs=3, steps=7).total_steps(9356) == 7


class Spoilt(TinyTask):
    """Gives a loss that is not finite in its third step."""

    calls = 0
    value = math.nan

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        out = super().forward(batch)
        return {"loss": out["loss"] * self.value} if self.calls == 3 else out


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_says_where_and_what_to_try(value: float) -> None:
    config = LoopConfig(steps=10, batch_size=8, precision="fp32")
    task = Spoilt()
    task.value = value
    records = []
    with pytest.raises(NonFiniteError, match=r"step 3 gave .* at learning rate 0\.01 in fp32") as caught:
        for record in train(task, start(task, config, OPTIM), stream(), config, OPTIM, num_clips=80):
            records.append(record)
    assert f"last finite loss: {records[1]['loss']:.4g}" in str(caught.value)
    assert "lower optim.lr" in str(caught.value)


def test_fp16_skips_an_overflowing_step_and_counts_it_without_recording_an_infinite_norm() -> None:
    config = LoopConfig(steps=6, batch_size=8, precision="fp16")
    task, state = make(config)
    state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**20})
    before = task.head.weight.detach().clone()
    records = []
    for record in train(task, state, stream(), config, OPTIM, num_clips=80):
        records.append(record)
        assert torch.equal(before, task.head.weight) == (record["skipped"] == record["step"])
    assert 1 <= records[-1]["skipped"] < 6
    for record in records:
        assert all(math.isfinite(value) for value in record.values())
    assert "grad_norm" not in records[0]
    assert "grad_norm" in records[-1]


def test_fp16_gives_up_when_no_scale_is_left() -> None:
    config = LoopConfig(steps=200, batch_size=8, precision="fp16")
    task = TinyTask()
    task.head.weight.register_hook(lambda gradient: gradient * math.inf)
    state = start(task, config, OPTIM)
    with pytest.raises(NonFiniteError, match="step 17"):
        run(task, state, config, steps=200)


def test_a_stream_that_ends_early_is_an_error() -> None:
    config = LoopConfig(steps=10, batch_size=8, precision="fp32")
    task, state = make(config)
    with pytest.raises(RuntimeError, match="ended after 2 of 10 steps"):
        list(train(task, state, [next(stream()), next(stream(1))], config, OPTIM, num_clips=80))


def test_the_average_follows_and_is_lent_for_validation_only() -> None:
    config = LoopConfig(steps=6, batch_size=8, precision="fp32", ema_decay=0.99)
    task, state = make(config)
    expected = {name: value.clone() for name, value in weights_of(task).items()}
    for record in train(task, state, stream(), config, OPTIM, num_clips=80):
        decay = min(0.99, record["step"] / (record["step"] + 9))
        for name, value in weights_of(task).items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
    live = {name: value.clone() for name, value in weights_of(task).items()}
    with averaged(task, state):
        assert torch.allclose(task.head.weight, expected["head.weight"], atol=1e-6)
        assert torch.equal(task.again.weight, task.block.weight)
    assert all(torch.equal(value, live[name]) for name, value in weights_of(task).items())
    assert not torch.allclose(task.head.weight, expected["head.weight"], atol=1e-6)


def test_validation_between_two_steps_changes_nothing() -> None:
    results = []
    for disturb in (False, True):
        config = LoopConfig(steps=5, batch_size=8, precision="fp32")
        task, state = make(config)
        for _ in train(task, state, stream(), config, OPTIM, num_clips=80):
            if disturb:
                task.eval()
                torch.manual_seed(77)
        results.append(weights_of(task))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_step_seeds_differ_by_seed_step_and_rank_and_are_the_same_everywhere() -> None:
    assert len({step_seed(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(4)}) == 800
    assert step_seed(0, 1, 2) == 8580478171319284319


@pytest.mark.parametrize("batch", [8, 7])  # 7: one worker has a clip more, and its gradient counts by it
def test_two_workers_take_the_steps_of_one(batch: int, tmp_path: Path) -> None:
    config = LoopConfig(steps=4, batch_size=batch, precision="fp32", accumulate=2, clip_grad=1.0)
    task, state = make(config, dropout=0)
    alone = run(task, state, config, batch=batch)
    torch.multiprocessing.spawn(worker, (config, tmp_path), nprocs=2)
    together = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in weights_of(task).items():
        assert torch.equal(together[0]["weights"][name], together[1]["weights"][name])
        assert torch.allclose(together[0]["weights"][name], value, atol=1e-5), name
    for rank in (0, 1):
        for expected, found in zip(timeless(alone), together[rank]["records"], strict=True):
            assert found == pytest.approx(expected, rel=1e-4)


def worker(rank: int, config: LoopConfig, folder: Path) -> None:
    """Train on a half of each batch, beside another worker."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    task, state = make(config, dropout=0)
    wrapped = nn.parallel.DistributedDataParallel(task)
    part = slice(rank * config.batch_size // 2, (rank + 1) * config.batch_size // 2)
    share = ({name: value[part] for name, value in batch.items()} for batch in stream(0, config.batch_size))
    records = list(train(wrapped, state, share, config, OPTIM, num_clips=80, rank=rank))
    torch.save({"records": timeless(records), "weights": weights_of(task)}, folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # shutting down in turn, gloo's threads can abort a process whose work is done and written
