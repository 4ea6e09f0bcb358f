"""Geometry of the CAT preprocessing: a cat's face turned upright and cut out by its annotated points.

Points are float64 [9, 2], (x, y) in pixels with y downwards: left eye, right eye, mouth, three of the left ear,
three of the right ear (left and right as seen in the picture).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEFT_EYE, RIGHT_EYE, MOUTH, LEFT_EAR_1, RIGHT_EAR_3 = 0, 1, 2, 3, 8
_GREY = (128, 128, 128)
_EYES_BELOW_TOP = 0.4

Points = NDArray[np.float64]
Box = tuple[int, int, int, int]


def parse(annotation: str) -> Points:
    """Read ``9 x1 y1 … x9 y9``; ValueError for anything else."""
    count, *numbers = [int(word) for word in annotation.split()]
    if count != 9 or len(numbers) != 18:
        raise ValueError(f"expected 9 points, got {annotation!r:.60}")
    return np.array(numbers, dtype=np.float64).reshape(9, 2)


def order_eyes(points: Points) -> Points:
    """Swap the eyes where they were annotated the wrong way round."""
    left, right, mouth = points[LEFT_EYE], points[RIGHT_EYE], points[MOUTH]
    if left[0] > right[0] and left[1] < right[1] and mouth[0] > right[0]:
        points = points.copy()
        points[[LEFT_EYE, RIGHT_EYE]] = points[[RIGHT_EYE, LEFT_EYE]]
    return points


def eye_centre(points: Points) -> tuple[float, float]:
    """The midpoint of the eyes."""
    x, y = (points[LEFT_EYE] + points[RIGHT_EYE]) / 2
    return float(x), float(y)


def eye_angle(points: Points) -> float:
    """Slope of the line from the left to the right eye, radians; positive where the right one is lower."""
    dx, dy = points[RIGHT_EYE] - points[LEFT_EYE]
    return math.atan2(dy, dx)


def level_points(points: Points) -> Points:
    """Rotate the points about the midpoint of the eyes so that these are level."""
    centre, angle = np.array(eye_centre(points)), eye_angle(points)
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = (points - centre) @ np.array([[cos, -sin], [sin, cos]]) + centre
    return turned


def crop_box(levelled: Points, width: int, height: int) -> Box:
    """The face: as wide and high as the ears are apart, eyes centred and at two fifths of the height.

    A side that begins outside the picture is shortened by the overflow, one that ends outside is clipped.

    Returns:
        left, top, right, bottom in whole pixels; empty where nothing remains.
    """
    x, y = eye_centre(levelled)
    side = abs(levelled[RIGHT_EAR_3, 0] - levelled[LEFT_EAR_1, 0])
    left, top = x - side / 2, y - _EYES_BELOW_TOP * side
    right, bottom = min(left + side, width), min(top + side, height)
    left, top = max(left, 0.0), max(top, 0.0)
    return round(left), round(top), round(max(left, right)), round(max(top, bottom))


def level_image(image: Image.Image, points: Points, box: Box) -> Image.Image:
    """The part ``box`` of the image rotated as :func:`level_points` does the points: bilinear, grey outside.

    The rest of the rotated image, most of it, is never computed.
    """
    cos, sin = math.cos(eye_angle(points)), math.sin(eye_angle(points))
    # Pillow measures from a pixel's corner, annotations from its centre.
    x, y = (coordinate + 0.5 for coordinate in eye_centre(points))
    left, top, right, bottom = box
    matrix = (cos, -sin, x - cos * (x - left) + sin * (y - top), sin, cos, y - sin * (x - left) - cos * (y - top))
    size = (right - left, bottom - top)
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=_GREY)


def align(image: Image.Image, points: Points, box: Box, size: int) -> NDArray[np.uint8]:
    """Turn, cut and resize: an RGB image to uint8 [size, size, 3]."""
    return np.asarray(level_image(image, points, box).resize((size, size), Image.Resampling.BICUBIC))
