"""A generator that is asked for classes: by number, by name, one for all or one each, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from relgan.generator import TrainedGenerator
from relgan.options import ConfigError

NAMES = ("cat", "dog", "2", "bird")
COUNTS = (10, 0, 30, 60)


class Echo(nn.Module):
    """Images of two rows of pixels: above ten times the label, below the first latent in steps of 1/20 from 128."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        rows = torch.stack([10 * labels.float(), 128 + (20 * z[:, 0]).round()], dim=1)
        return rows[:, None, :, None].expand(-1, 1, 2, 2) / 127.5 - 1


@pytest.fixture
def generator() -> TrainedGenerator:
    config = tiny.config("dataset.labels=true")
    return TrainedGenerator(Echo(), config, 1, 0, "raw", NAMES, COUNTS)


def labels_in(images: Tensor) -> list[int]:
    return (images[:, 0, 0, 0] // 10).tolist()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (3, [3, 3, 3]),
        ("dog", [1, 1, 1]),
        ("1", [1, 1, 1]),
        ([0, "bird", "3"], [0, 3, 3]),
        (np.array([2, 1, 0]), [2, 1, 0]),
        (torch.tensor([2, 1, 0]), [2, 1, 0]),
    ],
)
def test_classes_are_asked_for_by_number_or_name(generator: TrainedGenerator, wanted: Any, expected: list[int]) -> None:
    assert labels_in(generator.sample(3, labels=wanted)) == expected


def test_a_name_goes_before_a_number() -> None:
    config = tiny.config("dataset.labels=true")
    years = TrainedGenerator(Echo(), config, 1, 0, "raw", ("1", "2", "3"), (5, 5, 5))
    assert [years.class_number(each) for each in ("1", "2", "3", "0", 1)] == [0, 1, 2, 0, 1]


def test_classes_not_asked_for_are_as_frequent_as_in_training(generator: TrainedGenerator) -> None:
    images = generator.sample(4000, seed=5)
    shares = np.bincount(labels_in(images), minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.1, 0, 0.3, 0.6], abs=0.03)
    assert torch.equal(images, generator.sample(4000, seed=5))
    assert not torch.equal(images, generator.sample(4000, seed=6))


def test_a_class_does_not_change_the_noise(generator: TrainedGenerator) -> None:
    drawn, cats = generator.sample(250, seed=1), generator.sample(250, seed=1, labels="cat")
    assert torch.equal(drawn[:, :, 1], cats[:, :, 1])
    assert not torch.equal(drawn[:, :, 0], cats[:, :, 0])


def test_the_picture_has_a_row_for_each_class_with_the_same_noise_in_each(generator: TrainedGenerator) -> None:
    picture = generator.picture(36, seed=2)
    # Cells of two pixels and a gap of two.
    cells = picture[2:, 2:, 0].unfold(0, 2, 4).unfold(1, 2, 4)
    assert cells.shape[:2] == (4, 9)
    for label, row in enumerate(cells):
        own = generator.sample(9, seed=2, labels=label)
        assert torch.equal(row, own[:, 0])
    assert generator.images(36, seed=2).size == (picture.shape[1], picture.shape[0])
    assert generator.picture(9, labels="cat").shape[:2] == (3 * 4 + 2, 3 * 4 + 2)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (4, "4 is not one of cat, dog, 2, bird"),
        (-1, "-1 is not one of"),
        ("4", "'4' is not one of"),
        ("brid", r"'brid' is not one of .*; did you mean bird\?"),
        ([0, 1], "give a class for each of the 3 images, not 2"),
        ([], "give a class for each of the 3 images, not 0"),
    ],
)
def test_an_impossible_class_is_one_line(
    generator: TrainedGenerator, wanted: int | str | Sequence[int], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^labels: {message}") as caught:
        generator.sample(3, labels=wanted)
    assert "\n" not in str(caught.value)


def test_a_thousand_classes_are_not_listed() -> None:
    names = [f"{number:03}" for number in range(1000)]
    stacked = TrainedGenerator(Echo(), tiny.config("dataset.labels=true"), 1, 0, "raw", names, [1] * 1000)
    with pytest.raises(ConfigError, match=r"^labels: 1000 is not one of 000 … 999;"):
        stacked.sample(1, labels=1000)


@pytest.mark.parametrize("method", ["sample", "batches", "picture"])
def test_signs_of_latents_cannot_be_truncated(method: str) -> None:
    config = tiny.config("dataset.labels=true", "model.latent=bernoulli")
    signs = TrainedGenerator(Echo(), config, 1, 0, "raw", NAMES, COUNTS)
    draw = getattr(signs, method)
    draw(4, truncation=1)
    with pytest.raises(ConfigError, match=r"^truncation: has no effect with model\.latent=bernoulli"):
        draw(4, truncation=0.7)
