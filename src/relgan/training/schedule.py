"""Optimizers, their decay, and at which steps something happens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop
from torch.optim.lr_scheduler import ExponentialLR

from relgan.config import OptimizerConfig, TrainConfig


def build_optimizers(
    config: OptimizerConfig, generator: nn.Module, critic: nn.Module, *, fused: bool = True, captured: bool = False
) -> tuple[Optimizer, Optimizer]:
    """The generator's and the critic's optimizer.

    Args:
        fused: Adam's one-kernel update.
        captured: for a CUDA graph; the learning rate is then a tensor that the graph reads at every replay.
    """

    def build(network: nn.Module, rate: float) -> Optimizer:
        parameters = list(network.parameters())
        lr = torch.tensor(rate, device=parameters[0].device) if captured else rate
        beta1, beta2 = config.betas
        if config.name == "adam":
            return Adam(parameters, lr, (beta1, beta2), config.eps, fused=fused, capturable=captured)
        return RMSprop(parameters, lr, beta2, config.eps, foreach=True, capturable=captured)

    return build(generator, config.lr_g), build(critic, config.lr_d)


# How an optimizer computes, not what; and the learning rate, a number or a tensor.
_OWN = ("lr", "initial_lr", "fused", "foreach", "capturable")


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Its state_dict, the learning rate as a plain number whatever the engine."""
    state = optimizer.state_dict()
    numbers = [{key: float(group[key]) for key in _OWN[:2] if key in group} for group in state["param_groups"]]
    return {**state, "param_groups": [group | n for group, n in zip(state["param_groups"], numbers, strict=True)]}


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Continue from :func:`optimizer_state` of any engine in the manner of this one."""
    own = [{key: group[key] for key in _OWN if key in group} for group in optimizer.param_groups]
    flags = [{key: value for key, value in group.items() if key not in _OWN[:2]} for group in own]
    # With them in place, load_state_dict also puts the step counts on the device where this engine wants them.
    groups = [saved | ours for saved, ours in zip(state["param_groups"], flags, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, kept, saved in zip(optimizer.param_groups, own, state["param_groups"], strict=True):
        group.update(kept)
        for key in _OWN[:2]:
            if key in saved:
                set_rate(group, saved[key], key)


def set_rate(group: dict[str, Any], rate: float, key: str = "lr") -> None:
    """Set a group's learning rate, in its tensor where it has one, which a CUDA graph reads."""
    if isinstance(group.get(key), Tensor):
        group[key].fill_(rate)
    else:
        group[key] = rate


def build_schedule(config: OptimizerConfig, optimizer: Optimizer) -> ExponentialLR:
    """Multiplies the learning rate by 1 − decay; stepped once per epoch."""
    return ExponentialLR(optimizer, gamma=1 - config.decay)


def total_iterations(train: TrainConfig, n_critic: int, num_images: int) -> int:
    """Generator updates of the whole run; an epoch is one pass of the critic's updates over the images."""
    if train.iterations is not None:
        return train.iterations
    assert train.epochs is not None
    return max(1, math.ceil(train.epochs * num_images / (train.batch_size * n_critic)))


def epoch_of(step: int, train: TrainConfig, n_critic: int, num_images: int) -> int:
    """Whole passes of the critic over the images after ``step`` generator updates."""
    return step * train.batch_size * n_critic // num_images


def is_due(step: int, every: int, total: int) -> bool:
    """Whether a cadence of ``every`` updates (0: never) falls on ``step``; the end is always due."""
    return step == total or (every > 0 and step > 0 and step % every == 0)


def quarters(total: int) -> set[int]:
    """Steps 0, ¼, ½, ¾ and the end."""
    return {round(total * part / 4) for part in range(5)}
