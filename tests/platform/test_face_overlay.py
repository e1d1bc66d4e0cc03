"""What is drawn over a face: the arrow's sign, bars that hide no face, words that fit, and the canvas."""

import math

import numpy as np
import pytest

from mien.platform import face_overlay
from mien.platform.face_overlay import ARROW, Canvas, Shown, arrow, draw

CLASSES = ("Happy", "Sad", "Überraschung")
BOX = np.array([150.0, 120.0, 80.0, 100.0])


@pytest.mark.parametrize(
    ("pitch_deg", "yaw_deg", "right", "down"),
    [
        (0, 0, 0, 0),
        (0, 90, -1, 0),
        (0, -90, 1, 0),
        (90, 0, 0, -1),
        (-30, 0, 0, 0.5),
        (0, 30, -0.5, 0),
        (0, 150, -0.5, 0),
    ],
)
def test_an_arrow_points_where_the_face_looks(pitch_deg: float, yaw_deg: float, right: float, down: float) -> None:
    gaze = np.radians([pitch_deg, yaw_deg])
    assert arrow(gaze, 1.0) == pytest.approx((right, down), abs=1e-9)
    # Gaze360's frame: x to the left in the image, y up.
    x, y = math.cos(gaze[0]) * math.sin(gaze[1]), math.sin(gaze[0])
    assert arrow(gaze, 100) == pytest.approx((-100 * x, -100 * y))


@pytest.mark.parametrize(("pitch", "yaw"), [(0.0, 0.8), (0.0, -0.8), (0.7, 0.0), (-0.7, 0.0)])
def test_the_arrow_is_painted_on_that_side_of_the_eyes(pitch: float, yaw: float) -> None:
    picture = np.zeros((240, 320, 3), np.uint8)
    draw(picture, [Shown(0, BOX, gaze=np.array([pitch, yaw]))], ())
    rows, columns = np.nonzero((picture == ARROW).all(axis=2))
    eyes = BOX[1] - face_overlay.EYES * BOX[3]
    assert np.sign(round((columns.mean() - BOX[0]) / 5)) == -np.sign(yaw)
    assert np.sign(round((rows.mean() - eyes) / 5)) == -np.sign(pitch)


def test_bars_stand_beside_a_face_and_not_on_the_next_one() -> None:
    for width, boxes in ((400, [BOX]), (640, [BOX, np.array([280.0, 120, 80, 100])])):
        picture = np.full((240, width, 3), 200, np.uint8)
        before = picture.copy()
        draw(picture, [Shown(n, box, np.array([0.2, 0.5, 0.3])) for n, box in enumerate(boxes)], CLASSES)
        for box in boxes:
            x, y = box[:2].astype(int)
            inside = slice(y - 40, y + 40), slice(x - 30, x + 30)
            assert np.array_equal(picture[inside], before[inside])
        assert (picture != before).any()


def test_a_bar_is_as_long_as_its_probability() -> None:
    lengths = []
    for share in (0.25, 0.75):
        picture = np.zeros((240, 400, 3), np.uint8)
        draw(picture, [Shown(0, BOX, np.array([share, 1 - share]))], ("a", "b"))
        lengths.append(int((picture == face_overlay.CLASS_COLOURS[0]).all(axis=2).any(axis=0).sum()))
    assert lengths[1] == pytest.approx(3 * lengths[0], abs=4)


@pytest.mark.parametrize("box", [(5.0, 5, 60, 60), (398, 238, 80, 80), (200, 120, 600, 500), (-30, 120, 40, 40)])
def test_faces_at_the_edge_are_drawn_without_an_error(box: tuple[float, ...]) -> None:
    picture = np.zeros((240, 400, 3), np.uint8)
    shown = Shown(7, np.array(box), np.array([0.2, 0.5, 0.3]), np.array([0.1, -0.4]), short=True)
    draw(picture, [shown, shown._replace(number=1), shown._replace(number=2)], CLASSES, "a note")
    assert picture.any()


def test_a_canvas_has_even_sides_between_the_bounds() -> None:
    assert Canvas((64, 64), 480, 1920).size == (480, 480)
    assert Canvas((1080, 1920), 480, 1920).size == (1080, 1920)
    assert Canvas((2160, 3840), 480, 1920).size == (1080, 1920)
    for size in ((101, 333), (2161, 75), (1, 1)):
        assert all(side % 2 == 0 and 2 <= side <= 1920 for side in Canvas(size, 480, 1920).size)


def test_frames_of_another_shape_stand_in_the_middle() -> None:
    canvas = Canvas((100, 200), 100, 400)
    laid, scale, corner = canvas.lay(np.full((100, 200, 3), 255, np.uint8))
    assert laid.min() == 255 and scale == 1 and corner.tolist() == [0, 0]
    laid, scale, corner = canvas.lay(np.full((200, 200, 3), 255, np.uint8))
    assert laid.shape == (100, 200, 3) and scale == 0.5 and corner.tolist() == [50, 0]
    assert laid[:, :50].max() == 0 and laid[:, 50:150].min() == 255
