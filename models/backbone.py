"""The backbone: tubes, their positions and one encoder; and what every task shares around it.

To add an encoder, write its config (with a `name`, `width`, `depth`, `drop_path` and `check_grid`) and its module (with
`encode(x, keep)` and `blocks`), and name it here. Source: MAE-DFER (arXiv:2307.02227).
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple

import torch
from einops import rearrange
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mien.models.attention import Norm, initialise
from mien.models.lgi_former import LgiFormer, LgiFormerConfig
from mien.models.lora import LoraConfig, add_adapters
from mien.models.mamba import NORM_EPS, Mamba, MambaConfig
from mien.models.patches import (
    TubeEmbedding,
    TubesConfig,
    check_clip,
    gather,
    position_table,
    standardise,
    stretch,
    to_tubes,
)
from mien.models.vit import Vit, VitConfig

EncoderConfig = Annotated[LgiFormerConfig | VitConfig | MambaConfig, Field(discriminator="name")]
ENCODERS: dict[str, Any] = {"lgi_former": LgiFormer, "vit": Vit, "mamba": Mamba}
LEARNED_TOKENS = ("region_tokens", "mask_token", "cls_token", "pos_embed", "temporal_pos_embedding")
RATES = ("A_log", "A_b_log")  # of a state-space mixer: how fast it forgets, as logarithms


class BackboneConfig(BaseModel, frozen=True, extra="forbid"):
    """The clip, its tubes and the encoder."""

    tubes: TubesConfig = Field(TubesConfig(), description="the clip and the tubes it is cut into")
    encoder: EncoderConfig = Field(LgiFormerConfig(), description="what encodes the tokens")
    table_grid: tuple[int, int, int] | None = Field(
        None,
        description="tubes (t, h, w) that the fixed positions were learned at, to be stretched; null: the clip's own",
    )

    @model_validator(mode="after")
    def _fits(self) -> "BackboneConfig":
        self.encoder.check_grid(self.tubes.grid)
        if self.table_grid is not None and (not self.fixed_positions or min(self.table_grid) < 1):
            raise ValueError(
                f"table_grid {self.table_grid} needs an encoder with the fixed positions and whole numbers"
            )
        return self

    @property
    def region(self) -> tuple[int, int, int] | None:
        """Tubes of a region along time, height and width; None where the encoder has no regions."""
        return self.encoder.region if self.encoder.name == "lgi_former" else None

    @property
    def fixed_positions(self) -> bool:
        """Whether the fixed table is added; else the encoder has learned positions of its own."""
        return self.encoder.name != "mamba" or self.encoder.positions == "table"

    @property
    def has_messengers(self) -> bool:
        """Whether the encoder gives tokens beside its patches: one for each region, or a class token."""
        return self.encoder.cls if self.encoder.name == "mamba" else self.region is not None


class Tokens(NamedTuple):
    """What a backbone makes of a clip: patches (b, n, d) as given; messengers (b, r, d), a class token or None."""

    patches: Tensor
    messengers: Tensor | None


class Backbone(nn.Module):
    """Tube embedding, fixed positions and an encoder."""

    positions: Tensor
    encoder: LgiFormer | Vit | Mamba

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TubeEmbedding(config.tubes, config.encoder.width)
        self.encoder = ENCODERS[config.encoder.name](config.encoder, config.tubes.grid)
        table = position_table(math.prod(config.table_grid or config.tubes.grid), config.encoder.width)
        if config.table_grid is not None:
            table = stretch(table, config.table_grid, config.tubes.grid)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, clip: Tensor, keep: Tensor | None = None) -> Tokens:
        """Encode a standardised clip (b, c, t, h, w), or only its tubes at `keep` (b, k)."""
        tubes = to_tubes(clip, self.config.tubes)
        return self.encode(tubes if keep is None else gather(tubes, keep), keep)

    def encode(self, tubes: Tensor, keep: Tensor | None = None) -> Tokens:
        """Encode standardised tubes (b, k, tube_pixels) standing at `keep` (b, k), or at all positions."""
        x = self.embed(tubes)
        if self.config.fixed_positions:
            x = x + (self.positions if keep is None else self.positions[keep]).to(x.dtype)
        return Tokens(*self.encoder.encode(x, keep))


def final_norm(encoder: EncoderConfig) -> nn.Module:
    """Return the norm that follows an encoder's blocks."""
    return nn.RMSNorm(encoder.width, eps=NORM_EPS) if encoder.name == "mamba" else Norm(encoder.width)


class Task(nn.Module):
    """A module with a backbone that says which layer each of its parameters belongs to and which are not decayed."""

    exempt = LEARNED_TOKENS + RATES  # from weight decay, by the last part of a name, in whichever encoder has them

    def __init__(self, backbone: BackboneConfig) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)

    @property
    def num_layers(self) -> int:
        """Blocks of the encoder; layers are numbered from 0 (embedding) to num_layers + 1 (all after the blocks)."""
        return self.backbone.config.encoder.depth

    def parameter_layers(self) -> dict[str, int]:
        """Return the layer of each parameter, for rates that rise with it.

        As published, the mask token, the class token and positions count with the embedding, but the regions' tokens,
        which the first block takes in, with all that comes after the blocks.
        """
        encoder = self.backbone.config.encoder
        late = encoder.name == "mamba" and encoder.published_layers
        early = ["mask_token", "cls_token", "pos_embed"] + ([] if late else ["temporal_pos_embedding"])
        layers = {}
        for name, _ in self.named_parameters():
            block = None if late else re.match(r"backbone\.encoder\.blocks\.(\d+)\.", name)
            first = name.startswith("backbone.embed.") or name.removeprefix("backbone.encoder.") in early
            layers[name] = int(block[1]) + 1 if block else 0 if first else self.num_layers + 1
        return layers

    def undecayed(self) -> set[str]:
        """Return the parameters exempt from weight decay: vectors (biases, norms), learned tokens and rates."""
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim == 1 or name.rpartition(".")[2] in self.exempt
        }


