"""Masks hide the right share of every window, repeat over time, and depend on their clip's draw alone."""

import pytest
import torch
from torch import Tensor

from mien.models.masking import MaskConfig, complement, draw_keep, hashed, window_of

GRID = (8, 10, 10)
REGION = (2, 5, 10)
DRAWS = torch.tensor([0, 1, 2, (1 << 63) - 1, 987654321])


def visible(config: MaskConfig, region: tuple[int, int, int] | None = REGION, draws: Tensor = DRAWS) -> Tensor:
    """Return the mask as booleans (b, t, h, w), True where visible."""
    keep = draw_keep(config, GRID, region, draws)
    assert (keep.diff(dim=1) > 0).all(), "kept positions stand in raster order"
    return torch.zeros(len(draws), 800, dtype=torch.bool).scatter_(1, keep, True).view(-1, *GRID)


def test_published_mask_shows_80_of_800_and_5_in_each_window() -> None:
    shown = visible(MaskConfig())
    assert (shown.sum(dim=(1, 2, 3)) == 80).all()
    assert (shown.view(-1, 8, 2, 5, 10).sum(dim=(3, 4)) == 5).all()


@pytest.mark.parametrize(
    "config",
    [MaskConfig(), MaskConfig(kind="tube"), MaskConfig(symmetry="local"), MaskConfig(window=(5, 2), ratio=0.55)],
)
def test_masks_repeat_over_time(config: MaskConfig) -> None:
    shown = visible(config, region=None if config.kind == "tube" or config.window else REGION)
    assert (shown == shown[:, :1]).all()


def test_a_tube_mask_counts_over_the_frame() -> None:
    shown = visible(MaskConfig(kind="tube", ratio=0.75), region=None)
    assert (shown.sum(dim=(2, 3)) == 25).all()
    halves = shown[:, 0].view(-1, 2, 5, 10).sum(dim=(2, 3))
    assert (halves[:, 0] != halves[:, 1]).any()


@pytest.mark.parametrize("window", [(5, 10), (2, 5), (10, 2), (1, 10), (5, 1)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_every_window_hides_the_rounded_down_share(window: tuple[int, int], ratio: float) -> None:
    size = window[0] * window[1]
    if int(ratio * size) == 0:
        pytest.skip("refused, in a test below")
    shown = visible(MaskConfig(window=window, ratio=ratio), region=None)[:, 0]
    counts = shown.view(-1, 10 // window[0], window[0], 10 // window[1], window[1]).sum(dim=(2, 4))
    assert (counts == size - int(ratio * size)).all()


@pytest.mark.parametrize(
    ("config", "in_a_window"),
    [
        (MaskConfig(kind="tube", ratio=0.29), 72),
        (MaskConfig(window=(5, 10), ratio=0.58), 22),
        (MaskConfig(window=(5, 10), ratio=0.94), 3),
        (MaskConfig(window=(5, 10), ratio=0.9), 5),
    ],
)
def test_the_share_is_rounded_as_published(config: MaskConfig, in_a_window: int) -> None:
    """The patches of a window are multiplied first: 0.29 * 100 is just below 29, 0.29 * 10 * 10 is not."""
    windows = 1 if config.kind == "tube" else 2
    shown = visible(config, region=None)
    assert (shown.view(-1, 8, windows, 100 // windows).sum(dim=3) == in_a_window).all()


@pytest.mark.parametrize("symmetry", ["global", "local"])
def test_symmetry_shows_one_half_of_the_face(symmetry: str) -> None:
    draws = torch.arange(200)
    shown = visible(MaskConfig.model_validate({"symmetry": symmetry, "ratio": 0.6}), draws=draws)[:, 0]
    of_windows = shown.view(-1, 2, 5, 2, 5).sum(dim=(2, 4))  # b, window, half
    assert (of_windows.amax(dim=-1) == 20).all() and (of_windows.amin(dim=-1) == 0).all()
    side = of_windows.argmax(dim=-1)
    assert 60 < side[:, 0].sum() < 140
    if symmetry == "global":
        assert (side[:, 0] == side[:, 1]).all()
    else:
        assert 60 < (side[:, 0] == side[:, 1]).sum() < 140


def test_a_mask_depends_on_its_own_draw_alone() -> None:
    config = MaskConfig(symmetry="local")
    together = draw_keep(config, GRID, REGION, DRAWS)
    for i in range(len(DRAWS)):
        assert torch.equal(draw_keep(config, GRID, REGION, DRAWS[i : i + 1])[0], together[i])
    assert len({tuple(row) for row in together.tolist()}) == len(DRAWS)


def test_masks_stay_what_they_were() -> None:
    keep = draw_keep(MaskConfig(), GRID, REGION, torch.tensor([42]))
    assert keep[0, :10].tolist() == [7, 11, 18, 35, 36, 56, 62, 65, 70, 84]  # recorded


def test_every_patch_is_seen_equally_often() -> None:
    shown = visible(MaskConfig(ratio=0.8), draws=torch.arange(2000))[:, 0].float()
    assert shown.mean(dim=0).sub(0.2).abs().max() < 0.05
    pairs = torch.einsum("bi,bj->ij", shown.flatten(1), shown.flatten(1)) / 2000
    assert pairs[:50, 50:].sub(0.04).abs().max() < 0.03  # windows are drawn apart


def test_hashing_fills_its_range_without_sign() -> None:
    values = hashed(torch.arange(-1000, 1000))
    assert values.min() >= 0 and len(values.unique()) == 2000
    assert ((values >> 62) == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_complement_is_the_rest_in_raster_order() -> None:
    assert complement(torch.tensor([[0, 3], [1, 2]]), 5).tolist() == [[1, 2, 4], [0, 3, 4]]


@pytest.mark.parametrize(
    ("settings", "region", "message"),
    [
        ({"kind": "tube"}, REGION, r"window must be its region's.*\(5, 10\).*\(10, 10\)"),
        ({"window": (2, 10)}, REGION, r"window must be its region's.*\(5, 10\).*\(2, 10\)"),
        ({"window": (3, 10)}, None, r"must divide the frame of \(10, 10\)"),
        ({"window": (0, 10)}, None, r"must divide the frame of \(10, 10\)"),
        ({"window": (5, 5), "symmetry": "local"}, None, "as wide as the frame"),
        ({"window": (1, 5), "ratio": 0.1}, None, "must hide something"),
    ],
)
def test_masks_that_cannot_be_are_refused(
    settings: dict[str, object], region: tuple[int, int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        window_of(MaskConfig.model_validate(settings), GRID, region)


@pytest.mark.parametrize(
    "settings",
    [{"symmetry": "local", "ratio": 0.5}, {"symmetry": "global", "kind": "tube"}, {"kind": "tube", "window": (5, 10)}],
)
def test_settings_that_contradict_one_another_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"symmetry needs|has no window"):
        MaskConfig.model_validate(settings)


def test_without_regions_the_window_is_the_frame() -> None:
    assert window_of(MaskConfig(), GRID, None) == (10, 10)


def test_a_tube_mask_serves_regions_as_large_as_the_frame() -> None:
    assert window_of(MaskConfig(kind="tube"), GRID, (2, 10, 10)) == (10, 10)
