"""Images to score or to compare with: a prepared data set or picture files; and the cached statistics of real ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relgan.cache import keyed, load_or_compute
from relgan.data import PackedStore
from relgan.data.archives import identity, image_files
from relgan.data.decode import Unusable, whole
from relgan.data.store import fixed_subset
from relgan.files import atomic_write
from relgan.metrics.extractors import Extractor
from relgan.metrics.statistics import FeatureBank, FeatureMoments, RealStatistics, Reference, factorise
from relgan.options import ConfigError
from relgan.progress import progress_bar

FORMAT = 2

log = logging.getLogger("relgan")


class Images(Protocol):
    """Pictures that can be read in any order.

    Attributes:
        fingerprint: changes with any pixel.
        size: height and width, of the first where they differ.
        meta: facts about them for the protocol (name, split, preprocessing).
        labels: int64 [N], or None.
    """

    fingerprint: str
    size: tuple[int, ...]
    meta: dict[str, Any]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int: ...

    def batches(self, indices: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        """uint8 (n, C, H, W), all of one size within a batch, in the order of ``indices``."""


class StoreImages:
    """A packed store as Images."""

    def __init__(self, store: PackedStore) -> None:
        self.store = store
        self.fingerprint = store.fingerprint
        self.size = store.images.shape[1:3]
        self.meta = {key: store.meta.get(key) for key in ("name", "split", "preprocessing")}
        self.labels = store.labels

    def __len__(self) -> int:
        return len(self.store)

    def batches(self, indices: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(indices), batch_size):
            yield torch.from_numpy(self.store.images[indices[start : start + batch_size]]).permute(0, 3, 1, 2)


class Pictures:
    """Every image file below a directory or in a zip archive, in the order of their names, as RGB Images.

    Args:
        path: the directory or archive.
        option: whose value the path is, for messages.

    Raises:
        ConfigError: nothing is there, no image file is in it, or part of it cannot be read.
    """

    labels: NDArray[np.int64] | None = None

    def __init__(self, path: str, option: str) -> None:
        self._files, self._entries = image_files(path, option)
        self._option = option
        for name, reason in self._files.unreadable.items():
            raise ConfigError(option, f"{name} cannot be read ({reason}); remove it")
        root = self._files.roots[0]
        self.fingerprint = identity(root)
        self.size: tuple[int, ...] = self._read(0).shape[:2]
        self.meta: dict[str, Any] = {"name": root.name, "split": "all", "preprocessing": "RGB, native size"}

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, index: int) -> NDArray[np.uint8]:
        """One picture, uint8 [H, W, 3]; a damaged one is an error, because leaving it out would change a score."""
        try:
            return np.asarray(whole(self._files.read(self._entries[index])))
        except Unusable as error:
            name = self._entries[index][1]
            raise ConfigError(self._option, f"{name}: {error.reason} ({error.detail}); remove it") from error

    def batches(self, indices: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        """uint8 (n, 3, H, W); a batch ends early where the next picture has another size."""
        batch: list[NDArray[np.uint8]] = []
        for index in indices:
            picture = self._read(int(index))
            if batch and (len(batch) == batch_size or picture.shape != batch[0].shape):
                yield _stack(batch)
                batch = []
            batch.append(picture)
        if batch:
            yield _stack(batch)

    def positioned(self, indices: NDArray[np.int64], batch_size: int) -> Iterator[tuple[int, Tensor]]:
        """Batches, each with the position of its first picture in the stream."""
        start = 0
        for batch in self.batches(indices, batch_size):
            yield start, batch
            start += len(batch)


def _stack(batch: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)


def real_statistics(
    images: Images, extractor: Extractor, *, count: int | None, keep_features: bool, batch_size: int
) -> RealStatistics:
    """Statistics of all images, or of a fixed random ``count`` of them, on the extractor's home.

    Of several processes that ask at once one computes and the others wait.
    """
    indices = fixed_subset(len(images), count)
    key = {
        "format": FORMAT,
        "images": images.fingerprint,
        "count": len(indices),
        "features": keep_features,
        **extractor.identity,
    }
    found = load_or_compute(
        keyed("reference", extractor.name, key, ".npz"),
        _load,
        lambda: _compute(images, extractor, indices, keep_features, batch_size),
        _save,
    )
    gaussian, home = found.gaussian, extractor.home
    return RealStatistics(
        Reference(gaussian.mean.to(home), gaussian.factor.to(home), gaussian.images),
        found.features.to(home),
        None if images.labels is None else torch.from_numpy(images.labels[indices]).to(home),
    )


def _compute(
    images: Images, extractor: Extractor, indices: NDArray[np.int64], keep_features: bool, batch_size: int
) -> RealStatistics:
    log.info("computing %s statistics of %d real images (once, then cached)", extractor.name, len(indices))
    moments = FeatureMoments(extractor.num_features).to(extractor.home)
    rows = FeatureBank(extractor.num_features)
    rows.reset()
    seen = 0
    with progress_bar(len(indices), "real images") as bar:
        for batch in images.batches(indices, batch_size):
            features, _ = extractor(batch)
            moments.update(features)
            if keep_features:
                rows.update(features.cpu(), torch.arange(seen, seen + len(batch)))
            seen += len(batch)
            bar.advance(len(batch))
    # Every rank sees all images here, so nothing is to be reduced.
    moments.sync_on_compute = rows.sync_on_compute = False
    return RealStatistics(factorise(moments.compute()), rows.compute())


def _load(path: Path) -> RealStatistics:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        mean, factor, features = (torch.from_numpy(file[name]) for name in ("mean", "factor", "features"))
        return RealStatistics(Reference(mean, factor, int(file["count"])), features)


def _save(path: Path, statistics: RealStatistics) -> None:
    gaussian = statistics.gaussian
    with atomic_write(path) as file:
        np.savez(
            file,
            mean=gaussian.mean.cpu().numpy(),
            factor=gaussian.factor.cpu().numpy(),
            count=gaussian.images,
            features=statistics.features.numpy(),
        )
