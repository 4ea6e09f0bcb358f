"""relgan-data: list, prepare, show and verify data sets."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass

from relgan.cli.command import CommandOptions, Line, command
from relgan.config import Config, option_names
from relgan.files import atomic_write, writing_to
from relgan.options import ConfigError, RelganError, option, user_path
from relgan.progress import progress_bar
from relgan.registry import DATASETS, DatasetOptions
from relgan.tracking.console import ConsoleHandler, console

USAGE = """relgan-data list
relgan-data prepare dataset=celeba dataset.path=FILE.zip
relgan-data show dataset=cat [augment=ada] [out=cat.png]
relgan-data verify [dataset=NAME]

  list      every data set: what it is, terms, size, how to get it, what is prepared and where
  prepare   pack a data set into the cache
  show      print the facts and write a contact sheet; with augment=NAME, of images as the critic sees them
  verify    read prepared data again and compare with its fingerprint; without dataset=, all of it
"""


@dataclass
class DataOptions(CommandOptions):
    action: str = option("list", "what to do; action= may be left out", choices=("list", "prepare", "show", "verify"))
    out: str | None = option(None, "file of the contact sheet; null: DATASET_SIZE[_AUGMENT].png")


def main() -> None:
    command(DataOptions, USAGE, data, positional="action", composes=("dataset", "augment"))


def data(options: DataOptions, line: Line) -> None:
    """Do the action."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler("stderr")])
    match options.action:
        case "list":
            _list()
        case "prepare":
            _prepare(_config(line).dataset)
        case "show":
            _show(_config(line), line, options.out)
        case "verify":
            _verify(line)


def _config(line: Line) -> Config:
    from relgan.cli.compose import compose

    return compose(line)


def _list() -> None:
    from rich.table import Column, Table

    from relgan.cache import cache_dir
    from relgan.data import PackedStore
    from relgan.data.pack import prepared

    stores, damaged = [], []
    for path in prepared():
        try:
            stores.append(PackedStore.open(path))
        except RelganError as error:
            damaged.append(str(error))
    cached = {store.meta["name"] for store in stores}
    wrapped = [Column(title, overflow="fold") for title in ("what", "terms", "source", "how to get it")]
    table = Table(Column("dataset", no_wrap=True), *wrapped, Column("cached", no_wrap=True))
    for name, entry in DATASETS.items():
        cells = (name, entry.about, entry.facts.terms, entry.facts.size, entry.facts.get)
        table.add_row(*cells, "yes" if name in cached else "no")
    console().print(table)
    print(f"prepared in {cache_dir()} (the environment variable RELGAN_CACHE chooses another place):")
    for store in stores:
        print(f"  {store.path.name}: {len(store):,} images, {store.size_on_disk / 1e6:,.1f} MB")
    for line in damaged:
        print(f"  {line}")


def _prepare(dataset: DatasetOptions) -> None:
    from relgan.data import prepare
    from relgan.data.pack import store_path

    store = prepare(dataset)
    if store.path != store_path(dataset):
        raise RelganError("the prepared data cannot be kept; the environment variable RELGAN_CACHE names another place")
    print(f"{store.path}: {len(store):,} images, {store.size_on_disk / 1e6:,.1f} MB")


def _show(config: Config, line: Line, chosen: str | None) -> None:
    from relgan.augment import build_augmentation
    from relgan.data import prepare
    from relgan.data.sheet import augmented_sheet, contact_sheet

    if chosen and not chosen.lower().endswith(".png"):
        raise ConfigError("out", f"{chosen} does not end in .png")
    store = prepare(config.dataset)
    name = config.augment.name
    # A data set may bring an augmentation along; its sheet shows the images that it holds.
    if name == "none" or not any(each.startswith("augment") for each in option_names(line.words)):
        sheet, suffix = contact_sheet(store), ""
    else:
        sheet, suffix = augmented_sheet(store, name, build_augmentation(config.augment, store.channels)), f"_{name}"
    out = user_path(chosen or f"{store.meta['name']}_{store.image_size}{suffix}.png")
    with writing_to(out, "out"), atomic_write(out) as file:
        sheet.save(file, "PNG")
    facts = {**store.meta, "path": str(store.path), "bytes": store.size_on_disk}
    print(json.dumps(facts, indent=2, ensure_ascii=False))
    print(f"contact sheet: {out}")


def _verify(line: Line) -> None:
    from relgan.data import PackedStore
    from relgan.data.pack import prepared, store_path

    chosen = set(option_names(line.words)) - {"plugins"}
    paths = [store_path(_config(line).dataset)] if chosen else prepared()
    damaged = 0
    with progress_bar(len(paths), "verifying") as bar:
        for path in paths:
            if not path.exists():
                raise RelganError(f"{path.name} is not prepared: relgan-data prepare {shlex.join(line.words)}")
            try:
                store = PackedStore.open(path)
                store.verify()
                print(f"{path}: {len(store):,} images, unchanged")
            except RelganError as error:
                damaged += 1
                print(error)
            bar.advance()
    if damaged:
        raise RelganError(f"{damaged} of {len(paths)} prepared data sets are damaged")


if __name__ == "__main__":
    main()
