"""Drawing images from a generator without touching training's randomness or buffers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from relgan.images import to_uint8


def latents(count: int, latent_dim: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """z ~ N(0, I), float32 (count, latent_dim); drawn on the CPU so that a seed means the same everywhere."""
    return torch.randn(count, latent_dim, generator=generator).to(device)


@torch.no_grad()
def sample_images(
    network: nn.Module,
    count: int,
    *,
    latent_dim: int,
    seed: int,
    batch_size: int = 100,
    mode: str = "eval",
) -> Iterator[Tensor]:
    """Yield uint8 (n, C, H, W) batches of ``count`` generated images in all.

    Args:
        network: maps (N, latent_dim) to images in [−1, 1]; its mode and buffers are restored at the end.
        seed: of the latents only; global and training generators are not used.
        mode: "eval" uses batch norm's running statistics, "train" those of each batch (the reference protocol).

    Raises:
        ValueError: the network returned a value that is not finite.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    was_training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train(mode == "train")
    try:
        for start in range(0, count, batch_size):
            z = latents(min(batch_size, count - start), latent_dim, generator, device)
            images = network(z)
            if not bool(torch.isfinite(images).all()):
                raise ValueError("the generator returned values that are not finite")
            yield to_uint8(images)
    finally:
        network.train(was_training)
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
