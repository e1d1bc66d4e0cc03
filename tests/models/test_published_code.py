"""The published scripts' own flags build the published models, and what differs there is said."""

import pytest

from mien.models.backbone import BackboneConfig
from mien.models.expression import ExpressionConfig
from mien.models.gaze import GazeConfig
from mien.models.lgi_former import LgiFormerConfig
from mien.models.mae import MaeConfig
from mien.models.masking import MaskConfig
from mien.models.patches import TubesConfig
from mien.models.published_code import AnyConfig, flags_there, otherwise_there
from mien.models.vit import VitConfig

SMALL = BackboneConfig(encoder=LgiFormerConfig(depth=12, region=(2, 2, 10)))
JOINT = BackboneConfig(encoder=VitConfig())


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        (
            ExpressionConfig(),
            "--model vit_base_dim512_no_depth_patch16_160 --depth 16 --num_frames 16 --input_size 160 --attn_type "
            "local_global --lg_region_size 2 5 10 --lg_classify_token_type region --nb_classes 7",
        ),
        (
            MaeConfig(),
            "--model pretrain_videomae_base_dim512_no_depth_patch16_160 --encoder_depth 16 --num_frames 16 "
            "--input_size 160 --attn_type local_global --lg_region_size 2 5 10 --decoder_depth 4",
        ),
        (
            GazeConfig(backbone=SMALL, pool="patch"),
            "--model vit_base_dim512_no_depth_patch16_160 --depth 12 --num_frames 16 --input_size 160 --attn_type "
            "local_global --lg_region_size 2 2 10 --lg_classify_token_type org",
        ),
        (
            ExpressionConfig(backbone=JOINT, pool="patch", first_token=True, num_classes=11),
            "--model vit_base_patch16_160 --num_frames 16 --input_size 160 --nb_classes 11 --use_cls",
        ),
        (
            MaeConfig(backbone=JOINT, mask=MaskConfig(kind="tube")),
            "--model pretrain_videomae_base_patch16_160 --num_frames 16 --input_size 160 --decoder_depth 4",
        ),
        (ExpressionConfig(backbone=BackboneConfig(encoder=LgiFormerConfig(third="self"))), None),
        (ExpressionConfig(backbone=BackboneConfig(encoder=VitConfig(depth=16)), pool="patch"), None),
        (
            ExpressionConfig(backbone=BackboneConfig(encoder=VitConfig(), tubes=TubesConfig(size=224)), pool="patch"),
            None,
        ),
    ],
)
def test_the_published_codes_own_names_and_flags(config: AnyConfig, flags: str | None) -> None:
    assert flags_there(config) == flags


def test_what_is_as_published_differs_in_nothing() -> None:
    l2cs = {"gaze_head": "l2cs", "bin_deg": 2, "bin_edges": True}
    for config in (ExpressionConfig(), MaeConfig(published_positions=True), GazeConfig.model_validate(l2cs)):
        assert otherwise_there(config) == []
    for config, told in (
        (MaeConfig(), "other positions"),
        (GazeConfig.model_validate(l2cs | {"bin_edges": False}), "half a bin lower"),
        (GazeConfig.model_validate(l2cs | {"bin_deg": 4}), "no gaze head of such bins"),
        (GazeConfig(gaze_head="binned"), "no gaze head of such bins"),
        (ExpressionConfig(pool="patch", per_frame=True), "mix the regions"),
        (ExpressionConfig(backbone=BackboneConfig(table_grid=(4, 10, 10))), "does not stretch"),
    ):
        (note,) = otherwise_there(config)
        assert told in note
