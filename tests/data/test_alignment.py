"""Each step of the CAT geometry against figures drawn by hand (y points down)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from relgan.data.alignment import (
    align,
    crop_box,
    eye_angle,
    eye_centre,
    level_image,
    level_points,
    order_eyes,
    parse,
)

# A face with level eyes at (40, 50) and (60, 50), ears from x = 30 to x = 70.
FACE = np.array([[40, 50], [60, 50], [50, 65], [30, 35], [33, 20], [40, 30], [60, 30], [67, 20], [70, 35]], dtype=float)


def replaced(**rows: tuple[float, float]) -> np.ndarray:
    points = FACE.copy()
    for name, value in rows.items():
        points[{"left_eye": 0, "right_eye": 1, "mouth": 2, "left_ear": 3, "right_ear": 8}[name]] = value
    return points


def turned(points: np.ndarray, degrees: float, about: tuple[float, float]) -> np.ndarray:
    """Clockwise as seen in the picture, point by point with complex numbers."""
    z = points[:, 0] + 1j * points[:, 1] - complex(*about)
    z = z * complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees))) + complex(*about)
    return np.stack([z.real, z.imag], axis=1)


def test_an_annotation_is_nine_points() -> None:
    points = parse("9 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 -18 \n")
    assert points.shape == (9, 2)
    assert points[0].tolist() == [1, 2]
    assert points[8].tolist() == [17, -18]


@pytest.mark.parametrize("text", ["", "9 1 2", "8 " + "1 " * 16, "9 " + "1 " * 17 + "x", "9 " + "1 " * 20])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


def test_eyes_annotated_the_wrong_way_round_are_swapped() -> None:
    # The "left" eye right of and above the other, the mouth right of the "right" eye: all three are needed.
    wrong = replaced(left_eye=(60, 40), right_eye=(40, 50), mouth=(50, 65))
    assert order_eyes(wrong)[:2].tolist() == [[40, 50], [60, 40]]
    assert wrong[0].tolist() == [60, 40], "the argument is left alone"
    for right in (
        replaced(left_eye=(30, 40), right_eye=(40, 50)),  # not right of it
        replaced(left_eye=(60, 60), right_eye=(40, 50)),  # not above it
        replaced(left_eye=(60, 40), right_eye=(40, 50), mouth=(35, 65)),  # mouth left of it
    ):
        np.testing.assert_array_equal(order_eyes(right), right)


def test_the_centre_is_midway_between_the_eyes() -> None:
    assert eye_centre(replaced(left_eye=(10, 20), right_eye=(30, 50))) == (20, 35)


@pytest.mark.parametrize(
    ("right_eye", "degrees"), [((60, 50), 0), ((60, 70), 45), ((60, 30), -45), ((40, 70), 90), ((20, 50), 180)]
)
def test_the_angle_is_positive_where_the_right_eye_is_lower(right_eye: tuple[int, int], degrees: float) -> None:
    assert math.degrees(eye_angle(replaced(right_eye=right_eye))) == pytest.approx(degrees)


@pytest.mark.parametrize("degrees", [-100, -30, 0, 17, 45])
def test_levelling_undoes_a_turn_of_the_head(degrees: float) -> None:
    np.testing.assert_allclose(level_points(turned(FACE, degrees, about=(50, 50))), FACE, atol=1e-9)


@pytest.mark.parametrize("degrees", [-30, 0, 20, 45])
def test_the_image_turns_with_the_points(degrees: float) -> None:
    points = turned(FACE, degrees, about=(50, 50))
    y, x = np.mgrid[:100, :100]
    # A soft dot per channel, exactly at the left eye, the right eye and the mouth.
    dots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in points[:3]]
    image = Image.fromarray(np.rint(255 * np.stack(dots, axis=-1)).astype(np.uint8))
    level = np.asarray(level_image(image, points, (0, 0, 100, 100))).astype(float)
    assert level.shape == (100, 100, 3)
    for (px, py), seen in zip(FACE[:3], np.moveaxis(level, -1, 0), strict=True):
        near = np.where(np.hypot(x - px, y - py) < 12, seen, 0)
        assert (near * x).sum() / near.sum() == pytest.approx(px, abs=0.1)
        assert (near * y).sum() / near.sum() == pytest.approx(py, abs=0.1)


def test_what_turns_in_from_outside_is_grey() -> None:
    points = turned(FACE, 45, about=(50, 50))
    assert np.asarray(level_image(Image.new("RGB", (100, 100)), points, (0, 0, 9, 9)))[0, 0].tolist() == [128] * 3


def test_the_crop_is_as_wide_as_the_ears_with_the_eyes_at_two_fifths() -> None:
    # Width 70 − 30 = 40; left 50 − 20, top 50 − 16.
    assert crop_box(FACE, 100, 100) == (30, 34, 70, 74)


def test_a_crop_that_begins_outside_is_shortened() -> None:
    # Moved by (−35, −40): left 15 − 20 = −5 and top 10 − 16 = −6 become 0, the far sides stay.
    assert crop_box(FACE - [35, 40], 100, 100) == (0, 0, 35, 34)


def test_a_crop_that_ends_outside_is_clipped() -> None:
    assert crop_box(FACE, 60, 70) == (30, 34, 60, 70)


def test_a_face_outside_the_picture_leaves_nothing() -> None:
    left, top, right, bottom = crop_box(FACE + 500, 100, 100)
    assert (right - left, bottom - top) == (0, 0)


@pytest.mark.parametrize("degrees", [-35, 10, 60])
def test_the_cut_is_what_rotating_everything_and_cropping_gives(degrees: float) -> None:
    points = turned(FACE, degrees, about=(50, 50))
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    image, box = Image.fromarray(noise), (20, 30, 75, 90)
    x, y = eye_centre(points)
    rotated = image.rotate(degrees, Image.Resampling.BILINEAR, center=(x + 0.5, y + 0.5), fillcolor=(128, 128, 128))
    cut = np.asarray(level_image(image, points, box)).astype(int)
    assert np.abs(cut - np.asarray(rotated.crop(box))).max() <= 1


@pytest.mark.parametrize("degrees", [0, 25])
def test_eyes_end_up_at_the_same_place(degrees: float) -> None:
    points = turned(FACE * 4, degrees, about=(200, 200))
    image = Image.new("RGB", (400, 400), "white")
    draw = ImageDraw.Draw(image)
    for x, y in points[:2]:
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill="black")
    face = align(image, points, crop_box(level_points(points), 400, 400), 64)
    dark_y, dark_x = np.nonzero(face.max(-1) < 100)
    assert face.shape == (64, 64, 3)
    # The eyes are half the ears' distance apart: at a quarter and three quarters, at two fifths from the top.
    assert dark_x[dark_x < 32].mean() == pytest.approx(16, abs=1)
    assert dark_x[dark_x >= 32].mean() == pytest.approx(48, abs=1)
    assert dark_y.mean() == pytest.approx(0.4 * 64, abs=1)
