"""The bidirectional state-space encoder: the paper's equations, its sizes, its first weights, what must not be lost."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from mien.models.backbone import BackboneConfig
from mien.models.expression import Expression, ExpressionConfig
from mien.models.loading import load_backbone
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.models.mamba import CausalConv, Mamba, MambaConfig, Mixer
from mien.models.masking import MaskConfig
from mien.models.patches import TubesConfig, standardise
from mien.models.selective_scan import sequential_scan
from mien.platform import optim

GRID = (4, 4, 4)
SIZES = {"tiny": (192, 24), "small": (384, 24), "middle": (576, 32), "base": (768, 24)}


@pytest.fixture
def encoder() -> Callable[..., Mamba]:
    def make(**settings: Any) -> Mamba:
        torch.manual_seed(0)
        return Mamba(MambaConfig.model_validate({"width": 32, "depth": 2} | settings), GRID)

    return make


@pytest.fixture
def expression(small: Callable[..., BackboneConfig]) -> Callable[..., Expression]:
    def make(pool: str = "patch", per_frame: bool = False, **encoder: Any) -> Expression:
        torch.manual_seed(0)
        settings = {"backbone": small("mamba", **encoder), "pool": pool, "per_frame": per_frame}
        return Expression(ExpressionConfig.model_validate(settings))

    return make


@pytest.fixture
def autoencoder(small: Callable[..., BackboneConfig]) -> MaskedAutoencoder:
    torch.manual_seed(0)
    decoder = {"width": 24, "depth": 1, "heads": 2}
    settings = {"backbone": small("mamba"), "decoder": decoder, "mask": {"kind": "tube", "ratio": 0.75}}
    return MaskedAutoencoder(MaeConfig.model_validate(settings))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def branch(x: Tensor, z: Tensor, mixer: Mixer, b: str) -> Tensor:
    """One direction of the mixer, x and z (b, i, l), as its paper writes it."""
    conv, x_proj, dt_proj = (mixer.get_submodule(name + b) for name in ("conv1d", "x_proj", "dt_proj"))
    assert isinstance(conv, nn.Conv1d)
    length = x.shape[2]
    u = F.silu(F.conv1d(F.pad(x, (3, 0)), conv.weight, conv.bias, groups=x.shape[1]))
    dt, B, C = x_proj(u.mT).split([mixer.rank, 16, 16], dim=2)
    A, D = -mixer.get_parameter(f"A{b}_log").exp(), mixer.get_parameter("D" + b)
    assert u.shape[2] == length
    return sequential_scan(u, F.softplus(dt_proj(dt)).mT, A, B.mT, C.mT, D) * F.silu(z)


@pytest.mark.parametrize("length", [1, 3, 20])
def test_the_mixer_is_two_gated_branches_and_their_plain_sum(length: int) -> None:
    torch.manual_seed(0)
    mixer = Mixer(MambaConfig(width=24, depth=2)).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    h = torch.randn(2, length, 24, dtype=torch.float64)
    x, z = mixer.in_proj(h).mT.chunk(2, dim=1)
    both = branch(x, z, mixer, "") + branch(x.flip(2), z.flip(2), mixer, "_b").flip(2)
    torch.testing.assert_close(mixer(h), mixer.out_proj(both.mT))


@pytest.mark.parametrize("length", [1, 3, 9])
def test_the_convolution_is_pytorchs(length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, length, 3), (3, 1, 4), (3,))
    )
    torch.testing.assert_close(
        CausalConv.apply(x, weight, bias), F.conv1d(F.pad(x.mT, (3, 0)), weight, bias, groups=3).mT
    )
    assert gradcheck(CausalConv.apply, (x, weight, bias))


def test_blocks_add_every_mixer_to_the_residual(encoder: Callable[..., Mamba]) -> None:
    module = encoder()
    x = torch.randn(2, 64, 32)
    spatial, times = module.pos_embed[0], module.temporal_pos_embedding[0]
    nn.init.normal_(times)
    tokens = x + (times[:, None] + spatial[None, 1:]).reshape(64, 32)
    residual = torch.cat([(module.cls_token + spatial[0]).expand(2, -1, -1), tokens], dim=1)
    for block in module.blocks:
        mixed = block.mixer(F.rms_norm(residual, (32,), block.norm.weight, 1e-5))
        residual = residual + mixed
    patches, cls = module.encode(x)
    torch.testing.assert_close(patches, residual[:, 1:])
    torch.testing.assert_close(cls, residual[:, :1])


@pytest.mark.parametrize("settings", [{}, {"cls": False}, {"positions": "table"}, {"cls": False, "positions": "table"}])
def test_keeping_all_is_keeping_none_out_and_what_is_hidden_does_not_count(
    settings: dict[str, Any], encoder: Callable[..., Mamba]
) -> None:
    module = encoder(**settings)
    x = torch.randn(2, 64, 32)
    torch.testing.assert_close(module(x, torch.arange(64).expand(2, -1)), module(x))
    keep = torch.arange(0, 64, 3).expand(2, -1)
    kept = module(x[:, ::3], keep)
    assert kept.shape == (2, 22, 32) and not torch.allclose(kept, module(x)[:, ::3], atol=1e-3)


def test_every_token_is_read_from_both_sides(encoder: Callable[..., Mamba]) -> None:
    module = encoder(depth=1)
    x = torch.randn(1, 64, 32, requires_grad=True)
    for row in (10, 50):
        (grad,) = torch.autograd.grad(module(x)[0, row].sum(), x)
        assert (grad[0].abs().sum(dim=1) > 0).all()


def test_the_residual_stays_float32_under_autocast(encoder: Callable[..., Mamba]) -> None:
    module = encoder()
    x = torch.randn(2, 64, 32)
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x.bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("name", "images", "video"),
    [
        ("tiny", 7_148_008, 7_033_744),
        ("small", 25_796_584, 25_568_656),
        ("middle", 74_217_448, 73_875_856),
        ("base", 97_598_440, 97_143_184),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(name: str, images: int, video: int) -> None:
    width, depth = SIZES[name]
    tubes = TubesConfig(frames=8, size=224, tubelet=1)
    backbone = BackboneConfig(tubes=tubes, encoder=MambaConfig(width=width, depth=depth))
    with torch.device("meta"):
        assert parameters(Expression(ExpressionConfig(backbone=backbone, num_classes=400))) == video
        of_images = Expression(ExpressionConfig(backbone=backbone, num_classes=1000))
    assert parameters(of_images) - 8 * width == images  # images have no times


@pytest.mark.parametrize(("width", "count"), [(192, 281_856), (384, 1_042_944), (512, 1_816_576), (768, 4_002_816)])
def test_a_mixer_has_the_published_number_of_parameters(width: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(Mixer(MambaConfig(width=width))) == count


def test_the_encoder_of_512_channels_has_the_published_number_of_parameters() -> None:
    config = MaeConfig(backbone=BackboneConfig(encoder=MambaConfig()), mask=MaskConfig(kind="tube"))
    with torch.device("meta"):
        task = MaskedAutoencoder(config)
    assert parameters(task.backbone) + parameters(task.norm) == 58_990_592


def test_pretraining_trains_the_class_token_positions_and_last_mixer(
    autoencoder: MaskedAutoencoder, batch: dict[str, Tensor]
) -> None:
    autoencoder(batch)["loss"].backward()
    encoder = autoencoder.backbone.encoder
    for name in ("cls_token", "pos_embed", "temporal_pos_embedding"):
        grad = encoder.get_parameter(name).grad
        assert grad is not None and (grad.abs().sum(dim=2) > 0).sum() >= (5 if name == "pos_embed" else 1)
    for parameter in encoder.blocks[-1].parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any()


def test_fine_tuning_takes_positions_class_token_and_when_asked_the_norm(
    autoencoder: MaskedAutoencoder, expression: Callable[..., Expression]
) -> None:
    for parameter in autoencoder.parameters():
        nn.init.normal_(parameter)
    task = expression("region")
    report = load_backbone(task, autoencoder.state_dict(), norm="pretrained")
    assert set(report.fresh) == {"head.weight", "head.bias"}
    for name in ("cls_token", "pos_embed", "temporal_pos_embedding", "blocks.1.mixer.out_proj.weight"):
        assert torch.equal(task.backbone.encoder.get_parameter(name), autoencoder.backbone.encoder.get_parameter(name))
    assert torch.equal(task.fc_norm.weight, autoencoder.norm.weight)


@pytest.mark.parametrize("build", ["expression", "autoencoder"])
def test_time_steps_begin_as_mamba_has_them(build: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(build)
    task = made() if callable(made) and not isinstance(made, nn.Module) else made
    for block in task.backbone.encoder.blocks:
        mixer = block.mixer
        for layer in (mixer.dt_proj, mixer.dt_proj_b):
            steps = F.softplus(layer.bias)
            assert (steps > 0.001 - 1e-6).all() and (steps < 0.1 + 1e-6).all() and steps.max() > 10 * steps.min()
            assert 0.3 < layer.weight.abs().max() * math.sqrt(mixer.rank) <= 1
        torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(64, -1))


def test_the_published_draw_is_a_setting(expression: Callable[..., Expression]) -> None:
    mixer = expression(init="published").backbone.encoder.blocks[0].mixer
    assert (mixer.dt_proj.bias == 0).all() and mixer.dt_proj.weight.std() < 0.04
    assert mixer.out_proj.weight.abs().max() <= 1 / math.sqrt(64) / math.sqrt(2)


def test_decay_of_rates_as_published_is_a_setting(expression: Callable[..., Expression]) -> None:
    task = expression()
    for anyway, count in (((), 0), (("A_log", "A_b_log"), 4)):
        optimiser = optim.build(task, optim.OptimConfig(decay_anyway=anyway))
        decayed = {name for group in optimiser.param_groups if group["weight_decay"] for name in group["param_names"]}
        assert len([name for name in decayed if name.endswith("_log")]) == count
        assert not any(name.endswith((".D", ".D_b", "pos_embed", "embedding", "cls_token")) for name in decayed)
        assert "backbone.encoder.blocks.0.mixer.in_proj.weight" in decayed


def test_layer_decay_as_published_is_a_setting(expression: Callable[..., Expression]) -> None:
    for published, block, times in ((False, 1, 0), (True, 3, 3)):
        layers = expression(published_layers=published).parameter_layers()
        assert layers["backbone.encoder.blocks.0.mixer.A_log"] == block
        assert layers["backbone.encoder.temporal_pos_embedding"] == times
        assert layers["backbone.embed.weight"] == layers["backbone.encoder.pos_embed"] == 0


def test_frames_have_outputs_of_their_own(expression: Callable[..., Expression], batch: dict[str, Tensor]) -> None:
    task = expression(per_frame=True)
    out = task.predict(batch)
    assert out["frame_probabilities"].shape == (4, 8, 7) and out["probabilities"].shape == (4, 7)
    task(batch)["loss"].backward()


def test_pools_read_what_there_is(expression: Callable[..., Expression], batch: dict[str, Tensor]) -> None:
    batch = {"clip": batch["clip"]}
    task = expression("region")
    standard = task.backbone(standardise(batch["clip"]))
    assert standard.messengers is not None
    torch.testing.assert_close(task.features(batch), task.fc_norm(standard.messengers[:, 0]))
    expression("all").features(batch)
    assert expression("all", cls=False).pool == "patch"
    with pytest.raises(ValidationError, match=r"'region' needs .* regions or a class token, but 'mamba' has none"):
        expression("region", cls=False)
