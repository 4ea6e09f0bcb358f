"""DCGAN at 16, 32, 64, 128 or 256 pixels (Radford et al. 2015, as Jolicoeur-Martineau 2018 uses it).

With size S, width h and m = S/8 the feature maps are 4×4×h·m at the narrow end and S/2×S/2×h at the wide one;
each layer halves or doubles both. All convolutions are without bias.

With classes the generator's z is followed by a vector of the label, of z's length and drawn from N(0, I) at the start;
the critic adds a projection (Miyato & Koyama 2018) under the spectral norm of the convolutions.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from relgan.builtin import ConvOptions
from relgan.networks.blocks import Layers, joined, last_logits, prior, projected

LEAK = 0.2
NARROW = 4  # pixels on a side where the images are smallest


def _widths(model: ConvOptions, image_size: int) -> list[int]:
    """Channels at 4×4, 8×8, …, S/2×S/2."""
    factor = image_size // 8
    widths = []
    while factor:
        widths.append(model.width * factor)
        factor //= 2
    return widths


class Generator(nn.Module):
    """(N, latent_dim) and labels int64 (N,), if there are classes, to images (N, channels, S, S) in [−1, 1].

    The first layer spreads z over 4×4 pixels; ``model.upsample=resize`` replaces those after it.
    """

    def __init__(self, model: ConvOptions, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        layers = Layers.of_generator(model, bias=False)
        widths = _widths(model, image_size)
        dims = model.latent_dim
        self.prior = prior(model.latent)
        self.embedding = nn.Embedding(classes, dims) if classes else None
        first = layers.from_pixel(2 * dims if classes else dims, widths[0], NARROW)
        blocks = [layers.hidden(first, widths[0])]
        for narrow, wide in pairwise(widths):
            blocks.append(layers.hidden(layers.up(narrow, wide), wide))
        self.body = nn.Sequential(*blocks, layers.up(widths[-1], channels), nn.Tanh())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.body(joined(self.prior(z), self.embedding, labels)[:, :, None, None])
        return images


class Critic(nn.Module):
    """Images (N, channels·pack, S, S) and labels int64 (N,), if there are classes, to logits (N,)."""

    def __init__(self, model: ConvOptions, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        layers = Layers.of_critic(model, bias=False, slope=LEAK)
        self.judges_each_image_alone = layers.batch_norm is None
        widths = _widths(model, image_size)[::-1]
        first = layers.conv(channels * model.pack, widths[0], kernel=4, stride=2, padding=1)
        blocks = [layers.hidden(first, widths[0], norm=False)]
        for wide, narrow in pairwise(widths):
            conv = layers.conv(wide, narrow, kernel=4, stride=2, padding=1)
            blocks.append(layers.hidden(conv, narrow))
        self.body = nn.Sequential(*blocks, layers.to_pixel(widths[-1], 1, NARROW))
        self.embedding = layers.embedding(classes, widths[-1]) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.body[:-1](images)
        logits = last_logits(self.body[-1], features)
        return projected(logits, features, self.embedding, labels)


def build(options: ConvOptions, image_size: int, channels: int, classes: int = 0) -> tuple[nn.Module, nn.Module]:
    return Generator(options, image_size, channels, classes), Critic(options, image_size, channels, classes)
