"""Drawing images from a generator without touching training's randomness or buffers."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator

import torch
from torch import Tensor, nn

from relgan.images import to_uint8
from relgan.networks.blocks import local_batch_norm
from relgan.options import RelganError

# What can go wrong with samples and their scores and is no reason to stop training.
UNSCORABLE = (ValueError, RelganError, OSError, torch.OutOfMemoryError)

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


def spherical(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Walk from ``a`` to ``b`` along a great circle (White 2016, arXiv 1609.04468), both ends included.

    Straight lines between Gaussian latents pass through lengths that training never drew.

    Args:
        a, b: (N, D).

    Returns:
        (steps, N, D).
    """
    cosine = nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)
    angle = cosine.acos().clamp(min=1e-4)[:, None]  # nearly parallel: the formula becomes a straight line
    t = torch.linspace(0, 1, steps).to(a)[:, None, None]
    return ((1 - t) * angle).sin() / angle.sin() * a + (t * angle).sin() / angle.sin() * b


@torch.no_grad()
def generate(network: nn.Module, batches: Iterable[Tensor], *, mode: str = "eval") -> Generator[Tensor, None, None]:
    """Yield uint8 (n, C, H, W) for each batch of latents (n, D).

    Args:
        network: maps latents to images in [−1, 1]; its mode and buffers are restored at the end.
        mode: "eval" uses batch norm's running statistics, "train" those of each batch (the reference protocol).

    Raises:
        ValueError: the network returned values that are not finite, or far outside [−1, 1].
    """
    was_training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train(mode == "train")
    try:
        with local_batch_norm(network):
            for z in batches:
                yield to_uint8(_checked(network(z)))
    finally:
        network.train(was_training)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])


def sample_images(
    network: nn.Module,
    count: int,
    *,
    latent_dim: int,
    seed: int,
    batch_size: int = 100,
    mode: str = "eval",
    truncation: float = 1.0,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[Tensor, None, None]:
    """Yield uint8 (n, C, H, W) batches of ``count`` generated images in all.

    Of several ranks each yields every ``world_size``-th batch: together the same images as one alone.

    Args:
        network, mode: as for :func:`generate`.
        seed: of the latents only; global and training generators are not used.
        truncation: factor of the latents; below 1 images are safer and more alike.

    Raises:
        ValueError: the network returned values that are not finite, or far outside [−1, 1].
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Iterator[Tensor]:
        for number, start in enumerate(range(0, count, batch_size)):
            z = latents(min(batch_size, count - start), latent_dim, generator, device)
            if number % world_size == rank:
                yield z * truncation

    return generate(network, draw(), mode=mode)
