"""Draw a face: identity, facial actions, gaze and head pose in; uint8 frames out.

A face is an ellipsoid with features laid on it as polygons. All points of a clip are placed, turned and projected
at once; then each frame is painted back to front with OpenCV's anti-aliased, sub-pixel polygons, which is the fastest
painter that needs no GPU. The eyeballs are spheres of their own, so that the eyes turn within the lids.

Frame of reference (Gaze360's): x grows to the left of the image, y up, z away from the camera; lengths are in half
face widths. A direction is (pitch, yaw) in radians with pitch = asin(y) and yaw = atan2(x, -z): (0, 0) looks into the
camera, +yaw to the left of the image, +pitch up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]  # RGB, 0..255

ACTIONS = ("smile", "frown", "jaw", "raise", "furrow", "sneer", "widen", "blink")  # columns of an action track, 0..1
DISTANCE = 7.0  # camera to face, in half face widths: mild perspective
FIELD = 1.13  # half the width of the frame at the face: the face fills it, as an aligned crop does
BALL = 0.30  # radius of an eyeball
SHIFT = 6  # fractional bits of OpenCV's fixed-point coordinates
CIRCLE = np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 18, endpoint=False)), np.sin(a)], axis=-1)


@dataclass(frozen=True)
class Identity:
    """What makes a face this person's: lengths in half face widths, colours in RGB, `resting` added to every action."""

    number: int
    width: float
    height: float
    jaw_width: float
    eye_distance: float
    eye_height: float
    eye_size: float
    brow_height: float
    brow_thickness: float
    nose_length: float
    nose_width: float
    mouth_width: float
    mouth_height: float
    lip_thickness: float
    hairline: float
    parting: float  # -1..1, to the right or left of the image; 0 is symmetric
    long_hair: bool
    beard: float  # 0 none .. 1 full
    glasses: bool
    skin: Colour
    hair: Colour
    iris: Colour
    lips: Colour
    background: Colour
    resting: tuple[float, ...]


@dataclass(frozen=True)
class Nuisance:
    """What a clip's picture varies in besides the face: one entry a frame where the shape says t."""

    head: Floats  # (t, 3) pitch, yaw, roll added to the head, radians
    offset: Floats  # (t, 2) translation, half face widths
    zoom: Floats  # (t,)
    light: tuple[float, float, float]  # gain, slope to the left, slope up
    tint: Colour  # factor of each channel
    noise: Floats  # (t, h, w) added to every channel, levels


class Layer(NamedTuple):
    """One polygon to paint in every frame: points (t, n, 3) and a colour (t, 3), in that order of corners."""

    points: Floats
    colour: Floats
    shown: NDArray[np.bool_] | None = None  # (t,) frames in which it is painted
    clip: int | None = None  # index of the convex layer to whose inside it is confined (eye whites)
    outline: float = 0.0  # line width in half face widths; 0 fills


def direction(angles: Floats) -> Floats:
    """(…, 2) pitch and yaw in radians -> (…, 3) unit vectors in the frame of reference above."""
    pitch, yaw = angles[..., 0], angles[..., 1]
    return np.stack([np.cos(pitch) * np.sin(yaw), np.sin(pitch), -np.cos(pitch) * np.cos(yaw)], axis=-1)


