"""A rendered world of faces with exact class, gaze and identity, written in the layouts of the real datasets.

It exists so that every claim of this repository can be tried without a dataset: it is learnable in minutes, its labels
are exact, some classes need motion, and identity confounds expression as it does in life. One seed gives one world.

The seven classes carry DFEW's names, but are what the table EXPRESSIONS says and nothing more:

    Happy, Sad, Neutral   held for the whole clip: one frame is enough
    Surprise              brows, lids and jaw open from rest to full      Fear     the same frames in reversed order
    Angry                 brows knit and nose wrinkles, rest to full      Disgust  the same frames in reversed order

So a model that sees one frame at a time can reach UAR 5/7 at best, and only order tells the members of a pair apart.
"""

import hashlib
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, Field, model_validator

from mien.data_pipelines.face_renderer import ACTIONS, Floats, Identity, Nuisance, paint

VERSION = 1  # of the drawing: raise it when the same config gives other pixels
FOLDS = 5  # DFEW's
HEAD_SHARE = 0.35  # of the gaze is done by the head, the rest by the eyes


class Expression(NamedTuple):
    """Actions at full strength; `moves` from rest (1), back to rest (-1), or held (0)."""

    actions: dict[str, float]
    moves: int


_SURPRISE = {"raise": 1.0, "jaw": 1.0, "widen": 1.0}
_ANGER = {"furrow": 1.0, "sneer": 1.0}
EXPRESSIONS = {  # in DFEW's order: the source's label is the place here plus one
    "Happy": Expression({"smile": 1.0, "jaw": 0.15}, 0),
    "Sad": Expression({"frown": 1.0, "blink": 0.3}, 0),
    "Neutral": Expression({}, 0),
    "Angry": Expression(_ANGER, 1),
    "Surprise": Expression(_SURPRISE, 1),
    "Disgust": Expression(_ANGER, -1),
    "Fear": Expression(_SURPRISE, -1),
}


class WorldConfig(BaseModel, frozen=True, extra="forbid"):
    """How large and how hard a world is; its hash names the bytes."""

    seed: int = Field(0, ge=0, description="the world's seed: everything follows from it")
    size: int = Field(160, ge=16, description="width and height of a frame, pixels")
    frames: int = Field(16, ge=2, description="frames of a labelled clip")
    fps: int = Field(25, ge=1, description="frames a second written into video files")
    difficulty: float = Field(
        0.3,
        ge=0,
        le=1,
        description="one dial over head motion, shift, zoom, light, noise, blinks, talking, resting bias, and the "
        "strength and timing of actions: 0 easy, 1 hard",
    )
    gaze_pitch_deg: float = Field(20, ge=0, le=60, description="largest gaze upwards and downwards, degrees")
    gaze_yaw_deg: float = Field(40, ge=0, le=80, description="largest gaze to either side, degrees")
    classes: tuple[str, ...] = Field(
        tuple(EXPRESSIONS), min_length=1, description="expressions that occur, by DFEW's names"
    )
    identities: int = Field(50, ge=0, description="people with labelled clips; each is tested in one of the five folds")
    clips_per_identity: int = Field(14, ge=1, description="labelled clips of a person")
    unlabelled_identities: int = Field(100, ge=0, description="other people, with unlabelled videos for pretraining")
    videos_per_identity: int = Field(10, ge=1, description="unlabelled videos of a person")
    video_frames: int = Field(32, ge=2, description="frames of an unlabelled video: expressions and gazes in a row")
    tracks: int = Field(0, ge=0, description="gaze tracks of the labelled people: gaze moves, and is known a frame")
    track_frames: int = Field(32, ge=2, description="frames of a gaze track")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if unknown := [name for name in self.classes if name not in EXPRESSIONS]:
            raise ValueError(f"classes must be among {list(EXPRESSIONS)}; got {unknown}; correct or remove them")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must differ; got {list(self.classes)}; remove the repetition")
        if 0 < self.identities < FOLDS:
            raise ValueError(
                f"identities must be 0 or at least {FOLDS}, one for each fold; got {self.identities}; raise it"
            )
        if self.tracks and not self.identities:
            raise ValueError(
                f"tracks need labelled people; got tracks={self.tracks} with identities=0; raise identities"
            )
        if self.size % 2 and self.unlabelled_identities:
            raise ValueError(f"size must be even for video files; got {self.size}; choose an even one")
        return self

    def hash(self) -> str:
        """Names the world's content: equal hashes, equal bytes."""
        return hashlib.sha256(f"{VERSION} {self.model_dump_json()}".encode()).hexdigest()[:16]


