"""Generators and critics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from relgan.config import ModelConfig


def build_networks(model: ModelConfig, image_size: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """A freshly initialised generator and critic, in training mode on the CPU.

    Args:
        model: architecture and its options.
        image_size: side S of the images, pixels; 32 for cnn32.
        channels: of one image.

    Returns:
        generator: (N, latent_dim) to images (N, channels, S, S) in [−1, 1];
        critic: images (N, channels, S, S) to logits (N,); with ``model.pack`` = k it takes what
        :func:`relgan.networks.blocks.pack` returns, (N/k, k·channels, S, S), and gives N/k logits.

    Raises:
        ConfigError: an unknown model, or a size it cannot make.
    """
    from relgan.config import IMAGE_SIZES, ConfigError
    from relgan.networks import cnn32, dcgan

    sizes = {"dcgan": IMAGE_SIZES, "cnn32": (32,)}
    if model.name not in sizes:
        raise ConfigError("model.name", f"{model.name!r} is not one of {', '.join(sizes)}")
    if image_size not in sizes[model.name]:
        accepted = ", ".join(map(str, sizes[model.name]))
        raise ConfigError("dataset.image_size", f"model={model.name} makes {accepted}, not {image_size}")
    if model.name == "cnn32":
        return cnn32.Generator(model, channels), cnn32.Critic(model, channels)
    return dcgan.Generator(model, image_size, channels), dcgan.Critic(model, image_size, channels)
