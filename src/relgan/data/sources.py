"""What a data set is before it is packed: images that are read one at a time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from relgan.data.archives import Entry, Files, printable
from relgan.data.decode import square
from relgan.options import ConfigError, option
from relgan.registry import DatasetOptions

_STACKED_SEED = 0


class Source(ABC):
    """A data set that can be read in any order, also by several processes at once.

    A data set of one's own derives from this class or one of those below. Those processes import the module that
    defines its class; where that cannot be done (a notebook, a script, a class inside a function), or the object
    cannot be pickled, one process reads everything.

    Attributes:
        labels: class of each image, int64 [N] from 0; or None.
        classes: names of the classes, where numbers would not do.
        channels: of every image.
        preprocessing: what happens to an image, for people.
        parallel: whether reading one costs enough to share the work between processes.
        dropped: reason → how many images were left out before reading.
        facts: what else is worth recording.
    """

    labels: NDArray[np.int64] | None = None
    classes: Sequence[str] = ()
    channels = 3
    preprocessing = ""
    parallel = True
    dropped: Mapping[str, int] = {}
    facts: Mapping[str, object] = {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """One image, uint8 [S, S, C]; :class:`relgan.data.decode.Unusable` where there is none."""

    def name(self, index: int) -> str:
        """What a person would call this image."""
        return f"image {index}"


class ArraySource(Source):
    """Images that are in memory already, resized smoothly where the size differs.

    Args:
        images: uint8 [N, h, w, C], C = 1 or 3.
        labels: [N], or None.
        size: side of the square images it gives, pixels.
        classes: names of the labels.
    """

    parallel = False

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer[Any]] | None,
        size: int,
        classes: Sequence[str] = (),
    ) -> None:
        self._images, self._size = images, size
        self.labels = None if labels is None else labels.astype(np.int64)
        self.classes = classes
        self.channels = images.shape[3]
        self.preprocessing = f"{images.shape[1]}×{images.shape[2]} resized to {size}×{size}, bicubic"

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> NDArray[np.uint8]:
        return resize(self._images[index], self._size)


@dataclass
class StackedOptions(DatasetOptions):
    """Options of a stacked data set."""

    num_images: int = option(30_000, "images to make", ge=1)


class StackedSource(Source):
    """Three random one-channel images as red, green and blue: 10 × 10 × 10 modes from ten classes.

    The draw is fixed: the same images on every machine. Labels are 100·red + 10·green + blue.

    Args:
        base: ten classes, one channel.
        count: how many triples to draw.
    """

    parallel = False

    def __init__(self, base: ArraySource, count: int) -> None:
        assert base.labels is not None
        self._images = np.stack([base.read(index)[..., 0] for index in range(len(base))])
        self._triples = np.random.default_rng(_STACKED_SEED).integers(len(base), size=(count, 3))
        self.labels = base.labels[self._triples] @ np.array([100, 10, 1])
        self.preprocessing = f"{base.preprocessing}; three drawn at random as RGB"

    def __len__(self) -> int:
        return len(self._triples)

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.moveaxis(self._images[self._triples[index]], 0, -1)


class FolderSource(Source):
    """Image files below directories or in zip archives: converted to RGB, cut square, resized.

    Args:
        files: where they are.
        entries: which are used.
        size: side of the square images it gives, pixels.
        crop: side of the square that is cut out, pixels or a share (relgan.data.decode.square).
        labelled: classes are the folders that hold the images, in natural order (2 before 10).

    Raises:
        ConfigError: there are fewer than two such folders, or an image lies outside.
    """

    def __init__(
        self, files: Files, entries: list[Entry], size: int, crop: float | None, *, labelled: bool = False
    ) -> None:
        self._files, self._entries, self._size, self._crop = files, entries, size, crop
        self.dropped = files.dropped
        if labelled:
            self.labels, self.classes = _folders(entries)
        cut = "largest centred square"
        if crop is not None:
            cut = f"inner {100 * crop:g} % of the {cut}" if crop <= 1 else f"centred {crop:g}×{crop:g}"
        self.preprocessing = f"RGB, {cut}, resized to {size}×{size}, bicubic with antialiasing"

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> NDArray[np.uint8]:
        return square(self._files.read(self._entries[index]), self._size, self._crop)

    def name(self, index: int) -> str:
        return printable(self._entries[index][1])


def _folders(entries: list[Entry]) -> tuple[NDArray[np.int64], list[str]]:
    """Which folder each file lies in, and their names below the one that holds them all."""
    paths = [tuple(name.split("/")[:-1]) for _, name in entries]
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*set(paths), strict=False)))
    own = [printable("/".join(path[shared:])) for path in paths]
    names = sorted(set(own), key=_natural)
    if len(names) < 2:
        raise ConfigError("dataset.labels", "needs a folder of images for each class, and all images lie in one")
    if "" in names:
        outside = entries[own.index("")][1]
        raise ConfigError("dataset.labels", f"{outside} lies beside the folders, which are the classes")
    number = {name: label for label, name in enumerate(names)}
    return np.array([number[name] for name in own]), names


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 [h, w, C] → [size, size, C], C = 1 or 3; unchanged where the size is right."""
    if image.shape[:2] == (size, size):
        return image
    resized = Image.fromarray(image.squeeze()).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(size, size, image.shape[2])