class Clip(NamedTuple):
    """One labelled clip of the world: `label` counts from 0 in DFEW's order, `gaze` is pitch and yaw in radians."""

    number: int  # from 1
    subject: int
    expression: str
    label: int
    gaze: tuple[float, float]
    seed: int


class Take(NamedTuple):
    """Frames (t, h, w, 3) without a class: `gaze` (t, 2) is known for each, radians."""

    subject: int
    frames: NDArray[np.uint8]
    gaze: Floats


def identity(config: WorldConfig, number: int) -> Identity:
    """The person of that number in the world; labelled people come first, unlabelled ones after them."""
    rng = np.random.default_rng([config.seed, 1, number])
    tone = rng.beta(1.1, 1.3)
    tones = np.array([[240, 205, 182], [205, 150, 112], [106, 68, 46]])
    skin = np.array([np.interp(tone, [0, 0.5, 1], channel) for channel in tones.T]) + rng.normal(0, 4, 3)
    hairs = np.array([[28, 22, 20], [66, 42, 28], [120, 78, 42], [206, 168, 96], [150, 62, 30], [168, 166, 164]])
    irises = np.array([[70, 42, 22], [104, 72, 34], [58, 96, 150], [70, 120, 84], [96, 104, 112]])

    def colour(values: ArrayLike) -> tuple[float, float, float]:
        r, g, b = np.clip(values, 0, 255).tolist()
        return r, g, b

    bearded = rng.random() < 0.25
    return Identity(
        number=number,
        width=rng.uniform(0.86, 0.98),
        height=rng.uniform(1.12, 1.24),
        jaw_width=rng.uniform(0.74, 0.96),
        eye_distance=rng.uniform(0.37, 0.43),
        eye_height=rng.uniform(0.20, 0.27),
        eye_size=rng.uniform(0.20, 0.245),
        brow_height=rng.uniform(0.23, 0.29),
        brow_thickness=rng.uniform(0.035, 0.065),
        nose_length=rng.uniform(0.20, 0.28),
        nose_width=rng.uniform(0.13, 0.19),
        mouth_width=rng.uniform(0.30, 0.38),
        mouth_height=-rng.uniform(0.54, 0.60),
        lip_thickness=rng.uniform(0.04, 0.075),
        hairline=rng.uniform(0.66, 0.80),
        parting=rng.uniform(-1, 1),
        long_hair=bool(rng.random() < 0.5) and not bearded,
        beard=rng.uniform(0.5, 1) if bearded else 0.0,
        glasses=bool(rng.random() < 0.2),
        skin=colour(skin),
        hair=colour(hairs[rng.integers(len(hairs))] + rng.normal(0, 8, 3)),
        iris=colour(irises[rng.integers(len(irises))] + rng.normal(0, 8, 3)),
        lips=colour(skin * [0.86, 0.62, 0.62] + rng.normal(0, 8, 3)),
        background=colour(rng.uniform(50, 190) + rng.normal(0, 22, 3)),
        resting=(*rng.normal(0, 0.16 * config.difficulty, len(ACTIONS) - 1).tolist(), 0.0),  # no one blinks at rest
    )


def render(config: WorldConfig, face: Identity, expression: str, gaze: ArrayLike, seed: int) -> NDArray[np.uint8]:
    """A clip (t, h, w, 3) uint8 RGB of a face: a pure function of its arguments.

    `gaze` is pitch and yaw in radians, (2,) for the whole clip or (t, 2). A class that moves back to rest is its
    partner rendered with the same seed and shown in reversed order, so that nothing but order tells them apart.
    """
    angles = np.broadcast_to(np.asarray(gaze, float), (config.frames, 2))
    actions, moves = EXPRESSIONS[expression]
    if moves < 0:
        partner = next(name for name, other in EXPRESSIONS.items() if other == (actions, 1))
        return np.ascontiguousarray(_shoot(config, face, [partner], angles[::-1], seed)[::-1])
    return _shoot(config, face, [expression], angles, seed)


def clip(config: WorldConfig, number: int) -> Clip:
    """The labelled clip of that number (from 1): classes take turns, gaze is uniform and free of class and person."""
    rng = np.random.default_rng([config.seed, 2, number])
    expression = config.classes[(number - 1) % len(config.classes)]
    pitch, yaw = _gaze(config, rng, 1)[0].tolist()
    subject = (number - 1) // config.clips_per_identity
    return Clip(
        number, subject, expression, list(EXPRESSIONS).index(expression), (pitch, yaw), int(rng.integers(2**62))
    )


def video(config: WorldConfig, number: int) -> Take:
    """The unlabelled video of that number (from 1): every `frames` frames another expression and gaze."""
    subject = config.identities + (number - 1) // config.videos_per_identity
    return _take(config, subject, config.video_frames, np.random.default_rng([config.seed, 3, number]))


