"""Every data set by name: how it is read, and what a person should know before getting it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relgan.config import DatasetConfig
from relgan.data.cat import cat
from relgan.data.celeba import celeba
from relgan.data.published import cifar10, mnist, stacked_mnist
from relgan.data.sources import Source, digits, folder, stacked_digits


@dataclass(frozen=True)
class Dataset:
    """One data set.

    Args:
        open: options → source.
        about, terms, size, get: a few words each, for people.
        splits: whether it comes in official parts.
    """

    open: Callable[[DatasetConfig], Source]
    about: str
    terms: str
    size: str
    get: str
    splits: bool = True


_DIGITS = "UCI optical digits, CC BY 4.0"
_FETCHED = "downloaded, or dataset.path=COPY"

CATALOGUE = {
    "stacked_digits": Dataset(
        stacked_digits, "three digits as RGB: 1,000 modes", _DIGITS, "in scikit-learn", "nothing to do", False
    ),
    "digits": Dataset(digits, "1,797 written digits", _DIGITS, "in scikit-learn", "nothing to do", False),
    "folder": Dataset(folder, "any images", "yours", "yours", "dataset.path=DIRECTORY or zip", False),
    "cifar10": Dataset(cifar10, "60,000 photos, ten classes", "cite Krizhevsky 2009", "170 MB", _FETCHED),
    "celeba": Dataset(
        celeba, "202,599 aligned faces", "research, not commercial", "1.4 GB", "dataset.path=img_align_celeba.zip"
    ),
    "cat": Dataset(
        cat, "9,997 annotated photos", "cite Zhang et al. 2008", "about 2 GB", "dataset.path=DIRECTORY of CAT_*", False
    ),
    "mnist": Dataset(mnist, "70,000 written digits", "CC BY-SA 3.0", "12 MB", _FETCHED),
    "fashion_mnist": Dataset(mnist, "70,000 articles of clothing", "MIT", "31 MB", _FETCHED),
    "stacked_mnist": Dataset(
        stacked_mnist, "three MNIST digits as RGB: 1,000 modes", "CC BY-SA 3.0", "12 MB", _FETCHED
    ),
}
