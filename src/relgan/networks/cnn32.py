"""The "standard CNN" of the CIFAR-10 experiments, 32×32.

Miyato et al. 2018 (table 3), as Jolicoeur-Martineau 2018 uses it. Widths are
multiples of h (64 in the papers); convolutions have biases.

With classes the generator's z is followed by a vector of the label, of z's length and drawn from N(0, I) at the start;
the critic adds a projection (Miyato & Koyama 2018).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from relgan.builtin import ConvOptions
from relgan.networks.blocks import STD, Layers, class_embedding, joined, last_logits, prior, projected

LEAK = 0.1


class Generator(nn.Module):
    """(N, latent_dim) and labels int64 (N,), if there are classes, to images (N, channels, 32, 32) in [−1, 1]."""

    def __init__(self, model: ConvOptions, channels: int, classes: int) -> None:
        super().__init__()
        layers = Layers.of_generator(model, bias=True)
        widths = [model.width * factor for factor in (8, 4, 2, 1)]
        dims = model.latent_dim
        self.prior = prior(model.latent)
        self.embedding = nn.Embedding(classes, dims) if classes else None
        self.first = nn.Linear(2 * dims if classes else dims, widths[0] * 4 * 4)
        blocks = [layers.hidden(layers.up(narrow, wide), wide) for narrow, wide in pairwise(widths)]
        last = layers.conv(widths[-1], channels, kernel=3, stride=1, padding=1)
        self.body = nn.Sequential(*blocks, last, nn.Tanh())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.body(self.first(joined(self.prior(z), self.embedding, labels)).unflatten(1, (-1, 4, 4)))
        return images


class Critic(nn.Module):
    """Images (N, channels·pack, 32, 32) and labels int64 (N,), if there are classes, to logits (N,).

    Spectral norm covers the convolutions only: neither the last layer nor the projection.
    """

    def __init__(self, model: ConvOptions, channels: int, classes: int) -> None:
        super().__init__()
        layers = Layers.of_critic(model, bias=True, slope=LEAK)
        self.judges_each_image_alone = layers.batch_norm is None
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
        self.embedding = class_embedding(classes, widths[-1], STD) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.body(images)
        logits = last_logits(self.last, features.flatten(1))
        return projected(logits, features, self.embedding, labels)


def build(options: ConvOptions, image_size: int, channels: int, classes: int = 0) -> tuple[nn.Module, nn.Module]:
    return Generator(options, channels, classes), Critic(options, channels, classes)
