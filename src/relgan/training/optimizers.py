"""Optimizers, the length of a run, and at which updates something happens."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Adam, Optimizer, RMSprop

from relgan.config import OptimizerConfig, TrainConfig


def build_optimizers(
    config: OptimizerConfig,
    generator: nn.Module,
    critic: nn.Module,
    *,
    captured: bool = False,
) -> tuple[Optimizer, Optimizer]:
    """The generator's and the critic's optimizer.

    Args:
        captured: for a CUDA graph; the learning rate is then a tensor that the graph reads at every replay.
    """

    def build(network: nn.Module, rate: float) -> Optimizer:
        parameters = list(network.parameters())
        device = parameters[0].device
        lr = torch.tensor(rate, device=device) if captured else rate
        beta1, beta2 = config.betas
        if config.name == "adam":
            # Apple's fused kernel does not know the mask that keeps weights from a gradient that is not finite.
            fused = device.type != "mps"
            return Adam(parameters, lr, (beta1, beta2), config.eps, fused=fused, capturable=captured)
        return RMSprop(parameters, lr, beta2, config.eps, foreach=True, capturable=captured)

    return build(generator, config.lr_g), build(critic, config.lr_d)


def total_iterations(train: TrainConfig, n_critic: int, num_images: int) -> int:
    """Generator updates of the whole run; an epoch is one pass of the critic's updates over the images."""
    if train.iterations is not None:
        return train.iterations
    assert train.epochs is not None
    return max(1, math.ceil(train.epochs * num_images / (train.batch_size * n_critic)))


def is_due(step: int, every: int, total: int) -> bool:
    """Whether a cadence of ``every`` updates (0: never) falls on ``step``; the end is always due."""
    return step == total or (every > 0 and step > 0 and step % every == 0)


def quarters(total: int) -> set[int]:
    """Steps 0, ¼, ½, ¾ and the end."""
    return {round(total * part / 4) for part in range(5)}
