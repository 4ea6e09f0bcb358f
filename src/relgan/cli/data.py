"""relgan-data: list, prepare, show and verify data sets."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from relgan.cli import app
from relgan.config import DatasetConfig, RelganError

HELP = """relgan-data ACTION [dataset=NAME] [dataset.OPTION=VALUE …]

  list      every data set: what it is, terms, size, how to get it, what is prepared and where
  prepare   pack a data set into the cache:   relgan-data prepare dataset=celeba dataset.path=FILE.zip
  show      print the facts and write a contact sheet:   relgan-data show dataset=cat out=cat.png
  verify    read prepared data again and compare with its fingerprint; without dataset=, all of it
"""


def main() -> None:
    with app.guard():
        _run(sys.argv[1:])


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    action, *overrides = arguments
    actions = {"list": _list, "prepare": _prepare, "show": _show, "verify": _verify}
    if action not in actions:
        raise RelganError(f"{action}: not one of {', '.join(actions)}")
    actions[action](overrides)


def _dataset(overrides: list[str]) -> DatasetConfig:
    return app.compose(overrides).dataset


def _list(overrides: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from relgan.data import PackedStore, cache_dir
    from relgan.data.catalogue import CATALOGUE
    from relgan.data.prepare import prepared

    stores = [PackedStore.open(path) for path in prepared()]
    cached = {store.meta["name"] for store in stores}
    table = Table("dataset", "what", "terms", "source", "how to get it", "cached")
    for name, entry in CATALOGUE.items():
        cells = (name, entry.about, entry.terms, entry.size, entry.get)
        table.add_row(*cells, "yes" if name in cached else "no")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"prepared in {cache_dir()} (the environment variable RELGAN_CACHE chooses another place):")
    for store in stores:
        print(f"  {store.path.name}: {len(store):,} images, {store.size_on_disk / 1e6:,.1f} MB")


def _prepare(overrides: list[str]) -> None:
    from relgan.data import prepare

    store = prepare(_dataset(overrides))
    print(f"{store.path}: {len(store):,} images, {store.size_on_disk / 1e6:,.1f} MB")


def _show(overrides: list[str]) -> None:
    from relgan.data import prepare
    from relgan.data.sheet import contact_sheet

    chosen = [override.removeprefix("out=") for override in overrides if override.startswith("out=")]
    store = prepare(_dataset([override for override in overrides if not override.startswith("out=")]))
    out = Path(chosen[-1] if chosen else f"{store.meta['name']}_{store.image_size}.png")
    contact_sheet(store).save(out)
    facts = {**store.meta, "path": str(store.path), "bytes": store.size_on_disk}
    print(json.dumps(facts, indent=2, ensure_ascii=False))
    print(f"contact sheet: {out}")


def _verify(overrides: list[str]) -> None:
    from relgan.data import PackedStore
    from relgan.data.prepare import prepared, store_path

    paths = [store_path(_dataset(overrides))] if overrides else prepared()
    damaged = 0
    for path in paths:
        if not path.exists():
            raise RelganError(f"{path.name} is not prepared: relgan-data prepare {' '.join(overrides)}")
        try:
            store = PackedStore.open(path)
            store.verify()
            print(f"{path}: {len(store):,} images, unchanged")
        except RelganError as error:
            damaged += 1
            print(error)
    if damaged:
        raise RelganError(f"{damaged} of {len(paths)} prepared data sets are damaged")


if __name__ == "__main__":
    main()
