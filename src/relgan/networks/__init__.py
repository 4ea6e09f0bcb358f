"""Generators and critics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from relgan.losses import flat_logits
from relgan.options import ConfigError, first_line
from relgan.registry import MODELS, ModelOptions


def build_networks(
    options: ModelOptions, image_size: int, channels: int, classes: int = 0
) -> tuple[nn.Module, nn.Module]:
    """A freshly initialised generator and critic, in training mode on the CPU.

    Args:
        options: those of the registered pair that ``options.name`` names.
        image_size: side S of the images, pixels.
        channels: of one image.
        classes: of a conditional pair, whose card says that it can be one; 0: its builder is not told of any.

    Returns:
        generator: (N, latent_dim) to images (N, channels, S, S); 1 is white, −1 black, and what leaves [−1, 1] is
        clamped where it becomes uint8;
        critic: images (N, channels, S, S) to logits (N,), (N, 1) or (N, 1, H, W); with ``options.pack`` = k it takes
        what :func:`relgan.training.update.pack` returns, (N/k, k·channels, S, S), and gives the logits of N/k.
        With classes both take labels int64 (N,) as a second argument.

    Raises:
        ConfigError: an unknown name, a size it cannot make; or other people's networks of other shapes than these.
    """
    arguments = (options, image_size, channels, *([classes] if classes else []))
    shape = (channels, image_size, image_size)
    networks: tuple[nn.Module, nn.Module] = MODELS.build(
        options.name, *arguments, of=object, trial=partial(_try, options, shape, classes)
    )
    return networks


@torch.no_grad()
def _try(options: ModelOptions, image: tuple[int, ...], classes: int, name: str, networks: object) -> None:
    """One pass of two images, which changes neither buffers nor random numbers."""
    parts = networks if isinstance(networks, tuple) else (networks,)
    generator, critic = parts if len(parts) == 2 else (None, None)
    if not (isinstance(generator, nn.Module) and isinstance(critic, nn.Module)):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ConfigError("model.name", f"{name} must build a tuple of two torch modules, got ({kinds})")
    # The last class, so that networks made for fewer fail here.
    labels = [torch.full((2,), classes - 1)] if classes else []
    images = _passed(generator, [torch.zeros(2, options.latent_dim), *labels], f"{name}'s generator")
    if images.shape != (2, *image):
        raise ConfigError("model.name", f"{name}'s generator returns {tuple(images.shape)}, not {(2, *image)}")
    seen = torch.zeros(2, getattr(options, "pack", 1) * image[0], *image[1:])
    logits = _passed(critic, [seen, *labels], f"{name}'s critic")
    try:
        flat_logits(logits, f"{name}: the critic's")
    except ValueError as error:
        raise ConfigError("model.name", str(error)) from error
    if len(logits) != len(seen):
        raise ConfigError("model.name", f"{name}'s critic returns {len(logits)} logits for {len(seen)} images")


def _passed(network: nn.Module, inputs: Sequence[Tensor], what: str) -> Tensor:
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = network.eval()(*inputs)
    except Exception as error:  # another's network: anything
        given = " and labels ".join(str(tuple(part.shape)) for part in inputs)
        raise ConfigError("model.name", f"{what} fails on an input of shape {given}: {first_line(error)}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(outputs, Tensor):
        raise ConfigError("model.name", f"{what} returns a {type(outputs).__name__}, not a tensor")
    return outputs
