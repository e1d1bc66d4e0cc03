"""Published files are read without running code, and their weights go in and come out under their own names."""

import argparse
import itertools
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mien.models.backbone import BackboneConfig, Task
from mien.models.combined import Combined, CombinedConfig
from mien.models.description import describe
from mien.models.expression import Expression, ExpressionConfig
from mien.models.gaze import Gaze, GazeConfig
from mien.models.lgi_former import LgiFormerConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.models.published import load, read_state, save

LGI_VARIANTS = [
    {"first": first, "second": second, "third": third, "sharing": sharing}
    for first, second, third, sharing in itertools.product(
        ("self", "cross"), (True, False), ("cross", "self", "none"), ("none", "first_third", "all")
    )
    if not (sharing == "first_third" and third == "none")
    and not (sharing == "all" and third == "none" and not second)  # nothing is left to be shared
]


@pytest.fixture
def wide(small: Callable[..., BackboneConfig]) -> Callable[..., BackboneConfig]:
    """Return a maker of backbones whose heads are 64 wide, as all published ones'."""
    return lambda name="lgi_former", **changes: small(name, **({"width": 64, "heads": 1} | changes))


def expression(backbone: BackboneConfig, **settings: Any) -> Expression:
    return Expression(ExpressionConfig(backbone=backbone, pool="region" if backbone.region else "patch", **settings))


def autoencoder(backbone: BackboneConfig) -> MaskedAutoencoder:
    settings = {
        "backbone": backbone,
        "mask": {"kind": "window" if backbone.region else "tube"},
        "decoder": {"width": 64, "depth": 1, "heads": 1},
        "published_positions": True,
    }
    return MaskedAutoencoder(MaeConfig.model_validate(settings))


