"""From the bytes of an image file to a square RGB array, distrusting the bytes."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 100_000_000
_START = 16  # bytes by which Pillow knows a format
_DEEP = re.compile("(?<!BGR);16")  # of BGR;16 all three values are in 16 bits
_DARK = 64  # a quarter of the range
_WHITE_IS_ZERO, _UNSIGNED = 0, 1  # of TIFF
_NOT_SUPPORTED = re.compile("unsupported|not supported|unknown|cannot handle|not available", re.IGNORECASE)
_OTHERS = {
    rb"....ftyp(hei|hev|mif|msf)": "a HEIF picture",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "a JPEG XL picture",
    rb"\s*(<\?xml[^>]*>\s*)?(<!--.*-->\s*)?<svg": "an SVG drawing",
    rb"\s*<\?xml": "an XML file, often the error page of a download",
    rb"version https://git-lfs\.": "a pointer of Git LFS (git lfs pull brings the picture)",
    rb"\s*(?i:<!doctype html|<html)": "a web page",
}
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


@cache
def formats() -> tuple[str, ...]:
    """Formats of pictures that the installed Pillow opens and knows by their first bytes.

    Others it guesses from any bytes, hands to another program (EPS), or only names (films, weather data).
    """
    Image.init()
    pictures = (name for name, (_, accepts) in Image.OPEN.items() if accepts)
    return tuple(name for name in pictures if Image.MIME.get(name, "").startswith("image/"))


@cache
def endings() -> frozenset[str]:
    """Endings of files of those formats: ``.jpg``, ``.jfif``, ``.avif`` …, in lower case."""
    known = formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in known)


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
            reason = "not supported" if _NOT_SUPPORTED.search(str(error)) else "damaged"
            raise Unusable(reason, f"cannot be decoded ({type(error).__name__}: {error})") from error


def _open(file: IO[bytes]) -> ImageFile.ImageFile:
    try:
        image = Image.open(file, formats=formats())
    except UnidentifiedImageError as error:
        _open_as_declared(file)
        raise Unusable(*_not_a_picture(file)) from error
    if image.width * image.height > MAX_PIXELS:
        raise Unusable("too large", f"{image.width}×{image.height} pixels")
    return image


def _open_as_declared(file: IO[bytes]) -> None:
    """Raise what Pillow's own opener of the format says, which ``Image.open`` keeps to itself."""
    file.seek(0)
    start = file.read(_START)
    if len(start) < _START:
        return
    for name in formats():
        opener, accepts = Image.OPEN[name]
        if accepts is not None and accepts(start) is True:
            file.seek(0)
            opener(file, "")


def _not_a_picture(file: IO[bytes]) -> tuple[str, str]:
    """Reason and detail of a file that Pillow does not know."""
    file.seek(0)
    start = file.read(16 * _START)
    known = next((name for pattern, name in _OTHERS.items() if re.match(pattern, start, re.DOTALL)), None)
    if known:
        return "not supported", f"it is {known}"
    return "damaged", "no format of pictures that Pillow knows"


