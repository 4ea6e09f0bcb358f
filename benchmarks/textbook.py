"""The training step as a textbook writes it: what relgan's is measured against.

Eager float32, default memory format, the data set a Python list of images that are stacked into batches.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm

LATENT, WIDTH, GP_WEIGHT, R1R2_WEIGHT = 128, 64, 10.0, 1.0


def cnn32() -> tuple[nn.Module, nn.Module]:
    """The CIFAR-10 networks, spectral norm in the critic."""

    def up(channels_in: int, channels_out: int) -> list[nn.Module]:
        conv = nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1)
        return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]

    def conv(channels_in: int, channels_out: int, kernel: int, stride: int) -> list[nn.Module]:
        layer = nn.Conv2d(channels_in, channels_out, kernel, stride, 1)
        nn.init.normal_(layer.weight, 0.0, 0.02)
        return [spectral_norm(layer), nn.LeakyReLU(0.1)]

    generator = nn.Sequential(
        nn.Linear(LATENT, 512 * 4 * 4),
        nn.Unflatten(1, (512, 4, 4)),
        *(*up(512, 256), *up(256, 128), *up(128, 64)),
        nn.Conv2d(64, 3, 3, 1, 1),
        nn.Tanh(),
    )
    critic = nn.Sequential(
        *(*conv(3, 64, 3, 1), *conv(64, 64, 4, 2), *conv(64, 128, 3, 1), *conv(128, 128, 4, 2)),
        *(*conv(128, 256, 3, 1), *conv(256, 256, 4, 2), *conv(256, 512, 3, 1)),
        nn.Flatten(),
        nn.Linear(512 * 4 * 4, 1),
    )
    return generator, critic


def dcgan64() -> tuple[nn.Module, nn.Module]:
    """DCGAN at 64 pixels, batch norm in both networks."""

    def up(channels_in: int, channels_out: int, stride: int, padding: int) -> list[nn.Module]:
        conv = nn.ConvTranspose2d(channels_in, channels_out, 4, stride, padding, bias=False)
        return [conv, nn.BatchNorm2d(channels_out), nn.ReLU()]

    def down(channels_in: int, channels_out: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels_in, channels_out, 4, 2, 1, bias=False)
        return [conv, nn.BatchNorm2d(channels_out), nn.LeakyReLU(0.2)]

    generator = nn.Sequential(
        nn.Unflatten(1, (LATENT, 1, 1)),
        *(*up(LATENT, 512, 1, 0), *up(512, 256, 2, 1), *up(256, 128, 2, 1), *up(128, 64, 2, 1)),
        nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    critic = nn.Sequential(
        nn.Conv2d(3, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2),
        *(*down(64, 128), *down(128, 256), *down(256, 512)),
        nn.Conv2d(512, 1, 4, 1, 0, bias=False),
        nn.Flatten(),
    )
    return generator, critic


class Textbook:
    """One pair of networks under sgan, rasgan, wgan_gp or rpgan_r1r2; a call is one iteration."""

    def __init__(self, network: str, loss: str, images: list[Tensor], batch: int) -> None:
        self.loss, self.images, self.batch_size = loss, images, batch
        self.device = images[0].device if images else torch.device("cpu")
        networks = {"cnn32": cnn32, "dcgan64": dcgan64}[network]()
        self.generator, self.critic = (made.to(self.device) for made in networks)
        self.optimizer_g = torch.optim.Adam(self.generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
        self.optimizer_d = torch.optim.Adam(self.critic.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def batch(self) -> Tensor:
        return torch.stack(random.sample(self.images, self.batch_size))

    def loss_of(self, r: Tensor, f: Tensor, *, real_is: float) -> Tensor:
        """The critic's loss with ``real_is`` 1, the generator's with 0 (up to what is constant for it)."""
        if self.loss == "wgan_gp":
            return (f.mean() - r.mean()) * (2 * real_is - 1)
        if self.loss == "rpgan_r1r2":
            return softplus(f - r if real_is else r - f).mean()
        if self.loss == "rasgan":
            r, f = r - f.mean(), f - r.mean()
        real = bce(r, torch.full_like(r, real_is))
        fake = bce(f, torch.full_like(f, 1 - real_is))
        return (real + fake) / 2 if self.loss == "rasgan" else real + fake

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        def gradient(x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.critic(x).sum(), x, create_graph=True)[0].flatten(1)

        if self.loss == "wgan_gp":
            u = torch.rand(len(real), 1, 1, 1, device=self.device, dtype=real.dtype)
            return GP_WEIGHT * ((gradient(u * real + (1 - u) * fake).norm(dim=1) - 1) ** 2).mean()
        if self.loss == "rpgan_r1r2":
            norms = [gradient(x).square().sum(1).mean() for x in (real, fake)]
            return R1R2_WEIGHT / 2 * (norms[0] + norms[1])
        return torch.zeros((), device=self.device)

    def update_critic(self, real: Tensor, z: Tensor) -> None:
        self.optimizer_d.zero_grad()
        fake = self.generator(z).detach()
        r, f = self.critic(real).squeeze(1), self.critic(fake).squeeze(1)
        (self.loss_of(r, f, real_is=1.0) + self.penalty(real, fake)).backward()
        self.optimizer_d.step()

    def update_generator(self, real: Tensor, z: Tensor) -> None:
        self.critic.requires_grad_(False)
        self.optimizer_g.zero_grad()
        f, r = self.critic(self.generator(z)).squeeze(1), self.critic(real).squeeze(1)
        self.loss_of(r, f, real_is=0.0).backward()
        self.optimizer_g.step()
        self.critic.requires_grad_(True)

    def __call__(self) -> None:
        for update in (self.update_critic, self.update_generator):
            update(self.batch(), torch.randn(self.batch_size, LATENT, device=self.device))
