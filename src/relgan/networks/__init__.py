"""Generators and critics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relgan.losses import flat_logits
from relgan.options import ConfigError, first_line
from relgan.registry import MODELS, ModelOptions


def build_networks(options: ModelOptions, image_size: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """A freshly initialised generator and critic, in training mode on the CPU.

    Args:
        options: those of the registered pair that ``options.name`` names.
        image_size: side S of the images, pixels.
        channels: of one image.

    Returns:
        generator: (N, latent_dim) to images (N, channels, S, S) in [−1, 1];
        critic: images (N, channels, S, S) to logits (N,), (N, 1) or (N, 1, H, W); with ``options.pack`` = k it takes
        what :func:`relgan.training.update.pack` returns, (N/k, k·channels, S, S), and gives the logits of N/k.

    Raises:
        ConfigError: an unknown name, a size it cannot make, or networks of other shapes than these.
    """
    networks = MODELS[options.name].build(options, image_size, channels)
    if not (isinstance(networks, tuple) and len(networks) == 2 and all(isinstance(n, nn.Module) for n in networks)):
        built = networks if isinstance(networks, tuple) else (networks,)
        names = ", ".join(type(part).__name__ for part in built)
        raise ConfigError("model.name", f"{options.name} must build a tuple of two torch modules, got ({names})")
    _check_shapes(*networks, options, (channels, image_size, image_size))
    return networks


@torch.no_grad()
def _check_shapes(generator: nn.Module, critic: nn.Module, options: ModelOptions, image: tuple[int, ...]) -> None:
    """One pass of two images, which changes neither buffers nor random numbers."""
    pack = getattr(options, "pack", 1)
    z = torch.zeros(2, options.latent_dim)
    seen = torch.zeros(2, pack * image[0], *image[1:])
    images = _passed(generator, z, f"{options.name}'s generator")
    if images.shape != (2, *image):
        raise ConfigError("model.name", f"{options.name}'s generator returns {tuple(images.shape)}, not {(2, *image)}")
    logits = _passed(critic, seen, f"{options.name}'s critic")
    try:
        flat_logits(logits, f"{options.name}: the critic's")
    except ValueError as error:
        raise ConfigError("model.name", str(error)) from error
    if len(logits) != len(seen):
        raise ConfigError("model.name", f"{options.name}'s critic returns {len(logits)} logits for {len(seen)} images")


def _passed(network: nn.Module, inputs: Tensor, what: str) -> Tensor:
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = network.eval()(inputs)
    except Exception as error:  # another's network: anything
        reason = first_line(error)
        raise ConfigError("model.name", f"{what} fails on an input of shape {tuple(inputs.shape)}: {reason}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(outputs, Tensor):
        raise ConfigError("model.name", f"{what} returns a {type(outputs).__name__}, not a tensor")
    return outputs
