"""The "standard CNN" of the CIFAR-10 experiments, 32×32.

Miyato et al. 2018 (table 3), as Jolicoeur-Martineau 2018 uses it. Widths are
multiples of h (64 in the papers); convolutions have biases.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from relgan.builtin import ConvOptions
from relgan.networks.blocks import Layers

LEAK = 0.1


class Generator(nn.Module):
    """(N, latent_dim) to images (N, channels, 32, 32) in [−1, 1]."""

    def __init__(self, model: ConvOptions, channels: int) -> None:
        super().__init__()
        layers = Layers.of_generator(model, bias=True)
        widths = [model.width * factor for factor in (8, 4, 2, 1)]
        self.first = nn.Linear(model.latent_dim, widths[0] * 4 * 4)
        blocks = [layers.hidden(layers.up(narrow, wide), wide) for narrow, wide in pairwise(widths)]
        last = layers.conv(widths[-1], channels, kernel=3, stride=1, padding=1)
        self.body = nn.Sequential(*blocks, last, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.body(self.first(z).unflatten(1, (-1, 4, 4)))
        return images


class Critic(nn.Module):
    """Images (N, channels·pack, 32, 32) to logits (N,). Spectral norm covers the convolutions only."""

    def __init__(self, model: ConvOptions, channels: int) -> None:
        super().__init__()
        layers = Layers.of_critic(model, bias=True, slope=LEAK)
        widths = [model.width * factor for factor in (1, 1, 2, 2, 4, 4, 8)]
        blocks = []
        channels_in = channels * model.pack
        for index, width in enumerate(widths):
            kernel, stride = (4, 2) if index % 2 else (3, 1)
            conv = layers.conv(channels_in, width, kernel, stride, padding=1)
            blocks.append(layers.hidden(conv, width, norm=index < len(widths) - 1))
            channels_in = width
        self.body = nn.Sequential(*blocks)
        self.last = nn.Linear(widths[-1] * 4 * 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.body(images).flatten(1))
        return logits.reshape(len(images))


def build(options: ConvOptions, image_size: int, channels: int) -> tuple[nn.Module, nn.Module]:
    return Generator(options, channels), Critic(options, channels)
