"""Augmentation is one draw a clip, the published operations, and a gaze that is right or unknown."""

import math
from functools import reduce
from typing import Literal

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mien.data_pipelines.augment import MEAN, STD, AugmentConfig, augment, mirrored_gaze
from mien.data_pipelines.randaugment import (
    FILL,
    MOTIONS,
    PICTURES,
    TABLES,
    Drawn,
    RandAugmentConfig,
    draw_operations,
    looks_around,
    motion,
    recolouring,
)
from mien.data_pipelines.resampling import Step, resizing, warping

GAZE = np.array([0.2, -0.7], np.float32)


def clip_of(size: int = 40, frames: int = 3, seed: int = 0) -> np.ndarray:
    """Return smooth coloured frames, each another."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (frames, 6, 6, 3), dtype=np.uint8)
    return np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_CUBIC) for frame in small])


def run(config: AugmentConfig, draw: int, clip: np.ndarray, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    return augment(clip, GAZE, np.random.default_rng(draw), config, size)


@pytest.mark.parametrize("kind", ["none", "pretrain", "finetune"])
def test_a_clip_follows_from_its_draw_and_the_input_stays(kind: str) -> None:
    clip = clip_of()
    before = clip.copy()
    config = AugmentConfig.model_validate({"kind": kind})
    results = [run(config, draw, clip)[0] for draw in [*range(20), 0]]
    assert all(result.shape == (3, 32, 32, 3) and result.dtype == np.uint8 for result in results)
    assert np.array_equal(results[0], results[-1])
    distinct = len({result.tobytes() for result in results})
    assert distinct == 1 if kind == "none" else distinct > 15
    assert np.array_equal(clip, before)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_equal_frames_stay_equal(kind: str) -> None:
    # One draw for the whole clip. Erasing alone is fresh in every frame.
    clip = np.repeat(clip_of(frames=1), 4, axis=0)
    config = AugmentConfig.model_validate({"kind": kind, "erase": 0})
    for draw in range(30):
        frames = run(config, draw, clip)[0]
        assert (frames == frames[0]).all()


def test_a_mirror_changes_the_sign_of_x_alone() -> None:
    mirrored = mirrored_gaze(GAZE)
    vectors = [[math.cos(p) * math.sin(y), math.sin(p), -math.cos(p) * math.cos(y)] for p, y in (GAZE, mirrored)]
    assert vectors[1] == pytest.approx([-vectors[0][0], *vectors[0][1:]])
    assert np.array_equal(mirrored_gaze(mirrored), GAZE)
    frames = np.stack([GAZE, -GAZE])  # of each frame
    assert np.array_equal(mirrored_gaze(frames), [mirrored, -mirrored])


def test_with_flips_alone_clip_and_label_go_together() -> None:
    config = AugmentConfig(
        kind="finetune", randaugment=RandAugmentConfig(operations=0), crop_area_min=1, crop_aspect=1, erase=0
    )
    clip = clip_of(size=32)
    flipped = 0
    for draw in range(40):
        frames, gaze = run(config, draw, clip)
        flipped += gaze[1] > 0
        expected = (clip[:, :, ::-1], mirrored_gaze(GAZE)) if gaze[1] > 0 else (clip, GAZE)
        assert np.array_equal(frames, expected[0]) and np.array_equal(gaze, expected[1])
    assert 10 < flipped < 30


def test_gaze_is_kept_by_what_it_can_follow_and_unknown_after_anything_else() -> None:
    clip, config = clip_of(), AugmentConfig(kind="finetune")
    assert not config.keeps_gaze and np.isnan(run(config, 0, clip)[1]).all()
    safe = config.for_gaze()
    assert safe.keeps_gaze and not safe.randaugment.geometric
    assert (safe.crop_area_min, safe.crop_aspect) == (0.8, 1.0)
    for draw in range(20):
        assert np.abs(run(safe, draw, clip)[1]).tolist() == np.abs(GAZE).tolist()
    # A stricter setting stays as it is, and pretraining's crop is never safe.
    assert AugmentConfig(crop_area_min=0.9).for_gaze().crop_area_min == 0.9
    assert not AugmentConfig(kind="pretrain").for_gaze().keeps_gaze
    assert np.array_equal(run(AugmentConfig(), 0, clip)[1], GAZE)


def test_pretraining_crops_are_the_published_sizes_and_places() -> None:
    # The picture tells where it was cut: red is the column, green the row, both of 160.
    ramp = np.arange(160, dtype=np.uint8)
    frame = np.stack([*np.meshgrid(ramp, ramp), np.zeros((160, 160), np.uint8)], axis=-1)
    seen = set()
    for draw in range(3000):
        (cut,), _ = run(AugmentConfig(kind="pretrain"), draw, frame[None], size=160)
        top, bottom, left, right = (int(v) for v in (cut[0, 0, 1], cut[-1, 0, 1], cut[0, 0, 0], cut[0, -1, 0]))
        seen.add((top, left, bottom - top + 1, right - left + 1))
    sides = [160, 140, 120, 105]
    expected = set()
    for i, height in enumerate(sides):
        for width in sides[max(i - 1, 0) : i + 2]:
            down, across = (160 - height) // 4, (160 - width) // 4
            for y, x in [
                (0, 0),
                (0, 4),
                (4, 0),
                (4, 4),
                (2, 2),
                (2, 0),
                (2, 4),
                (0, 2),
                (4, 2),
                (1, 1),
                (1, 3),
                (3, 1),
                (3, 3),
            ]:
                expected.add((y * down, x * across, height, width))
    assert seen == expected


@pytest.mark.parametrize("size", [32, 160])
@pytest.mark.parametrize("height", range(-4, 5))
@pytest.mark.parametrize("width", [-4, -2, -1, 0, 1, 3, 40])
def test_pretraining_crops_lie_inside_frames_a_little_smaller_or_larger_than_the_target(
    size: int, height: int, width: int
) -> None:
    # Red is the column, green the row: a crop that left the frame would show a stretched strip or a border.
    rows, columns = (np.arange(size + more, dtype=np.uint8) for more in (height, width))
    frame = np.stack([*np.meshgrid(columns, rows), np.full((len(rows), len(columns)), 9, np.uint8)], axis=-1)
    short = min(len(rows), len(columns))
    for draw in range(40):
        (cut,), _ = run(AugmentConfig(kind="pretrain"), draw, frame[None], size=size)
        assert (cut[..., 2] == 9).all()
        for first, last in ((cut[0, 0, 1], cut[-1, 0, 1]), (cut[0, 0, 0], cut[0, -1, 0])):
            assert int(0.66 * short) - 3 <= int(last) - int(first) < max(short, size)


@pytest.mark.parametrize("kind", ["none", "pretrain", "finetune"])
@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1)])
def test_a_line_of_pixels_is_a_frame_too(kind: Literal["none", "pretrain", "finetune"], shape: tuple[int, int]) -> None:
    for draw in range(20):
        assert run(AugmentConfig(kind=kind), draw, np.zeros((1, *shape, 3), np.uint8), size=16)[0].shape[1:3] == (
            16,
            16,
        )


def test_the_voxceleb2_precrop_is_the_upper_middle() -> None:
    clip = clip_of(size=224)
    config = AugmentConfig(precrop="voxceleb2")
    assert np.array_equal(run(config, 0, clip, size=160)[0], clip[:, :160, 32:192])
    assert np.array_equal(run(config, 0, clip, size=192)[0], clip[:, :192, 16:208])
    assert np.array_equal(run(config, 0, clip, size=80)[0], resize(clip[:, :160, 32:192], 80))
    with pytest.raises(ValueError, match=r"224x224.*40x40"):
        run(config, 0, clip_of())


def test_resized_crops_are_bilinear_cuts_of_the_asked_area_and_shape() -> None:
    plain = {"kind": "finetune", "randaugment": {"operations": 0}, "flip": 0, "erase": 0}
    ramp = np.linspace(0, 255, 160).astype(np.uint8)
    frame = np.stack([*np.meshgrid(ramp, ramp), np.zeros((160, 160), np.uint8)], axis=-1)
    areas, aspects = [], []
    for draw in range(300):
        (cut,), _ = run(AugmentConfig.model_validate(plain), draw, frame[None], size=160)
        height, width = float(cut[-1, 0, 1]) - cut[0, 0, 1], float(cut[0, -1, 0]) - cut[0, 0, 0]
        areas.append(height * width / 255**2)
        aspects.append(width / height)
    assert 0.06 < min(areas) < 0.13 and 0.9 < max(areas) <= 1
    assert 0.70 < min(aspects) < 0.8 and 1.25 < max(aspects) < 1.42


def test_erasing_fills_one_box_with_standard_normal_noise() -> None:
    config = AugmentConfig.model_validate(
        {
            "kind": "finetune",
            "randaugment": {"operations": 0},
            "flip": 0,
            "crop_area_min": 1,
            "crop_aspect": 1,
            "erase": 1,
        }
    )
    clip = np.full((4, 160, 160, 3), 7, np.uint8)
    shares, values = [], []
    for draw in range(30):
        frames, _ = run(config, draw, clip, size=160)
        changed = (frames != 7).any(axis=(0, 3))
        rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
        box = frames[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert changed.sum() == box.shape[1] * box.shape[2]
        assert not np.array_equal(box[0], box[1])
        shares.append(changed.mean())
        values.append(box.reshape(-1, 3))
    assert min(shares) > 0.01 and max(shares) < 0.35
    noise = (np.concatenate(values) / 255 - MEAN) / STD
    # Cut off at black and white, about two deviations away, so a little narrower than 1.
    assert np.abs(noise.mean(axis=0)).max() < 0.05 and 0.93 < noise.std() < 1.0


def test_off_switches_leave_the_picture_alone() -> None:
    config = AugmentConfig.model_validate(
        {
            "kind": "finetune",
            "randaugment": {"operations": 0},
            "flip": 0,
            "crop_area_min": 1,
            "crop_aspect": 1,
            "erase": 0,
        }
    )
    clip = clip_of(size=32)
    assert np.array_equal(run(config, 3, clip)[0], clip)


def by_pillow(name: str, image: Image.Image, m: float, sign: float) -> Image.Image:
    """The published operations (spec: inc1 table), as Pillow does them."""
    factor, size = 1 + sign * 0.09 * m, image.size

    def affine(*coefficients: float) -> Image.Image:
        return image.transform(
            size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC, fillcolor=(128,) * 3
        )

    return {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "posterize": lambda: ImageOps.posterize(image, 4 - int(0.4 * m)),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(25.6 * m)),
        "solarize_add": lambda: image.point([min(255, i + int(11 * m)) if i < 128 else i for i in range(256)] * 3),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "rotate": lambda: image.rotate(3 * m * sign, Image.Resampling.BICUBIC, fillcolor=(128,) * 3),
        "shear_x": lambda: affine(1, 0.03 * m * sign, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, 0.03 * m * sign, 1, 0),
        "translate_x": lambda: affine(1, 0, 0.045 * m * sign * size[0], 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, 0.045 * m * sign * size[1]),
    }[name]()


def stepped(clip: np.ndarray, steps: list[Step]) -> np.ndarray:
    """Return every frame of a clip after all steps."""
    return np.stack([reduce(lambda frame, step: step(frame), steps, frame) for frame in clip])


def resize(clip: np.ndarray, size: int) -> np.ndarray:
    return stepped(clip, [resizing(*clip.shape[1:3], size)])


def recoloured(clip: np.ndarray, drawn: list[Drawn]) -> np.ndarray:
    return stepped(clip, recolouring(drawn))


def by_pillow_on(clip: np.ndarray, drawn: list[Drawn]) -> np.ndarray:
    """Return the operations one after another, as the published loader does them."""
    images = [Image.fromarray(frame) for frame in clip]
    for name, magnitude, sign in drawn:
        images = [by_pillow(name, image, magnitude, sign) for image in images]
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize("name", [*TABLES, *PICTURES])
@pytest.mark.parametrize(("magnitude", "sign"), [(0.0, 1.0), (7.0, 1.0), (6.3, -1.0), (9.9, -1.0)])
def test_operations_on_colours_agree_with_pillow(name: str, magnitude: float, sign: float) -> None:
    clip = clip_of(size=64)
    drawn = [(name, magnitude, sign)]
    found = recoloured(clip, drawn)
    assert found.shape == clip.shape and found.dtype == np.uint8
    difference = np.abs(found.astype(int) - by_pillow_on(clip, drawn))
    assert difference.max() <= 2 and difference.mean() < 0.7


@pytest.mark.parametrize("names", [*([name] for name in MOTIONS), ["rotate", "shear_x", "translate_y", "shear_y"]])
@pytest.mark.parametrize(("magnitude", "sign"), [(0.0, 1.0), (7.0, 1.0), (6.3, -1.0), (9.9, -1.0)])
def test_moves_agree_with_pillow_one_after_another(names: list[str], magnitude: float, sign: float) -> None:
    clip = clip_of(size=64)
    drawn = [(name, magnitude, sign) for name in names]
    matrix = motion(drawn)
    assert matrix is not None
    difference = np.abs(stepped(clip, [warping(64, 64, matrix, 64, FILL)]).astype(int) - by_pillow_on(clip, drawn))
    # Once bilinear instead of bicubic each time, and another rule for the outermost pixels.
    assert difference.mean() < 1.5 * len(names) and np.median(difference) <= 2


def test_tables_that_follow_one_another_are_one() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    drawn = [("posterize", 6.0, 1.0), ("invert", 7.0, 1.0), ("solarize_add", 7.0, 1.0), ("brightness", 7.0, -1.0)]
    one_by_one = levels
    for operation in drawn:
        one_by_one = recoloured(one_by_one, [operation])
    assert np.array_equal(recoloured(levels, drawn), one_by_one)
    assert len(recolouring(drawn)) == 1 and not recolouring([]) and motion(drawn) is None


def test_which_operations_look_at_other_pixels_than_their_own() -> None:
    clip = clip_of(size=32, frames=1)
    other = clip.copy()
    other[:, 16:] //= 2  # the lower half
    for name in [*TABLES, *PICTURES]:
        drawn = [(name, 7.0, 1.0)]
        upper = (recoloured(frames, drawn)[:, :15] for frames in (clip, other))
        tell_apart = not np.array_equal(*upper)
        assert looks_around(drawn) == (tell_apart or name == "sharpness"), name


def test_a_plain_picture_survives_every_operation() -> None:
    # One level only: no spread to stretch and no histogram to flatten.
    clip = np.full((2, 16, 16, 3), 90, np.uint8)
    for name in PICTURES:
        assert np.array_equal(recoloured(clip, [(name, 7, 1)]), clip), name


def test_randaugment_draws_its_operations_with_the_chances_asked_for() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_operations(rng, RandAugmentConfig()) for _ in range(2000)]
    assert np.mean([len(operations) for operations in drawn]) == pytest.approx(2, abs=0.1)
    names = [name for operations in drawn for name, _, _ in operations]
    shares = [names.count(name) / len(names) for name in (*TABLES, *PICTURES, *MOTIONS)]
    assert len(shares) == 15 and shares == pytest.approx([1 / 15] * 15, abs=0.015)
    magnitudes, signs = (np.array([o[part] for operations in drawn for o in operations]) for part in (1, 2))
    assert (magnitudes.mean(), magnitudes.std()) == (pytest.approx(7, abs=0.05), pytest.approx(0.5, abs=0.05))
    assert abs(float(signs.astype(float).mean())) < 0.05
    assert not set(MOTIONS) & {
        name for name, _, _ in draw_operations(rng, RandAugmentConfig(operations=500, geometric=False))
    }


@pytest.mark.parametrize("source", [160, 256, 97])
def test_one_resampling_shows_what_the_published_steps_show(source: int) -> None:
    # Resize, operations in the order drawn, crop, by Pillow one after another; here one map and one pass over colours.
    frame = clip_of(size=source, frames=1)
    plain = AugmentConfig(kind="finetune", flip=0, erase=0, crop_area_min=0.3)
    levels = []
    for seed in range(40):
        (found,), _ = augment(frame, GAZE, np.random.default_rng(seed), plain, 160)
        rng = np.random.default_rng(seed)
        drawn = draw_operations(rng, plain.randaugment)
        if len({name for name, _, _ in drawn if name in MOTIONS}) > 1:
            continue  # fill that leaves the picture and comes back differs by intent
        resized = np.stack([np.asarray(Image.fromarray(frame[0]).resize((160, 160), Image.Resampling.BILINEAR))])
        picture = by_pillow_on(resized, drawn)[0]
        left, top, right, bottom = crop_box(rng, plain)
        expected = cv2.resize(picture[top:bottom, left:right], (160, 160), interpolation=cv2.INTER_LINEAR)
        levels.append(float(np.median(np.abs(found.astype(int) - expected))))
    assert len(levels) > 20 and np.median(levels) <= 2 and np.mean(np.array(levels) <= 6) > 0.85, levels


def crop_box(rng: np.random.Generator, config: AugmentConfig) -> list[int]:
    """Return left, top, right, bottom of the published random resized crop of 160x160 pixels."""
    for _ in range(10):
        area = 160 * 160 * rng.uniform(config.crop_area_min, 1)
        aspect = math.exp(rng.uniform(-math.log(config.crop_aspect), math.log(config.crop_aspect)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width <= 160 and height <= 160:
            left, top = int(rng.integers(161 - width)), int(rng.integers(161 - height))
            return [left, top, left + width, top + height]
    return [0, 0, 160, 160]
