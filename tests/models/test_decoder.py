"""The decoder: a scan reads tubes in raster order, or as published, and joint blocks whatever their order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mien.models.backbone import BackboneConfig
from mien.models.decoder import Decoder, DecoderConfig
from mien.models.mae import MaeConfig, MaskedAutoencoder
from mien.models.patches import position_table

SCAN = {"block": "mamba", "width": 24, "depth": 2}


def decoder(**settings: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig.model_validate({"width": 24, "depth": 2, "heads": 2} | settings), 12).eval()


def tokens() -> tuple[Tensor, Tensor]:
    """Return tokens (2, 10, 24) and the places at which they stand."""
    generator = torch.Generator().manual_seed(0)
    places = torch.stack([torch.randperm(10, generator=generator) for _ in range(2)])
    return torch.randn(2, 10, 24, generator=generator), places


def test_a_scan_reads_tokens_by_their_places_however_they_come() -> None:
    scan, (x, places) = decoder(block="mamba"), tokens()
    in_raster = torch.stack([clip[place.argsort()] for clip, place in zip(x, places, strict=True)])
    expected = scan(in_raster, 10)  # as they stand
    found = scan(x, 10, places)
    for clip in range(2):
        torch.testing.assert_close(found[clip], expected[clip][places[clip]])
    assert not torch.allclose(scan(x, 10), found, atol=1e-3)


def test_joint_blocks_ask_for_no_places() -> None:
    joint, (x, places) = decoder(), tokens()
    assert torch.equal(joint(x, 4, places), joint(x, 4)) and joint(x, 4).shape == (2, 4, 12)


def test_what_goes_from_mixer_to_mixer_is_float32_under_autocast() -> None:
    seen = []
    scan, (x, places) = decoder(block="mamba"), tokens()
    scan.blocks[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        scan(x.bfloat16(), 4, places)
    assert seen == [torch.float32]


@pytest.mark.parametrize("name", ["lgi_former", "vit", "mamba"])
def test_every_encoder_learns_with_a_decoder_of_mixers(
    name: str, small: Callable[..., BackboneConfig], batch: dict[str, Tensor]
) -> None:
    settings = {"backbone": small(name), "mask": {"ratio": 0.75}, "decoder": SCAN}
    torch.manual_seed(0)
    task = MaskedAutoencoder(MaeConfig.model_validate(settings))
    ramp = torch.arange(32, dtype=torch.uint8) * 7
    batch = {"clip": ramp[:, None, None].expand(4, 8, 32, 32, 3), "draw": batch["draw"]}
    optimiser = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = task(batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in task.decoder.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_published_positions_have_a_row_for_the_class_token(small: Callable[..., BackboneConfig]) -> None:
    tables = {}
    for published in (True, False):
        settings = {"backbone": small("mamba"), "decoder": SCAN, "published_positions": published}
        tables[published] = MaskedAutoencoder(MaeConfig.model_validate(settings)).positions
    assert torch.equal(tables[False], position_table(64, 24))
    assert torch.equal(tables[True], position_table(65, 24)[1:])


def test_mixers_have_no_heads_that_must_divide() -> None:
    assert DecoderConfig(block="mamba", width=20).width == 20
    with pytest.raises(ValueError, match="heads must divide width"):
        DecoderConfig(width=20)
