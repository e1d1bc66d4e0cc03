"""Expression: one class a clip, from pooled tokens. Source: MAE-DFER (arXiv:2307.02227), fine-tuning."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mien.models.backbone import FeaturesConfig, FeatureTask, evaluating, for_each_row, weighted_mean

LABEL_KEYS = ("label", "partner_label", "partner_weight")


class ClassesConfig(FeaturesConfig, frozen=True):
    """Classes and their loss, on top of the features."""

    num_classes: int = Field(7, description="classes", gt=1)
    smoothing: float = Field(
        0.1, description="label smoothing: share of the target spread over all classes", ge=0, lt=1
    )
    head_scale: float = Field(0.001, description="factor on the first weights of the heads", gt=0)


class ExpressionConfig(ClassesConfig, frozen=True):
    """The expression task."""

    name: Literal["expression"] = Field("expression", description="one class a clip")


class Expression(FeatureTask):
    """A linear head on the features."""

    def __init__(self, config: ExpressionConfig) -> None:
        super().__init__(config)
        self.smoothing = config.smoothing
        self.head = nn.Linear(self.width, config.num_classes)
        self.begin()
        scale_head(self.head, config.head_scale)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the `loss` of a batch with clip and label, and with partner_label and partner_weight where mixed.

        With per_frame, label is one for each clip (b,) or one for each frame (b, t).
        """
        return {"loss": class_loss(self.head(self.features(batch)), batch, self.smoothing)}

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `probabilities` (b, K), and `frame_probabilities` (b, t, K) with per_frame."""
        with evaluating(self):
            return class_probabilities(self.head(self.features(batch)))


def scale_head(head: nn.Module, factor: float) -> None:
    """Multiply weights and biases, so that a new head starts near zero."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(factor)


def class_loss(logits: Tensor, batch: Mapping[str, Tensor], smoothing: float) -> Tensor:
    """Return the mean cross-entropy of logits (b, K) or (b, t, K) over what is labelled (label >= 0), else 0.

    With an output for each frame, a frame bears its own label, of labels (b, t), or its clip's, of labels (b,). A mixed
    clip counts as two: itself with weight 1 - partner_weight, and its partner with partner_weight. Raises ValueError
    for labels of another shape.
    """
    given = {key: for_each_row(batch[key], key, logits.shape[:-1]) for key in LABEL_KEYS if key in batch}
    parts = [(given["label"], torch.ones_like(given["label"], dtype=torch.float32))]
    if "partner_label" in given:
        share = given["partner_weight"]
        parts = [(given["label"], 1 - share), (given["partner_label"], share)]
    rows = logits.float().flatten(0, -2)
    errors, weights = [], []
    for label, weight in parts:
        errors.append(F.cross_entropy(rows, label.clamp(min=0), label_smoothing=smoothing, reduction="none"))
        weights.append(weight * (label >= 0))
    return weighted_mean(torch.cat(errors), torch.cat(weights))


def class_probabilities(logits: Tensor) -> dict[str, Tensor]:
    """Return what to predict from logits (b, K), or from (b, t, K): then the mean over frames, and each frame's."""
    probabilities = logits.float().softmax(-1)
    if logits.ndim == 2:
        return {"probabilities": probabilities}
    return {"probabilities": probabilities.mean(dim=1), "frame_probabilities": probabilities}
