"""From options to an opened store: found in the cache, or made there once."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

from relgan.cache import cache_dir, keyed, load_or_make
from relgan.data.archives import identity, locate
from relgan.data.pack import pack
from relgan.data.sources import Source
from relgan.data.store import FORMAT, PackedStore
from relgan.options import ConfigError, RelganError
from relgan.registry import DATASETS, DatasetOptions

log = logging.getLogger("relgan")

_FOLDER = "datasets"
_FEW_IMAGES = 1000
_LEAVE_IMAGES_ALONE = ("path", "sampling", "hflip", "min_images", "url", "residence")


def store_path(options: DatasetOptions) -> Path:
    """The directory of this data set's store, whether it exists or not.

    Its name depends on every option that changes an image, a data set's own ones too, on the source files' names,
    sizes and times, and on the code of a data set from outside.
    """
    entry = DATASETS[options.name]
    values = {name: value for name, value in asdict(options).items() if name not in _LEAVE_IMAGES_ALONE}
    if not entry.facts.splits:
        del values["split"]
    source = identity(locate(options.path)) if options.path else None
    key = {"format": FORMAT, "options": values, "source": source, "code": entry.code}
    return keyed(_FOLDER, f"{options.name}-{options.image_size}", key)


def prepared() -> list[Path]:
    """The directories of everything in the cache."""
    return sorted(meta.parent for meta in (cache_dir() / _FOLDER).glob("[!.]*/meta.json"))


def prepare(options: DatasetOptions, *, progress: bool = True) -> PackedStore:
    """Open the data set, packing it first where that was not done before.

    Of several processes that ask at once, one packs and the others wait. What is made appears under its
    name only when complete.

    Raises:
        ConfigError: an option names nothing usable.
        RelganError: nothing could be prepared; or the cache cannot be written.
    """
    if options.split in ("valid", "test") and not DATASETS[options.name].facts.splits:
        raise ConfigError("dataset.split", f"{options.name} has no {options.split} split; use all")
    path = store_path(options)
    try:
        store = load_or_make(path, PackedStore.open, lambda path: _make(path, options, progress))
    except OSError as error:
        raise RelganError(
            f"cannot write prepared data to {path.parent} ({error}); "
            "the environment variable RELGAN_CACHE chooses another place"
        ) from error
    _check_count(store, options)
    return store


def _make(path: Path, options: DatasetOptions, progress: bool) -> PackedStore:
    if path.exists():
        shutil.rmtree(path)
    entry = DATASETS[options.name]
    source = entry.build(options)
    if not isinstance(source, Source):
        given = f"dataset={options.name} gives a {type(source).__name__}"
        raise ConfigError("dataset.name", f"{given}, not a relgan.data.sources.Source")
    meta = {"name": options.name, "split": options.split, "source": options.path}
    with entry.failing_in_one_line():
        return pack(source, path, options.image_size, options.num_images, meta, progress)


def _check_count(store: PackedStore, options: DatasetOptions) -> None:
    if len(store) < options.min_images:
        raise ConfigError(
            "dataset.min_images",
            f"only {len(store)} images after preparing, fewer than {options.min_images}; lower it to accept them",
        )
    if len(store) < _FEW_IMAGES:
        log.warning("%d images are few: enough to prove the pipeline, not to train a model", len(store))
