"""Handwritten digits that need no download: scikit-learn's, alone and three at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from relgan.data.sources import ArraySource, StackedOptions, StackedSource
from relgan.registry import DatasetCard, DatasetOptions, register_dataset

_CARD = DatasetCard(
    terms="UCI optical digits, CC BY 4.0",
    size="in scikit-learn",
    get="nothing to do",
    digits=1,
    labels=True,
    grey=True,
)


@register_dataset("digits", DatasetOptions(image_size=16), about="1,797 written digits", facts=_CARD)
def digits(options: DatasetOptions) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits, 8×8 with values 0 … 16, one channel."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    return ArraySource(images, data.target, options.image_size)


@register_dataset(
    "stacked_digits",
    StackedOptions(image_size=16),
    about="three digits as RGB: 1,000 modes",
    facts=replace(_CARD, digits=3, grey=False),
)
def stacked_digits(options: StackedOptions) -> StackedSource:
    """1,000 modes without a download."""
    return StackedSource(digits(options), options.num_images)
