"""Compiled blocks are the blocks: the same names and numbers; where there is no compiler they run as they are."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mien.platform.compiling import CPP_COMPILERS, compile_blocks, why_not
from mien.platform.loop import LoopConfig, weights_of


class Blocks(nn.ModuleList):
    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = Blocks(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))

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


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.skipif(not any(shutil.which(name) for name in CPP_COMPILERS), reason="no C++ compiler")
def test_compiled_blocks_keep_their_names_and_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(inductor, "compile_threads", 1)  # else a process stays that compiles
    plain, compiled = Toy(), Toy()
    assert compile_blocks(compiled, "on").startswith("2 blocks are compiled on cpu")
    assert list(weights_of(plain)) == list(weights_of(compiled))
    batch = {"x": torch.randn(3, 4)}
    for task in (plain, compiled):
        task(batch)["loss"].backward()
    torch._dynamo.reset()
    for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
