"""Drawing images from a generator without touching training's randomness or buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from relgan.images import to_uint8

_SLACK = 1e-2  # rounding of bfloat16; anything more is a missing tanh or clamp


def latents(count: int, latent_dim: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """z ~ N(0, I), float32 (count, latent_dim); drawn on the CPU so that a seed means the same everywhere."""
    return torch.randn(count, latent_dim, generator=generator).to(device)


def _checked(images: Tensor) -> Tensor:
    low, high = (float(bound) for bound in images.aminmax())
    if not math.isfinite(low + high):
        raise ValueError("the generator returned values that are not finite")
    if max(-low, high) > 1 + _SLACK:
        raise ValueError(f"the generator returned values from {low:.4g} to {high:.4g}, outside [−1, 1]")
    return images


@torch.no_grad()
def sample_images(
    network: nn.Module,
    count: int,
    *,
    latent_dim: int,
    seed: int,
    batch_size: int = 100,
    mode: str = "eval",
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Tensor]:
    """Yield uint8 (n, C, H, W) batches of ``count`` generated images in all.

    Of several ranks each yields every ``world_size``-th batch: together the same images as one alone.

    Args:
        network: maps (N, latent_dim) to images in [−1, 1]; its mode and buffers are restored at the end.
        seed: of the latents only; global and training generators are not used.
        mode: "eval" uses batch norm's running statistics, "train" those of each batch (the reference protocol).

    Raises:
        ValueError: the network returned values that are not finite, or far outside [−1, 1].
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    was_training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train(mode == "train")
    try:
        for number, start in enumerate(range(0, count, batch_size)):
            z = latents(min(batch_size, count - start), latent_dim, generator, device)
            if number % world_size == rank:
                yield to_uint8(_checked(network(z)))
    finally:
        network.train(was_training)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
