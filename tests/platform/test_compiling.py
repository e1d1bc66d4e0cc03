"""Blocks are compiled where that is asked for and can be; else they run as they are, and which of the two is told."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mien.platform.compiling import compile_blocks, why_not
from mien.platform.loop import LoopConfig


class Blocks(nn.ModuleList):
    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = Blocks(Block() for _ in range(2))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.blocks(batch["x"]).square().mean()}


def test_it_is_off_unless_asked_for_and_auto_leaves_a_cpu_alone() -> None:
    assert LoopConfig().compile == "off"
    assert compile_blocks(Toy(), "off") == "blocks run as they are: loop.compile is off"
    assert "compiles on a GPU alone" in compile_blocks(Toy(), "auto")
    assert compile_blocks(nn.Linear(2, 2), "on").endswith("Linear has none")
    assert not why_not("cuda", "auto") or "Triton" in why_not("cuda", "auto")


def test_without_a_compiler_the_blocks_run_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    task = Toy()
    assert "no compiler (g++ or clang++)" in compile_blocks(task, "on")
    assert torch.isfinite(task({"x": torch.ones(3, 4)})["loss"])
