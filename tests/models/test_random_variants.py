"""Random small encoders, LGI-Former and joint, forward and backward, against descriptions written out token by token.

The description is loops over clips, regions, tokens and heads in double precision and shares nothing with the model but
the values of its parameters. Seeds that cover every variant are listed by a test of their own.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mien.models.attention import is_few
from mien.models.backbone import Backbone, BackboneConfig
from mien.models.expression import Expression, ExpressionConfig

SEEDS = range(32)
JOINT_SEEDS = range(100, 108)
TOLERANCE = 1e-9
MAX_TOKENS = 18
Place = tuple[int, int, int]
Weights = dict[str, Tensor]


def drawn(seed: int) -> tuple[BackboneConfig, int | None]:
    """Return a random variant and how many tubes of each region are kept, None for all."""
    rng = random.Random(seed)
    heads, tubelet, patch = rng.choice([1, 2, 3]), rng.choice([1, 2]), rng.choice([1, 2])
    grid, region = (9, 9, 9), (1, 1, 1)
    while math.prod(grid) > MAX_TOKENS:
        region = (rng.choice([1, 2]), rng.choice([1, 2, 3]), rng.choice([1, 2, 3]))
        side = math.lcm(region[1], region[2]) * rng.choice([1, 2])
        grid = (region[0] * rng.choice([1, 2]), side, side)
    encoder = {
        "name": "lgi_former",
        "width": heads * rng.choice([2, 4, 12]),
        "depth": rng.choice([1, 2, 3]),
        "heads": heads,
        "mlp_ratio": rng.choice([1, 2, 3]),
        "region": region,
        "first": rng.choice(["self", "cross"]),
        "second": rng.choice([True, True, False]),
        "third": rng.choice(["cross", "cross", "self", "none"]),
        "sharing": rng.choice(["none", "first_third", "all"]),
    }
    if seed in JOINT_SEEDS:
        region = grid
        encoder = {name: encoder[name] for name in ("width", "depth", "heads", "mlp_ratio")} | {"name": "vit"}
    tubes = {
        "frames": grid[0] * tubelet,
        "size": grid[1] * patch,
        "patch": patch,
        "tubelet": tubelet,
    }
    whole = math.prod(region)
    keep = None if whole == 1 else rng.choice([None, rng.randrange(1, whole)])
    return BackboneConfig.model_validate({"tubes": tubes, "encoder": encoder}), keep


class Plain:
    """The description: one clip at a time, one token at a time."""

    def __init__(self, config: BackboneConfig, weights: Weights) -> None:
        self.tubes, self.encoder, self.weights = config.tubes, config.encoder, weights
        self.region = config.region or config.tubes.grid
        self.places = [
            (t, row, col)
            for t in range(config.tubes.grid[0])
            for row in range(config.tubes.grid[1])
            for col in range(config.tubes.grid[2])
        ]

    def embedded(self, clip: Tensor, place: Place) -> Tensor:
        """The tube at a place of a clip (c, t, h, w): a kernel's sum for each channel, plus its position."""
        tubelet, patch = self.tubes.tubelet, self.tubes.patch
        t, row, col = place
        kernel, bias = self.weights["embed.weight"], self.weights["embed.bias"]
        block = clip[
            :, t * tubelet : (t + 1) * tubelet, row * patch : (row + 1) * patch, col * patch : (col + 1) * patch
        ]
        position = self.places.index(place)
        channels = []
        for d in range(len(kernel)):
            angle = position / 10000 ** (2 * (d // 2) / len(kernel))
            table = torch.tensor(math.sin(angle) if d % 2 == 0 else math.cos(angle), dtype=torch.float32).double()
            channels.append((block * kernel[d]).sum() + bias[d] + table)
        return torch.stack(channels)

    def region_of(self, place: Place) -> Place:
        return tuple(x // size for x, size in zip(place, self.region, strict=True))  # type: ignore[return-value]

    def encoded(self, clip: Tensor, places: list[Place]) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
        """The tokens by place and the messengers by region, after all blocks."""
        if self.encoder.name == "vit":
            return self.encoded_jointly({place: self.embedded(clip, place) for place in places}), {}
        members: dict[Place, list[Place]] = defaultdict(list)
        for place in places:
            members[self.region_of(place)].append(place)
        regions = sorted({self.region_of(place) for place in self.places})
        messengers = {region: self.weights["encoder.region_tokens"][i] for i, region in enumerate(regions)}
        tokens = {place: self.embedded(clip, place) for place in places}
        for block in range(self.encoder.depth):
            messengers, tokens = self.block(f"encoder.blocks.{block}.", messengers, tokens, members)
        return tokens, messengers

    def encoded_jointly(self, x: dict[Place, Tensor]) -> dict[Place, Tensor]:
        for block in range(self.encoder.depth):
            at = f"encoder.blocks.{block}."
            normed = {place: self.norm(at + "norm1.", token) for place, token in x.items()}
            seen = list(normed.values())
            x = {place: token + self.attention(at + "attn.", normed[place], seen) for place, token in x.items()}
            x = {place: self.mlp(at, token) for place, token in x.items()}
        return x

    def block(self, at: str, m: dict[Place, Tensor], x: dict[Place, Tensor], members: dict[Place, list[Place]]) -> Any:
        config = self.encoder
        third = "first_attn" if config.sharing in ("first_third", "all") else "third_attn"
        second = "first_attn" if config.sharing == "all" else "second_attn"
        # 1. Local: each region by itself.
        if config.first == "self":
            m, x = self.within_regions(at, "first_attn_norm0", "first_attn", m, x, members)
        else:
            m = {
                region: token
                + self.attention(
                    at + "first_attn.",
                    self.norm(at + "first_attn_norm0.", token),
                    [self.norm(at + "first_attn_norm1.", x[place]) for place in members[region]],
                )
                for region, token in m.items()
            }
        # 2. Global: the messengers of a clip.
        if config.second:
            normed = {region: self.norm(at + "second_attn_norm0.", token) for region, token in m.items()}
            m = {
                region: token + self.attention(f"{at}{second}.", normed[region], list(normed.values()))
                for region, token in m.items()
            }
        # 3. Injection: every token reads all messengers, or its region once more.
        if config.third == "cross":
            read = [self.norm(at + "third_attn_norm1.", token) for token in m.values()]
            x = {
                place: token + self.attention(f"{at}{third}.", self.norm(at + "third_attn_norm0.", token), read)
                for place, token in x.items()
            }
        elif config.third == "self":
            m, x = self.within_regions(at, "third_attn_norm0", third, m, x, members)
        # 4. The MLP, on everything.
        return {region: self.mlp(at, token) for region, token in m.items()}, {
            p: self.mlp(at, token) for p, token in x.items()
        }

    def within_regions(
        self, at: str, norm: str, attention: str, m: dict[Place, Tensor], x: dict[Place, Tensor], members: Any
    ) -> tuple[dict[Place, Tensor], dict[Place, Tensor]]:
        new_m, new_x = {}, {}
        for region, messenger in m.items():
            together = [self.norm(f"{at}{norm}.", y) for y in (messenger, *(x[place] for place in members[region]))]
            updates = [self.attention(f"{at}{attention}.", query, together) for query in together]
            new_m[region] = messenger + updates[0]
            for place, update in zip(members[region], updates[1:], strict=True):
                new_x[place] = x[place] + update
        return new_m, new_x

    def attention(self, at: str, query: Tensor, context: list[Tensor]) -> Tensor:
        """One query token on a list of tokens."""
        width, heads = len(query), self.encoder.heads
        each = width // heads
        q = self.weights[at + "q.weight"] @ query + self.weights[at + "q_bias"]
        both = [self.weights[at + "kv.weight"] @ token for token in context]
        keys, values = [y[:width] for y in both], [y[width:] + self.weights[at + "v_bias"] for y in both]
        parts = []
        for head in range(heads):
            own = slice(head * each, (head + 1) * each)
            scores = [(q[own] * key[own]).sum() / math.sqrt(each) for key in keys]
            highest = max(score.item() for score in scores)
            powers = [(score - highest).exp() for score in scores]
            total = sum(powers)
            parts.append(sum(power / total * value[own] for power, value in zip(powers, values, strict=True)))
        return self.weights[at + "proj.weight"] @ torch.cat(parts) + self.weights[at + "proj.bias"]

    def mlp(self, at: str, token: Tensor) -> Tensor:
        hidden = (
            self.weights[at + "mlp.fc1.weight"] @ self.norm(at + "norm2.", token) + self.weights[at + "mlp.fc1.bias"]
        )
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        return token + self.weights[at + "mlp.fc2.weight"] @ hidden + self.weights[at + "mlp.fc2.bias"]

    def norm(self, at: str, token: Tensor) -> Tensor:
        centred = token - token.sum() / len(token)
        scale = (centred.square().sum() / len(token) + 1e-6).sqrt()
        return centred / scale * self.weights[at + "weight"] + self.weights[at + "bias"]


def shaken(module: nn.Module, seed: int, std: float = 0.4) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return module


def kept(plain: Plain, each: int | None, clips: int, seed: int) -> list[list[Place]]:
    """Return the places of each clip, `each` of every region, in raster order; other ones in every clip."""
    rng = random.Random(seed)
    if each is None:
        return [plain.places] * clips
    by_region: dict[Place, list[Place]] = defaultdict(list)
    for place in plain.places:
        by_region[plain.region_of(place)].append(place)
    return [sorted(p for places in by_region.values() for p in rng.sample(places, each)) for _ in range(clips)]


@pytest.mark.parametrize("seed", [*SEEDS, *JOINT_SEEDS])
def test_a_random_variant_is_its_description_forward_and_backward(seed: int) -> None:
    config, each = drawn(seed)
    model = shaken(Backbone(config).double(), seed)
    tubes = config.tubes
    torch.manual_seed(seed)
    clips = torch.randn(2, 3, tubes.frames, tubes.size, tubes.size, dtype=torch.float64)
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    plain = Plain(config, weights)
    places = kept(plain, each, 2, seed)

    x, by_hand_x = clips.clone().requires_grad_(), clips.clone().requires_grad_()
    keep = None if each is None else torch.tensor([[plain.places.index(p) for p in row] for row in places])
    patches, messengers = model(x, keep)
    by_hand = [plain.encoded(clip, row) for clip, row in zip(by_hand_x, places, strict=True)]
    plain_patches = torch.stack(
        [torch.stack([tokens[p] for p in row]) for (tokens, _), row in zip(by_hand, places, strict=True)]
    )
    if messengers is None:
        assert not by_hand[0][1]
        messengers = plain_messengers = torch.zeros(1, dtype=torch.float64)
    else:
        plain_messengers = torch.stack([torch.stack(list(m.values())) for _, m in by_hand])
    assert patches.shape == plain_patches.shape and messengers.shape == plain_messengers.shape
    assert (patches - plain_patches).abs().max() < TOLERANCE
    assert (messengers - plain_messengers).abs().max() < TOLERANCE

    weighing = torch.randn_like(patches), torch.randn_like(messengers)
    ((patches * weighing[0]).sum() + (messengers * weighing[1]).sum()).backward()
    ((plain_patches * weighing[0]).sum() + (plain_messengers * weighing[1]).sum()).backward()
    gradients = {name: value.grad for name, value in model.named_parameters()} | {"clip": x.grad}
    by_hand_gradients = {name: value.grad for name, value in weights.items()} | {"clip": by_hand_x.grad}
    for name, expected in by_hand_gradients.items():
        found = gradients[name]
        expected, found = (torch.zeros(1) if g is None else g for g in (expected, found))
        scale = max(expected.abs().max().item(), 1)
        assert (found - expected).abs().max() < TOLERANCE * scale, name


def test_the_seeds_cover_every_variant() -> None:
    configs = [drawn(seed) for seed in SEEDS]
    encoders = [config.encoder for config, _ in configs]
    for field, values in {
        "first": {"self", "cross"},
        "second": {True, False},
        "third": {"cross", "self", "none"},
        "sharing": {"none", "first_third", "all"},
        "depth": {1, 2, 3},
        "heads": {1, 2, 3},
    }.items():
        assert {getattr(encoder, field) for encoder in encoders} == values
    assert len({encoder.region for encoder in encoders}) >= 10
    assert {each is None for _, each in configs} == {True, False}
    few = set()
    for (config, each), encoder in zip(configs, encoders, strict=True):
        if encoder.third == "cross":
            regions = config.tubes.num_tokens // math.prod(encoder.region)
            tokens = regions * (each or math.prod(encoder.region))
            few.add(is_few(torch.empty(1, regions, 1), torch.empty(1, tokens, encoder.width), encoder.heads))
    assert few == {True, False}, "both ways of reading the messengers are tried"


POOLS: list[dict[str, Any]] = [
    {"pool": "region"},
    {"pool": "patch"},
    {"pool": "all"},
    {"pool": "region", "first_token": True},
    {"pool": "patch", "first_token": True},
    {"pool": "all", "first_token": True},
    {"pool": "patch", "per_frame": True},
    {"pool": "patch", "per_frame": True, "published_frames": True},
]


@pytest.mark.parametrize("settings", POOLS, ids=lambda pool: "-".join(map(str, pool.values())))
def test_a_feature_is_its_description(settings: dict[str, Any], small: Callable[..., BackboneConfig]) -> None:
    backbone = small(tubes={"frames": 8, "size": 16}, width=8, depth=1, region=(2, 1, 2))  # a grid of 4 x 2 x 2
    task = Expression(ExpressionConfig(backbone=backbone, **settings)).eval()
    shaken(task, 0)
    clip = torch.randint(0, 256, (1, 8, 16, 16, 3), dtype=torch.uint8)
    found = task.features({"clip": clip})[0]

    plain = Plain(backbone, {name: value.detach().double() for name, value in task.backbone.named_parameters()})
    pixels = (clip[0].double() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    tokens, messengers = plain.encoded(pixels.permute(3, 0, 1, 2), plain.places)
    norm = {f"fc_norm.{name}": value.detach().double() for name, value in task.fc_norm.named_parameters()}
    plain.weights |= norm
    in_regions = sorted(plain.places, key=lambda place: (plain.region_of(place), place))
    pools = {"region": list(messengers.values()), "patch": list(tokens.values())}
    pools["all"] = [*pools["region"], *pools["patch"]]
    if settings.get("per_frame"):
        order = in_regions if settings.get("published_frames") else plain.places
        steps = [torch.stack([tokens[p] for p in order[4 * t : 4 * t + 4]]).mean(0) for t in range(4)]
        frames = []
        for frame in range(8):  # each step stands in the middle of its two frames
            at = min(max((frame + 0.5) / 2 - 0.5, 0), 3)
            low, share = int(at), at - int(at)
            frames.append((1 - share) * steps[low] + share * steps[min(low + 1, 3)])
        expected = torch.stack([plain.norm("fc_norm.", frame) for frame in frames])
    else:
        pooled = pools[settings["pool"]]
        expected = plain.norm("fc_norm.", pooled[0] if settings.get("first_token") else torch.stack(pooled).mean(0))
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=1e-4)


def test_published_frames_mix_the_halves_of_a_face_and_ours_do_not(small: Callable[..., BackboneConfig]) -> None:
    backbone = small(tubes={"frames": 8, "size": 16}, width=8, depth=1, region=(2, 1, 2))
    settings = {"backbone": backbone, "pool": "patch", "per_frame": True}
    right = Expression(ExpressionConfig(**settings)).eval()
    mixed = Expression(ExpressionConfig(**settings, published_frames=True)).eval()
    mixed.load_state_dict(right.state_dict())
    clip = {"clip": torch.randint(0, 256, (1, 8, 16, 16, 3), dtype=torch.uint8)}
    assert not torch.allclose(right.features(clip), mixed.features(clip), atol=1e-3)
    for wrong, message in (
        ({"published_frames": True}, "published_frames is about per_frame"),
        ({"per_frame": True, "pool": "patch", "first_token": True}, "there is no first token"),
    ):
        with pytest.raises(ValueError, match=message):
            ExpressionConfig(backbone=backbone, **wrong)
