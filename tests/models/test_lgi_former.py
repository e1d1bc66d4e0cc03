"""LGI-Former in every variant is its description, spelled out region by region and clip by clip."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mien.models.lgi_former import LgiBlock, LgiFormer, LgiFormerConfig

GRID = (4, 4, 6)
REGION = (2, 2, 3)
NUM_TOKENS = 96
VARIANTS = [
    {"first": first, "second": second, "third": third, "sharing": sharing}
    for first, second, third, sharing in itertools.product(
        ("self", "cross"), (True, False), ("cross", "self", "none"), ("none", "first_third", "all")
    )
]


def made(**settings: Any) -> LgiFormer:
    torch.manual_seed(0)
    config = LgiFormerConfig(**{"width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2, "region": REGION} | settings)
    encoder = LgiFormer(config, GRID)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder.eval()


def region_of(position: int, grid: tuple[int, int, int], region: tuple[int, int, int]) -> int:
    """Count regions along time, then height, then width."""
    _, h, w = grid
    t, row, col = position // (h * w), position // w % h, position % w
    return (t // region[0] * (h // region[1]) + row // region[1]) * (w // region[2]) + col // region[2]


def plainly(encoder: LgiFormer, config: LgiFormerConfig, clip: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
    """Encode one clip's tokens (n, d) at `positions`, one region after another."""
    state = encoder.state_dict()
    regions = [region_of(p, GRID, REGION) for p in positions]
    count = encoder.num_regions
    members = [[i for i, region in enumerate(regions) if region == r] for r in range(count)]
    m, x = state["region_tokens"].clone(), clip.clone()

    for i in range(config.depth):

        def weight(name: str, block: int = i) -> Tensor:
            return state[f"blocks.{block}.{name}"]

        def norm(name: str, y: Tensor) -> Tensor:
            return F.layer_norm(y, y.shape[-1:], weight(name + ".weight"), weight(name + ".bias"), 1e-6)

        def attend(stage: str, q: Tensor, kv: Tensor) -> Tensor:
            if config.sharing == "all" or (config.sharing == "first_third" and stage == "third"):
                stage = "first"
            name = f"{stage}_attn."
            q = q @ weight(name + "q.weight").T + weight(name + "q_bias")
            k, v = (kv @ weight(name + "kv.weight").T).chunk(2, dim=-1)
            v = v + weight(name + "v_bias")
            heads = [
                (qh @ kh.T * qh.shape[-1] ** -0.5).softmax(-1) @ vh
                for qh, kh, vh in zip(*(y.chunk(config.heads, dim=-1) for y in (q, k, v)), strict=True)
            ]
            return torch.cat(heads, -1) @ weight(name + "proj.weight").T + weight(name + "proj.bias")

        def in_regions(stage: str, m: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            m, x = m.clone(), x.clone()
            for r, own in enumerate(members):
                both = norm(f"{stage}_attn_norm0", torch.cat([m[r : r + 1], x[own]]))
                update = attend(stage, both, both)
                m[r] += update[0]
                x[own] += update[1:]
            return m, x

        if config.first == "self":
            m, x = in_regions("first", m, x)
        else:
            reads = [
                attend("first", norm("first_attn_norm0", m[r : r + 1]), norm("first_attn_norm1", x[own]))
                for r, own in enumerate(members)
            ]
            m = m + torch.cat(reads)
        if config.second:
            y = norm("second_attn_norm0", m)
            m = m + attend("second", y, y)
        if config.third == "cross":
            x = x + attend("third", norm("third_attn_norm0", x), norm("third_attn_norm1", m))
        elif config.third == "self":
            m, x = in_regions("third", m, x)

        def mlp(y: Tensor) -> Tensor:
            hidden = F.gelu(norm("norm2", y) @ weight("mlp.fc1.weight").T + weight("mlp.fc1.bias"))
            return hidden @ weight("mlp.fc2.weight").T + weight("mlp.fc2.bias")

        m, x = m + mlp(m), x + mlp(x)
    return x, m


def kept_positions(seed: int, each: int) -> Tensor:
    """Return positions (2, k), `each` of every region, each clip's its own."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.tensor([region_of(p, GRID, REGION) for p in range(NUM_TOKENS)])
    clips = []
    for _ in range(2):
        scores = torch.rand(NUM_TOKENS, generator=generator)
        chosen = [torch.where(regions == r)[0][scores[regions == r].argsort()[:each]] for r in range(8)]
        clips.append(torch.cat(chosen).sort().values)
    return torch.stack(clips)


def name_of(variant: dict[str, Any]) -> str:
    return "-".join(str(value) for value in variant.values())


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_every_variant_is_its_description(variant: dict[str, Any], masked: bool) -> None:
    encoder = made(**variant)
    config = encoder.blocks[0].config
    keep = kept_positions(seed=1, each=3) if masked else None
    x = torch.randn(2, NUM_TOKENS if keep is None else keep.shape[1], 16)
    tokens, messengers = encoder.encode(x, keep)
    for b in range(2):
        positions = list(range(NUM_TOKENS)) if keep is None else keep[b].tolist()
        tokens_plain, messengers_plain = plainly(encoder, config, x[b], positions)
        torch.testing.assert_close(tokens[b], tokens_plain, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(messengers[b], messengers_plain, rtol=1e-4, atol=1e-4)


def test_keeping_all_is_keeping_none_back() -> None:
    encoder = made()
    x = torch.randn(2, NUM_TOKENS, 16)
    everything = torch.arange(NUM_TOKENS).expand(2, -1)
    torch.testing.assert_close(encoder(x, everything), encoder(x))


def test_regions_hold_their_block_of_the_grid() -> None:
    encoder = LgiFormer(LgiFormerConfig(width=16, heads=2, depth=1, region=(2, 5, 10)), (8, 10, 10))
    assert encoder.num_regions == 8
    assert encoder.region_of.tolist() == [region_of(p, (8, 10, 10), (2, 5, 10)) for p in range(800)]
    upper_half_of_the_second_pair = 2 * 100 + 4 * 10 + 9
    assert encoder.region_of[upper_half_of_the_second_pair] == 2


def test_a_masked_region_does_not_read_its_neighbour_before_the_second_stage() -> None:
    encoder = made(depth=1, second=False, third="none")
    keep = kept_positions(seed=2, each=4)
    x = torch.randn(2, keep.shape[1], 16)
    changed = x.clone()
    changed[:, 0] = torch.randn(16)
    elsewhere = encoder.region_of[keep] != encoder.region_of[keep[:, :1]]
    moved = (encoder(changed, keep) - encoder(x, keep)).abs().amax(dim=-1) > 1e-6
    assert not moved[elsewhere].any()
    assert moved[~elsewhere].all()


def test_a_clip_does_not_depend_on_its_batch() -> None:
    encoder = made()
    keep = kept_positions(seed=3, each=2)
    x = torch.randn(2, keep.shape[1], 16)
    torch.testing.assert_close(encoder(x, keep)[1:], encoder(x[1:], keep[1:]))


def test_regions_of_unequal_counts_are_refused_with_the_counts() -> None:
    encoder = made()
    keep = kept_positions(seed=4, each=2)
    keep[1, 0] = next(p for p in range(NUM_TOKENS - 1, 0, -1) if p not in keep[1])
    with pytest.raises(ValueError, match=r"equally many.*\[1, 2, 2, 2, 2, 2, 2, 3\].*window.*\(2, 3\)"):
        encoder(torch.randn(2, keep.shape[1], 16), keep)


@pytest.mark.parametrize("region", [(3, 2, 3), (2, 3, 3), (2, 2, 4)])
def test_a_region_that_does_not_divide_the_grid_is_refused(region: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"region must divide the grid.*\(4, 4, 6\)"):
        LgiFormer(LgiFormerConfig(width=16, heads=2, region=region), GRID)


def test_heads_and_regions_are_checked() -> None:
    with pytest.raises(ValueError, match="heads must divide width"):
        LgiFormerConfig(width=512, heads=7)
    with pytest.raises(ValueError, match="at least one tube"):
        LgiFormerConfig(region=(2, 0, 10))


def constant_branches(block: LgiBlock) -> LgiBlock:
    """Make every branch add 1 wherever it is not dropped."""
    for name, parameter in block.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.endswith(("proj.bias", "fc2.bias")) else 0.0)
    return block.train()


@pytest.mark.parametrize(("third", "whole"), [("cross", "clips"), ("self", "regions")])
def test_stochastic_depth_drops_regions_in_stage_1_and_ffn_and_clips_in_stages_2_and_3(third: str, whole: str) -> None:
    torch.manual_seed(0)
    config = LgiFormerConfig(width=8, heads=1, region=REGION, third=third)
    block = constant_branches(LgiBlock(config, drop_path=0.5))
    messengers, tokens = block(torch.zeros(200, 4, 8), torch.zeros(200, 4, 5, 8))
    assert (messengers == messengers[..., :1]).all() and (tokens == tokens[:, :, :1, :1]).all()
    messengers, tokens = messengers[..., 0], tokens[:, :, 0, 0]
    assert set(tokens.unique().tolist()) == {0, 2, 4, 6}  # three branches, each 0 or 1 / 0.5
    second = messengers - tokens  # stage 2, less stage 3 where only tokens have it
    if whole == "clips":
        assert (second == second[:, :1]).all() and set(second.unique().tolist()) == {-2, 0, 2}
    else:
        assert (second == second[:, :1]).all() and set(second.unique().tolist()) == {0, 2}
    assert (tokens != tokens[:, :1]).any()


def test_shared_attention_exists_once() -> None:
    alone, shared = made(sharing="none"), made(sharing="all")
    attention = sum(p.numel() for p in alone.blocks[0].first_attn.parameters())
    assert sum(p.numel() for p in alone.parameters()) - sum(p.numel() for p in shared.parameters()) == 4 * attention
