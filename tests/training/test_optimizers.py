"""Optimizers as published, and the cadences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import Adam, RMSprop

from relgan.config import OptimizerConfig, TrainConfig
from relgan.training.optimizers import build_optimizers, is_due, quarters, total_iterations


def test_each_network_has_its_own_learning_rate() -> None:
    config = OptimizerConfig(lr_g=1e-3, lr_d=4e-3, betas=[0.1, 0.9], eps=1e-7)
    generator, critic = nn.Linear(2, 2), nn.Linear(3, 3)
    for_generator, for_critic = build_optimizers(config, generator, critic)
    assert isinstance(for_generator, Adam)
    assert [group["lr"] for group in for_generator.param_groups] == [1e-3]
    assert [group["lr"] for group in for_critic.param_groups] == [4e-3]
    assert for_critic.param_groups[0]["betas"] == (0.1, 0.9)
    assert for_critic.param_groups[0]["eps"] == 1e-7
    assert for_generator.param_groups[0]["params"] == list(generator.parameters())
    assert for_critic.param_groups[0]["params"] == list(critic.parameters())


def test_rmsprop_smooths_with_the_second_beta() -> None:
    config = OptimizerConfig(name="rmsprop", lr_g=0.1, betas=[0.0, 0.9], eps=1e-8)
    network = nn.Linear(1, 1, bias=False)
    optimizer, _ = build_optimizers(config, network, network)
    assert isinstance(optimizer, RMSprop)
    before = network.weight.item()
    network.weight.grad = torch.full((1, 1), 2.0)
    optimizer.step()
    # v = (1 − α)·g²; w −= lr·g / (√v + ε)
    assert before - network.weight.item() == pytest.approx(0.1 * 2 / (0.1 * 4) ** 0.5, rel=1e-5)


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
