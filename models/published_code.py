"""What the published code makes of a model of ours: the name and flags that build it, and what it computes otherwise.

Source: the scripts and registered names of MAE-DFER and the Facial-Foundation-Model project.
"""

from mien.models.combined import CombinedConfig
from mien.models.decoder import DecoderConfig
from mien.models.description import POOLS
from mien.models.expression import ExpressionConfig
from mien.models.gaze import GazeConfig
from mien.models.lgi_former import LgiFormerConfig
from mien.models.mae import MaeConfig
from mien.models.published_heads import HEAD_WIDTH
from mien.models.tasks import AnyConfig

VARIANTS = ("first", "second", "third", "sharing", "mlp_ratio")  # built by flags that no published script uses
SIZE = 160  # the one size under which models are registered


def flags_there(config: AnyConfig) -> str | None:
    """Return the flags that make the published code build a model, or None where it has no name for it."""
    encoder, tubes = config.backbone.encoder, config.backbone.tubes
    if encoder.name == "mamba" or (tubes.size, tubes.patch, tubes.tubelet, encoder.mlp_ratio) != (SIZE, 16, 2, 4):
        return None
    if encoder.width not in (512, 768) or encoder.heads * HEAD_WIDTH != encoder.width:
        return None
    if encoder.width == 768 and encoder.depth != 12:
        return None
    if isinstance(encoder, LgiFormerConfig):
        usual = LgiFormerConfig()
        if any(getattr(encoder, name) != getattr(usual, name) for name in VARIANTS):
            return None
    pretraining = isinstance(config, MaeConfig)
    name = "pretrain_videomae_base" if pretraining else "vit_base"
    found = f"--model {name}{'_dim512_no_depth' if encoder.width == 512 else ''}_patch16_{SIZE}"
    if encoder.width == 512:
        found += f" --{'encoder_depth' if pretraining else 'depth'} {encoder.depth}"
    found += f" --num_frames {tubes.frames} --input_size {SIZE}"
    if config.backbone.region is not None:
        found += f" --attn_type local_global --lg_region_size {' '.join(map(str, config.backbone.region))}"
    if isinstance(config, MaeConfig):
        usual_decoder = DecoderConfig(depth=config.decoder.depth, drop_path=config.decoder.drop_path)
        return f"{found} --decoder_depth {config.decoder.depth}" if config.decoder == usual_decoder else None
    if config.backbone.region is not None:
        found += f" --lg_classify_token_type {next(theirs for theirs, ours in POOLS.items() if ours == config.pooled)}"
    if isinstance(config, ExpressionConfig):
        found += f" --nb_classes {config.num_classes}"
    return found + (" --use_cls" if config.first_token else "")


def otherwise_there(config: AnyConfig) -> list[str]:
    """Return what the published code computes otherwise than this model."""
    found, backbone = [], config.backbone
    if isinstance(config, MaeConfig):
        if backbone.region and not config.published_positions:
            found.append("its decoder gives visible tubes other positions: fine-tune from it, reconstruct with it not")
    elif config.per_frame and backbone.region and not config.published_frames:
        found.append("its outputs for frames mix the regions of a face (keep_temporal_dim)")
    if isinstance(config, GazeConfig | CombinedConfig):
        if config.gaze_head == "binned" or (config.gaze_head == "l2cs" and config.bin_deg != 2):
            found.append("it has no gaze head of such bins")
        elif config.gaze_head == "l2cs" and not config.bin_edges:
            found.append("its angles are half a bin lower")
    if backbone.table_grid is not None:
        found.append(f"it does not stretch the fixed positions from {backbone.table_grid}")
    return found