def rotation(angles: Floats) -> Floats:
    """(t, 3) pitch, yaw, roll -> (t, 3, 3) that turn (0, 0, -1) to `direction` after rolling about it."""
    (cp, cy, cr), (sp, sy, sr) = np.cos(angles).T, np.sin(angles).T
    one, zero = np.ones_like(cp), np.zeros_like(cp)
    roll = np.stack([cr, -sr, zero, sr, cr, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    pitch = np.stack([one, zero, zero, zero, cp, -sp, zero, sp, cp], -1).reshape(-1, 3, 3)
    yaw = np.stack([cy, zero, -sy, zero, one, zero, sy, zero, cy], -1).reshape(-1, 3, 3)
    return yaw @ pitch @ roll


def paint(
    face: Identity, actions: Floats, gaze: Floats, head: Floats, nuisance: Nuisance, size: int
) -> NDArray[np.uint8]:
    """A clip (t, size, size, 3) uint8 RGB from actions (t, 8), gaze and head directions (t, 2) in radians."""
    pose = np.concatenate([head, np.zeros((len(head), 1))], axis=1) + nuisance.head
    turn = rotation(pose)
    layers = list(
        _layers(face, np.clip(actions + face.resting, 0, 1.2), np.einsum("tji,tj->ti", turn, direction(gaze)))
    )
    cuts = np.cumsum([layer.points.shape[1] for layer in layers])[:-1]
    points = np.concatenate([layer.points for layer in layers], axis=1) @ turn.transpose(0, 2, 1)
    scale = size / (2 * FIELD) * nuisance.zoom[:, None, None] * DISTANCE / (DISTANCE + points[..., 2:])
    pixels = (size - 1) / 2 - scale * (points[..., :2] + nuisance.offset[:, None])
    polygons = [part.astype(np.float32) for part in np.split(pixels, cuts, axis=1)]
    frames = np.empty((len(actions), size, size, 3), np.uint8)
    frames[:] = np.uint8(np.clip(face.background, 0, 255))
    for t, frame in enumerate(frames):
        for layer, polygon in zip(layers, polygons, strict=True):
            if layer.shown is not None and not layer.shown[t]:
                continue
            outline = polygon[t]
            if layer.clip is not None:
                outline = cv2.intersectConvexConvex(polygons[layer.clip][t], outline)[1]
                if outline is None:
                    continue
            corners = [np.rint(outline * (1 << SHIFT)).astype(np.int32).reshape(-1, 1, 2)]
            if layer.outline:
                width = max(1, round(layer.outline * size / (2 * FIELD)))
                cv2.polylines(frame, corners, True, layer.colour[t].tolist(), width, cv2.LINE_AA, SHIFT)
            else:
                cv2.fillPoly(frame, corners, layer.colour[t].tolist(), cv2.LINE_AA, SHIFT)
    return _expose(frames, nuisance)


def _expose(frames: NDArray[np.uint8], nuisance: Nuisance) -> NDArray[np.uint8]:
    """Light the frames: gain with a slope across the picture, tint, then the sensor's noise."""
    size = frames.shape[1]
    gain, slope_left, slope_up = nuisance.light
    axis = 1 - 2 * np.arange(size, dtype=np.float32) / (size - 1)
    field = gain * (1 + slope_left * axis[None, :] + slope_up * axis[:, None])
    lit = frames * (field[..., None] * np.array(nuisance.tint)).astype(np.float32)
    lit += nuisance.noise[..., None]
    return np.clip(np.rint(lit, out=lit), 0, 255, out=lit).astype(np.uint8)


def _layers(face: Identity, actions: Floats, eyes: Floats) -> Iterator[Layer]:
    """The polygons of a clip, back to front; `eyes` (t, 3) is the gaze in the head's own frame."""
    t = len(actions)
    smile, frown, jaw, lift, furrow, sneer, widen, blink = (column[:, None] for column in actions.T)
    skin, hair, lips, dark = (np.asarray(c, float) for c in (face.skin, face.hair, face.lips, (38, 16, 18)))
    a, b = face.width, face.height
    count = 0

    def layer(x: Floats, y: Floats, z: Floats | float | None, colour: Floats | Colour, **more: Any) -> Layer:
        """Lay image-plane curves (t|1, n) on the head (z None), or give them a depth."""
        nonlocal count
        count += 1
        if z is None:
            z = -0.95 * np.sqrt(np.maximum(1 - (x / (1.12 * a)) ** 2 - (y / (1.15 * b)) ** 2, 0.02))
        shape = (t, max(np.shape(x)[-1], np.shape(y)[-1]))
        points = np.stack([np.broadcast_to(np.asarray(v, float), shape) for v in (x, y, z)], axis=-1)
        return Layer(points, np.broadcast_to(np.asarray(colour, float), (t, 3)), **more)

    cx, cy = CIRCLE.T[:, None]
    contour = (
        a * cx * np.where(cy < 0, 1 - (1 - face.jaw_width) * cy**2, 1),
        b * cy * np.where(cy < 0, 1 + 0.10 * jaw, 1),
    )
    # Hair behind the head, neck, ears, head.
    yield layer(1.10 * a * cx, np.where(cy > -0.1, 1.14 * b * cy, -0.1 * b), 0.0, 0.92 * hair)
    if face.long_hair:
        yield layer(1.18 * a * cx, np.where(cy > 0, 1.12 * b * cy, 1.5 * b * cy), 0.35, 0.85 * hair)
    yield layer(np.array([[-0.5, 0.5, 0.55, -0.55]]), np.array([[-0.7, -0.7, -2, -2]]) * b, 0.3, 0.72 * skin)
    for side in (1, -1):
        yield layer(side * (0.98 * a + 0.13 * cx), 0.02 + 0.24 * cy, 0.12, 0.86 * skin)
    yield layer(*contour, 0.0, skin)
    yield layer(0.95 * contour[0], 0.95 * contour[1], -0.30, skin)  # a second slice: the outline of a turned head
    if face.beard > 0:
        arc = np.linspace(np.pi * 1.02, np.pi * 1.98, 11)[None]
        edge = (
            a * 0.99 * np.cos(arc) * (1 - (1 - face.jaw_width) * np.sin(arc) ** 2),
            b * np.sin(arc) * (1 + 0.10 * jaw),
        )
        inner = 0.62 * a * np.cos(arc[:, ::-1]), np.broadcast_to(face.mouth_height + 0.17 + 0.05 * smile, (t, 11))
        x = np.concatenate([edge[0], inner[0]], axis=1)
        yield layer(x, np.concatenate([edge[1], inner[1]], axis=1), None, skin + face.beard * 0.8 * (hair - skin))
    # Lines that actions fold into the skin.
    fold = np.linspace(0, 1, 5)[None]
    for side in (1, -1):
        x = side * (0.24 + 0.26 * fold**0.8 + 0.04 * smile)
        y = -face.nose_length + 0.04 - (0.30 * fold + 0.02) * (1 - 0.2 * smile)
        shade = skin * (1 - 0.30 * np.clip(np.maximum(smile, 0.8 * sneer), 0, 1))
        yield layer(*_strip(x, y, 0.025), None, shade)
        x, y = side * (0.06 + 0.01 * fold), face.eye_height + 0.10 + 0.20 * fold
        yield layer(*_strip(x, y, 0.022, across=True), None, skin * (1 - 0.35 * np.clip(furrow, 0, 1)))
    wide = np.linspace(-1, 1, 7)[None]
    for k in range(2):
        y = face.eye_height + face.brow_height + 0.26 + 0.10 * k + 0.08 * lift - 0.03 * wide**2
        yield layer(*_strip(0.42 * wide, y, 0.016), None, skin * (1 - 0.25 * np.clip(lift, 0, 1)))
        y = face.eye_height - 0.10 * k + 0.0 * wide + 0.03 * wide**2
        yield layer(*_strip(0.09 * wide, y, 0.018), None, skin * (1 - 0.35 * np.clip(sneer, 0, 1)))
    # Eyes: a flat almond each, the iris a disc on the ball behind it, confined to the almond.
    u = np.stack([-eyes[:, 2], np.zeros(t), eyes[:, 0]], axis=-1)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(eyes, u)
    open_lids = np.clip(1 - blink, 0, 1)
    upper = face.eye_size * 0.62 * (1 + 0.55 * widen - 0.28 * np.maximum(furrow, sneer) - 0.25 * frown) * open_lids
    lower = face.eye_size * 0.46 * (1 + 0.35 * widen - 0.38 * np.maximum(smile, sneer)) * open_lids
    depth = -0.95 * np.sqrt(max(1 - (face.eye_distance / 1.12 / a) ** 2 - (face.eye_height / 1.15 / b) ** 2, 0.1))
    shown = open_lids[:, 0] > 0.12
    for side in (1, -1):
        middle = np.array([side * face.eye_distance, face.eye_height, depth + 0.02])
        lid_x, lid_y = middle[0] + face.eye_size * cx, middle[1] + cy * np.where(cy > 0, upper, lower)
        yield layer(
            middle[0] + 1.22 * face.eye_size * cx, middle[1] + 0.02 + 0.86 * face.eye_size * cy, None, 0.88 * skin
        )
        yield layer(lid_x, lid_y, middle[2], (244, 242, 238), shown=shown)
        white, centre = count - 1, middle + np.array([0, 0, 0.82 * BALL])
        for radius, colour in ((0.145, np.asarray(face.iris)), (0.070, np.array([14.0, 12, 14]))):
            ring = np.sqrt(1 - (radius / BALL) ** 2) * eyes[:, None] + radius / BALL * (
                CIRCLE[:, :1] * u[:, None] + CIRCLE[:, 1:] * v[:, None]
            )
            x, y, z = np.moveaxis(centre + BALL * ring, -1, 0)
            yield layer(x, y, z, colour, shown=shown, clip=white)
        top = slice(0, 10)  # the almond's upper edge, corner to corner
        thick = 0.024 + 0.008 * open_lids
        yield layer(*_strip(lid_x[:, top], lid_y[:, top], thick), middle[2] - 0.01, 0.30 * skin)
        if face.glasses:
            rim = middle[0] + 1.38 * face.eye_size * cx, middle[1] + 1.12 * face.eye_size * cy
            yield layer(*rim, depth - 0.12, (30, 28, 32), outline=0.045)
    # Brows.
    along = np.linspace(0, 1, 7)[None]
    thickness = face.brow_thickness * (1 - 0.55 * along**2)
    for side in (1, -1):
        x = side * (0.13 + 0.56 * along - 0.07 * furrow * (1 - along))
        y = face.eye_height + face.brow_height + 0.06 * np.sin(np.pi * along) - 0.05 * along
        y = y + 0.22 * lift - 0.17 * furrow * (1 - along) ** 0.7 + frown * (0.17 * (1 - along) - 0.07) - 0.04 * sneer
        yield layer(*_strip(x, y, thickness), None, 0.65 * hair)
    # Nose: a wedge that stands out of the face, so that it shifts as the head turns.
    tip, flare = -face.nose_length + 0.05 * sneer, face.nose_width * (1 + 0.22 * sneer + 0.08 * smile)
    x = np.concatenate([-0.07 + 0 * flare, 0.07 + 0 * flare, flare, 0.6 * flare, -0.6 * flare, -flare], axis=1)
    y = np.concatenate([0.16 + 0 * tip, 0.16 + 0 * tip, tip + 0.07, tip, tip, tip + 0.07], axis=1)
    yield layer(x, y, np.array([[-0.98, -0.98, -1.05, -1.16, -1.16, -1.05]]), 0.90 * skin)
    for side in (1, -1):
        yield layer(side * 0.52 * flare + 0.045 * cx, tip + 0.035 + 0.026 * cy, -1.12, 0.45 * skin)
    # Mouth: lips, the opening, teeth and tongue.
    gap = 0.46 * jaw + 0.10 * smile + 0.10 * sneer
    half = face.mouth_width * (1 + 0.34 * smile - 0.10 * frown - 0.20 * np.clip(jaw - smile, 0, 1) + 0.05 * sneer)
    corner = face.mouth_height + 0.17 * smile - 0.20 * frown - 0.10 * jaw - 0.05 * sneer
    arch = 1 - wide**2
    top_lip = corner + (face.mouth_height + 0.07 * sneer + 0.03 * jaw + 0.04 * frown - corner) * arch
    bottom_lip = top_lip - gap * arch
    rounded = np.sign(wide) * np.abs(wide) ** 0.8 * half
    outer_top = top_lip + face.lip_thickness * (0.75 + 0.25 * np.cos(2.2 * np.pi * wide)) * arch**0.6 + 0.008
    yield layer(*_band(rounded, outer_top, bottom_lip - 1.25 * face.lip_thickness * arch**0.6 - 0.008), None, lips)
    yield layer(*_band(rounded * 0.93, top_lip + 0.006, bottom_lip - 0.006), None, dark)
    teeth = np.minimum(0.60 * gap * np.maximum(smile, sneer) + 0.22 * gap, 0.13)
    yield layer(*_band(rounded * 0.85, top_lip, top_lip - teeth * arch), None, (240, 238, 228), shown=gap[:, 0] > 0.05)
    tongue = face.mouth_height - 0.9 * gap + 0.06 * cy * gap / 0.3
    yield layer(0.5 * half * cx, tongue, None, (178, 82, 84), shown=jaw[:, 0] > 0.35)
    # Hair over the forehead.
    arc = np.linspace(-0.06 * np.pi, 1.06 * np.pi, 13)[None]
    under = 0.86 * a * np.cos(arc[:, ::-1])
    fringe = b * (
        face.hairline
        - 0.34 * (under / a) ** 2 * (1 + 0.5 * face.parting * np.sign(under))
        + 0.08 * face.parting * under
    )
    x, y = np.concatenate([1.12 * a * np.cos(arc), under], 1), np.concatenate([1.16 * b * np.sin(arc), fringe], 1)
    z = np.concatenate(
        [0 * arc, -0.95 * np.sqrt(np.maximum(1 - (under / 1.12 / a) ** 2 - (fringe / 1.15 / b) ** 2, 0.02))], 1
    )
    yield layer(x, y, z, hair)


def _strip(x: Floats, y: Floats, thickness: Floats | float, across: bool = False) -> tuple[Floats, Floats]:
    """A curve (t|1, n) made a closed band: `thickness` upwards, or sideways where `across`."""
    x, y, thickness = np.broadcast_arrays(x, y, np.asarray(thickness, float))
    dx, dy = (thickness, 0 * thickness) if across else (0 * thickness, thickness)
    return np.concatenate([x - dx, (x + dx)[:, ::-1]], 1), np.concatenate([y - dy, (y + dy)[:, ::-1]], 1)


def _band(x: Floats, top: Floats, bottom: Floats) -> tuple[Floats, Floats]:
    """The closed outline between two curves (t, n) over the same x."""
    x, top, bottom = np.broadcast_arrays(x, top, bottom)
    return np.concatenate([x, x[:, ::-1]], axis=1), np.concatenate([top, bottom[:, ::-1]], axis=1)
