"""Gaze: pitch and yaw of a clip, regressed directly or as an expectation over bins.

Angles are (pitch, yaw) in radians, vectors x left in the image, y up, z away from the camera (Gaze360's frame,
arXiv:1910.10088): looking into the camera is (0, 0, -1) and (0, 0). The binned head follows L2CS-Net
(arXiv:2203.03339), but with the bins' centres, yaw over the full circle and an expectation on the circle; the l2cs head
is that of the Facial-Foundation-Model project, for its weights.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mien.models.backbone import FeaturesConfig, FeatureTask, evaluating, for_each_row, weighted_mean
from mien.models.expression import scale_head

L2CS_BINS = 90


class AnglesConfig(FeaturesConfig, frozen=True):
    """Head and loss of the gaze, on top of the features."""

    gaze_head: Literal["direct", "binned", "l2cs"] = Field(
        "direct",
        description="two numbers (direct), classes of angles and their expectation (binned), or 90 classes "
        "of either angle, as published (l2cs)",
    )
    gaze_loss: Literal["mse", "l1", "angular"] = Field(
        "mse", description="error of the angles: squared or absolute, mean of pitch and yaw; or the angle between"
    )
    bin_deg: float = Field(
        3.0,
        description="width of a bin in degrees; must divide 180; of l2cs 2 (to 90 degrees of yaw) or 4 (full circle)",
        gt=0,
    )
    bin_edges: bool = Field(
        False, description="l2cs: a bin stands for its lower edge, as published (half a bin too low), not its centre"
    )
    regression_weight: float = Field(
        1.0, description="weight of gaze_loss beside the two cross-entropies of bins", ge=0
    )
    gaze_head_scale: float = Field(0.001, description="factor on the first weights of the gaze head", gt=0)
    spread_scale_deg: float | None = Field(
        None,
        description="a gaze told by a teacher counts by 1 / (1 + (its spread / this)^2), half where its answers lie "
        "this many degrees apart; null: all count alike, as published",
        gt=0,
    )

    @model_validator(mode="after")
    def _bins_fill(self) -> "AnglesConfig":
        if abs(180 / self.bin_deg - round(180 / self.bin_deg)) > 1e-9:
            raise ValueError(f"bin_deg must divide 180 degrees, but 180 / {self.bin_deg} is no whole number")
        if self.gaze_head == "l2cs" and self.bin_deg not in (2, 4):
            raise ValueError(
                f"gaze_head l2cs has 90 bins of 2 or 4 degrees, but bin_deg is {self.bin_deg}; set it to 4"
            )
        if self.bin_edges and self.gaze_head != "l2cs":
            raise ValueError(f"bin_edges is about gaze_head l2cs, but got {self.gaze_head!r}; turn it off")
        return self


class GazeConfig(AnglesConfig, frozen=True):
    """The gaze task."""

    name: Literal["gaze"] = Field("gaze", description="pitch and yaw of a clip")


class DirectHead(nn.Linear):
    """Features to (pitch, yaw) in radians."""

    def __init__(self, width: int, config: AnglesConfig) -> None:
        super().__init__(width, 2)
        self.kind = config.gaze_loss

    def angles(self, features: Tensor) -> Tensor:
        """Return the angles (n, 2) float32 of features (n, d)."""
        return self(features).float()

    def errors(self, features: Tensor, gaze: Tensor) -> Tensor:
        """Return each row's error (n,) against gaze (n, 2)."""
        return angle_errors(self.angles(features), gaze, self.kind)


