"""Angles, vectors and bins of the gaze: Gaze360's frame, bins with centres, yaw on the circle."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mien.models.backbone import BackboneConfig
from mien.models.gaze import (
    AnglesConfig,
    BinnedHead,
    DirectHead,
    Gaze,
    GazeConfig,
    L2csHead,
    angle_between,
    gaze_angles,
    gaze_loss,
    to_angles,
    to_vectors,
)

CENTRES = torch.tensor([[0.0, 0.0], [0.4, -1.0], [-1.2, 3.0], [0.1, -3.0], [1.5, 0.3]])


@pytest.mark.parametrize(
    ("vector", "angles"),
    [
        ((0, 0, -1), (0, 0)),
        ((1, 0, 0), (0, math.pi / 2)),
        ((-1, 0, 0), (0, -math.pi / 2)),
        ((0, 0, 1), (0, math.pi)),
        ((0.5, math.sqrt(0.5), -0.5), (math.pi / 4, math.pi / 4)),
    ],
)
def test_angles_are_those_of_the_contract(vector: tuple[float, ...], angles: tuple[float, float]) -> None:
    found = to_angles(torch.tensor(vector, dtype=torch.float32))
    torch.testing.assert_close(found.cos(), torch.tensor(angles).cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        to_vectors(torch.tensor(angles)), torch.tensor(vector, dtype=torch.float32), atol=1e-6, rtol=0
    )


def test_angles_survive_vectors_of_any_length() -> None:
    torch.testing.assert_close(to_angles(3 * to_vectors(CENTRES)), CENTRES)


def test_a_mirrored_vector_has_the_opposite_yaw() -> None:
    mirrored = to_angles(to_vectors(CENTRES) * torch.tensor([-1, 1, 1]))
    torch.testing.assert_close(mirrored, CENTRES * torch.tensor([1, -1]))


def test_the_angle_between_is_the_arc_cosine_and_has_finite_slopes_everywhere() -> None:
    a, b = CENTRES[:-1], CENTRES[1:]
    cosine = (to_vectors(a) * to_vectors(b)).sum(-1)
    torch.testing.assert_close(angle_between(a, b), cosine.clamp(-1, 1).acos(), rtol=1e-4, atol=1e-4)
    same = CENTRES.clone().requires_grad_()
    angle_between(same, CENTRES).sum().backward()
    assert same.grad is not None and same.grad.isfinite().all()


def binned(**settings: Any) -> BinnedHead:
    return BinnedHead(4, AnglesConfig(gaze_head="binned", **settings))


def l2cs(**settings: Any) -> L2csHead:
    return L2csHead(4, AnglesConfig(gaze_head="l2cs", **settings))


HEADS = [DirectHead(4, AnglesConfig()), binned(), l2cs(bin_deg=4)]


def sure(head: BinnedHead, pitch: int, yaw: int) -> BinnedHead:
    """Make a head certain of one bin of each angle."""
    for linear, chosen in ((head.pitch, pitch), (head.yaw, yaw)):
        torch.nn.init.zeros_(linear.weight)
        linear.bias.data = F.one_hot(torch.tensor(chosen), linear.out_features) * 100.0
    return head


def test_bins_cover_their_range_with_centres_in_their_middle() -> None:
    head = binned(bin_deg=4)
    assert head.pitch.out_features == 45 and head.yaw.out_features == 90
    degrees = head.pitch_centres.rad2deg(), head.yaw_centres.rad2deg()
    assert (degrees[0][0].item(), degrees[0][-1].item()) == pytest.approx((-88, 88), abs=1e-3)
    assert (degrees[1][0].item(), degrees[1][-1].item()) == pytest.approx((-178, 178), abs=1e-3)


@pytest.mark.parametrize("yaw", [0, 17, 59, 60, 119])
def test_a_certain_prediction_is_its_bins_centre_and_costs_nothing(yaw: int) -> None:
    head = sure(binned(bin_deg=3), pitch=7, yaw=yaw)
    centre = torch.stack([head.pitch_centres[7], head.yaw_centres[yaw]])[None]
    torch.testing.assert_close(head.angles(torch.zeros(1, 4)), centre, atol=1e-5, rtol=0)
    assert head.errors(torch.zeros(1, 4), centre).item() == pytest.approx(0, abs=1e-6)


def test_two_neighbours_across_the_back_of_the_head_average_to_the_back() -> None:
    head = sure(binned(), pitch=30, yaw=0)
    head.yaw.bias.data = torch.zeros(120)
    head.yaw.bias.data[[0, 119]] = 100
    assert abs(head.angles(torch.zeros(1, 4))[0, 1].item()) == pytest.approx(math.pi, abs=1e-5)


def test_the_error_is_the_angle_across_the_seam_of_the_circle_too() -> None:
    head = sure(binned(regression_weight=1e6, gaze_loss="angular"), pitch=30, yaw=119)
    pitch, yaw = head.pitch_centres[30].item(), head.yaw_centres[119].item()
    across = torch.tensor([[pitch, -yaw]])
    entropy = 100  # of a certain head in the wrong bin
    expected = entropy + 1e6 * math.cos(pitch) * 2 * (math.pi - yaw)
    assert head.errors(torch.zeros(1, 4), across).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["mse", "l1", "angular"])
def test_bins_that_are_all_alike_have_small_slopes(kind: Any) -> None:
    head = binned(gaze_loss=kind)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    head.errors(torch.randn(5, 4), CENTRES).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() < 20 for p in head.parameters())


@pytest.mark.parametrize("yaw", [-math.pi, math.pi, math.pi / 2, -1e-9, 3.1415925])
@pytest.mark.parametrize("pitch", [-math.pi / 2, math.pi / 2, 0.0])
def test_every_angle_has_a_bin(pitch: float, yaw: float) -> None:
    assert binned().errors(torch.randn(1, 4), torch.tensor([[pitch, yaw]])).isfinite().all()


def test_the_binned_error_is_both_entropies_and_the_weighted_regression() -> None:
    torch.manual_seed(0)
    head = binned(regression_weight=2.5)
    x = torch.randn(5, 4)
    pitch_bin = ((CENTRES[:, 0].rad2deg() + 90) // 3).long()
    yaw_bin = ((CENTRES[:, 1].rad2deg() + 180) // 3).long()
    pitch = head.pitch(x).softmax(-1) @ head.pitch_centres
    circle = to_vectors(torch.stack([torch.zeros(120), head.yaw_centres], dim=1))
    direction = pitch.cos()[:, None] * (head.yaw(x).softmax(-1) @ circle)
    direction[:, 1] = pitch.sin()
    expected = (
        F.cross_entropy(head.pitch(x), pitch_bin, reduction="none")
        + F.cross_entropy(head.yaw(x), yaw_bin, reduction="none")
        + 2.5 * (direction - to_vectors(CENTRES)).square().sum(dim=1) / 2
    )
    torch.testing.assert_close(head.errors(x, CENTRES), expected)


@pytest.mark.parametrize("kind", ["mse", "l1", "angular"])
def test_the_direct_error_is_in_radians(kind: Any) -> None:
    head = DirectHead(4, AnglesConfig(gaze_loss=kind))
    x = torch.randn(5, 4)
    difference = head(x) - CENTRES
    expected = {
        "mse": difference.square().mean(dim=1),
        "l1": difference.abs().mean(dim=1),
        "angular": (to_vectors(head(x)) * to_vectors(CENTRES)).sum(-1).clamp(-1, 1).acos(),
    }[kind]
    torch.testing.assert_close(head.errors(x, CENTRES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS, ids=["direct", "binned", "l2cs"])
def test_unknown_gaze_does_not_count(head: DirectHead | BinnedHead) -> None:
    x = torch.randn(5, 4, requires_grad=True)
    gaze = CENTRES.clone()
    gaze[1] = torch.nan
    gaze[3, 0] = torch.nan
    known = [0, 2, 4]
    torch.testing.assert_close(gaze_loss(head, x, {"gaze": gaze}), head.errors(x[known], gaze[known]).mean())
    nothing = gaze_loss(head, x, {"gaze": torch.full((5, 2), torch.nan)})
    nothing.backward()
    assert nothing.item() == 0
    assert x.grad is not None and x.grad.abs().max() == 0


@pytest.mark.parametrize("head", HEADS, ids=["direct", "binned", "l2cs"])
def test_a_frame_bears_its_own_gaze_where_it_has_one(head: DirectHead | BinnedHead) -> None:
    x = torch.randn(5, 3, 4)
    alike = CENTRES[:, None].expand(-1, 3, -1)
    assert torch.equal(gaze_loss(head, x, {"gaze": alike}), gaze_loss(head, x, {"gaze": CENTRES}))
    of_frames = torch.stack([CENTRES, CENTRES.flip(0), -CENTRES], dim=1)
    of_frames[1, 2] = of_frames[3] = torch.nan
    known = of_frames.isfinite().all(dim=-1)
    expected = head.errors(x[known], of_frames[known]).mean()
    torch.testing.assert_close(gaze_loss(head, x, {"gaze": of_frames}), expected)


@pytest.mark.parametrize("head", HEADS, ids=["direct", "binned", "l2cs"])
def test_a_teachers_spread_weighs_its_labels_where_that_is_asked_for(head: DirectHead | BinnedHead) -> None:
    x, spread = torch.randn(5, 4), torch.tensor([0.0, 2.0, 4.0, 0.0, 6.0]).deg2rad()
    batch = {"gaze": CENTRES, "gaze_spread": spread}
    errors = head.errors(x, CENTRES)
    torch.testing.assert_close(gaze_loss(head, x, batch), errors.mean())
    # Half at the scale, a fifth at twice, a tenth at three times of it; 0, which is measured gaze, counts whole.
    weights = torch.tensor([1, 0.5, 0.2, 1, 0.1])
    torch.testing.assert_close(gaze_loss(head, x, batch, 2.0), (errors * weights).sum() / weights.sum())
    torch.testing.assert_close(gaze_loss(head, x, {"gaze": CENTRES}, 2.0), errors.mean())
    # An unknown gaze does not count, whatever its spread; a frame bears its own spread, or its clip's.
    unknown = CENTRES.clone()
    unknown[0] = torch.nan
    expected = (errors * weights)[1:].sum() / weights[1:].sum()
    torch.testing.assert_close(gaze_loss(head, x, batch | {"gaze": unknown}, 2.0), expected)
    frames, of_frames = x[:, None].expand(-1, 3, -1), spread[:, None].expand(-1, 3)
    for given in (spread, of_frames):
        torch.testing.assert_close(
            gaze_loss(head, frames, batch | {"gaze_spread": given}, 2.0), (errors * weights).sum() / weights.sum()
        )
    with pytest.raises(ValueError, match=r"gaze_spread must have the shape"):
        gaze_loss(head, x, batch | {"gaze_spread": of_frames}, 2.0)


def test_gaze_of_another_shape_is_refused() -> None:
    head = DirectHead(4, AnglesConfig())
    for rows, gaze in (((1,), (1, 8, 2)), ((5,), (1, 2)), ((5, 8), (5, 4, 2)), ((5, 8), (5, 8)), ((5, 2), (5, 8, 2))):
        with pytest.raises(ValueError, match=rf"gaze must have the shape .* but it is {re.escape(str(gaze))}"):
            gaze_loss(head, torch.randn(*rows, 4), {"gaze": torch.zeros(gaze)})


def test_mixed_clips_are_refused_since_they_have_two_gazes() -> None:
    with pytest.raises(ValueError, match="turn mixing"):
        gaze_loss(DirectHead(4, AnglesConfig()), torch.randn(5, 4), {"gaze": CENTRES, "partner_label": torch.zeros(5)})


def test_frames_average_as_directions() -> None:
    head = DirectHead(2, AnglesConfig())
    torch.nn.init.eye_(head.weight)
    torch.nn.init.zeros_(head.bias)
    out = gaze_angles(head, torch.tensor([[[0.0, 3.0], [0.0, -3.0]]]))
    assert out["gaze"].abs()[0, 1].item() == pytest.approx(math.pi)
    assert out["frame_gaze"].tolist() == [[[0, 3], [0, -3]]]


def test_the_task_starts_at_the_camera(small: Callable[..., BackboneConfig], batch: dict[str, Tensor]) -> None:
    assert Gaze(GazeConfig(backbone=small())).predict(batch)["gaze"].abs().max() < 1e-2


def test_bins_that_do_not_fill_the_circle_are_refused() -> None:
    with pytest.raises(ValueError, match="bin_deg must divide 180"):
        GazeConfig(bin_deg=7)


@pytest.mark.parametrize(("bin_deg", "edges"), [(2, True), (2, False), (4, False)])
def test_the_l2cs_head_is_its_description(bin_deg: float, edges: bool) -> None:
    torch.manual_seed(0)
    head = l2cs(bin_deg=bin_deg, bin_edges=edges, regression_weight=2.5)
    features, gaze = torch.randn(6, 4), torch.empty(6, 2).uniform_(-1.5, 1.5)
    half = 45 * bin_deg
    for row in range(6):
        angles, error = [], 0.0
        for axis, layer in enumerate((head.pitch, head.yaw)):
            shares = layer(features[row]).softmax(0).tolist()
            degrees = sum(p * (k * bin_deg - half + (0 if edges else bin_deg / 2)) for k, p in enumerate(shares))
            angles.append(math.radians(degrees))
            true = gaze[row, axis].item()
            bin_of = min(max(math.floor((math.degrees(true) + half) / bin_deg), 0), 89)
            error += -math.log(shares[bin_of]) + 2.5 * (math.radians(degrees) - true) ** 2
        assert head.angles(features)[row].tolist() == pytest.approx(angles, abs=1e-5)
        assert head.errors(features, gaze)[row].item() == pytest.approx(error, abs=1e-4)


def test_the_published_edges_lie_half_a_bin_below_the_centres() -> None:
    heads = l2cs(bin_deg=2, bin_edges=True), l2cs(bin_deg=2)
    heads[1].load_state_dict(heads[0].state_dict())
    features = torch.randn(3, 4)
    low, true = (head.angles(features).rad2deg() for head in heads)
    assert torch.allclose(low + 1, true, atol=1e-4)


def test_gaze_beyond_the_l2cs_range_falls_into_the_last_bins() -> None:
    head = l2cs(bin_deg=2)
    wide = torch.tensor([[0.0, 3.0], [0.0, -3.0]])
    assert head._bins(wide).tolist() == [[45, 89], [45, 0]] and head.errors(torch.randn(2, 4), wide).isfinite().all()
    assert l2cs(bin_deg=4)._bins(wide).tolist() == [[45, 87], [45, 2]]


def test_an_l2cs_head_of_other_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="90 bins of 2 or 4 degrees, but bin_deg is 3"):
        AnglesConfig(gaze_head="l2cs")
    with pytest.raises(ValueError, match="bin_edges is about gaze_head l2cs"):
        AnglesConfig(bin_edges=True)
