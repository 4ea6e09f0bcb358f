"""Data sets by name: relgan's own, and those of other people."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relgan.data import pack, prepare
from relgan.data.pack import store_path
from relgan.data.sources import ArraySource, Source
from relgan.options import ConfigError, RelganError, option
from relgan.registry import DATASETS, DatasetOptions, load_plugins, register_dataset

from .conftest import options

OWN = {"stacked_digits", "digits", "folder", "cifar10", "celeba", "cat", "mnist", "fashion_mnist", "stacked_mnist"}


def test_every_data_set_says_what_it_is_and_how_to_get_it() -> None:
    assert {name for name, entry in DATASETS.items() if not entry.foreign} == OWN
    for name in OWN:
        entry = DATASETS[name]
        assert all((entry.about, entry.facts.terms, entry.facts.size, entry.facts.get)), name


def test_what_is_known_of_a_data_set_before_it_is_built() -> None:
    assert {name for name in OWN if DATASETS[name].facts.stacked} == {"stacked_digits", "stacked_mnist"}
    assert {name for name in OWN if DATASETS[name].facts.digits == 1} == {"digits", "mnist"}
    assert {name for name in OWN if DATASETS[name].facts.grey} == {"digits", "mnist", "fashion_mnist"}
    assert {name for name in OWN if not DATASETS[name].facts.splits} == {"digits", "stacked_digits", "folder", "cat"}


def test_the_names_are_known_without_torch() -> None:
    script = "import sys, relgan.data.sets; print([m for m in ('torch', 'torchvision', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclass
class RampOptions(DatasetOptions):
    """Options of a data set of one's own."""

    steepness: int = option(1, "grey values per pixel", ge=1)


def ramps(options: RampOptions) -> ArraySource:
    column = np.arange(options.image_size) * options.steepness
    image = np.broadcast_to(column[:, None, None], (options.image_size, options.image_size, 1))
    return ArraySource(np.stack([image + i for i in range(20)]).astype(np.uint8), None, options.image_size)


Register = Callable[..., None]


@pytest.fixture
def register(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Registers a data set for one test."""
    DATASETS.names()
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    return register_dataset


def test_a_strangers_data_set_is_prepared(register: Register) -> None:
    register("mine", RampOptions, ramps)
    store = prepare(options("mine", steepness=3))
    assert store.images.shape == (20, 32, 32, 1)
    assert store.images[5, :, 0, 0].tolist() == [5 + 3 * row for row in range(32)]
    assert store.labels is None


def test_its_own_options_make_another_store(register: Register) -> None:
    register("mine", RampOptions, ramps)
    default = store_path(options("mine"))
    assert store_path(options("mine", steepness=2)) != default
    assert store_path(options("mine", hflip=True, url=["http://somewhere"])) == default


def test_a_data_set_without_images_is_one_line(register: Register) -> None:
    register("mine", None, lambda options: ArraySource(np.zeros((0, 32, 32, 3), np.uint8), None, 32))
    with pytest.raises(ConfigError, match=r"^dataset\.path: dataset=mine has no usable images$"):
        prepare(options("mine"))


def test_a_builder_of_something_else_is_one_line(register: Register) -> None:
    register("mine", None, lambda options: [1, 2])
    with pytest.raises(ConfigError, match=r"^dataset\.name: mine builds a list, not a relgan.*Source$"):
        prepare(options("mine"))


class Given(Source):
    """The same image again and again."""

    def __init__(self, image: np.ndarray, **attributes: Any) -> None:
        self.image = image
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 40

    def read(self, index: int) -> np.ndarray:
        return self.image


@pytest.mark.parametrize("image", [np.zeros((32, 32, 3), np.float32), np.zeros((32, 1, 3), np.uint8)])
def test_an_image_of_another_kind_is_one_line(register: Register, image: np.ndarray) -> None:
    register("mine", None, lambda options: Given(image))
    with pytest.raises(RelganError, match=r"^Given\.read gave \w+ \(32, .*\), not uint8 \(32, 32, 3\)$"):
        prepare(options("mine"))


@pytest.fixture
def _two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_MIN_IMAGES_PER_WORKER", 10)
    monkeypatch.setattr(pack, "_cores", lambda: 2)


PLUGIN = """
import os
import numpy as np
from relgan.data.sources import Source
from relgan.registry import register_dataset

class Processes(Source):
    "Images that show which process read them."

    def __len__(self):
        return 40

    def read(self, index):
        return np.full((32, 32, 3), os.getpid() % 251, np.uint8)

@register_dataset("processes")
def processes(options):
    return Processes()
"""


@pytest.mark.usefixtures("_two_workers")
def test_a_plugin_given_as_a_file_is_read_by_other_processes(register: Register, tmp_path: Path) -> None:
    (tmp_path / "my_processes.py").write_text(PLUGIN)
    load_plugins(["my_processes.py"], [tmp_path])
    store = prepare(options("processes"))
    assert len(store) == 40
    assert not (store.images == os.getpid() % 251).any()


@pytest.mark.usefixtures("_two_workers")
def test_what_cannot_be_sent_to_other_processes_is_read_here(
    register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="relgan")
    image = np.zeros((32, 32, 3), np.uint8)
    register("mine", None, lambda options: Given(image, transform=lambda pixels: pixels))
    assert len(prepare(options("mine"))) == 40
    assert "reading with one process" in caplog.text


def test_a_stacked_set_needs_a_number_of_images() -> None:
    assert options("stacked_digits").num_images == 30_000
    assert options("digits").num_images is None
