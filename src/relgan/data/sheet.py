"""A contact sheet: what a prepared data set looks like."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from relgan.data.store import PackedStore

_COLUMNS = 8
_SHOWN = 48
_CELL = 128
_CAPTION = 16
_TITLE = 28
_GAP = 4


def contact_sheet(store: PackedStore) -> Image.Image:
    """Up to 48 images, evenly spread over the data set, each above its index and label."""
    indices = np.unique(np.linspace(0, len(store) - 1, min(_SHOWN, len(store))).astype(int)).tolist()
    columns = min(_COLUMNS, len(indices))
    rows = -(-len(indices) // columns)
    cell = max(_CELL, store.image_size)
    size = (columns * (cell + _GAP) + _GAP, _TITLE + rows * (cell + _CAPTION + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    title = f"{store.meta['name']}  {len(store):,} images of {store.image_size}x{store.image_size}"
    draw.text((_GAP, 4), title, "black", ImageFont.load_default(16))
    font = ImageFont.load_default(11)
    for number, index in enumerate(indices):
        left = _GAP + number % columns * (cell + _GAP)
        top = _TITLE + number // columns * (cell + _CAPTION + _GAP)
        image = Image.fromarray(store.images[index].squeeze()).convert("RGB")
        # Whole pixels stay visible: small images are shown as they are, only larger.
        sheet.paste(image.resize((cell, cell), Image.Resampling.NEAREST), (left, top))
        label = "" if store.labels is None else f"  label {store.labels[index]}"
        draw.text((left, top + cell + 1), f"{index}{label}", "black", font)
    return sheet