def equal(first: Task, second: Task) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# The list of spec: what the published autoencoder of 16 + 4 blocks holds, and what the fine-tuned model.
ATTENTION = ("q_bias", "v_bias", "q.weight", "kv.weight", "proj.weight", "proj.bias")
NORMS = ("first_attn_norm0", "second_attn_norm0", "third_attn_norm0", "third_attn_norm1", "norm2")
MLP = ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")
BLOCK = (
    [f"{stage}_attn.{name}" for stage in ("first", "second", "third") for name in ATTENTION]
    + [f"{name}.{kind}" for name in NORMS for kind in ("weight", "bias")]
    + list(MLP)
)
DECODER_BLOCK = [f"{name}.{kind}" for name in ("norm1", "norm2") for kind in ("weight", "bias")] + [
    *("attn.q_bias", "attn.v_bias", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias"),
    *MLP,
]
ENCODER = ["lg_region_tokens", "patch_embed.proj.weight", "patch_embed.proj.bias"] + [
    f"blocks.{i}.{name}" for i in range(16) for name in BLOCK
]


def test_the_published_autoencoder_has_its_575_names_and_shapes() -> None:
    with torch.device("meta"):
        state = save(MaskedAutoencoder(MaeConfig()))
    names = ["mask_token", "encoder_to_decoder.weight"] + [f"encoder.{name}" for name in ENCODER]
    names += [f"{part}.norm.{kind}" for part in ("encoder", "decoder") for kind in ("weight", "bias")]
    names += [f"decoder.blocks.{j}.{name}" for j in range(4) for name in DECODER_BLOCK]
    names += ["decoder.head.weight", "decoder.head.bias"]
    assert len(names) == 575 and set(state) == set(names)
    shapes = {
        "mask_token": (1, 1, 384),
        "encoder.lg_region_tokens": (8, 512),
        "encoder.patch_embed.proj.weight": (512, 3, 2, 16, 16),
        "encoder.blocks.0.first_attn.q.weight": (512, 512),
        "encoder.blocks.15.third_attn.kv.weight": (1024, 512),
        "encoder.blocks.3.mlp.fc1.weight": (2048, 512),
        "decoder.blocks.0.attn.qkv.weight": (1152, 384),
        "decoder.head.weight": (1536, 384),
        "encoder_to_decoder.weight": (384, 512),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_the_published_fine_tuned_model_has_its_519_names() -> None:
    with torch.device("meta"):
        state = save(Expression(ExpressionConfig()))
    names = [*ENCODER, "fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert len(names) == 519 and set(state) == set(names)
    assert state["head.weight"].shape == (7, 512)


@pytest.mark.parametrize("variant", LGI_VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_every_variant_survives_the_way_there_and_back(
    variant: dict[str, Any], wide: Callable[..., BackboneConfig]
) -> None:
    for make in (expression, autoencoder):
        first, second = make(wide(**variant)), make(wide(**variant))
        state = save(first)
        config = describe(state, frames=8, size=32, region=(2, 2, 4))
        told = variant if variant["second"] or variant["sharing"] != "all" else variant | {"sharing": "first_third"}
        assert config.backbone == wide(**told)
        report = load(second, state)
        assert equal(first, second) and not report.left and not report.fresh


def test_a_joint_encoder_survives_the_way_there_and_back(wide: Callable[..., BackboneConfig]) -> None:
    for make in (expression, autoencoder):
        first, second = make(wide("vit")), make(wide("vit"))
        state = save(first)
        assert describe(state, frames=8, size=32) == (
            second.config
            if isinstance(second, MaskedAutoencoder)
            else ExpressionConfig(backbone=wide("vit"), pool="patch")
        )
        load(second, state)
        assert equal(first, second)
    assert state["encoder.blocks.0.attn.qkv.weight"].shape == (192, 64)


def test_query_key_and_value_stand_in_this_order(wide: Callable[..., BackboneConfig]) -> None:
    task = expression(wide("vit"))
    attention = task.backbone.encoder.blocks[1].attn
    fused = save(task)["blocks.1.attn.qkv.weight"]
    assert torch.equal(fused, torch.cat([attention.q.weight, attention.kv.weight]))


def test_shared_attention_is_listed_under_every_name_and_must_be_equal_there(
    wide: Callable[..., BackboneConfig],
) -> None:
    task = expression(wide(sharing="all"))
    state = save(task)
    first = state["blocks.0.first_attn.q.weight"]
    assert torch.equal(state["blocks.0.second_attn.q.weight"], first)
    assert torch.equal(state["blocks.0.third_attn.q.weight"], first)
    state["blocks.1.second_attn.v_bias"] = state["blocks.1.second_attn.v_bias"] + 1
    with pytest.raises(ValueError, match=r"shares blocks\.1\.first_attn\.v_bias with blocks\.1\.second_attn\.v_bias"):
        load(task, state)
    apart = expression(wide(sharing="none"))
    load(apart, state)
    assert torch.equal(apart.backbone.encoder.blocks[0].third_attn.q.weight, first)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "backbone.", "module.encoder."])
def test_wrappers_prefixes_are_taken_off(prefix: str, wide: Callable[..., BackboneConfig]) -> None:
    first, second = expression(wide()), expression(wide())
    load(second, {prefix + name: value for name, value in save(first).items()})
    assert equal(first, second)


def test_fine_tuning_from_the_autoencoder_leaves_what_was_left_then(wide: Callable[..., BackboneConfig]) -> None:
    pretrained, task = autoencoder(wide()), expression(wide())
    torch.nn.init.normal_(pretrained.norm.weight)
    report = load(task, save(pretrained))
    assert set(report.fresh) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    names = {"encoder.norm.weight", "encoder.norm.bias", "mask_token", "encoder_to_decoder.weight"}
    assert names <= set(report.left)
    assert "replaced by a new one as published" in str(report) and "pretraining decoder" in str(report)
    assert torch.equal(task.backbone.encoder.region_tokens, pretrained.backbone.encoder.region_tokens)
    assert torch.equal(task.fc_norm.weight, torch.ones(64))
    load(task, save(pretrained), norm="pretrained")
    assert torch.equal(task.fc_norm.weight, pretrained.norm.weight)


def test_heads_of_another_task_are_refused_unless_new_ones_are_asked_for(wide: Callable[..., BackboneConfig]) -> None:
    first, second = expression(wide(), num_classes=7), expression(wide(), num_classes=11)
    with pytest.raises(ValueError, match=r"other shapes: head\.bias: \(7,\) in the file, \(11,\) in the model"):
        load(second, save(first))
    report = load(second, save(first), head="new")
    assert set(report.fresh) == set(report.left) == {"head.weight", "head.bias"}


def test_gaze_and_combined_models_have_the_published_heads(wide: Callable[..., BackboneConfig]) -> None:
    gaze, combined = Gaze(GazeConfig(backbone=wide())), Combined(CombinedConfig(backbone=wide(), num_classes=5))
    heads = {name: tuple(value.shape) for name, value in save(combined).items() if name.startswith("head.")}
    assert heads == {
        "head.cls.weight": (5, 64),
        "head.cls.bias": (5,),
        "head.reg.weight": (2, 64),
        "head.reg.bias": (2,),
    }
    assert save(gaze)["head.weight"].shape == (2, 64)
    again = Combined(CombinedConfig(backbone=wide(), num_classes=5))
    load(again, save(combined))
    assert equal(again, combined)
    assert describe(save(combined), frames=8, size=32, region=(2, 2, 4)) == CombinedConfig(
        backbone=wide(), pool="region", num_classes=5
    )


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda s: s.pop("blocks.1.norm2.bias"), r"not in the file: blocks\.1\.norm2\.bias \(ours: backbone"),
        (lambda s: s.update({"blocks.2.norm2.bias": torch.zeros(64)}), r"unknown to the model: blocks\.2\.norm2\.bias"),
        (
            lambda s: s.update({"lg_region_tokens": torch.zeros(20, 64)}),
            r"\(20, 64\) in the file, \(4, 64\) in the model",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_files_that_do_not_fit_are_refused_by_name(
    break_it: Callable[[dict[str, Tensor]], Any], message: str, wide: Callable[..., BackboneConfig]
) -> None:
    state = save(expression(wide()))
    break_it(state)
    with pytest.raises(ValueError, match=message):
        load(expression(wide()), state)


def test_what_is_strange_is_told_as_the_file_has_it_and_takes_no_other_place(
    wide: Callable[..., BackboneConfig],
) -> None:
    with pytest.raises(ValueError, match=r"unknown to the model: module\.blocks\.0\.attn\.proj\.bias; .*attn\.qkv\."):
        state = save(expression(wide("vit")))
        load(expression(wide()), {f"module.{name}": value for name, value in state.items()})
    norms = {"norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    with pytest.raises(ValueError, match=r"unknown to the model: fc_norm\.bias; fc_norm\.weight;"):
        load(expression(wide(), first_token=True), save(expression(wide())) | norms)


def test_a_fine_tuned_file_does_not_fill_an_autoencoder(wide: Callable[..., BackboneConfig]) -> None:
    with pytest.raises(ValueError, match=r"not in the file: decoder"):
        load(autoencoder(wide()), save(expression(wide())))


@pytest.mark.parametrize(("count", "region"), [(8, (2, 5, 10)), (20, (2, 2, 10)), (4, (2, 10, 10)), (40, (2, 1, 10))])
def test_the_published_regions_are_known_by_their_count(count: int, region: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        backbone = BackboneConfig(encoder=LgiFormerConfig(region=region, depth=1))
        state = save(Expression(ExpressionConfig(backbone=backbone)))
    assert len(state["lg_region_tokens"]) == count
    assert describe({name: torch.rand(value.shape) for name, value in state.items()}).backbone == backbone


def test_regions_that_cannot_be_told_apart_are_asked_for(wide: Callable[..., BackboneConfig]) -> None:
    state = save(expression(wide()))
    with pytest.raises(ValueError, match=r"32 regions fill the grid \(4, 4, 4\) with any of these: \[\(1, 1, 2\)"):
        describe(state | {"lg_region_tokens": torch.zeros(32, 64)}, frames=8, size=32)
    with pytest.raises(ValueError, match=r"7 regions fill the grid .*\[\]"):
        describe(state | {"lg_region_tokens": torch.zeros(7, 64)}, frames=8, size=32)


def test_weights_of_nothing_we_know_are_refused() -> None:
    with pytest.raises(ValueError, match="no weights of a known video model"):
        describe({"layers.0.weight": torch.zeros(3)})


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_published_file_is_read_with_its_settings_beside(tmp_path: Path, wide: Callable[..., BackboneConfig]) -> None:
    state = save(expression(wide()))
    args = argparse.Namespace(
        lr=1e-3, lg_region_size=[2, 5, 10], nested=argparse.Namespace(betas=(0.9, 0.95)), none=None
    )
    content = {"model": state, "optimizer": {"state": {0: torch.zeros(2)}}, "epoch": "best", "scaler": {}, "args": args}
    for name in ("model", "module"):
        path = write(
            tmp_path / f"{name}.pth", {name: content["model"]} | {k: v for k, v in content.items() if k != "model"}
        )
        found = read_state(path)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    assert read_state(write(tmp_path / "bare.pth", state)).keys() == state.keys()
    wrapped = write(tmp_path / "wrapped.pth", {"model": {"module." + name: value for name, value in state.items()}})
    assert read_state(wrapped).keys() == state.keys()


def renamed(path: Path, old: bytes, new: bytes) -> Path:
    """Rewrite a saved file, another module's name standing in its pickle."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)
    return path


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["1", "2"])
def test_a_file_with_the_state_of_training_is_read_whatever_numpy_wrote_it(
    module: bytes, tmp_path: Path, wide: Callable[..., BackboneConfig]
) -> None:
    task = expression(wide())
    optimiser = torch.optim.AdamW(task.parameters(), lr=1e-3)
    task({"clip": torch.zeros(1, 8, 32, 32, 3), "label": torch.zeros(1, dtype=torch.int64)})["loss"].backward()
    optimiser.step()
    # As the published loop does: the schedules are arrays, indexed by the step.
    optimiser.param_groups[0] |= {"lr": np.linspace(0, 1e-3, 5)[3] * 0.75, "weight_decay": np.float64(0.05)}
    others = [np.float32(0.5), np.int64(3), np.bool_(True)]
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7}
    content = {
        "model": save(task),
        "optimizer": optimiser.state_dict(),
        "epoch": 49,
        "scaler": scaler,
        "args": argparse.Namespace(lr=np.float64(1e-3), others=others, lg_region_size=[2, 5, 10]),
    }
    path = write(tmp_path / "checkpoint-49.pth", content)
    with zipfile.ZipFile(path) as archive:
        written = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    found = re.search(rb"cnumpy\.\w+\.multiarray\nscalar\n", written)
    assert found, "the file holds numbers of NumPy"
    state = read_state(renamed(path, found[0], b"c" + module + b"\nscalar\n"))
    assert state.keys() == content["model"].keys()
    assert all(torch.equal(value, content["model"][name]) for name, value in state.items())


def test_numbers_of_numpy_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold named tensors"):
        read_state(write(tmp_path / "numbers.pth", {"model": {"x": np.float64(1)}}))


class Bomb:
    """A pickle of this opens a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


class NumberBomb(Bomb):
    """The same, as what a number of NumPy is made of."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.float64(1).__reduce__()[0], (np.dtype(object), Bomb(self.path))


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    beside = {"args": Bomb(target)}, {"args": argparse.Namespace(lr=np.float64(1), x=Bomb(target))}
    for others in (*beside, {"optimizer": {"lr": NumberBomb(target)}}):
        path = write(tmp_path / "bomb.pth", {"model": {"x": torch.zeros(1)}} | others)
        with pytest.raises(ValueError, match="could run code"):
            read_state(path)
        assert not target.exists()
    path.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match="no file of PyTorch"):
        read_state(path)
    assert not target.exists()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pth", {"model": {"x": torch.zeros(1000)}}).read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello, I am a text",
        "html": b"<html><body>Quota exceeded</body></html>",
        "zeros": bytes(1000),
    }.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_state(path)
    for wrong in ({"model": {"x": 1}}, [torch.zeros(1)], {}, {"model": {}}):
        with pytest.raises(ValueError, match="must hold named tensors"):
            read_state(write(tmp_path / "wrong.pth", wrong))
