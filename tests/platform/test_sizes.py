"""A dry run says what a config amounts to."""

import torch
from torch import Tensor, nn

from mien.platform.loop import LoopConfig
from mien.platform.optim import OptimConfig
from mien.platform.sizes import sizes

OPTIM = OptimConfig(lr=1e-3)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8 * 4 * 4 * 3, 10)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.layer(batch["clip"].float().flatten(1)).mean()}


def test_operations_parameters_and_steps_are_counted() -> None:
    clip = torch.zeros(1, 8, 4, 4, 3, dtype=torch.uint8)
    found = sizes(Linear(), clip, 32, num_clips=100, loop=LoopConfig(epochs=3, batch_size=20), optim=OPTIM)
    assert found["parameters"] == "3,850"
    assert found["forward pass"].startswith(f"{2 * 3840 / 1e9:,.2f} GFLOP")
    assert found["steps"] == "15 (3.0 epochs)"
    assert found["rate"].startswith("learning rate 7.813e-05 at the peak: optim.lr 0.001 x 20 clips a step / 256")
    assert found["tokens"] == "32 a clip"


def test_what_is_frozen_is_told() -> None:
    task = Linear()
    task.layer.weight.requires_grad_(False)
    clip = torch.zeros(1, 8, 4, 4, 3, dtype=torch.uint8)
    found = sizes(task, clip, 32, num_clips=100, loop=LoopConfig(epochs=3, batch_size=20), optim=OPTIM)
    assert found["parameters"] == "3,850, of which 10 are trained"
