"""VideoMamba's published files, made here by their documented names and shapes, load into clips of other sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.backbone import BackboneConfig, FeatureTask
from mien.models.combined import Combined, CombinedConfig
from mien.models.decoder import Decoder
from mien.models.description import describe
from mien.models.expression import Expression, ExpressionConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.models.mamba import MambaConfig
from mien.models.patches import TubesConfig, position_table
from mien.models.published import load, save

W, DEPTH, RANK = 32, 2, 2


def published(times: int | None = 8, side: int = 14, kernel: tuple[int, ...] = (1, 16, 16)) -> dict[str, Tensor]:
    """Return a file of VideoMamba, narrow and shallow: of clips of `times` steps, or of images (None)."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, W),
        "pos_embed": (1, side**2 + 1, W),
        "patch_embed.proj.weight": (W, 3, *kernel),
        "patch_embed.proj.bias": (W,),
        "norm_f.weight": (W,),
        "head.weight": (40, W),
        "head.bias": (40,),
    }
    if times is not None:
        shapes["temporal_pos_embedding"] = (1, times, W)
    for i in range(DEPTH):
        shapes[f"layers.{i}.norm.weight"] = (W,)
        mixer = f"layers.{i}.mixer."
        shapes |= {mixer + "in_proj.weight": (4 * W, W), mixer + "out_proj.weight": (W, 2 * W)}
        for b in ("", "_b"):
            shapes |= {
                f"{mixer}A{b}_log": (2 * W, 16),
                f"{mixer}D{b}": (2 * W,),
                f"{mixer}conv1d{b}.weight": (2 * W, 1, 4),
                f"{mixer}conv1d{b}.bias": (2 * W,),
                f"{mixer}x_proj{b}.weight": (RANK + 32, 2 * W),
                f"{mixer}dt_proj{b}.weight": (2 * W, RANK),
                f"{mixer}dt_proj{b}.bias": (2 * W,),
            }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / 5 for name, shape in shapes.items()}


def pixel_decoder(width: int = 48) -> dict[str, Tensor]:
    """Return the decoder of the facial project's pretraining: a block of mixers under its documented names."""
    config = MaeConfig.model_validate({"decoder": {"block": "mamba", "width": width, "depth": 1}})
    torch.manual_seed(1)
    decoder = Decoder(config.decoder, 1536)
    state = {f"decoder.{name}": value.detach() for name, value in decoder.named_parameters()}
    return state | {"mask_token": torch.randn(1, 1, width), "encoder_to_decoder.weight": torch.randn(width, W) / 5}


def expression(tubelet: int = 1, **tubes: Any) -> Expression:
    torch.manual_seed(0)
    backbone = BackboneConfig(
        tubes=TubesConfig(**({"frames": 8, "size": 224, "tubelet": tubelet} | tubes)),
        encoder=MambaConfig(width=W, depth=DEPTH),
    )
    return Expression(ExpressionConfig(backbone=backbone, num_classes=40))


def test_names_and_shapes_are_the_published_and_come_back_the_same() -> None:
    state = published()
    task = expression()
    assert {name: value.shape for name, value in save(task).items()} == {n: value.shape for n, value in state.items()}
    report = load(task, {f"module.{name}": value for name, value in state.items()})
    assert not report.left and not report.fresh and not report.changed
    back = save(task)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_a_file_says_what_it_is() -> None:
    config = describe(published(), frames=8, size=224)
    assert isinstance(config, ExpressionConfig) and config.num_classes == 40 and config.pool == "region"
    assert config.backbone == expression().backbone.config
    frames = describe(published(), frames=8, size=224, per_frame=True)
    assert isinstance(frames, ExpressionConfig) and frames.per_frame and frames.pool == "patch"
    images = describe(published(None, kernel=(16, 16)))
    assert images.backbone.tubes == TubesConfig(frames=16, size=160, tubelet=1)
    assert describe(published(None, kernel=(16, 16)), tubelet=2).backbone.tubes.tubelet == 2
    assert describe(published(8, 10, (2, 16, 16)), tubelet=4).backbone.tubes.tubelet == 2


