"""Between float images in [−1, 1] and the uint8 images people and scores see."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relgan.files import atomic_write

if TYPE_CHECKING:
    import PIL.Image

_MINUS_ONE = torch.tensor(-1.0)
_STEP = 0.007843137


def to_uint8(images: Tensor) -> Tensor:
    """Round float images in [−1, 1] to uint8 in [0, 255].

    The one conversion used for scores, grids and files alike; out-of-range values are clamped.

    Args:
        images: float tensor of any shape.
    """
    return images.detach().float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in [−1, 1]; the inverse of :func:`to_uint8`, memory format preserved."""
    scaled = images.to(torch.float32)
    # One pass over the memory instead of two; rounding 2/255 up would take 255 above 1.
    return torch.add(_MINUS_ONE, scaled, alpha=_STEP, out=scaled)


def grid(images: Tensor, *, columns: int | None = None, gap: int = 2, separate_channels: bool = False) -> Tensor:
    """Tile images into one picture.

    Args:
        images: uint8 (N, C, H, W), C = 1 or 3.
        columns: images in a row; default: the square root of N, rounded up.
        gap: pixels between images.
        separate_channels: follow each colour image by its three channels in grey (stacked digits), so that
            each cell is four images wide.

    Returns:
        uint8 (H', W', 3).
    """
    # Here, because torchvision takes more than a second to import.
    from torchvision.utils import make_grid

    if separate_channels and images.shape[1] == 3:
        grey = images.repeat_interleave(3, dim=1).unflatten(1, (3, 3)).unbind(1)
        images = torch.cat([images, *grey], dim=3)
    n, _, height, width = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(n * height / width)))
    tiled: Tensor = make_grid(images.cpu(), nrow=columns, padding=gap, pad_value=255)
    return tiled.permute(1, 2, 0)


def class_rows(count: int, classes: int) -> tuple[list[int], int]:
    """How to lay out at most ``count`` images with a row for each class.

    A row is between half and twice as long as those of a square: with many classes some of them, evenly spread, are
    shown, and with few not as many images.

    Returns:
        the class of each row, and how many images a row has.
    """
    side = math.isqrt(count)
    rows = min(classes, count // max(1, side // 2))
    return [row * classes // rows for row in range(rows)], min(count // rows, 2 * side)


def save_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 (H, W, 3) picture."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(picture.numpy()).save(file, "PNG")


def save_each(batches: Iterable[Tensor], path: Path) -> int:
    """Write every image as a numbered PNG into a zip archive (``path`` ends in .zip) or a directory, as they come.

    Args:
        batches: uint8 (n, C, H, W), C = 1 or 3.

    Returns:
        how many.
    """
    if path.suffix.lower() != ".zip":
        path.mkdir(parents=True, exist_ok=True)
        return _each(batches, lambda name, png: (path / name).write_bytes(png))
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        return _each(batches, archive.writestr)


def _each(batches: Iterable[Tensor], write: Callable[[str, bytes], object]) -> int:
    count = 0
    for batch in batches:
        for image in batch.cpu():
            write(f"{count:06d}.png", _png(image))
            count += 1
    return count


def _png(image: Tensor) -> bytes:
    from PIL import Image

    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def save_gif(frames: Iterable[PIL.Image.Image], path: Path, *, milliseconds: int) -> None:
    """Write pictures of one size as an endless animation, one in memory at a time."""
    rest = iter(frames)
    first = next(rest)
    with atomic_write(path) as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
