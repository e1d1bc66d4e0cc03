"""The benchmark of a training step counts every product, whoever computes it, and runs the same ones again alone."""

import json
from pathlib import Path

import pytest
import torch

from mien.experiments.benchmarks import step
from mien.experiments.benchmarks.products import Recorder, alone, operations
from mien.models.attention import Mlp


def test_a_product_with_a_bias_counts_as_one_without() -> None:
    x, layer = torch.randn(3, 100, 16), torch.nn.Linear(16, 64)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).sum().backward()

    assert operations(work) == 2 * 2 * 300 * 16 * 64  # forward, and the weight's gradient


def test_the_same_products_run_alone() -> None:
    mlp, x = Mlp(16, 4), torch.randn(300, 16, requires_grad=True)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            mlp(x).sum().backward()

    assert operations(alone(work)) == operations(work)
    with Recorder() as recorder:
        work()
    assert len(recorder.calls) == 2 + 2 * 2  # of two layers: forward; tokens and weights


def test_the_figures_of_a_step_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["tubes.frames=4", "tubes.size=32", "encoder.width=32", "encoder.depth=1", "encoder.heads=2"]
    words = [f"{part}.backbone.{word}" for part in ("task", "mae") for word in [*small, "encoder.region=[2,2,2]"]]
    words += ["mae.mask.ratio=0.5", "mae.decoder.width=32", "mae.decoder.heads=2", "mae.decoder.depth=1"]
    asked = ["batch_sizes=[1,2]", "product=64", "rounds=1", "clock=processor", "profile=true"]
    step.main([*words, *asked, "--output", str(tmp_path / "s.json")])
    found = json.loads((tmp_path / "s.json").read_text())["steps"]
    assert [(each["task"], each["batch_size"]) for each in found] == [
        ("finetune", 1), ("pretrain", 1), ("finetune", 2), ("pretrain", 2)
    ]  # fmt: skip
    for each in found:
        rate = each["gflop"] / each["eager"]["seconds"]
        assert each["eager"]["share_of_product"] == pytest.approx(rate / each["product_gflops"])
        assert 0.9 < each["own_products_share_of_operations"] <= 1
        assert {"operator", "calls", "ms", "share"} == each["eager"]["profile"][0].keys()
    assert "pretrain, batch 2, eager" in capsys.readouterr().out