def test_eight_frames_at_224_load_into_sixteen_at_160_and_the_report_says_so() -> None:
    state = published()
    task = expression(frames=16, size=160)
    report = load(task, state, head="new")
    encoder = task.backbone.encoder
    grid = state["pos_embed"][:, 1:].mT.unflatten(2, (14, 14))
    expected = F.interpolate(grid, size=(10, 10), mode="bicubic", align_corners=False).flatten(2).mT
    torch.testing.assert_close(encoder.get_parameter("pos_embed")[:, 1:], expected)
    assert torch.equal(encoder.get_parameter("pos_embed")[:, :1], state["pos_embed"][:, :1])
    times = F.interpolate(state["temporal_pos_embedding"].mT, size=16, mode="linear", align_corners=False).mT
    torch.testing.assert_close(encoder.get_parameter("temporal_pos_embedding"), times)
    text = str(report)
    assert "stretched from 1x14x14 to 1x10x10): pos_embed" in text
    assert "stretched from 8x1x1 to 16x1x1): temporal_pos_embedding" in text
    assert set(report.fresh) == {"head.weight", "head.bias"} == set(report.left)
    clip = torch.zeros(1, 16, 160, 160, 3, dtype=torch.uint8)
    assert task.predict({"clip": clip})["probabilities"].isfinite().all()


@pytest.mark.parametrize("kernel", [(16, 16), (1, 16, 16)])
@pytest.mark.parametrize("inflation", ["centre", "mean"])
def test_filters_of_images_are_inflated_over_a_tubes_frames(inflation: Any, kernel: tuple[int, ...]) -> None:
    state = published(None, kernel=kernel)
    task = expression(tubelet=2)
    report = load(task, state, inflation=inflation)
    weight, still = task.backbone.embed.weight, state["patch_embed.proj.weight"].reshape(W, 3, 16, 16)
    if inflation == "centre":
        assert torch.equal(weight[:, :, 1], still) and not weight[:, :, 0].any()
    else:
        torch.testing.assert_close(weight, torch.stack([still, still], dim=2) / 2)
    assert "inflated from one frame to 2" in str(report)
    assert report.fresh == {"backbone.encoder.temporal_pos_embedding": "images have no times"}
    assert not task.backbone.encoder.get_parameter("temporal_pos_embedding").any()


def test_files_of_the_facial_project_load_with_their_second_norm_and_fixed_table() -> None:
    state = published(8, side=10, kernel=(2, 16, 16))
    state["fc_norm.weight"] = state["norm_f.weight"].clone()
    del state["pos_embed"]
    config = describe(state)
    assert config.pool == "patch"  # type: ignore[union-attr]
    task = Expression(config)  # type: ignore[arg-type]
    report = load(task, state)
    torch.testing.assert_close(task.backbone.encoder.get_parameter("pos_embed")[0], position_table(101, W))
    assert "the fixed table that such files were trained with" in str(report)
    # There, what the last mixer gives is never read: without that block the answer is the same.
    clip = {"clip": torch.randint(256, (1, 16, 160, 160, 3), dtype=torch.uint8)}
    answer = task.predict(clip)["probabilities"]
    assert "leaves its last mixer out" in str(report)
    task.backbone.encoder.blocks = task.backbone.encoder.blocks[:-1]
    torch.testing.assert_close(task.predict(clip)["probabilities"], answer)
    task = Expression(config)  # type: ignore[arg-type]
    state["fc_norm.weight"] += 1
    with pytest.raises(ValueError, match="are one norm as published, but the file's differ"):
        load(task, state)


@pytest.mark.parametrize("norm", ["new", "pretrained"])
def test_a_pretrained_file_gives_its_encoder(norm: Any) -> None:
    state = {f"encoder.{name}": value for name, value in published(8, 10, (2, 16, 16)).items() if "head" not in name}
    state["encoder.norm.weight"] = state.pop("encoder.norm_f.weight")
    state |= pixel_decoder()
    config = describe(state)
    assert isinstance(config, MaeConfig) and config.mask.window == (5, 10) and config.published_positions
    assert (config.decoder.block, config.decoder.width, config.decoder.depth) == ("mamba", 48, 1)
    task: FeatureTask = Combined(CombinedConfig(backbone=config.backbone))
    report = load(task, state, norm=norm)
    assert {"mask_token", "decoder.norm.weight"} <= set(report.left)
    assert ("encoder.norm.weight" in report.left, "fc_norm.weight" in report.fresh) == ((norm == "new"),) * 2
    assert torch.equal(task.backbone.encoder.get_parameter("cls_token"), state["encoder.cls_token"])
    mixers = [task.backbone.encoder.get_parameter(f"blocks.{i}.mixer.out_proj.weight") for i in range(DEPTH)]
    assert [bool(weight.any()) for weight in mixers] == [True] * (DEPTH - 1) + [False]


