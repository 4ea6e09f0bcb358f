"""From options to an opened store: found in the cache, or built there once."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np

from relgan.config import ConfigError, DatasetConfig, RelganError
from relgan.data.build import build
from relgan.data.cache import cache_dir, locked
from relgan.data.catalogue import CATALOGUE
from relgan.data.files import identity, locate
from relgan.data.sources import STACKED_IMAGES
from relgan.data.store import FORMAT, PackedStore

log = logging.getLogger("relgan")

_FEW_IMAGES = 1000
_SUBSET_SEED = 0


def store_path(config: DatasetConfig) -> Path:
    """The directory of this data set's store, whether it exists or not.

    Its name depends on every option that changes an image, and on the source files' names, sizes and times.
    """
    stacked = config.name.startswith("stacked_")
    key = {
        "format": FORMAT,
        "name": config.name,
        "source": identity(locate(config.path)) if config.path else None,
        "image_size": config.image_size,
        "split": config.split if CATALOGUE[config.name].splits else "all",
        "crop": config.crop,
        "num_images": config.num_images or (STACKED_IMAGES if stacked else None),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "datasets" / f"{config.name}-{config.image_size}-{digest}"


def prepared() -> list[Path]:
    """The directories of everything in the cache."""
    return sorted(meta.parent for meta in (cache_dir() / "datasets").glob("[!.]*/meta.json"))


def prepare(config: DatasetConfig, *, progress: bool = True) -> PackedStore:
    """Open the data set, packing it first where that was not done before.

    Of several processes that ask at once, one builds and the others wait. What is built appears under its
    name only when complete.

    Raises:
        ConfigError: an option names nothing usable.
        RelganError: nothing could be prepared; or the cache cannot be written.
    """
    if config.split in ("valid", "test") and not CATALOGUE[config.name].splits:
        raise ConfigError("dataset.split", f"{config.name} has no {config.split} split; use all")
    path = store_path(config)
    store = _cached(path)
    if store is None:
        try:
            with locked(path):
                store = _cached(path) or _build(config, path, progress)
        except OSError as error:
            raise RelganError(
                f"cannot write prepared data to {path.parent} ({error.strerror or error}); "
                "the environment variable RELGAN_CACHE chooses another place"
            ) from error
    _check_count(store, config)
    return store


def _cached(path: Path) -> PackedStore | None:
    if not path.exists():
        return None
    try:
        return PackedStore.open(path)
    except RelganError:
        return None


def _build(config: DatasetConfig, path: Path, progress: bool) -> PackedStore:
    if path.exists():
        log.warning("the prepared data in %s is damaged: preparing it again", path)
        shutil.rmtree(path)
    source = CATALOGUE[config.name].open(config)
    indices = np.arange(len(source))
    if config.num_images is not None and config.num_images < len(source):
        # A fixed random part, because archives are often sorted by class.
        generator = np.random.default_rng(_SUBSET_SEED)
        indices = np.sort(generator.choice(len(source), config.num_images, replace=False))
    meta = {"name": config.name, "split": config.split, "source": config.path}
    return build(source, path, config.image_size, indices, meta, progress)


def _check_count(store: PackedStore, config: DatasetConfig) -> None:
    if len(store) < config.min_images:
        raise ConfigError(
            "dataset.min_images",
            f"only {len(store)} images after preparing, fewer than {config.min_images}; lower it to accept them",
        )
    if len(store) < _FEW_IMAGES:
        log.warning("%d images are few: enough to prove the pipeline, not to train a model", len(store))
