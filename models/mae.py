"""The masked autoencoder: a backbone sees a tenth of the tubes, a small decoder paints the hidden ones.

The target is each tube's pixels in units of its own mean and deviation (appearance) and, for all but the first frame
of a group of frames, the change from that first frame (motion). Source: MAE-DFER (arXiv:2307.02227), sections on the
decoder and on explicit temporal facial motion; VideoMAE (arXiv:2203.12602) for the rest. The published decoder gives
visible tokens the positions of other tokens; `published_positions` does so again, for its weights. With a state-space
encoder its table has a row for the class token, and its scan takes all visible tokens before all hidden ones.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from mien.models.attention import INIT_STD, initialise
from mien.models.backbone import BackboneConfig, Task, evaluating, final_norm
from mien.models.decoder import Decoder, DecoderConfig
from mien.models.lgi_former import LgiFormer
from mien.models.masking import MaskConfig, complement, draw_keep, window_of
from mien.models.patches import (
    CHANNELS,
    TubesConfig,
    check_clip,
    from_tubes,
    gather,
    position_table,
    standardise_pixels,
    to_tubes,
)

STD_EPS = 1e-6
LANES = 16  # pixels reduced side by side; rows of one pixel's channels take six times as long


class TargetConfig(BaseModel, frozen=True, extra="forbid"):
    """What the decoder is to paint."""

    normalise: bool = Field(True, description="pixels of a tube in units of its own mean and deviation, by channel")
    motion: bool = Field(True, description="frames of a group after its first as the change from the first")
    group: int = Field(2, description="frames of a group; must divide the clip's frames", ge=2)
    motion_weight: float | None = Field(
        None,
        description="share w of the loss: (1 - w) * first frames + w * later frames, each a mean; first of a tube, or "
        "of a group where groups are shorter or tubes have one frame; null: plain mean",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TargetConfig":
        if self.motion_weight is not None and not self.motion:
            raise ValueError(f"motion_weight {self.motion_weight} needs motion, which is off; leave one of them out")
        return self


class MaeConfig(BaseModel, frozen=True, extra="forbid"):
    """The masked autoencoder."""

    name: Literal["mae"] = Field("mae", description="pretraining as a masked autoencoder")
    backbone: BackboneConfig = Field(BackboneConfig(), description="the encoder of what is visible")
    mask: MaskConfig = Field(MaskConfig(), description="what is hidden")
    decoder: DecoderConfig = Field(DecoderConfig(), description="what paints the hidden tubes")
    target: TargetConfig = Field(TargetConfig(), description="what is to be painted")
    published_positions: bool = Field(
        False, description="give the decoder's tokens the positions that the published weights were trained with"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "MaeConfig":
        window_of(self.mask, self.backbone.tubes.grid, self.backbone.region)
        frames = self.backbone.tubes.frames
        if self.target.motion and frames % self.target.group:
            raise ValueError(
                f"target.group must divide the clip's frames, but {self.target.group} does not divide {frames}; "
                "change one of them"
            )
        return self


class MaskedAutoencoder(Task):
    """Backbone on the visible tubes, decoder on all; the loss is on the hidden ones."""

    positions: Tensor

    def __init__(self, config: MaeConfig) -> None:
        super().__init__(config.backbone)
        self.config = config
        tubes = config.backbone.tubes
        self.norm = final_norm(config.backbone.encoder)
        self.encoder_to_decoder = nn.Linear(config.backbone.encoder.width, config.decoder.width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder.width))
        self.decoder = Decoder(config.decoder, tubes.tube_pixels)
        first = int(config.published_positions and not config.backbone.region and config.backbone.has_messengers)
        table = position_table(first + tubes.num_tokens, config.decoder.width)[first:]
        self.register_buffer("positions", table, persistent=False)
        initialise(self.backbone, "xavier")
        initialise(self.decoder, "xavier")
        for name, parameter in self.named_parameters():
            if name.endswith(("region_tokens", "mask_token")):
                nn.init.trunc_normal_(parameter, std=INIT_STD, a=-INIT_STD, b=INIT_STD)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss on batch["clip"], masked at all but batch["keep"] or as batch["draw"] has it."""
        return {"loss": self._paint(batch)["loss"].mean()}

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return features (b, d) of whole clips batch["clip"]: the mean of all their patches' tokens."""
        return self.norm(self.backbone.encode(standardise_tubes(self._tubes(batch))).patches).mean(dim=1)

    def predict(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, a row for each clip, the `loss`, the `hidden` positions (b, k) and their `prediction` (b, k, p)."""
        with evaluating(self):
            return self._paint(batch)

    def reconstruct(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return pictures uint8 (b, t, h, w, c): input, masked, reconstruction, and motion as painted and as it was.

        Brightness and contrast of a hidden tube are its true ones, since they are not predicted. Motion is grey where
        nothing moves, one deviation a quarter of the range.
        """
        with torch.no_grad():
            tubes = self.backbone.config.tubes
            config = self.config.target
            painted = self.predict(batch)
            pixels = self._tubes(batch) / 255
            true = target_of(pixels, tubes, config)
            rows = torch.arange(len(pixels), device=pixels.device)[:, None]
            guess = true.clone()
            guess[rows, painted["hidden"]] = painted["prediction"]
            _, mean, scale = normalise(pixels) if config.normalise else (pixels, 0.0, 1.0)
            look = add_first_frames(guess.clone(), tubes, config.group) if config.motion else guess
            look = (look.unflatten(-1, (-1, CHANNELS)) * scale + mean).flatten(-2)
            reconstruction, masked = pixels.clone(), pixels.clone()
            reconstruction[rows, painted["hidden"]] = look[rows, painted["hidden"]]
            masked[rows, painted["hidden"]] = 0.5
            shown = {"input": pixels, "masked": masked, "reconstruction": reconstruction}
            if config.motion:
                unit = 0.25 if config.normalise else 1.0
                moving = torch.tensor([float(f % config.group > 0) for f in range(tubes.frames)], device=pixels.device)
                for name, value in (("motion", true), ("motion_reconstruction", guess)):
                    shown[name] = to_tubes(0.5 + unit * from_tubes(value, tubes) * moving[:, None, None], tubes)
            return {
                name: (from_tubes(value, tubes).movedim(1, -1).clamp(0, 1) * 255).round().to(torch.uint8)
                for name, value in shown.items()
            }

    def _paint(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tubes = self._tubes(batch)
        keep = self._keep(batch).to(tubes.device)
        hidden = complement(keep, tubes.shape[1])
        prediction = self._decode(self._encode(gather(tubes, keep), keep), keep, hidden)
        target = gather(target_of(tubes / 255, self.backbone.config.tubes, self.config.target), hidden)
        return {"loss": self._loss(prediction, target, hidden), "hidden": hidden, "prediction": prediction.float()}

    def _tubes(self, batch: Mapping[str, Tensor]) -> Tensor:
        check_clip(batch["clip"], self.backbone.config.tubes)
        return to_tubes(batch["clip"].movedim(-1, 1), self.backbone.config.tubes)

    def _keep(self, batch: Mapping[str, Tensor]) -> Tensor:
        if "keep" in batch:
            return batch["keep"].sort(dim=1).values
        backbone = self.backbone.config
        return draw_keep(self.config.mask, backbone.tubes.grid, backbone.region, batch["draw"])

    def _encode(self, kept: Tensor, keep: Tensor) -> Tensor:
        """Encode kept tubes (b, k, p) in 0..255 as tokens (b, k, d), in the order the decoder takes them."""
        x = self.norm(self.backbone.encode(standardise_tubes(kept), keep).patches)
        if self.config.published_positions and isinstance(self.backbone.encoder, LgiFormer):
            # There, tokens come out region after region but take their positions in raster order.
            x = gather(x, self.backbone.encoder.region_order(keep))
        return x

    def _decode(self, x: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        """Paint the hidden tubes (b, k, p) from visible tokens (b, k', d)."""
        x = self.encoder_to_decoder(x)
        masked = self.mask_token.to(x.dtype).expand(*hidden.shape, -1)
        places = torch.cat([keep, hidden], dim=1)
        x = torch.cat([x, masked], dim=1) + self.positions.to(x.dtype)[places]
        return self.decoder(x, hidden.shape[1], None if self.config.published_positions else places)

    def _loss(self, prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """Return each clip's squared error (b,), weighted as the config has it."""
        config, tubes = self.config.target, self.backbone.config.tubes
        error = (target - prediction).square()  # float32, as the target is
        if config.motion_weight is None:
            return error.mean(dim=(1, 2))
        of_frames = error.unflatten(-1, (tubes.tubelet, -1)).mean(dim=-1)
        # As published, a tube's first frame counts against its others, although where groups are longer than tubes
        # it is a change as well. Where they are shorter, and in tubes of one frame, which were not published, the
        # first frames of groups do.
        span = config.group if tubes.tubelet == 1 else min(config.group, tubes.tubelet)
        frame = hidden[:, :, None] // (tubes.grid[1] * tubes.grid[2]) * tubes.tubelet
        first = (frame + torch.arange(tubes.tubelet, device=frame.device)) % span == 0
        means = [(of_frames * part).sum(dim=(1, 2)) / part.sum(dim=(1, 2)).clamp(min=1) for part in (first, ~first)]
        return (1 - config.motion_weight) * means[0] + config.motion_weight * means[1]


def standardise_tubes(tubes: Tensor) -> Tensor:
    """Return tubes (b, n, p) in 0..255 as the backbone takes them."""
    return standardise_pixels(tubes.unflatten(-1, (-1, CHANNELS))).flatten(-2)


def normalise(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tubes (b, n, p) in units of their own deviation, and their mean and deviation by channel (b, n, 1, c)."""
    count = pixels.shape[-1] // CHANNELS
    lanes = math.gcd(count, LANES)
    rows = pixels.unflatten(-1, (-1, lanes * CHANNELS))

    def by_channel(x: Tensor) -> Tensor:
        return x.mean(dim=-2).unflatten(-1, (lanes, CHANNELS)).mean(dim=-2, keepdim=True)

    mean = by_channel(rows)
    y = rows - mean.repeat(1, 1, 1, lanes)
    scale = (by_channel(y.square()) * (count / max(count - 1, 1))).sqrt() + STD_EPS
    return y.div_(scale.repeat(1, 1, 1, lanes)).flatten(-2), mean, scale


def target_of(pixels: Tensor, tubes: TubesConfig, config: TargetConfig) -> Tensor:
    """Return what is to be painted for all tubes (b, n, tube_pixels), given their pixels in 0..1."""
    y = normalise(pixels)[0] if config.normalise else pixels.clone()
    return add_first_frames(y, tubes, config.group, -1) if config.motion else y


def add_first_frames(y: Tensor, tubes: TubesConfig, group: int, times: int = 1) -> Tensor:
    """Add, in place, `times` the first frame of each group of frames to the group's others, in tubes (b, n, p)."""
    # A frame of the clip is one frame of each tube in one row of the grid along time.
    grid = y.unflatten(-1, (tubes.tubelet, -1)).unflatten(1, (tubes.grid[0], -1))
    frames = [grid[:, f // tubes.tubelet, :, f % tubes.tubelet] for f in range(tubes.frames)]
    for f, frame in enumerate(frames):
        if f % group:
            frame.add_(frames[f - f % group], alpha=times)
    return y