def test_our_own_autoencoders_go_to_the_published_names_and_back(small: Callable[..., BackboneConfig]) -> None:
    settings = {"backbone": small("mamba"), "mask": {"kind": "tube"}, "decoder": {"width": 24, "depth": 1, "heads": 2}}
    first, second = (MaskedAutoencoder(MaeConfig.model_validate(settings)) for _ in range(2))
    state = save(first)
    assert {"encoder.layers.1.mixer.A_b_log", "encoder.pos_embed", "encoder.norm.weight"} <= state.keys()
    load(second, state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def facial_pretraining() -> dict[str, Tensor]:
    """Return a pretraining file of the facial project: learned positions, `norm`, and the decoder of mixers."""
    state = {f"encoder.{name}": value for name, value in published(8, 10, (2, 16, 16)).items() if "head" not in name}
    state["encoder.norm.weight"] = state.pop("encoder.norm_f.weight")
    return state | pixel_decoder()


@pytest.mark.parametrize("blocks", ["blocks", "layers"])
def test_the_facial_projects_pretraining_loads_whole_and_goes_back(blocks: str) -> None:
    state = facial_pretraining()
    given = {name.replace("decoder.blocks", f"decoder.{blocks}"): value for name, value in state.items()}
    config = describe(given)
    assert isinstance(config, MaeConfig)
    task = MaskedAutoencoder(config)
    report = load(task, given)
    assert not report.left and not report.fresh and "leaves its last mixer out" in str(report)
    back = save(task)
    last = f"encoder.layers.{DEPTH - 1}.mixer.out_proj.weight"
    assert back.keys() == state.keys() and not back[last].any()
    assert all(torch.equal(back[name], value) for name, value in state.items() if name != last)
    load(task, state, own=True)  # of ours, the last mixer was trained
    assert torch.equal(save(task)[last], state[last])


def test_pretraining_goes_on_from_videomamba_with_a_decoder_of_its_own() -> None:
    state = published()
    config = describe(facial_pretraining())
    assert isinstance(config, MaeConfig)
    torch.manual_seed(0)
    task = MaskedAutoencoder(config)
    new = {name: value.clone() for name, value in task.decoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"not in the file: decoder\.blocks\.0\.mixer\.A_b_log"):
        load(task, state)
    report = load(task, state, head="new")
    text = str(report)
    assert "2 left in the file (a head, which an autoencoder has none of): head.weight, head.bias" in text
    assert "stretched from 1x14x14 to 1x10x10" in text and "inflated from one frame to 2 (centre)" in text
    assert all(name.startswith(("decoder.", "mask_token", "encoder_to_decoder.")) for name in report.fresh)
    assert torch.equal(task.norm.weight, state["norm_f.weight"])
    assert torch.equal(task.backbone.encoder.get_parameter("blocks.1.mixer.D_b"), state["layers.1.mixer.D_b"])
    assert all(torch.equal(value, new[name]) for name, value in task.decoder.state_dict().items())
    task({"clip": torch.randint(256, (1, 16, 160, 160, 3), dtype=torch.uint8), "draw": torch.tensor([1])})


def test_the_published_pair_has_the_published_number_of_parameters() -> None:
    settings = {"backbone": {"encoder": {"name": "mamba"}}, "decoder": {"block": "mamba", "width": 768, "depth": 1}}
    with torch.device("meta"):
        task = MaskedAutoencoder(MaeConfig.model_validate(settings))
    count = {name: parameter.numel() for name, parameter in task.named_parameters()}
    encoder = sum(number for name, number in count.items() if name.startswith(("backbone.", "norm.")))
    assert (encoder, sum(count.values())) == (58_990_592, 64_570_880)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layers.1.mixer.D_b"), r"not in the file: layers\.1\.mixer\.D_b \(ours: backbone"),
        (lambda s: s.update(other=torch.zeros(1)), "unknown to the model: other"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 200, W)), "square frame, but the file has 199"),
        (lambda s: s.update({"norm_f.weight": torch.zeros(W + 1)}), r"norm_f\.weight \(ours: fc_norm\.weight\)"),
        (
            lambda s: s.update({"patch_embed.proj.weight": torch.zeros(W, 3, 2, 16, 16)}),
            r"other shapes: patch_embed\.proj\.weight \(ours: backbone\.embed",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    state = published()
    change(state)
    with pytest.raises(ValueError, match=message):
        load(expression(), state)