class BinnedHead(nn.Module):
    """Features to a distribution over bins of pitch (-90 to 90 degrees) and one of yaw (the full circle)."""

    pitch_centres: Tensor
    yaw_centres: Tensor

    def __init__(self, width: int, config: AnglesConfig) -> None:
        super().__init__()
        self.kind = config.gaze_loss
        self.weight = config.regression_weight
        bins = round(180 / config.bin_deg)
        self.pitch = nn.Linear(width, bins)
        self.yaw = nn.Linear(width, 2 * bins)
        for name, half, count in (("pitch_centres", math.pi / 2, bins), ("yaw_centres", math.pi, 2 * bins)):
            centres = (torch.arange(count, dtype=torch.float32) + 0.5) * (2 * half / count) - half
            self.register_buffer(name, centres, persistent=False)

    def angles(self, features: Tensor) -> Tensor:
        """Return the expected angles (n, 2) float32 of features (n, d); yaw's expectation is that of directions."""
        pitch, sine, cosine = self._expectation(self.pitch(features).float(), self.yaw(features).float())
        return torch.stack([pitch, torch.atan2(sine, cosine)], dim=1)

    def errors(self, features: Tensor, gaze: Tensor) -> Tensor:
        """Return each row's error (n,): cross-entropies of both angles and the weighted error of the expectation.

        The latter is the distance d of the mean direction from the true one (for mse: d^2 / 2). Where small it is the
        angle between; but an angle has no slope at a mean of length 0, and a head starts with all bins alike.
        """
        pitch, yaw = self.pitch(features).float(), self.yaw(features).float()
        width = math.pi / len(self.pitch_centres)
        pitch_bin = ((gaze[:, 0] + math.pi / 2) / width).floor().long().clamp(0, len(self.pitch_centres) - 1)
        yaw_bin = ((gaze[:, 1] + math.pi) / width).floor().long() % len(self.yaw_centres)
        entropies = [
            F.cross_entropy(logits, chosen, reduction="none") for logits, chosen in ((pitch, pitch_bin), (yaw, yaw_bin))
        ]
        mean_pitch, sine, cosine = self._expectation(pitch, yaw)
        level = mean_pitch.cos()
        direction = torch.stack([level * sine, mean_pitch.sin(), -level * cosine], dim=1)
        distance = torch.linalg.vector_norm(direction - to_vectors(gaze), dim=1)
        regression = distance.square() / 2 if self.kind == "mse" else distance
        return entropies[0] + entropies[1] + self.weight * regression

    def _expectation(self, pitch: Tensor, yaw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean pitch and the mean sine and cosine of yaw, (n,) each, of logits."""
        # Sums of products, not matrix products, which autocast would round.
        p, w = pitch.softmax(-1), yaw.softmax(-1)
        sine, cosine = (w * self.yaw_centres.sin()).sum(-1), (w * self.yaw_centres.cos()).sum(-1)
        return (p * self.pitch_centres).sum(-1), sine, cosine


class L2csHead(nn.Module):
    """Features to two distributions over 90 bins around 0, as published: yaw is a line with two ends."""

    values: Tensor

    def __init__(self, width: int, config: AnglesConfig) -> None:
        super().__init__()
        self.kind, self.weight = config.gaze_loss, config.regression_weight
        self.bin = math.radians(config.bin_deg)
        self.pitch, self.yaw = nn.Linear(width, L2CS_BINS), nn.Linear(width, L2CS_BINS)
        steps = torch.arange(L2CS_BINS, dtype=torch.float32) + (0 if config.bin_edges else 0.5)
        self.register_buffer("values", (steps - L2CS_BINS / 2) * self.bin, persistent=False)

    def angles(self, features: Tensor) -> Tensor:
        """Return the expected angles (n, 2) float32 of features (n, d)."""
        shares = torch.stack([self.pitch(features), self.yaw(features)], dim=1).float().softmax(-1)
        return (shares * self.values).sum(-1)

    def errors(self, features: Tensor, gaze: Tensor) -> Tensor:
        """Return each row's error (n,): cross-entropies of both angles, and weight * the expectation's error.

        Published: the sum of both squared errors, which is twice their mean, in square radians.
        """
        entropies = sum(
            F.cross_entropy(head(features).float(), chosen, reduction="none")
            for head, chosen in zip((self.pitch, self.yaw), self._bins(gaze).unbind(1), strict=True)
        )
        factor = 1 if self.kind == "angular" else 2
        return entropies + self.weight * factor * angle_errors(self.angles(features), gaze, self.kind)

    def _bins(self, gaze: Tensor) -> Tensor:
        return (gaze / self.bin + L2CS_BINS / 2).floor().long().clamp(0, L2CS_BINS - 1)


GazeHead = DirectHead | BinnedHead | L2csHead
GAZE_HEADS: dict[str, type[GazeHead]] = {"direct": DirectHead, "binned": BinnedHead, "l2cs": L2csHead}


class Gaze(FeatureTask):
    """A gaze head on the features."""

    def __init__(self, config: GazeConfig) -> None:
        super().__init__(config)
        self.spread_scale_deg = config.spread_scale_deg
        self.head = GAZE_HEADS[config.gaze_head](self.width, config)
        self.begin()
        scale_head(self.head, config.gaze_head_scale)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the `loss` of a batch with clip and gaze; with per_frame, gaze is (b, 2) or each frame's (b, t, 2)."""
        return {"loss": gaze_loss(self.head, self.features(batch), batch, self.spread_scale_deg)}

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `gaze` (b, 2) in radians, and `frame_gaze` (b, t, 2) with per_frame."""
        with evaluating(self):
            return gaze_angles(self.head, self.features(batch))


def gaze_loss(
    head: GazeHead,
    features: Tensor,
    batch: Mapping[str, Tensor],
    spread_scale_deg: float | None = None,
) -> Tensor:
    """Return the mean error over the clips whose gaze is known (no NaN), else 0; features (b, d) or (b, t, d).

    With features of frames, a frame bears its own gaze, of gaze (b, t, 2), or its clip's, of gaze (b, 2). With a scale,
    the mean is weighted by `trust` in gaze_spread, (b,) or (b, t) radians. Raises ValueError for other shapes, and for
    mixed clips, which have no one gaze.
    """
    if "partner_label" in batch:
        raise ValueError(
            "gaze is learned from whole clips, but this batch was mixed, and a mixed clip has two gazes; turn mixing "
            "(mixup, cutmix) off, or set gaze_weight to 0 to learn classes alone"
        )
    rows = features.flatten(0, -2)
    gaze = for_each_row(batch["gaze"], "gaze", features.shape[:-1], (2,))
    weights = gaze.isfinite().all(dim=1).float()
    if spread_scale_deg is not None and "gaze_spread" in batch:
        spread = for_each_row(batch["gaze_spread"], "gaze_spread", features.shape[:-1])
        weights = weights * trust(spread, spread_scale_deg)
    return weighted_mean(head.errors(rows, gaze.nan_to_num(0, 0, 0)), weights)


def trust(spread: Tensor, scale_deg: float) -> Tensor:
    """Return the weight (n,) of labels whose teacher's answers lie `spread` (n,) radians apart, 1 where they agree.

    It is the inverse variance 1 / (scale^2 + spread^2) up to a factor: `scale_deg` is the error that a label has where
    its teacher is sure, the floor without which one clip would outweigh all others.
    """
    return 1 / (1 + (spread / math.radians(scale_deg)).square())


def gaze_angles(head: GazeHead, features: Tensor) -> dict[str, Tensor]:
    """Return what to predict from features (b, d), or from (b, t, d): then the mean direction, and each frame's."""
    if features.ndim == 2:
        return {"gaze": head.angles(features)}
    of_frames = head.angles(features.flatten(0, 1)).unflatten(0, features.shape[:2])
    return {"gaze": to_angles(to_vectors(of_frames).mean(dim=1)), "frame_gaze": of_frames}


def angle_errors(angles: Tensor, gaze: Tensor, kind: str) -> Tensor:
    """Return each row's error (n,) between angles (n, 2): squared or absolute, mean of both, or the angle between."""
    if kind == "angular":
        return angle_between(angles, gaze)
    error = angles - gaze
    return (error.square() if kind == "mse" else error.abs()).mean(dim=1)


def to_vectors(angles: Tensor) -> Tensor:
    """Return the unit vectors (..., 3) of angles (..., 2) in radians."""
    pitch, yaw = angles.unbind(-1)
    return torch.stack([pitch.cos() * yaw.sin(), pitch.sin(), -pitch.cos() * yaw.cos()], dim=-1)


def to_angles(vectors: Tensor) -> Tensor:
    """Return the angles (..., 2) in radians of vectors (..., 3) of any length but 0."""
    x, y, z = F.normalize(vectors, dim=-1).unbind(-1)
    return torch.stack([y.clamp(-1, 1).asin(), torch.atan2(x, -z)], dim=-1)


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle (...) in radians between two directions given as angles (..., 2)."""
    a, b = to_vectors(first), to_vectors(second)
    # Not the arc cosine of the product, whose slope is infinite where both agree.
    return torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(a, b), dim=-1), (a * b).sum(dim=-1))
