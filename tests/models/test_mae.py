"""The masked autoencoder paints hidden tubes, knows what to paint, and sees nothing of it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mien.models.attention import INIT_STD
from mien.models.backbone import BackboneConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder, TargetConfig, add_first_frames, target_of
from mien.models.masking import complement
from mien.models.patches import TubesConfig, from_tubes, gather, to_tubes

Batch = dict[str, Tensor]
DECODER = {"width": 24, "depth": 2, "heads": 2}


@pytest.fixture
def make(small: Callable[..., BackboneConfig]) -> Callable[..., MaskedAutoencoder]:
    def build(name: str = "lgi_former", tubes: dict[str, int] | None = None, **settings: Any) -> MaskedAutoencoder:
        torch.manual_seed(0)
        mask = {"ratio": 0.75} | ({"window": (2, 4)} if name != "lgi_former" else {})
        settings = {"backbone": small(name, tubes=tubes), "decoder": DECODER, "mask": mask} | settings
        return MaskedAutoencoder(MaeConfig.model_validate(settings))

    return build


def plain_target(pixels: Tensor, tubes: TubesConfig, config: TargetConfig) -> Tensor:
    """The target of one clip, tube by tube and frame by frame; pixels (n, p) in 0..1."""
    y = pixels.double().clone().view(len(pixels), -1, 3)
    if config.normalise:
        for n in range(len(y)):
            for c in range(3):
                values = y[n, :, c]
                variance = (values - values.mean()).square().sum() / (len(values) - 1)
                y[n, :, c] = (values - values.mean()) / (variance.sqrt() + 1e-6)
    clip = from_tubes(y.flatten(1)[None], tubes)[0]
    changed = clip.clone()
    for f in range(tubes.frames):
        if config.motion and f % config.group:
            changed[:, f] = clip[:, f] - clip[:, f - f % config.group]
    return to_tubes(changed[None], tubes)[0].float()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("tubelet", "group", "motion"),
    [(2, 2, True), (1, 2, True), (1, 3, True), (2, 4, True), (3, 2, True), (4, 6, True), (2, 12, True), (2, 2, False)],
)
def test_the_target_is_its_description(tubelet: int, group: int, motion: bool, normalise: bool) -> None:
    tubes = TubesConfig(frames=12, size=8, patch=4, tubelet=tubelet)
    config = TargetConfig(normalise=normalise, motion=motion, group=group)
    pixels = torch.rand(2, tubes.num_tokens, tubes.tube_pixels)
    expected = torch.stack([plain_target(clip, tubes, config) for clip in pixels])
    torch.testing.assert_close(target_of(pixels, tubes, config), expected, rtol=1e-3, atol=1e-4)


def test_the_target_of_a_constant_clip_is_nothing() -> None:
    tubes = TubesConfig()
    target = target_of(torch.full((1, 800, 1536), 0.7), tubes, TargetConfig())
    assert target.abs().max() < 1e-6 / 1e-6  # rounding of the mean, over the least deviation
    assert target_of(torch.full((1, 800, 1536), 0.5), tubes, TargetConfig()).abs().max() == 0


def test_the_target_of_a_step_between_two_frames_has_its_closed_form() -> None:
    tubes = TubesConfig(frames=2, size=16)
    pixels = torch.cat([torch.full((1, 1, 768), 0.25), torch.full((1, 1, 768), 0.75)], dim=-1)
    target = target_of(pixels, tubes, TargetConfig())
    deviation = 0.25 * math.sqrt(512 / 511) + 1e-6
    torch.testing.assert_close(target[..., :768], torch.full((1, 1, 768), -0.25 / deviation))
    torch.testing.assert_close(target[..., 768:], torch.full((1, 1, 768), 0.5 / deviation))


def test_first_frames_are_taken_away_and_given_back() -> None:
    tubes = TubesConfig(frames=12, size=8, patch=4, tubelet=3)
    y = torch.rand(2, tubes.num_tokens, tubes.tube_pixels)
    back = add_first_frames(add_first_frames(y.clone(), tubes, 4, -1), tubes, 4)
    torch.testing.assert_close(back, y)


def test_the_loss_is_the_mean_over_hidden_tubes_alone(make: Callable[..., MaskedAutoencoder], batch: Batch) -> None:
    task = make()
    out = task.predict(batch)
    pixels = to_tubes(batch["clip"].movedim(-1, 1), task.backbone.config.tubes) / 255
    target = gather(target_of(pixels, task.backbone.config.tubes, task.config.target), out["hidden"])
    expected = (out["prediction"] - target).square().mean()
    torch.testing.assert_close(task(batch)["loss"], expected)
    assert out["hidden"].shape == (4, 48) and out["prediction"].shape == (4, 48, 384)


@pytest.mark.parametrize("name", ["lgi_former", "vit"])
def test_hidden_pixels_are_not_seen(name: str, make: Callable[..., MaskedAutoencoder], batch: Batch) -> None:
    task = make(name)
    before = task.predict(batch)
    tubes = task.backbone.config.tubes
    pixels = to_tubes(batch["clip"].movedim(-1, 1), tubes)
    pixels[torch.arange(4)[:, None], before["hidden"]] = 0
    after = task.predict(batch | {"clip": from_tubes(pixels, tubes).movedim(1, -1)})
    assert torch.equal(after["prediction"], before["prediction"])
    assert not torch.equal(after["loss"], before["loss"])


def test_given_positions_are_used_in_any_order(make: Callable[..., MaskedAutoencoder], batch: Batch) -> None:
    task = make()
    hidden = task.predict(batch)["hidden"]
    keep = complement(hidden, 64)
    shuffled = keep[:, torch.randperm(keep.shape[1])]
    again = task.predict(batch | {"keep": shuffled})
    assert torch.equal(again["hidden"], hidden)
    torch.testing.assert_close(again["prediction"], task.predict(batch)["prediction"])


def test_each_token_has_its_own_position_in_the_decoder(make: Callable[..., MaskedAutoencoder], batch: Batch) -> None:
    """The raster order of the published positions is another where regions are shorter than the frame."""
    right, published = make(), make(published_positions=True)
    hidden = right.predict(batch)["hidden"]
    keep = complement(hidden, 64)
    seen: list[Tensor] = []
    for task in (right, published):
        task.eval().decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        task.predict(batch | {"keep": keep})
    visible = right.backbone.encode(
        (gather(to_tubes(batch["clip"].movedim(-1, 1), right.backbone.config.tubes), keep).float() / 255)
        .unflatten(-1, (-1, 3))
        .sub(torch.tensor([0.485, 0.456, 0.406]))
        .div(torch.tensor([0.229, 0.224, 0.225]))
        .flatten(-2),
        keep,
    ).patches
    tokens = right.encoder_to_decoder(right.norm(visible))
    torch.testing.assert_close(seen[0][:, :16], tokens + right.positions[keep], rtol=1e-4, atol=1e-4)
    order = right.backbone.encoder.region_order(keep)
    torch.testing.assert_close(seen[1][:, :16], gather(tokens, order) + right.positions[keep], rtol=1e-4, atol=1e-4)
    for x in seen:
        torch.testing.assert_close(x[:, 16:], right.mask_token[0] + right.positions[hidden])
    assert not torch.equal(order, torch.arange(16).expand(4, -1))


@pytest.mark.parametrize("group", [2, 4, 8])
def test_motion_weight_of_half_is_the_plain_mean(
    group: int, make: Callable[..., MaskedAutoencoder], batch: Batch
) -> None:
    plain = make(target={"group": group}).predict(batch)["loss"]
    weighed = make(target={"group": group, "motion_weight": 0.5}).predict(batch)["loss"]
    torch.testing.assert_close(weighed, plain)


@pytest.mark.parametrize("group", [2, 4, 8])
def test_motion_weight_splits_the_painted_vector_in_halves_as_published(
    group: int, make: Callable[..., MaskedAutoencoder], batch: Batch
) -> None:
    task = make(target={"motion_weight": 0.3, "group": group})
    out = task.predict(batch)
    tubes = task.backbone.config.tubes
    target = target_of(to_tubes(batch["clip"].movedim(-1, 1), tubes) / 255, tubes, task.config.target)
    halves = (out["prediction"] - gather(target, out["hidden"])).square().chunk(2, dim=-1)
    expected = 0.7 * halves[0].mean(dim=(1, 2)) + 0.3 * halves[1].mean(dim=(1, 2))
    torch.testing.assert_close(out["loss"], expected)


@pytest.mark.parametrize(
    ("tubelet", "group", "first"),
    [(2, 2, 2), (2, 4, 2), (4, 8, 4), (4, 4, 4), (4, 2, 2), (1, 4, 4)],
)
def test_motion_weight_mixes_the_first_frames_and_the_later_ones(
    tubelet: int, group: int, first: int, make: Callable[..., MaskedAutoencoder], batch: Batch
) -> None:
    """Every `first`-th frame is one: of the tube, or of the group where that is shorter or a tube is one frame."""
    losses = {}
    for weight in (0.0, 0.3, 1.0):
        task = make(tubes={"tubelet": tubelet}, target={"motion_weight": weight, "group": group})
        losses[weight] = task.predict(batch)["loss"]
    torch.testing.assert_close(losses[0.3], 0.7 * losses[0.0] + 0.3 * losses[1.0])
    out = task.predict(batch)
    tubes = task.backbone.config.tubes
    target = target_of(to_tubes(batch["clip"].movedim(-1, 1), tubes) / 255, tubes, task.config.target)
    error = torch.zeros_like(target)
    rows = torch.arange(4)[:, None]
    error[rows, out["hidden"]] = (out["prediction"] - target[rows, out["hidden"]]).square()
    hidden = torch.zeros_like(target)
    hidden[rows, out["hidden"]] = 1
    frames = torch.arange(8) % first == 0
    of_first = from_tubes(error, tubes)[:, :, frames].sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(losses[0.0], of_first / from_tubes(hidden, tubes)[:, :, frames].sum(dim=(1, 2, 3, 4)))


@pytest.mark.parametrize(("tubelet", "group"), [(2, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_perfect_prediction_is_shown_as_the_input(
    tubelet: int,
    group: int,
    normalise: bool,
    make: Callable[..., MaskedAutoencoder],
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = make(tubes={"tubelet": tubelet}, target={"group": group, "normalise": normalise})
    tubes = task.backbone.config.tubes
    hidden = task.predict(batch)["hidden"]
    pixels = to_tubes(batch["clip"].movedim(-1, 1), tubes) / 255
    perfect = gather(target_of(pixels, tubes, task.config.target), hidden)
    monkeypatch.setattr(task, "predict", lambda _: {"hidden": hidden, "prediction": perfect})
    shown = task.reconstruct(batch)
    assert set(shown) == {"input", "masked", "reconstruction", "motion", "motion_reconstruction"}
    assert all(x.shape == batch["clip"].shape and x.dtype == torch.uint8 for x in shown.values())
    assert torch.equal(shown["input"], batch["clip"])
    assert (shown["reconstruction"].int() - batch["clip"].int()).abs().max() <= 1
    assert torch.equal(shown["motion"], shown["motion_reconstruction"])
    assert (shown["motion"][:, ::group] == 128).all() and (shown["motion"][:, 1] != 128).any()
    grey = (shown["masked"] == 128).all(dim=-1).float().mean().item()
    assert grey == pytest.approx(0.75, abs=0.01)


def test_the_decoder_drops_branches_in_training_more_often_with_each_block(
    make: Callable[..., MaskedAutoencoder], batch: Batch
) -> None:
    plain, dropping = make(), make(decoder=DECODER | {"depth": 3, "drop_path": 0.4})
    rates = [[block.drop_path.rate for block in task.decoder.blocks] for task in (plain, dropping)]
    assert rates == [[0, 0], [0, 0.2, 0.4]]
    losses = [dropping.train()(batch)["loss"].item() for _ in range(4)]
    assert len(set(losses)) > 1
    kept = dropping.eval()(batch)["loss"]
    without = make(decoder=DECODER | {"depth": 3})
    without.load_state_dict(dropping.state_dict())
    assert torch.equal(kept, without.train()(batch)["loss"])


def test_learned_tokens_start_small_and_the_bridge_as_pytorch_has_it(make: Callable[..., MaskedAutoencoder]) -> None:
    task = make()
    for token in (task.mask_token, task.backbone.encoder.region_tokens):
        assert 0 < token.abs().max() <= INIT_STD
    bridge = task.encoder_to_decoder.weight
    assert bridge.abs().max() <= 1 / math.sqrt(32) and bridge.abs().max() > 0.95 / math.sqrt(32)


def test_weight_decay_spares_tokens_and_vectors(make: Callable[..., MaskedAutoencoder]) -> None:
    task = make()
    undecayed = task.undecayed()
    assert {"mask_token", "backbone.encoder.region_tokens", "backbone.embed.bias", "norm.weight"} <= undecayed
    decayed = {name for name, _ in task.named_parameters()} - undecayed
    assert all(name.endswith(".weight") for name in decayed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": {"group": 3}}, "must divide the clip's frames, but 3 does not divide 8"),
        ({"target": {"motion": False, "motion_weight": 0.5}}, "needs motion"),
        ({"mask": {"kind": "tube"}}, "window must be its region's"),
        ({"decoder": {"width": 10, "heads": 3}}, "heads must divide width"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, make: Callable[..., MaskedAutoencoder]
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