def _to_rgb(file: ImageFile.ImageFile) -> Image.Image:
    """Decode, and convert any mode to 8-bit RGB: 16-bit values are scaled, transparency becomes white.

    Raises:
        Unusable: what its values mean is not known, so that it would turn out black or grey.
    """
    _refuse_unknown_values(file)
    coded = str(file.tile)  # names the bits of a value where they are more than 8
    file.load()
    image: Image.Image = file
    deep = bool(_DEEP.search(coded))
    if image.mode.startswith("I"):
        deep = ";12" not in coded
        grey = (np.asarray(image) >> (8 if deep else 4)).astype(np.uint8)
        inverted = _tiff_tag(file, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
        image = Image.fromarray(255 - grey if inverted else grey)
    elif image.mode == "La":
        image = image.convert("LA")
    if deep and np.asarray(image.convert("RGB")).max() < _DARK:
        raise Unusable("not supported", "16-bit values below a quarter of the range: perhaps of 14 bits or less")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(layered)
    return image if image.mode == "RGB" else image.convert("RGB")


def _refuse_unknown_values(image: ImageFile.ImageFile) -> None:
    """Unusable where nothing says which values are black and white."""
    kind = ""
    if image.mode == "F":
        kind = "floating-point values"
    elif image.mode == "I" and image.format == "TIFF":
        kind = "signed or 32-bit values"
    elif _tiff_tag(image, TiffImagePlugin.SAMPLEFORMAT) not in (None, _UNSIGNED):
        kind = "signed values"
    elif ";16" in str(image.tile) and "transparency" in image.info:
        kind = "16-bit values with a transparent one"
    if kind:
        raise Unusable("not supported", f"{kind}; convert it to 8 bits")


def _tiff_tag(image: Image.Image, tag: int) -> int | None:
    """A number, for all channels that of the first; None where there is none, as in other formats."""
    value = image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    return value[0] if isinstance(value, tuple) else value


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What puts a loaded image upright by its EXIF orientation. Pillow turns TIFFs itself, while it loads them."""
    try:
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged description does not spoil the picture
        return None


@_distrusting()
def declared_size(file: IO[bytes]) -> tuple[int, int]:
    """Width and height as the header tells them; Unusable if there is no header, or too many pixels."""
    return _open(file).size


@_distrusting()
def whole(data: bytes, *, upright: bool = True) -> Image.Image:
    """The whole image in RGB; Unusable if it is damaged, or too large to be decoded safely.

    Args:
        upright: turned where EXIF tells the orientation; else the pixels as they lie in the file.
    """
    image = _open(io.BytesIO(data))
    pixels = _to_rgb(image)
    turn = _turn(image) if upright else None
    return pixels if turn is None else pixels.transpose(turn)


@_distrusting()
def square(data: bytes, size: int, crop: float | None = None) -> NDArray[np.uint8]:
    """The centred square of an image, resized with antialiasing.

    A JPEG at least twice too large is decoded at a half, a quarter or an eighth, never below ``size``, and
    resized from there: faster, and close to decoding it whole (docs/data.md tells how close).

    Args:
        data: a file of one of :func:`formats`, of any mode; of an animation, the first frame.
        size: side of the result.
        crop: side of the square, pixels, at most the image's shorter side; up to 1 a share of that; None: all of it.

    Returns:
        uint8 [size, size, 3], upright where EXIF tells the orientation.

    Raises:
        Unusable: the file is damaged, not supported, or too large to be decoded safely.
    """
    image = _open(io.BytesIO(data))
    width, height = image.size
    scale = 1.0
    if image.format == "JPEG":
        side = _side(width, height, crop)
        drafted = image.draft(None, (-(-width * size // side), -(-height * size // side)))
        scale = drafted[1][2] / width if drafted else 1.0
    pixels = _to_rgb(image)
    if image.format != "JPEG":
        width, height = pixels.size  # a TIFF may have been turned
    side = _side(width, height, crop)
    left, top, side_now = (width - side) // 2 * scale, (height - side) // 2 * scale, side * scale
    # Cut before resizing, or the filter would mix in pixels from outside the square.
    x, y = int(left), int(top)
    cut = pixels.crop((x, y, math.ceil(left + side_now), math.ceil(top + side_now)))
    box = (left - x, top - y, left - x + side_now, top - y + side_now)
    small = cut.resize((size, size), Image.Resampling.BICUBIC, box=box)
    # A centred square may be turned after resizing, when there is less to turn.
    turn = _turn(image)
    return np.asarray(small if turn is None else small.transpose(turn))


def _side(width: int, height: int, crop: float | None) -> int:
    """Pixels of the square that is cut out of an image (see :func:`square`)."""
    shorter = min(width, height)
    if crop is None:
        return shorter
    return max(1, round(shorter * crop)) if crop <= 1 else min(shorter, round(crop))
