"""Blocks that are run again in the backward pass give the same gradients to the bit, and keep far less until then."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mien.models.backbone import ENCODERS, BackboneConfig, Task
from mien.models.blocks import Blocks
from mien.models.tasks import TaskConfig, build

Batch = dict[str, Tensor]
LORA = {"rank": 2, "dropout": 0.5, "targets": ("q", "kv")}
KINDS: dict[str, dict[str, Any]] = {
    "mae": {"name": "mae", "mask": {"kind": "window", "ratio": 0.75, "window": (2, 4)}}
    | {"decoder": {"width": 24, "depth": 3, "heads": 2, "drop_path": 0.5}},
    "expression": {"name": "expression"},
    "adapters": {"name": "expression", "lora": LORA},
    "head alone": {"name": "expression", "lora": {"rank": 0}},
}


def made(kind: str, backbone: BackboneConfig) -> Task:
    settings: dict[str, Any] = KINDS[kind] | {"backbone": backbone.model_dump()}
    if kind == "adapters" and backbone.encoder.name == "mamba":
        settings["lora"] = LORA | {"targets": ("in_proj", "x_proj")}
    if kind != "mae":
        settings["pool"] = "region" if backbone.has_messengers else "patch"
    torch.manual_seed(0)
    task = build(TypeAdapter(TaskConfig).validate_python(settings))
    for name, parameter in task.named_parameters():
        if name.endswith("lora_B"):  # which is zero at first, so that what it multiplies would have no gradient
            nn.init.normal_(parameter, std=0.1)
    return task


def recomputing(task: Task) -> Task:
    twin = copy.deepcopy(task)
    for part in twin.modules():
        if isinstance(part, Blocks):
            part.recompute = True
    return twin


def gradients(task: Task, batch: Batch, bf16: bool) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = task.train()(batch)["loss"]
    loss.backward()
    found = [torch.zeros(0) if parameter.grad is None else parameter.grad for parameter in task.parameters()]
    return [loss.detach(), *found, torch.rand(1)]  # the draws go on as if nothing had been run twice


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_gradients_are_the_same_to_the_bit(
    encoder: str, kind: str, bf16: bool, small: Callable[..., BackboneConfig], batch: Batch
) -> None:
    task = made(kind, small(encoder, depth=3, drop_path=0.5))
    twin = recomputing(task)
    for one, other in zip(gradients(task, batch, bf16), gradients(twin, batch, bf16), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_each_block_but_the_last_runs_twice_and_none_without_gradients(
    encoder: str, small: Callable[..., BackboneConfig], batch: Batch
) -> None:
    task = recomputing(made("expression", small(encoder, depth=3)))
    runs = [0, 0, 0]
    for index, block in enumerate(task.backbone.encoder.blocks):

        def count(*_: Any, index: int = index) -> None:
            runs[index] += 1

        block.register_forward_pre_hook(count)
    task(batch)["loss"].backward()
    assert runs == [2, 2, 1]
    task.predict(batch)
    assert runs == [3, 3, 2]


def peak_bytes(task: Task, batch: Batch) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        task(batch)["loss"].backward()
    held = peak = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_a_deep_model_needs_less_than_half_of_the_memory(
    encoder: str, small: Callable[..., BackboneConfig], batch: Batch
) -> None:
    task = made("expression", small(encoder, depth=16))
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)  # which are no part of the difference
    assert peak_bytes(recomputing(task), batch) < peak_bytes(task, batch) / 2


def test_weights_are_those_of_a_model_that_keeps_everything(small: Callable[..., BackboneConfig]) -> None:
    task = made("mae", small())
    assert recomputing(task).load_state_dict(task.state_dict(), strict=True)
    assert "backbone.encoder.blocks.1.mlp.fc1.weight" in task.state_dict()
