"""Real images to compare with, and their statistics: computed once per images, network and count, then cached."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from relgan.data import PackedStore, cache_dir
from relgan.files import atomic_write
from relgan.metrics.extractors.base import Extractor
from relgan.metrics.scores import Reference, factorise
from relgan.metrics.statistics import FeatureBank, FeatureMoments

FORMAT = 1
_SUBSET_SEED = 0

log = logging.getLogger("relgan")


class Images(Protocol):
    """Pictures that can be read in any order.

    Attributes:
        fingerprint: changes with any pixel.
        size: height and width, of the first where they differ.
        meta: facts about them for the protocol (name, split, preprocessing).
    """

    fingerprint: str
    size: tuple[int, ...]
    meta: dict[str, Any]

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

    def __len__(self) -> int:
        return len(self.store)

    def batches(self, indices: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(indices), batch_size):
            yield torch.from_numpy(self.store.images[indices[start : start + batch_size]]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ReferenceStatistics:
    """What scores need of the real images; ``features`` float32 (N, F) only where asked for."""

    gaussian: Reference
    features: Tensor | None


def choose(images: Images, count: int | None) -> NDArray[np.int64]:
    """Sorted indices of all images, or of a fixed random ``count`` of them (archives are often sorted by class)."""
    if count is None or count >= len(images):
        return np.arange(len(images))
    return np.sort(np.random.default_rng(_SUBSET_SEED).choice(len(images), count, replace=False))


def reference_statistics(
    images: Images, extractor: Extractor, *, count: int | None, keep_features: bool, batch_size: int
) -> ReferenceStatistics:
    """Statistics of (at most ``count`` of) the images, from the cache where they are there.

    Of several processes that ask at once one computes and the others wait.
    """
    indices = choose(images, count)
    key = {
        "format": FORMAT,
        "images": images.fingerprint,
        "count": len(indices),
        "extractor": extractor.name,
        "weights": extractor.fingerprint,
        "input_size": extractor.input_size,
        "precision": extractor.precision,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir() / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{extractor.name}-{digest}.npz"
    bank = folder / f"{extractor.name}-{digest}.npy"
    with FileLock(folder / f".{path.stem}.lock"):
        cached = _load(path, bank if keep_features else None)
        gaussian, features = cached or _compute(images, extractor, indices, keep_features, batch_size)
        if cached is None:
            _save(path, bank, gaussian, features)
    return ReferenceStatistics(
        Reference(gaussian.mean.to(extractor.home), gaussian.factor.to(extractor.home), gaussian.images),
        features,
    )


def _compute(
    images: Images, extractor: Extractor, indices: NDArray[np.int64], keep_features: bool, batch_size: int
) -> tuple[Reference, Tensor | None]:
    log.info("computing %s statistics of %d real images (once, then cached)", extractor.name, len(indices))
    moments = FeatureMoments(extractor.num_features).to(extractor.home)
    rows = FeatureBank(extractor.num_features)
    seen = 0
    for batch in images.batches(indices, batch_size):
        features, _ = extractor(batch)
        moments.update(features)
        if keep_features:
            rows.update(features.cpu(), torch.arange(seen, seen + len(batch)))
        seen += len(batch)
    # Every rank sees all images here, so nothing is to be reduced.
    moments.sync_on_compute = rows.sync_on_compute = False
    return factorise(moments.compute()), rows.compute() if keep_features else None


def _load(path: Path, bank: Path | None) -> tuple[Reference, Tensor | None] | None:
    if not path.exists() or (bank is not None and not bank.exists()):
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            mean, factor, count = (file[name] for name in ("mean", "factor", "count"))
        features = None if bank is None else torch.from_numpy(np.load(bank, allow_pickle=False))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        log.warning("the cached statistics %s are damaged: computing them again", path)
        return None
    return Reference(torch.from_numpy(mean), torch.from_numpy(factor), int(count)), features


def _save(path: Path, bank: Path, gaussian: Reference, features: Tensor | None) -> None:
    if features is not None:
        with atomic_write(bank) as file:
            np.save(file, features.numpy())
    with atomic_write(path) as file:
        np.savez(file, mean=gaussian.mean.cpu().numpy(), factor=gaussian.factor.cpu().numpy(), count=gaussian.images)