def track(config: WorldConfig, number: int) -> Take:
    """The gaze track of that number (from 1), of the labelled people in turn."""
    rng = np.random.default_rng([config.seed, 4, number])
    return _take(config, (number - 1) % config.identities, config.track_frames, rng)


def _take(config: WorldConfig, subject: int, frames: int, rng: np.random.Generator) -> Take:
    """Frames of one person who changes expression and gaze about every `config.frames` frames."""
    parts = -(-frames // config.frames)
    script = [config.classes[k] for k in rng.integers(len(config.classes), size=parts)]
    held = np.repeat(_gaze(config, rng, parts), config.frames, axis=0)[:frames]
    gaze = _soften(held)
    return Take(subject, _shoot(config, identity(config, subject), script, gaze, int(rng.integers(2**62))), gaze)


def _gaze(config: WorldConfig, rng: np.random.Generator, count: int) -> Floats:
    """(count, 2) pitch and yaw in radians, uniform in the world's range."""
    return np.radians([config.gaze_pitch_deg, config.gaze_yaw_deg]) * rng.uniform(-1, 1, (count, 2))


def _shoot(config: WorldConfig, face: Identity, script: list[str], gaze: Floats, seed: int) -> NDArray[np.uint8]:
    """Act the script's expressions in a row over the frames of `gaze`, with the seed's nuisances."""
    rng = np.random.default_rng(seed)
    frames, hard = len(gaze), config.difficulty
    actions: Floats = np.zeros((frames, len(ACTIONS)))
    for part, name in zip(np.array_split(actions, len(script)), script, strict=True):
        _act(part, EXPRESSIONS[name], hard, rng)
    if len(script) > 1:
        actions = _soften(actions)
    if rng.random() < 0.5 * hard:  # a blink
        away = np.abs(np.arange(frames) - rng.integers(frames))
        actions[:, 7] = np.maximum(actions[:, 7], np.clip(1.5 - away, 0, 1))
    if rng.random() < 0.4 * hard:  # talking
        actions[:, 2] += 0.3 * hard * (1 + _wander(rng, frames, 1))[:, 0]
    nuisance = Nuisance(
        head=np.radians(7) * hard * _wander(rng, frames, 3),
        offset=0.07 * hard * (rng.standard_normal(2) + 0.4 * _wander(rng, frames, 2)),
        zoom=np.exp(0.07 * hard * (rng.standard_normal() + 0.3 * _wander(rng, frames, 1)))[:, 0],
        light=(1 - 0.25 * hard * rng.random(), *(0.45 * hard * rng.uniform(-1, 1, 2)).tolist()),
        tint=tuple((1 + 0.06 * hard * rng.standard_normal(3)).tolist()),
        noise=_grain(rng, frames, config.size, 10 * hard),
    )
    return paint(face, actions, gaze, HEAD_SHARE * gaze, nuisance, config.size)


def _act(actions: Floats, expression: Expression, hard: float, rng: np.random.Generator) -> None:
    """Fill (t, actions) with one expression at a drawn strength and pace."""
    strength = 1 - 0.5 * hard * rng.random()
    time = np.linspace(0, 1, len(actions))
    ramp = np.clip((time - 0.5 - 0.15 * hard * rng.uniform(-1, 1)) / (1 - 0.5 * hard * rng.random()) + 0.5, 0, 1)
    course = {1: ramp, -1: ramp[::-1], 0: np.ones_like(ramp)}[expression.moves]
    for name, full in expression.actions.items():
        actions[:, ACTIONS.index(name)] = full * strength * course


def _soften(values: Floats) -> Floats:
    """Mean over five frames of (t, columns): faces and eyes do not jump."""
    padded = np.pad(values, ((2, 2), (0, 0)), mode="edge")
    return np.mean([padded[k : k + len(values)] for k in range(5)], axis=0)


def _wander(rng: np.random.Generator, frames: int, columns: int) -> Floats:
    """Smooth tracks (t, columns) of about unit size: two slow waves each."""
    phase, speed = rng.uniform(0, 2 * np.pi, (2, columns)), rng.uniform(0.02, 0.10, (2, columns))
    time = np.arange(frames)[:, None, None]
    return np.sin(phase + 2 * np.pi * speed * time).sum(axis=1)


def _grain(rng: np.random.Generator, frames: int, size: int, level: float) -> Floats:
    """Noise (t, size, size) of that standard deviation: windows at random places of one tile, for speed."""
    tile = (level * rng.standard_normal((2 * size, 2 * size), dtype=np.float32)).astype(np.float32)
    corners = rng.integers(size, size=(frames, 2))
    return np.stack([tile[y : y + size, x : x + size] for y, x in corners])
