"""The optimizers of both networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Adam, Optimizer, RMSprop

from relgan.config import OptimizerConfig


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
