"""Drawing images from a generator without touching training's randomness or buffers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from relgan.images import to_uint8
from relgan.networks.blocks import local_batch_norm
from relgan.options import RelganError

# What can go wrong with samples and their scores and is no reason to stop training.
UNSCORABLE = (ValueError, RelganError, OSError, torch.OutOfMemoryError)


def latents(count: int, latent_dim: int, rng: torch.Generator, device: torch.device) -> Tensor:
    """z ~ N(0, I), float32 (count, latent_dim); drawn on the CPU so that a seed means the same everywhere."""
    return torch.randn(count, latent_dim, generator=rng, device="cpu").to(device)


def draw_labels(counts: Sequence[int], count: int, seed: int) -> Tensor:
    """``count`` independent labels, int64 on the CPU, each class as likely as its share of ``counts``.

    Args:
        counts: images of each class in the training set.
        seed: another kind of generator than the latents' makes of it numbers that have nothing to do with theirs.
    """
    frequencies = np.array(counts) / sum(counts)
    return torch.from_numpy(np.random.default_rng(seed).choice(len(counts), count, p=frequencies))


def _checked(images: Tensor) -> Tensor:
    if not bool(images.isfinite().all()):
        raise ValueError("the generator returned values that are not finite")
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
def generate(
    network: nn.Module, batches: Iterable[Tensor | tuple[Tensor, Tensor]], *, mode: str = "eval"
) -> Generator[Tensor, None, None]:
    """Yield uint8 (n, C, H, W) for each batch of latents (n, D), or of those and labels int64 (n,).

    Args:
        network: maps latents, and the labels if there are any, to images; its mode and buffers are restored at the end.
        mode: "eval" uses batch norm's running statistics, "train" those of each batch (the reference protocol).

    Raises:
        ValueError: the network returned values that are not finite.
    """
    was_training = network.training
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train(mode == "train")
    try:
        with local_batch_norm(network):
            for batch in batches:
                inputs = batch if isinstance(batch, tuple) else (batch,)
                yield to_uint8(_checked(network(*inputs)))
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
    labels: Tensor | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[Tensor, None, None]:
    """Yield uint8 (n, C, H, W) batches of ``count`` generated images in all.

    Of several ranks each yields every ``world_size``-th batch: together the same images as one alone.

    Args:
        network, mode: as for :func:`generate`.
        seed: of the latents only; global and training generators are not used.
        truncation: factor of the latents; below 1, images are better and less varied.
        labels: of all ``count`` images for a conditional network, int64 (count,).

    Raises:
        ValueError: the network returned values that are not finite.
    """
    device = next(network.parameters()).device
    rng = torch.Generator().manual_seed(seed)

    def draw() -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for number, start in enumerate(range(0, count, batch_size)):
            z = latents(min(batch_size, count - start), latent_dim, rng, device) * truncation
            if number % world_size == rank:
                yield z if labels is None else (z, labels[start : start + len(z)].to(device))

    return generate(network, draw(), mode=mode)


def sample_rows(
    network: nn.Module,
    classes: Sequence[int],
    columns: int,
    *,
    latent_dim: int,
    seed: int,
    batch_size: int = 100,
    mode: str = "eval",
    truncation: float = 1.0,
) -> Generator[Tensor, None, None]:
    """Yield uint8 (n, C, H, W) batches of ``columns`` images of each class, one class after another.

    Each class has the same latents, so that images at the same place of two rows differ by the class only. Other
    arguments are as for :func:`sample_images`.
    """
    device = next(network.parameters()).device
    z = latents(columns, latent_dim, torch.Generator().manual_seed(seed), device) * truncation
    labels = torch.tensor(classes, device=device).repeat_interleave(columns)
    batches = zip(z.repeat(len(classes), 1).split(batch_size), labels.split(batch_size), strict=True)
    return generate(network, batches, mode=mode)
