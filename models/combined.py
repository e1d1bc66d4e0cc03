"""Expression and gaze together: alpha * cross-entropy + gaze_weight * gaze error.

alpha scales the classes only and is no share: with alpha 0 gaze is trained alone, with gaze_weight 0 the classes are.
Each term is a mean over its own labelled clips (with per_frame: frames), so datasets with either label may be mixed.
Units: the gaze error is in radians (squared for mse), about 0.3 for a zero prediction on Gaze360, and the
cross-entropy starts at ln 7 = 1.95.
Source: the combined loss of the Facial-Foundation-Model project (its combine_loss_alpha).
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from mien.models.backbone import FeatureTask, evaluating
from mien.models.expression import ClassesConfig, class_loss, class_probabilities, scale_head
from mien.models.gaze import GAZE_HEADS, AnglesConfig, gaze_angles, gaze_loss


class CombinedConfig(ClassesConfig, AnglesConfig, frozen=True):
    """The combined task."""

    name: Literal["combined"] = Field("combined", description="one class and one gaze a clip")
    alpha: float = Field(1.0, description="weight of the classes' cross-entropy; 0 trains gaze alone", ge=0)
    gaze_weight: float = Field(1.0, description="weight of the gaze error; 0 trains the classes alone", ge=0)
    # As published: its combined loss takes plain cross-entropy, whatever the smoothing of the classes alone.
    smoothing: float = Field(
        0.0, description="label smoothing: share of the target spread over all classes", ge=0, lt=1
    )


class Combined(FeatureTask):
    """Two heads on the same features."""

    def __init__(self, config: CombinedConfig) -> None:
        super().__init__(config)
        self.config = config
        self.class_head = nn.Linear(self.width, config.num_classes)
        self.gaze_head = GAZE_HEADS[config.gaze_head](self.width, config)
        self.begin()
        scale_head(self.class_head, config.head_scale)
        scale_head(self.gaze_head, config.gaze_head_scale)
        # A head that nothing teaches is not to decay, nor to be waited for by parallel workers.
        self.class_head.requires_grad_(config.alpha > 0)
        self.gaze_head.requires_grad_(config.gaze_weight > 0)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `loss`, `class_loss` and `gaze_loss` of a batch with clip, label and gaze; see either task."""
        features = self.features(batch)
        classes = class_loss(self.class_head(features), batch, self.config.smoothing)
        losses = {"loss": self.config.alpha * classes, "class_loss": classes}
        if self.config.gaze_weight > 0:
            gaze = gaze_loss(self.gaze_head, features, batch, self.config.spread_scale_deg)
            losses = {"loss": losses["loss"] + self.config.gaze_weight * gaze, "class_loss": classes, "gaze_loss": gaze}
        return losses

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `probabilities` (b, K) and `gaze` (b, 2) in radians; with per_frame, each frame's as well."""
        with evaluating(self):
            features = self.features(batch)
            return class_probabilities(self.class_head(features)) | gaze_angles(self.gaze_head, features)
