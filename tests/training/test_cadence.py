"""How long a run is, and when something is due."""

from __future__ import annotations

import pytest

import tiny
from relgan.training.cadence import is_due, quarters, total_iterations


@pytest.mark.parametrize(
    ("length", "n_critic", "num_images", "expected"),
    [
        ("train.epochs=2.5", 1, 100, 25),
        ("train.epochs=2.5", 5, 100, 5),
        ("train.epochs=2.5", 1, 101, 26),
        ("train.epochs=1e-6", 1, 100, 1),
        ("train.iterations=7", 5, 100, 7),
    ],
)
def test_epochs_are_passes_of_the_critic(length: str, n_critic: int, num_images: int, expected: int) -> None:
    words = ["train.batch_size=10", "train.iterations=null", length, f"optimizer.n_critic={n_critic}"]
    assert total_iterations(tiny.config(*words), num_images) == expected


def test_cadences() -> None:
    assert [step for step in range(11) if is_due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(11) if is_due(step, 0, 10)] == [10]
    assert quarters(1000) == {0, 250, 500, 750, 1000}
    assert quarters(0) == {0}
    assert quarters(1) == {0, 1}
    assert {0, 3} <= quarters(3)
