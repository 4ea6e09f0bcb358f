"""Sampling with labels: each image gets its own, whatever the batches and ranks; a seed's latents are not changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from relgan.networks.sampling import draw_labels, generate, latents, sample_images


class Painted(nn.Module):
    """Black images whose first pixel tells the label, and the second the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        images = torch.full((len(z), 1, 2, 2), -1.0) * self.factor
        if labels is not None:
            images[:, 0, 0, 0] += labels / 127.5
        images[:, 0, 0, 1] = z[:, 0].clamp(-1, 1)
        return images


LABELS = torch.arange(10) * 20 % 7


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_image_gets_its_label(world_size: int) -> None:
    parts = [
        list(
            sample_images(
                Painted(), 10, latent_dim=3, seed=4, batch_size=3, labels=LABELS, rank=r, world_size=world_size
            )
        )
        for r in range(world_size)
    ]
    images = torch.cat([parts[number % world_size].pop(0) for number in range(4)])
    assert images[:, 0, 0, 0].tolist() == LABELS.tolist()
    plain = torch.cat(list(sample_images(Painted(), 10, latent_dim=3, seed=4, batch_size=3)))
    assert torch.equal(images[:, 0, 0, 1], plain[:, 0, 0, 1])


def test_batches_may_come_with_labels() -> None:
    z = latents(10, 3, torch.Generator().manual_seed(0), torch.device("cpu"))
    images = torch.cat(list(generate(Painted(), zip(z.split(4), LABELS.split(4), strict=True))))
    assert images[:, 0, 0, 0].tolist() == LABELS.tolist()


def test_labels_are_drawn_as_often_as_the_training_set_has_them() -> None:
    labels = draw_labels([10, 0, 30, 60], 20_000, seed=1)
    assert labels.dtype == torch.int64
    shares = labels.bincount(minlength=4) / len(labels)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.0, 0.3, 0.6]), rtol=0, atol=0.015)
    assert torch.equal(labels, draw_labels([10, 0, 30, 60], 20_000, seed=1))
    assert torch.equal(labels[:50], draw_labels([10, 0, 30, 60], 50, seed=1))
    assert not torch.equal(labels, draw_labels([10, 0, 30, 60], 20_000, seed=2))


def test_drawing_labels_touches_no_generator() -> None:
    torch.manual_seed(3)
    draw_labels([1, 1], 100, seed=3)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(3)))


def test_values_beyond_black_and_white_are_clamped() -> None:
    (images,) = generate(nn.Identity(), [torch.tensor([[-255.0, -1.5, 0.0, 1.5, 3.0]])])
    assert images.tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        list(generate(nn.Identity(), [torch.full((3, 2), value)]))
