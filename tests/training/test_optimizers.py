"""Optimizers as published."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import Adam, RMSprop

from relgan.config import OptimizerConfig
from relgan.training.optimizers import MovingAdam, build_optimizers
from relgan.training.state import load_optimizer_state, optimizer_state


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


def trained(optimizer: Adam, weight: nn.Parameter, steps: range) -> list[torch.Tensor]:
    """The weight after each step; β₂ moves before it."""
    seen = []
    for step in steps:
        beta1, beta2 = optimizer.param_groups[0]["betas"]
        moved = 0.9 + 0.01 * step
        if isinstance(optimizer, MovingAdam):
            beta2.fill_(moved)
        else:
            optimizer.param_groups[0]["betas"] = (beta1, moved)
        weight.grad = torch.randn(3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


@pytest.mark.parametrize("beta1", [0.0, 0.5])
def test_moving_adam_is_torchs_and_each_continues_the_other(beta1: float) -> None:
    weights = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3)]
    rate = torch.tensor(0.1, dtype=torch.float64)

    def moving(weight: nn.Parameter) -> MovingAdam:
        made = MovingAdam([weight], rate, (beta1, 0.9), 1e-3)
        made.found_inf = torch.zeros(())
        return made

    def plain(weight: nn.Parameter) -> Adam:
        return Adam([weight], rate.item(), (beta1, 0.9), 1e-3, foreach=False)

    of_torch, ours, mixed = plain(weights[0]), moving(weights[1]), plain(weights[2])
    want = trained(of_torch, weights[0], range(6))
    torch.testing.assert_close(trained(ours, weights[1], range(6)), want, rtol=1e-6, atol=1e-9)
    trained(mixed, weights[2], range(3))
    continued = moving(weights[2])
    load_optimizer_state(continued, optimizer_state(mixed))
    torch.testing.assert_close(trained(continued, weights[2], range(3, 6)), want[3:], rtol=1e-6, atol=1e-9)
    back = plain(weights[2])
    load_optimizer_state(back, optimizer_state(continued))
    trained(back, weights[2], range(6, 8))
    trained(of_torch, weights[0], range(6, 8))
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-6, atol=1e-9)


def test_moving_adam_leaves_the_weights_where_it_is_told_that_something_is_not_finite() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = MovingAdam([weight], torch.tensor(0.1), (0.5, 0.9), 1e-8)
    for gradient, infinite in ((1.0, 0.0), (float("nan"), 1.0)):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), gradient)
        optimizer.found_inf = torch.tensor(infinite)
        optimizer.step()
        assert torch.equal(weight.detach(), before) == bool(infinite)
