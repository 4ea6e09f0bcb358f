"""Grids of samples as text that a page carries."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

MAX_PIXELS = 720  # a larger grid is scaled down
SHOWN = 300  # pixels that a grid is wide on the page, about


class Image(NamedTuple):
    """A picture as a data URI, empty where it is damaged.

    Attributes:
        width, height: as shown. A small picture has a whole number of the screen's pixels for each of its own, since
            any other scale gives fine patterns, such as rows of digits, a moiré.
        sharp: whether it is such a small one.
    """

    uri: str
    width: int
    height: int
    sharp: bool


def embed(path: Path) -> Image:
    from PIL import Image as Pictures

    buffer = io.BytesIO()
    try:
        with Pictures.open(path) as image:
            picture = image.convert("RGB")
            picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
            picture.save(buffer, "WEBP", quality=75, method=0)
    except (OSError, ValueError, Pictures.DecompressionBombError):
        return Image("", SHOWN, SHOWN, sharp=False)
    width, height = picture.size
    scale = max(SHOWN // width, 1) if width <= SHOWN else SHOWN / width
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Image(uri, round(width * scale), round(height * scale), sharp=width <= SHOWN)
