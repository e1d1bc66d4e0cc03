"""Published adapters, bins, first tokens and other depths: known by their names, and loaded as they were trained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mien.models.adaptation import AdaptConfig, adapted_config
from mien.models.backbone import BackboneConfig, FeatureTask
from mien.models.combined import Combined, CombinedConfig
from mien.models.description import describe, told
from mien.models.expression import Expression, ExpressionConfig
from mien.models.gaze import Gaze, GazeConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.models.published import load, save

CLIPS = {"frames": 8, "size": 32, "region": (2, 2, 4)}


@pytest.fixture
def wide(small: Callable[..., BackboneConfig]) -> Callable[..., BackboneConfig]:
    """Return a maker of backbones whose heads are 64 wide, as all published ones'."""
    return lambda name="lgi_former", **changes: small(name, **({"width": 64, "heads": 1} | changes))


def shaken(task: Any) -> Any:
    for parameter in task.parameters():
        nn.init.normal_(parameter, std=0.1)
    return task.eval()


def expression(backbone: BackboneConfig, **settings: Any) -> Expression:
    return Expression(ExpressionConfig.model_validate({"backbone": backbone, **settings}))


def autoencoder(backbone: BackboneConfig) -> MaskedAutoencoder:
    settings = {"backbone": backbone, "mask": {"kind": "window"}, "decoder": {"width": 64, "depth": 1, "heads": 1}}
    return MaskedAutoencoder(MaeConfig.model_validate(settings))


def same_features(first: FeatureTask, second: FeatureTask, batch: dict[str, Tensor], atol: float = 1e-5) -> bool:
    return torch.allclose(first.features(batch), second.features(batch), atol=atol)


def test_adapters_bear_the_published_names_and_scales(
    wide: Callable[..., BackboneConfig], batch: dict[str, Tensor]
) -> None:
    task = shaken(expression(wide(depth=10), lora={"rank": 3, "alpha": 6.0}))
    state = save(task)
    names = [name for name in state if "lora" in name]
    assert len(names) == 10 * 3 * 2 * 2
    assert state["blocks.0.first_attn.lora_q.lora_A"].shape == (3, 64)
    assert state["blocks.9.third_attn.lora_kv.lora_B"].shape == (128, 3)
    # What is added there, 0.5 and 16 times, is what is added here, twice.
    first, last = task.backbone.encoder.blocks[0].first_attn.q, task.backbone.encoder.blocks[9].first_attn.q
    for layer, block, scale in ((first, 0, 0.5), (last, 9, 16.0)):
        by_hand = (
            scale
            * state[f"blocks.{block}.first_attn.lora_q.lora_B"]
            @ state[f"blocks.{block}.first_attn.lora_q.lora_A"]
        )
        torch.testing.assert_close(layer.weight - layer._parameters["weight"], by_hand, atol=1e-5, rtol=1e-5)
    config = describe(state, **CLIPS)
    assert isinstance(config, ExpressionConfig) and config.lora is not None
    assert config.lora.rank == 3 and config.lora.targets == ("kv", "q")
    assert config.lora.block_scales == (0.5,) * 8 + (16.0,) * 2
    for other in (expression(wide(depth=10), lora={"rank": 3, "alpha": 1.5}), Expression(config)):
        load(other, state)
        assert same_features(other.eval(), task, batch, 1e-4)
    plain = expression(wide(depth=10))
    report = load(plain, state)
    assert same_features(plain.eval(), task, batch, 1e-4) and not report.left and not report.fresh


def test_adapters_of_published_scales_come_back_to_the_bit(wide: Callable[..., BackboneConfig]) -> None:
    lora = {"rank": 2, "block_scales": (0.5, 0.5)}
    first, second = shaken(expression(wide(), lora=lora)), expression(wide(), lora=lora)
    load(second, save(first))
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in second.state_dict().items())


def test_more_blocks_than_published_adapters_know_are_refused(wide: Callable[..., BackboneConfig]) -> None:
    with pytest.raises(ValueError, match="scales for 16 blocks, but there are 17; merge the adapters"):
        save(expression(wide(depth=17), lora={"rank": 1}))


def test_new_adapters_are_told_and_a_pretrained_file_needs_none(
    wide: Callable[..., BackboneConfig], batch: dict[str, Tensor]
) -> None:
    pretrained, task = shaken(autoencoder(wide())), expression(wide(), lora={"rank": 2})
    report = load(task, save(pretrained))
    assert "24 not in the file, newly drawn (adapters, which add nothing yet)" in str(report)
    plain = expression(wide())
    load(plain, save(pretrained))
    assert same_features(plain.eval(), task.eval(), batch)


def test_the_first_token_has_the_norm_that_pretraining_had(wide: Callable[..., BackboneConfig]) -> None:
    pretrained, task = shaken(autoencoder(wide())), expression(wide(), first_token=True)
    assert "norm.weight" in save(task) and "fc_norm.weight" not in save(task)
    report = load(task, save(pretrained))
    assert torch.equal(task.fc_norm.weight, pretrained.norm.weight)
    assert set(report.fresh) == {"head.weight", "head.bias"} and not any(n.startswith("norm") for n in report.left)
    assert describe(save(task), **CLIPS) == ExpressionConfig(backbone=wide(), pool="region", first_token=True)


@pytest.mark.parametrize("first_token", [True, False])
def test_a_file_that_pools_otherwise_gives_all_but_its_norm(
    wide: Callable[..., BackboneConfig], first_token: bool
) -> None:
    there, here = (shaken(expression(wide(), first_token=first)) for first in (first_token, not first_token))
    report = load(here, save(there), head="new")
    assert report.fresh.keys() == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert torch.equal(here.backbone.embed.weight, there.backbone.embed.weight)


