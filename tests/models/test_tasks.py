"""Every task with every encoder keeps the contract: losses, predictions, layers, decay, types, order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mien.models.backbone import ENCODERS, BackboneConfig, Task
from mien.models.combined import CombinedConfig
from mien.models.tasks import TASKS, TaskConfig, build, labels_of

Batch = dict[str, Tensor]
PREDICTED = {
    "mae": {"loss": (4,), "hidden": (4, 48), "prediction": (4, 48, 384)},
    "expression": {"probabilities": (4, 5)},
    "gaze": {"gaze": (4, 2)},
    "combined": {"probabilities": (4, 5), "gaze": (4, 2)},
}


def settings_of(task: str, backbone: BackboneConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"name": task, "backbone": backbone.model_dump()}
    if task == "mae":
        window = {} if backbone.region else {"window": (2, 4)}
        return settings | {"mask": {"ratio": 0.75} | window, "decoder": {"width": 24, "depth": 2, "heads": 2}}
    if task != "gaze":
        settings["num_classes"] = 5
    return settings | {"pool": "region" if backbone.has_messengers else "patch"}


@pytest.fixture(params=sorted(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=sorted(TASKS))
def make(request: pytest.FixtureRequest, encoder: str, small: Callable[..., BackboneConfig]) -> Callable[..., Task]:
    def made(**changes: Any) -> Task:
        torch.manual_seed(0)
        settings = settings_of(request.param, small(encoder, **changes))
        return build(TypeAdapter(TaskConfig).validate_python(settings))

    return made


def test_every_task_has_its_prediction_here() -> None:
    assert PREDICTED.keys() == TASKS.keys()


def test_the_loss_reaches_every_parameter(make: Callable[..., Task], batch: Batch) -> None:
    task = make()
    losses = task(batch)
    assert losses["loss"].ndim == 0 and losses["loss"].isfinite()
    losses["loss"].backward()
    assert [name for name, parameter in task.named_parameters() if parameter.grad is None] == []


def test_a_few_steps_lower_the_loss(make: Callable[..., Task], batch: Batch) -> None:
    task = make()
    optimiser = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = task(batch)["loss"]
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 0.05


def test_predictions_have_a_row_for_each_clip_and_are_float32(make: Callable[..., Task], batch: Batch) -> None:
    task = make()
    with torch.autocast("cpu", torch.bfloat16):
        out = task.predict(batch)
    name = next(name for name, made in TASKS.items() if type(task) is made)
    assert {key: tuple(value.shape) for key, value in out.items()} == PREDICTED[name]
    assert all(value.dtype in (torch.float32, torch.int64) for value in out.values())
    assert not any(value.requires_grad for value in out.values())


def test_predicting_twice_is_the_same_and_leaves_the_mode_alone(make: Callable[..., Task], batch: Batch) -> None:
    task = make(drop_path=0.5).train()
    first, second = task.predict(batch), task.predict(batch)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert task.training
    task.eval().predict(batch)
    assert not task.training


def test_a_clips_prediction_does_not_depend_on_its_batch(make: Callable[..., Task], batch: Batch) -> None:
    task = make()
    together = task.predict(batch)
    alone = task.predict({key: value[2:3] for key, value in batch.items()})
    for key in together:
        torch.testing.assert_close(alone[key], together[key][2:3], rtol=1e-4, atol=1e-5)


def test_float_clips_are_taken_like_bytes(make: Callable[..., Task], batch: Batch) -> None:
    task = make()
    for key, value in task.predict(batch | {"clip": batch["clip"].float()}).items():
        torch.testing.assert_close(value, task.predict(batch)[key])


def test_training_in_bfloat16_is_close_to_float32(make: Callable[..., Task], batch: Batch) -> None:
    task = make()
    exact = task(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task(batch)["loss"]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02)


def test_layers_go_from_the_embedding_over_the_blocks_to_the_rest(make: Callable[..., Task]) -> None:
    task = make()
    layers = task.parameter_layers()
    assert layers.keys() == dict(task.named_parameters()).keys()
    assert task.num_layers == 2
    early = ("mask_token", "cls_token", "pos_embed", "temporal_pos_embedding")
    for name, layer in layers.items():
        if name.startswith("backbone.embed.") or name.rpartition(".")[2] in early:
            assert layer == 0
        elif name.startswith("backbone.encoder.blocks."):
            assert layer == int(name.split(".")[3]) + 1
        else:
            assert layer == 3


def test_vectors_learned_tokens_positions_and_rates_are_not_decayed(make: Callable[..., Task]) -> None:
    task = make()
    undecayed = task.undecayed()
    exempt = ("token", "tokens", "pos_embed", "temporal_pos_embedding", "A_log", "A_b_log")
    for name, parameter in task.named_parameters():
        assert (name in undecayed) == (parameter.ndim == 1 or name.endswith(exempt))


def test_the_same_seed_makes_the_same_weights(make: Callable[..., Task]) -> None:
    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_clips_of_another_size_are_refused(make: Callable[..., Task], batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"\(8, 32, 32, 3\).*\(4, 6, 32, 32, 3\)"):
        make()(batch | {"clip": batch["clip"][:, :6]})


def test_the_encoder_keeps_the_order_of_its_tokens(encoder: str, small: Callable[..., BackboneConfig]) -> None:
    config = small(encoder)
    torch.manual_seed(0)
    module = ENCODERS[encoder](config.encoder, config.tubes.grid).eval()
    x = torch.randn(2, 64, 32)
    # Raster order, every second column: as many in each region.
    keep = torch.arange(64)[torch.arange(64) % 2 == 1].expand(2, -1)
    shuffle = torch.randperm(32)
    kept = torch.stack([x[b, keep[b]] for b in range(2)])
    out = module(kept, keep)
    assert out.shape == kept.shape
    torch.testing.assert_close(module(kept[:, shuffle], keep[:, shuffle]), out[:, shuffle], rtol=1e-4, atol=1e-5)
    assert torch.equal(module.encode(x)[0], module(x))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_says_which_labels_it_learns_from(name: str, small: Callable[..., BackboneConfig], batch: Batch) -> None:
    config = TypeAdapter(TaskConfig).validate_python(settings_of(name, small("lgi_former")))
    task, learned = build(config), labels_of(config)
    unknown = {"label": torch.full((4,), -1), "gaze": torch.full((4, 2), torch.nan)}
    assert (task(batch | unknown)["loss"] == 0) == bool(learned)
    for label in learned:
        assert task(batch | {name: value for name, value in unknown.items() if name != label})["loss"] > 0


def test_a_weight_of_zero_takes_a_label_away() -> None:
    assert labels_of(CombinedConfig(alpha=0)) == {"gaze"}
    assert labels_of(CombinedConfig(gaze_weight=0)) == {"label"}


def test_an_unknown_task_encoder_or_setting_is_refused() -> None:
    for wrong in (
        {"name": "expresion"},
        {"name": "expression", "backbone": {"encoder": {"name": "vt"}}},
        {"name": "expression", "num_clases": 7},
        {"name": "gaze", "gaze_head": "bins"},
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(TaskConfig).validate_python(wrong)
