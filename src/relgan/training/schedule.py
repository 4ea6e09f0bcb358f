"""Optimizers, their decay, and at which steps something happens."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import Adam, Optimizer, RMSprop
from torch.optim.lr_scheduler import ExponentialLR

from relgan.config import OptimizerConfig, TrainConfig


def build_optimizers(
    config: OptimizerConfig, generator: nn.Module, critic: nn.Module, *, fused: bool = True
) -> tuple[Optimizer, Optimizer]:
    """The generator's and the critic's optimizer; ``fused`` is Adam's one-kernel update."""
    return _build(config, config.lr_g, generator, fused), _build(config, config.lr_d, critic, fused)


def _build(config: OptimizerConfig, lr: float, network: nn.Module, fused: bool) -> Optimizer:
    beta1, beta2 = config.betas
    if config.name == "adam":
        return Adam(network.parameters(), lr=lr, betas=(beta1, beta2), eps=config.eps, fused=fused)
    return RMSprop(network.parameters(), lr=lr, alpha=beta2, eps=config.eps, foreach=True)


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
