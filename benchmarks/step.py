"""relgan's training step against the same step as textbooks write it, on the CPU.

One iteration of RaSGAN at batch 32: a critic update and a generator update of the 32×32 CNN with spectral norm,
each with new real images and latents. ``python -m benchmarks.step`` prints both times and their ratio.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.timing import Prepare, interleave, show
from relgan.config import ModelConfig, OptimizerConfig
from relgan.data.sampler import Batches, Sampler
from relgan.data.store import PackedStore
from relgan.losses import get_loss
from relgan.networks import build_networks
from relgan.training.ema import EMA
from relgan.training.engine import choose_precision, has_bf16_units, keep_freed_memory
from relgan.training.schedule import build_optimizers
from relgan.training.step import Step

BATCH, LATENT, NUM_IMAGES = 32, 128, 4096
TEXTBOOK = "textbook, fp32"


class Textbook:
    """Eager float32, default memory format, the data set a list of images that are stacked into batches."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 512 * 4 * 4),
            nn.Unflatten(1, (512, 4, 4)),
            *self._up(512, 256),
            *self._up(256, 128),
            *self._up(128, 64),
            nn.Conv2d(64, 3, 3, 1, 1),
            nn.Tanh(),
        )
        self.critic = nn.Sequential(
            *self._conv(3, 64, 3, 1),
            *self._conv(64, 64, 4, 2),
            *self._conv(64, 128, 3, 1),
            *self._conv(128, 128, 4, 2),
            *self._conv(128, 256, 3, 1),
            *self._conv(256, 256, 4, 2),
            *self._conv(256, 512, 3, 1),
            nn.Flatten(),
            nn.Linear(512 * 4 * 4, 1),
        )
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.optimizer_d = torch.optim.Adam(self.critic.parameters(), lr=2e-4, betas=(0.5, 0.999))

    @staticmethod
    def _up(channels_in: int, channels_out: int) -> list[nn.Module]:
        conv = nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1)
        return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]

    @staticmethod
    def _conv(channels_in: int, channels_out: int, kernel: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels_in, channels_out, kernel, stride, 1)
        nn.init.normal_(conv.weight, 0.0, 0.02)
        return [spectral_norm(conv), nn.LeakyReLU(0.1)]

    def batch(self) -> Tensor:
        return torch.stack(random.sample(self.images, BATCH))

    def update_critic(self, real: Tensor, z: Tensor) -> None:
        self.optimizer_d.zero_grad()
        r = self.critic(real).squeeze(1)
        f = self.critic(self.generator(z).detach()).squeeze(1)
        loss = (bce(r - f.mean(), torch.ones_like(r)) + bce(f - r.mean(), torch.zeros_like(f))) / 2
        loss.backward()
        self.optimizer_d.step()

    def update_generator(self, real: Tensor, z: Tensor) -> None:
        self.critic.requires_grad_(False)
        self.optimizer_g.zero_grad()
        f = self.critic(self.generator(z)).squeeze(1)
        r = self.critic(real).squeeze(1)
        loss = (bce(r - f.mean(), torch.zeros_like(r)) + bce(f - r.mean(), torch.ones_like(f))) / 2
        loss.backward()
        self.optimizer_g.step()
        self.critic.requires_grad_(True)

    def __call__(self) -> None:
        self.update_critic(self.batch(), torch.randn(BATCH, LATENT))
        self.update_generator(self.batch(), torch.randn(BATCH, LATENT))


def build_step(precision: str) -> Step:
    """relgan's step as a run builds it."""
    model = ModelConfig(name="cnn32", width=64, latent_dim=LATENT, spectral_norm=True)
    generator, critic = build_networks(model, image_size=32, channels=3)
    for network in (generator, critic):
        network.to(memory_format=torch.channels_last)
    optimizer_g, optimizer_d = build_optimizers(OptimizerConfig(), generator, critic)
    return Step(
        generator=generator,
        critic=critic,
        loss=get_loss("rasgan"),
        penalty=None,
        optimizer_g=optimizer_g,
        optimizer_d=optimizer_d,
        precision=choose_precision(precision, torch.device("cpu")),
    )


def prepare_textbook() -> Callable[[], object]:
    return Textbook(list(2 * torch.rand(NUM_IMAGES, 3, 32, 32) - 1))


def prepare_relgan(precision: str) -> Callable[[], object]:
    keep_freed_memory()
    step = build_step(precision)
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    store = PackedStore(Path(), pixels, None, {})
    batches = Batches(store, Sampler(NUM_IMAGES, BATCH, "epoch", seed=0), torch.device("cpu"), hflip=False)
    ema = EMA(step.generator, 0.999)

    def iterate() -> None:
        step.update_critic(batches.next(), torch.randn(BATCH, LATENT))
        step.update_generator(batches.next(), torch.randn(BATCH, LATENT))
        ema.update(step.generator)

    return iterate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="timed iterations of each (default: %(default)s)")
    rounds = parser.parse_args().rounds
    contestants: dict[str, Prepare] = {
        TEXTBOOK: prepare_textbook,
        "relgan, fp32, channels_last": partial(prepare_relgan, "fp32"),
    }
    if has_bf16_units(torch.device("cpu")):
        contestants["relgan, bf16, channels_last"] = partial(prepare_relgan, "bf16")
    else:
        print("This CPU has no bf16 units; comparing in fp32 only.")
    seconds = interleave(contestants, rounds=rounds)
    show(f"one iteration: cnn32 + spectral norm, rasgan, batch {BATCH}", seconds, TEXTBOOK)


if __name__ == "__main__":
    main()
