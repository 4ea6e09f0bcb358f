"""Contact sheets: what a prepared data set looks like, as it is and as an augmentation changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from relgan.augment import Augmentation
from relgan.data.store import PackedStore
from relgan.images import to_float, to_uint8

_COLUMNS = 8
_SHOWN = 48
_DRAWS = 3
_CELL = 128
_CAPTION = 16
_HEADING = 24
_TITLE = 28
_GAP = 4


@dataclass(frozen=True)
class _Row:
    """Images uint8 [n, S, S, C] beside each other, a heading above the row and a caption below each image, if any."""

    images: NDArray[Any]
    captions: Sequence[str] = ()
    heading: str = ""


def contact_sheet(store: PackedStore) -> Image.Image:
    """Up to 48 images, evenly spread over the data set, each above its index and label."""
    indices = _spread(store, _SHOWN)
    parts = [indices[start : start + _COLUMNS] for start in range(0, len(indices), _COLUMNS)]
    return _drawn(_title(store), [_row(store, part) for part in parts])


def augmented_sheet(store: PackedStore, name: str, augmentation: Augmentation) -> Image.Image:
    """Up to 8 images as the critic sees them: unchanged, then three draws with probability ½ and three with 1.

    The draws are the same at both, so that more happens at 1 to what is already seen at ½.
    """
    indices = _spread(store, _COLUMNS)
    images = to_float(torch.from_numpy(store.images[indices]).permute(0, 3, 1, 2))
    draws = torch.rand(_DRAWS, len(indices), augmentation.numbers, generator=torch.Generator().manual_seed(0))
    rows = [_row(store, indices, "p = 0")]
    for heading, p in (("p = 0.5, three draws", 0.5), ("p = 1, the same draws", 1.0)):
        for number, u in enumerate(draws):
            changed = to_uint8(augmentation(images, u, torch.tensor(p))).permute(0, 2, 3, 1).numpy()
            rows.append(_Row(changed, heading="" if number else heading))
    return _drawn(f"{_title(store)}, augment={name}", rows)


def _spread(store: PackedStore, count: int) -> NDArray[np.int64]:
    """Indices of at most ``count`` images, evenly spread over the data set."""
    return np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).astype(np.int64))


def _title(store: PackedStore) -> str:
    return f"{store.meta['name']}  {len(store):,} images of {store.image_size}x{store.image_size}"


def _row(store: PackedStore, indices: NDArray[np.int64], heading: str = "") -> _Row:
    """Images of the data set above their indices and labels."""
    captions = [f"{index}" if store.labels is None else f"{index}  label {store.labels[index]}" for index in indices]
    return _Row(store.images[indices], captions, heading)


def _drawn(title: str, rows: Sequence[_Row]) -> Image.Image:
    """The picture, as wide as its first row."""
    columns, side = rows[0].images.shape[:2]
    cell = max(_CELL, side)
    height = sum(cell + _GAP + (_HEADING if row.heading else 0) + (_CAPTION if row.captions else 0) for row in rows)
    sheet = Image.new("RGB", (columns * (cell + _GAP) + _GAP, _TITLE + height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    title_font, heading_font, caption_font = map(ImageFont.load_default, (16, 14, 11))
    draw.text((_GAP, 4), title, "black", title_font)
    top = _TITLE
    for row in rows:
        if row.heading:
            draw.text((_GAP, top + 4), row.heading, "black", heading_font)
            top += _HEADING
        for number, pixels in enumerate(row.images):
            # Whole pixels stay visible: small images are shown as they are, only larger.
            image = Image.fromarray(pixels.squeeze()).convert("RGB").resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(image, (_GAP + number * (cell + _GAP), top))
        top += cell
        for number, caption in enumerate(row.captions):
            draw.text((_GAP + number * (cell + _GAP), top + 1), caption, "black", caption_font)
        top += _GAP + (_CAPTION if row.captions else 0)
    return sheet
