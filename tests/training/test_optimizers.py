"""Optimizers as published."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import Adam, RMSprop

from relgan.config import OptimizerConfig
from relgan.training.optimizers import build_optimizers


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
