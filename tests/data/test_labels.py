"""Classes of the images: where they come from, what they are called, and which stores have them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from relgan.data import PackedStore, prepare
from relgan.data.pack import pack, store_path
from relgan.data.sources import ArraySource
from relgan.options import ConfigError, RelganError
from relgan.registry import DATASETS, register_dataset

from .conftest import encode, make_folder, make_zip, options, picture

pytestmark = pytest.mark.usefixtures("cache")

Make = Callable[..., Path]
SIZES = {"cats": 3, "dogs": 2, "birds": 1}
PETS = {f"{kind}/{seed}.png": encode(picture(seed)) for kind, size in SIZES.items() for seed in range(size)}
BLACK = np.zeros((6, 8, 8, 1), np.uint8)


def labelled(path: Path) -> PackedStore:
    return prepare(options("folder", path=str(path), labels=True), progress=False)


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_the_folder_of_an_image_is_its_class(tmp_path: Path, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="relgan")
    store = labelled(make(tmp_path / "pets", PETS))
    assert store.classes == ["birds", "cats", "dogs"]
    assert store.class_counts == [1, 3, 2]
    assert store.labels is not None
    pairs = [("birds", 0), *(("cats", seed) for seed in range(3)), *(("dogs", seed) for seed in range(2))]
    assert [store.classes[label] for label in store.labels] == [kind for kind, _ in pairs]
    np.testing.assert_array_equal(store.images, np.stack([np.asarray(picture(seed)) for _, seed in pairs]))
    assert "3 classes: birds 1, cats 3, dogs 2" in caplog.text


def test_the_labels_are_part_of_the_fingerprint_only_where_they_are_asked_for(tmp_path: Path) -> None:
    directory, archive = make_folder(tmp_path / "pets", PETS), make_zip(tmp_path / "pets.zip", PETS)
    assert labelled(directory).fingerprint == labelled(archive).fingerprint
    plain = prepare(options("folder", path=str(directory)), progress=False)
    assert (plain.labels, plain.class_counts, plain.classes) == (None, [], [])
    assert plain.fingerprint != labelled(directory).fingerprint
    assert "classes" not in plain.meta


def test_classes_are_named_below_the_folder_that_holds_them_all_and_sorted_by_their_numbers(tmp_path: Path) -> None:
    names = ("age 10", "age 2", "age 2/female", "old", "age 02")
    members = {f"archive/train/{name}/1.png": encode(picture(0)) for name in names}
    store = labelled(make_zip(tmp_path / "people.zip", members))
    assert store.classes == ["age 02", "age 2", "age 2/female", "age 10", "old"]


def test_a_class_keeps_its_number_when_its_images_are_damaged(tmp_path: Path) -> None:
    store = labelled(make_folder(tmp_path / "pets", {**PETS, "birds/0.png": b"damaged"}))
    assert (store.classes, store.class_counts) == (["birds", "cats", "dogs"], [0, 3, 2])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "2.png"], "needs a folder of images for each class, and all images lie in one"),
        (["cats/1.png", "cats/2.png"], "needs a folder of images for each class, and all images lie in one"),
        (["pets/cats/1.png", "pets/2.png"], "pets/2.png lies beside the folders, which are the classes"),
    ],
)
def test_a_folder_without_classes_is_one_line(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^dataset\.labels: {message}$"):
        labelled(make_folder(tmp_path / "pictures", {name: encode(picture(0)) for name in names}))


def test_the_stores_of_labelled_sets_do_not_depend_on_whether_labels_are_used() -> None:
    for name, entry in DATASETS.items():
        plain = store_path(options(name))
        same = store_path(options(name, labels=True)) == plain
        assert same == (entry.facts.labels is True), name


def test_data_without_labels_is_refused_before_anything_is_read() -> None:
    expected = (
        r"^dataset\.labels: celeba has no labels \(these have: digits, stacked_digits, folder, cifar10, mnist, "
        r"fashion_mnist, stacked_mnist\)$"
    )
    with pytest.raises(ConfigError, match=expected):
        prepare(options("celeba", labels=True, path="/nowhere"))


def test_unnamed_classes_are_called_by_numbers_of_one_length() -> None:
    digits = prepare(options("digits"))
    assert digits.classes == list("0123456789")
    assert sum(digits.class_counts) == 1797
    stacked = prepare(options("stacked_digits"))
    assert (stacked.classes[7], stacked.classes[407], len(stacked.classes)) == ("007", "407", 1000)
    assert stacked.labels is not None
    assert stacked.class_counts[407] == int((stacked.labels == 407).sum())


def test_labels_of_a_strangers_data_set() -> None:
    register_dataset(
        "named", None, lambda options: ArraySource(BLACK, np.array([2, 0, 2, 0, 0, 2]), 32, ("a", "b", "c"))
    )
    register_dataset("bare", None, lambda options: ArraySource(BLACK, None, 32))
    store = prepare(options("named", labels=True))
    assert (store.classes, store.class_counts) == (["a", "b", "c"], [3, 0, 3])
    with pytest.raises(ConfigError, match=r"^dataset\.labels: bare has no labels$"):
        prepare(options("bare", labels=True))


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, -1, 0, 0, 0], (), r"0 or more"),
        ([0, 1, 2, 0, 0, 0], ("a", "b"), r"0 … 1, the numbers of its classes"),
    ],
)
def test_labels_that_number_no_classes_are_one_line(
    tmp_path: Path, labels: list[int], classes: tuple[str, ...], message: str
) -> None:
    source = ArraySource(BLACK, np.array(labels), 8, classes)
    with pytest.raises(RelganError, match=rf"^ArraySource\.labels must be {message}$"):
        pack(source, tmp_path / "made", 8, None, {"name": "mine"}, progress=False)


def test_a_part_of_the_images_has_all_classes(tmp_path: Path) -> None:
    everything = options("folder", path=str(make_folder(tmp_path / "pets", PETS)), labels=True)
    part = prepare(replace(everything, num_images=2), progress=False)
    assert len(part.class_counts) == len(part.classes) == 3
    assert sum(part.class_counts) == 2
