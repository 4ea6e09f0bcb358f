"""How long a run is, and when something is due."""

from __future__ import annotations

from relgan.config import TrainConfig
from relgan.training.cadence import is_due, quarters, total_iterations


def test_epochs_are_passes_of_the_critic() -> None:
    train = TrainConfig(iterations=None, epochs=2.5, batch_size=10)
    assert total_iterations(train, 1, 100) == 25
    assert total_iterations(train, 5, 100) == 5
    assert total_iterations(train, 1, 101) == 26
    assert total_iterations(TrainConfig(iterations=None, epochs=1e-6, batch_size=10), 1, 100) == 1
    assert total_iterations(TrainConfig(iterations=7), 5, 100) == 7


def test_cadences() -> None:
    assert [step for step in range(11) if is_due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(11) if is_due(step, 0, 10)] == [10]
    assert quarters(1000) == {0, 250, 500, 750, 1000}
    assert quarters(0) == {0}
    assert quarters(1) == {0, 1}
    assert {0, 3} <= quarters(3)
