"""A run that is stopped and started again ends as the run that never stopped."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mien.platform import checkpoint
from mien.platform.loop import LoopConfig
from mien.platform.optim import OptimConfig
from mien.platform.run import Interrupt, Run
from mien.platform.training import run_training

LOOP = LoopConfig(steps=10, batch_size=4, checkpoint_every=3, log_every=2, precision="fp32", ema_decay=0.9)
OPTIM = OptimConfig(lr=0.1, warmup_steps=2)


class Toy(nn.Module):
    """A task with dropout, so that a wrong seed after a resume shows."""

    num_layers = 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def parameter_layers(self) -> dict[str, int]:
        return {name: 1 for name, _ in self.named_parameters()}

    def undecayed(self) -> set[str]:
        return set()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.layers(batch["x"]) - 1).square().mean()}


def batches(first: int) -> Iterator[dict[str, Tensor]]:
    step = first
    while True:
        yield {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(step))}
        step += 1


def trained(
    folder: Path, stop_at: int | None = None, interrupt: Interrupt | None = None, watched: bool = False
) -> dict[str, Tensor]:
    run = Run.start(folder, {"loop": "toy"}, seed=0)
    task = Toy()

    def stream(first: int) -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(batches(first), start=first):
            if step == stop_at:
                raise RuntimeError("killed")
            yield batch

    def watch(step: int) -> None:
        torch.rand(step + 1)  # whatever is drawn here changes nothing
        if step % 5 == 0:
            run.log({"step": step, "norm": sum(value.norm().item() for value in task.parameters())}, split="probe")

    with run:
        run_training(
            task,
            stream,
            OPTIM,
            LOOP,
            run,
            num_clips=40,
            about={"a": 1},
            interrupt=interrupt,
            watch=watch if watched else None,
        )
    return {name: value.clone() for name, value in task.state_dict().items()}


def lines(folder: Path) -> list[dict[str, float]]:
    volatile = ("train/seconds", "train/wait_seconds")
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in volatile} for line in text]


@pytest.mark.parametrize("stop_at", [2, 5, 9])
def test_killed_and_started_again_ends_with_the_same_weights_and_records(tmp_path: Path, stop_at: int) -> None:
    whole = trained(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path / "broken", stop_at)
    resumed = trained(tmp_path / "broken")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "broken")


def test_a_finished_run_takes_no_step_and_gives_its_weights_back(tmp_path: Path) -> None:
    whole = trained(tmp_path)
    again = trained(tmp_path, stop_at=0)  # would raise if a batch were asked for
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_an_interrupt_keeps_the_state_of_its_step(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, interrupt=Interrupt(asked=True))
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step_00000001"
    resumed = trained(tmp_path)
    whole = trained(tmp_path.with_name("whole"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_notice_brings_the_state_to_the_disk_at_once_and_training_goes_on(tmp_path: Path) -> None:
    interrupt = Interrupt(save=True)
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path, stop_at=2, interrupt=interrupt)
    assert not interrupt.save  # it was done once
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step_00000001"
    resumed, whole = trained(tmp_path), trained(tmp_path.with_name("whole"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_corrupt_checkpoint_is_said_and_the_one_before_is_used(tmp_path: Path) -> None:
    whole = trained(tmp_path)
    weights = tmp_path / "checkpoints" / "step_00000010" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"torn")
    with pytest.warns(UserWarning, match="corrupt"):
        resumed = trained(tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("stop_at", [2, 5, 9])
def test_a_watched_run_is_the_same_run_and_its_records_resume_with_it(tmp_path: Path, stop_at: int) -> None:
    bare, whole = trained(tmp_path / "bare"), trained(tmp_path / "whole", watched=True)
    assert all(torch.equal(bare[name], whole[name]) for name in bare)
    assert [line["step"] for line in lines(tmp_path / "whole") if "probe/norm" in line] == [0, 5, 10]
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path / "broken", stop_at, watched=True)
    trained(tmp_path / "broken", watched=True)
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
