"""From the bytes of an image file to a square RGB array, distrusting the bytes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 100_000_000
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unusable(Exception):
    """A file that is left out.

    Args:
        reason: what is counted, the same for all files of one kind.
        detail: what is told about this one file; empty where leaving it out is nothing unusual.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@contextmanager
def _distrusting() -> Iterator[None]:
    """Pillow warns about harmless oddities, and damaged bytes make it raise nearly anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Unusable:
            raise
        except Image.DecompressionBombError as error:
            raise Unusable("too large", str(error)) from error
        except Exception as error:
            raise Unusable("damaged", f"cannot be decoded ({type(error).__name__}: {error})") from error


def _open(file: IO[bytes]) -> Image.Image:
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise Unusable("too large", f"{image.width}×{image.height} pixels")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Decode, and convert any mode to 8-bit RGB: 16-bit grey is scaled, transparency becomes white."""
    image.load()
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(layered)
    return image if image.mode == "RGB" else image.convert("RGB")


@_distrusting()
def declared_size(file: IO[bytes]) -> tuple[int, int]:
    """Width and height as the header tells them; Unusable if there is no header, or too many pixels."""
    return _open(file).size


@_distrusting()
def whole(data: bytes) -> Image.Image:
    """The whole image in RGB; Unusable if it is damaged, or too large to be decoded safely."""
    return _to_rgb(_open(io.BytesIO(data)))


@_distrusting()
def square(data: bytes, size: int, crop: float | None = None) -> NDArray[np.uint8]:
    """The centred square of an image, resized with antialiasing.

    A JPEG at least twice too large is decoded at a half, a quarter or an eighth, never below ``size``, and
    resized from there: faster, and close to decoding it whole (docs/data.md tells how close).

    Args:
        data: a JPEG, PNG, WebP, BMP, GIF, TIFF or PNM file of any mode; of an animation, the first frame.
        size: side of the result.
        crop: side of the square, pixels, at most the image's shorter side; up to 1 a share of that; None: all of it.

    Returns:
        uint8 [size, size, 3], upright where EXIF tells the orientation.

    Raises:
        Unusable: the file is damaged, or too large to be decoded safely.
    """
    image = _open(io.BytesIO(data))
    width, height = image.size
    shorter = min(width, height)
    side = shorter if crop is None else max(1, round(shorter * crop)) if crop <= 1 else min(shorter, round(crop))
    scale = 1.0
    orientation = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    if image.format == "JPEG":
        drafted = image.draft(None, (-(-width * size // side), -(-height * size // side)))
        scale = drafted[1][2] / width if drafted else 1.0
    left, top, side_now = (width - side) // 2 * scale, (height - side) // 2 * scale, side * scale
    # Cut before resizing, or the filter would mix in pixels from outside the square.
    x, y = int(left), int(top)
    cut = _to_rgb(image).crop((x, y, math.ceil(left + side_now), math.ceil(top + side_now)))
    box = (left - x, top - y, left - x + side_now, top - y + side_now)
    small = cut.resize((size, size), Image.Resampling.BICUBIC, box=box)
    # A centred square may be turned after resizing, when there is less to turn.
    return np.asarray(small if orientation is None else small.transpose(orientation))