def test_the_published_gaze_heads_are_known_by_their_names(wide: Callable[..., BackboneConfig]) -> None:
    for settings in ({"gaze_head": "l2cs", "bin_deg": 2, "bin_edges": True}, {"gaze_head": "binned", "bin_deg": 4}, {}):
        config = GazeConfig.model_validate({"backbone": wide(), "pool": "region", **settings})
        task, again = Gaze(config), Gaze(config)
        state = save(task)
        if settings.get("gaze_head") == "l2cs":
            heads = {name: tuple(value.shape) for name, value in state.items() if name.startswith("head")}
            assert heads == {
                f"head.{angle}.{part}": shape
                for angle in ("pitch", "yaw")
                for part, shape in (("weight", (90, 64)), ("bias", (90,)))
            }
        assert describe(state, **CLIPS) == config
        load(again, state)
        assert all(torch.equal(value, task.state_dict()[name]) for name, value in again.state_dict().items())
    heads = {"gaze_head": "l2cs", "bin_deg": 2, "bin_edges": True}
    both = CombinedConfig.model_validate({"backbone": wide(), "pool": "region", **heads})
    assert describe(save(Combined(both)), **CLIPS) == both
    with pytest.raises(ValueError, match=r"neither a decoder nor a head that we know.*heads: none"):
        describe(
            {
                name: value
                for name, value in save(Expression(ExpressionConfig(backbone=wide()))).items()
                if "head" not in name
            }
        )
    with pytest.raises(ValueError, match="bins must be 90 of either angle"):
        describe(state | {"head.pitch.weight": torch.zeros(7, 64), "head.yaw.weight": torch.zeros(7, 64)}, **CLIPS)


def test_settings_beside_the_weights_tell_what_weights_do_not(wide: Callable[..., BackboneConfig]) -> None:
    args = {
        "num_frames": 8,
        "input_size": 32,
        "attn_type": "local_global",
        "lg_region_size": [2, 2, 4],
        "lg_classify_token_type": "org",
        "lr": 1e-3,
    }
    assert told(args) == {"frames": 8, "size": 32, "region": (2, 2, 4), "pool": "patch"}
    assert told(args | {"attn_type": "joint"}) == {"frames": 8, "size": 32}
    assert told({"num_frames": "8", "lg_region_size": None}) == {}
    pretrained = describe(save(autoencoder(wide())), **told(args | {"mask_ratio": 0.75}))
    assert isinstance(pretrained, MaeConfig) and pretrained.mask.ratio == 0.75
    task = expression(wide(), pool="patch", per_frame=True, published_frames=True)
    assert describe(save(task), **told(args | {"keep_temporal_dim": True})) == ExpressionConfig(
        backbone=wide(), pool="patch", per_frame=True, published_frames=True
    )


@pytest.mark.parametrize("place", ["encoder._orig_mod.", "_orig_mod.module.backbone.", "module.encoder.module."])
def test_wrappers_are_taken_off_wherever_they_stand(place: str, wide: Callable[..., BackboneConfig]) -> None:
    first, second = expression(wide()), expression(wide())
    load(second, {place + name: value for name, value in save(first).items()})
    assert torch.equal(first.head.weight, second.head.weight)
    compiled = {name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in save(first).items()}
    load(second, compiled)


def test_a_published_state_space_encoder_of_another_depth_gives_its_first_blocks(
    small: Callable[..., BackboneConfig],
) -> None:
    published = shaken(expression(small("mamba", depth=3)))
    source = describe(save(published), frames=8, size=32).backbone
    task = expression(adapted_config(source, AdaptConfig(depth=2, size=64)))
    report = load(task, save(published), source=source, head="new")
    for block in range(2):
        ours, theirs = (x.backbone.encoder.blocks[block].mixer.A_b_log for x in (task, published))
        assert torch.equal(ours, theirs)
    assert "of blocks after the model's 2" in str(report) and "stretched from 1x4x4 to 1x8x8" in str(report)


@pytest.mark.parametrize(("there", "here"), [(4, 3), (3, 4)])
def test_a_published_file_of_another_depth_gives_its_first_blocks(
    there: int, here: int, wide: Callable[..., BackboneConfig]
) -> None:
    pretrained = shaken(autoencoder(wide(depth=there)))
    source = describe(save(pretrained), **CLIPS).backbone
    task = expression(adapted_config(source, AdaptConfig(depth=here)))
    report = load(task, save(pretrained), source=source)
    for block in range(3):
        ours, theirs = (x.backbone.encoder.blocks[block].norm2.weight for x in (task, pretrained))
        assert torch.equal(ours, theirs)
    assert ("of blocks after the model's 3" in str(report)) == (there > here)
    assert ("of blocks after the file's 3" in str(report)) == (here > there)
    with pytest.raises(ValueError, match=r"blocks\.3\."):
        load(task, save(pretrained))


def test_published_adapters_of_another_depth_give_those_of_first_blocks(wide: Callable[..., BackboneConfig]) -> None:
    trained = shaken(expression(wide(depth=4), lora={"rank": 2, "alpha": 6.0}))
    task = expression(wide(depth=3), lora={"rank": 2, "alpha": 6.0})
    report = load(task, save(trained), head="new", source=trained.backbone.config)
    for block in range(3):
        ours, theirs = (x.backbone.encoder.blocks[block].first_attn.kv.weight for x in (task, trained))
        torch.testing.assert_close(ours, theirs)
    assert "blocks.3.first_attn.lora_q.lora_B" in report.left
