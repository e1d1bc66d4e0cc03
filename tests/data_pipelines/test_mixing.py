"""Mixing puts two clips and two labels together in one and the same proportion."""

import numpy as np
import pytest
import torch

from mien.data_pipelines.mixing import Batch, MixingConfig, mix, separated


def batch_of(count: int = 4) -> Batch:
    """Return clips that are even grey: 0, 50, 100, ..."""
    levels = 50 * torch.arange(count, dtype=torch.uint8)
    return {
        "clip": levels[:, None, None, None, None].expand(count, 2, 16, 20, 3).clone(),
        "label": torch.arange(count),
        "gaze": torch.zeros(count, 2),
        "row": torch.arange(count),
    }


def shares(batch: Batch, mixed: Batch) -> np.ndarray:
    """Return each clip's share of its partner as the mean of its pixels tells."""
    own, partner = (clip.float().mean(dim=(1, 2, 3, 4)) for clip in (batch["clip"], batch["clip"].flip(0)))
    return ((mixed["clip"].float().mean(dim=(1, 2, 3, 4)) - own) / (partner - own)).numpy()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_pixels_and_labels_are_mixed_in_one_proportion(mixup: float, cutmix: float) -> None:
    batch, weights = batch_of(), []
    for seed in range(60):
        mixed = mix(batch, seed, MixingConfig(mixup=mixup, cutmix=cutmix))
        assert mixed["partner_label"].tolist() == [3, 2, 1, 0]
        assert mixed["partner_label"].dtype == torch.int64 and mixed["partner_weight"].dtype == torch.float32
        assert shares(batch, mixed) == pytest.approx(mixed["partner_weight"].numpy(), abs=1e-5)
        assert mixed["gaze"].isnan().all()
        weights.append(float(mixed["partner_weight"][0]))
    assert min(weights) < 0.2 and max(weights) > 0.6
    # The batch that came in is as it was.
    assert torch.equal(batch["clip"], batch_of()["clip"]) and not batch["gaze"].isnan().any()


def test_the_kind_follows_from_the_switch() -> None:
    kinds = [mix(batch_of(), seed, MixingConfig())["clip"].dtype for seed in range(200)]
    assert 70 < kinds.count(torch.float32) < 130
    assert set(kinds) == {torch.float32, torch.uint8}
    assert all(mix(batch_of(), s, MixingConfig(cutmix=0))["clip"].dtype == torch.float32 for s in range(9))
    assert all(mix(batch_of(), s, MixingConfig(mixup=0))["clip"].dtype == torch.uint8 for s in range(9))


def test_cutmix_puts_one_box_into_every_frame() -> None:
    mixed = mix(batch_of(2), 3, MixingConfig(mixup=0))["clip"]
    inside = mixed[0] == 50
    assert inside.any() and torch.equal(inside[0], inside[1])
    rows, columns = inside[0, :, :, 0].any(dim=1).sum(), inside[0, :, :, 0].any(dim=0).sum()
    assert inside[0, :, :, 0].sum() == rows * columns


def test_mixing_that_is_off_changes_nothing() -> None:
    batch = batch_of()
    for config in (MixingConfig(mixup=0, cutmix=0), MixingConfig(probability=0)):
        assert not config.enabled
        mixed = mix(batch, 0, config)
        assert mixed["partner_weight"].tolist() == [0, 0, 0, 0]
        assert all(torch.equal(mixed[name], batch[name]) for name in batch)
    assert MixingConfig().enabled


def test_a_batch_is_mixed_as_its_seed_says() -> None:
    one, again, other = (mix(batch_of(), seed, MixingConfig()) for seed in (5, 5, 6))
    assert torch.equal(one["clip"], again["clip"])
    assert one["partner_weight"][0] != other["partner_weight"][0]


def test_a_mix_with_an_unknown_class_is_unknown() -> None:
    batch = {**batch_of(4), "label": torch.tensor([2, -1, 1, 0])}
    mixed = mix(batch, 0, MixingConfig())
    assert mixed["label"].tolist() == [2, -1, -1, 0] and mixed["partner_label"].tolist() == [0, -1, -1, 2]


def test_an_odd_batch_mixes_its_middle_clip_with_itself() -> None:
    batch = batch_of(3)
    assert torch.equal(mix(batch, 1, MixingConfig())["clip"][1].float(), batch["clip"][1].float())


def test_clips_of_one_video_are_set_apart_and_share_what_is_said_of_it() -> None:
    batch = batch_of(3) | {"draw": torch.tensor([7, 8, 9])}
    batch["clip"][:, 1] += 1  # each of the two frames is a clip
    apart = separated(batch, 2)
    assert apart["clip"].shape == (6, 1, 16, 20, 3)
    assert apart["clip"][:, 0, 0, 0, 0].tolist() == [0, 1, 50, 51, 100, 101]
    assert apart["draw"].tolist() == [7, 7, 8, 8, 9, 9] and apart["gaze"].shape == (6, 2)
    assert separated(batch, 1) is batch