class FeaturesConfig(BaseModel, frozen=True, extra="forbid"):
    """The backbone and how its tokens become one feature vector."""

    backbone: BackboneConfig = Field(BackboneConfig(), description="the encoder of the clip")
    pool: Literal["region", "patch", "all"] | None = Field(
        None,
        description="tokens averaged: the regions' messengers (mamba: the class token), the patches, or all that the "
        "encoder has; null: those of regions where it has any and clips are told as a whole, else the patches",
    )
    first_token: bool = Field(
        False,
        description="the first of the pool's tokens in place of their mean: published use_cls, without a class token",
    )
    per_frame: bool = Field(False, description="one output for each frame: patches averaged over space only")
    published_frames: bool = Field(
        False,
        description="per_frame over patches in the order of regions, which mixes frames, as its weights were trained",
    )
    lora: LoraConfig | None = Field(None, description="adapters in a frozen backbone; null: all of it is trained")

    @model_validator(mode="after")
    def _tokens_exist(self) -> "FeaturesConfig":
        if self.pool == "region" and not self.backbone.has_messengers:
            raise ValueError(
                f"pool {self.pool!r} needs an encoder with regions or a class token, but "
                f"{self.backbone.encoder.name!r} has none; leave pool out"
            )
        if self.per_frame and self.pooled != "patch":
            raise ValueError(f"per_frame needs pool 'patch', but got {self.pool!r}: regions and messengers span frames")
        if self.per_frame and self.first_token:
            raise ValueError("per_frame averages over space, so there is no first token; turn per_frame or it off")
        if self.published_frames and not (self.per_frame and self.backbone.region):
            raise ValueError("published_frames is about per_frame and an encoder with regions; turn it off")
        return self

    @property
    def pooled(self) -> Literal["region", "patch", "all"]:
        """The tokens that are averaged, where `pool` leaves it to the encoder too."""
        if self.pool == "all" and not self.backbone.has_messengers:
            return "patch"
        return self.pool or ("region" if self.backbone.region and not self.per_frame else "patch")


class FeatureTask(Task):
    """A task on the pooled, normalised tokens of whole clips."""

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__(config.backbone)
        self.pool = config.pooled
        self.first_token = config.first_token
        self.per_frame = config.per_frame
        self.published_frames = config.published_frames
        self.lora = config.lora
        self.width = config.backbone.encoder.width
        self.fc_norm = final_norm(config.backbone.encoder)

    def begin(self) -> None:
        """Draw the first weights; adapters after them, so that the model with new ones is the model without."""
        initialise(self, "normal")
        if self.lora is not None:
            add_adapters(self.backbone, self.lora, self.num_layers)

    def features(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the features (b, d) of batch["clip"] (b, t, h, w, c) in 0..255; (b, t, d) with per_frame."""
        tubes = self.backbone.config.tubes
        check_clip(batch["clip"], tubes)
        patches, messengers = self.backbone(standardise(batch["clip"]))
        if self.published_frames and isinstance(self.backbone.encoder, LgiFormer):
            patches = self.backbone.encoder.in_regions(patches).flatten(1, 2)
        if self.per_frame:
            steps = rearrange(patches, "b (t s) d -> b t s d", t=tubes.grid[0]).mean(dim=2)
            stretched = F.interpolate(steps.transpose(1, 2), size=tubes.frames, mode="linear", align_corners=False)
            return self.fc_norm(stretched.transpose(1, 2))
        if self.pool == "patch":
            tokens = patches
        elif self.pool == "region":
            tokens = messengers
        else:
            tokens = torch.cat([messengers, patches], dim=1)
        return self.fc_norm(tokens[:, 0] if self.first_token else tokens.mean(dim=1))


def for_each_row(values: Tensor, name: str, shape: torch.Size, tail: tuple[int, ...] = ()) -> Tensor:
    """Return values (n, *tail), one for each row of an output whose rows have the shape (b,) or (b, t).

    Of frames (b, t) each takes its own value (b, t, *tail), or its clip's (b, *tail). Raises ValueError for any other
    shape, which would otherwise be stretched to something that nobody meant.
    """
    clips = (shape[0], *tail)
    if values.shape == (*shape, *tail):
        return values.flatten(0, len(shape) - 1)
    if values.shape == clips:
        return values.repeat_interleave(shape[1], dim=0)
    allowed = f"{clips}, one for each clip"
    advice = "give each clip one, or set per_frame to learn from each frame's own"
    if len(shape) == 2:
        allowed += f", or {(*shape, *tail)}, one for each frame"
        advice = "give each clip or each frame one"
    raise ValueError(f"{name} must have the shape {allowed}, but it is {tuple(values.shape)}; {advice}")


def weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of errors (n,) by weights (n,); exactly 0, with gradients of 0, where all weights are 0."""
    total = weights.sum()
    return (errors * weights).sum() / torch.where(total > 0, total, 1)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode and without gradients, and put its mode back."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
