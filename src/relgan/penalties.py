"""Regularisers of the critic. Each is a term added to the critic's loss, or an action after its step.

Gulrajani et al. 2017 (gp), Mescheder et al. 2018 (r1, r2), Kodali et al. 2017 (dragan), Arjovsky et al. 2017
(clip). Norms are taken per sample, in float32 even where the critic runs in a lower precision. Nothing here
waits for the device, so that a step with penalties can be captured in a CUDA graph. Random numbers come
from the device's default generator; ranks draw the same numbers for the whole batch, and each uses its part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relgan.builtin import WeightedOptions
from relgan.distributed import global_mean, own_part, world_size
from relgan.losses import check_scalar
from relgan.registry import PENALTIES, PenaltyOptions


class Penalty:
    """A regulariser of the critic: the sum of its :meth:`term` over its :meth:`points`. This one has none of either."""

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        """Where the critic's gradient is looked at.

        Args:
            real: float (N, C, H, W), what the critic saw, before any augmentation.
            fake: of the same shape; gradients to the generator are cut.

        Returns:
            Groups of N images. They depend on the whole batch of all ranks; a term takes any part of a group.
        """
        return ()

    def term(self, critic: nn.Module, images: Tensor) -> Tensor:
        """Mean over ``images`` (n, C, H, W), one group of points or a part of it.

        Args:
            critic: maps images to logits (n,); must be differentiable twice (not compiled).

        Returns:
            float32 scalar with a graph to the critic's parameters.
        """
        return torch.zeros((), device=images.device)

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """The whole of what is added to the critic's loss: float32 scalar; arguments as above."""
        terms = [self.term(critic, images) for images in self.points(real, fake)]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=real.device)

    def after_step(self, critic: nn.Module) -> None:
        """Act on the critic's parameters after its optimizer has stepped."""


def _input_gradient(critic: nn.Module, images: Tensor) -> Tensor:
    """∂C/∂x at each image: float32 or wider, the shape of ``images``, with a graph."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(images).float().sum(), images, create_graph=True)
    widened: Tensor = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return widened


def _sample_dims(images: Tensor) -> tuple[int, ...]:
    return tuple(range(1, images.ndim))


def _distance_from_one(gradient: Tensor) -> Tensor:
    """E(‖∇C‖₂ − 1)²."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=_sample_dims(gradient))
    return (norm - 1).square().mean()


def _squared_norm(gradient: Tensor) -> Tensor:
    """E‖∇C‖²."""
    return gradient.square().sum(dim=_sample_dims(gradient)).mean()


def _uniform(images: Tensor, *shape: int) -> Tensor:
    """u ~ U(0, 1) for each image, of the given shape or of one number."""
    shape = shape or (1,) * (images.ndim - 1)
    return own_part(torch.rand(len(images) * world_size(), *shape, device=images.device, dtype=images.dtype))


def _global_std(images: Tensor) -> Tensor:
    """Standard deviation over every value of all ranks' images, with N − 1."""
    count = images.numel() * world_size()
    variance = global_mean((images - global_mean(images)).square()) * (count / (count - 1))
    return variance.sqrt()


@dataclass(frozen=True)
class GradientPenalty(Penalty):
    """λ·E(‖∇C(x̂)‖₂ − 1)² at x̂ = u·x + (1−u)·G(z), one u ~ U(0, 1) per sample."""

    weight: float = 10.0

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        if real.shape != fake.shape:
            raise ValueError(f"gp mixes real with fake, got {tuple(real.shape)} and {tuple(fake.shape)}")
        return (torch.lerp(fake.detach(), real.detach(), _uniform(real)),)

    def term(self, critic: nn.Module, images: Tensor) -> Tensor:
        return self.weight * _distance_from_one(_input_gradient(critic, images))


@dataclass(frozen=True)
class ZeroCenteredPenalty(Penalty):
    """(γ/2)·E‖∇C‖² at the real images (R1), the fake ones (R2), or the sum of both."""

    weight: float = 1.0
    at_real: bool = True
    at_fake: bool = True

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        return ([real] if self.at_real else []) + ([fake] if self.at_fake else [])

    def term(self, critic: nn.Module, images: Tensor) -> Tensor:
        return self.weight / 2 * _squared_norm(_input_gradient(critic, images))


@dataclass(frozen=True)
class DraganPenalty(Penalty):
    """λ·E(‖∇C(x̂)‖₂ − 1)² at x̂ = x + α·½·std(x)·u.

    α ~ U(0, 1) is one number per sample, u ~ U(0, 1) one per value, std(x) that of the whole batch.
    """

    weight: float = 10.0

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        real = real.detach()
        return (real + _uniform(real) * (0.5 * _global_std(real)) * _uniform(real, *real.shape[1:]),)

    def term(self, critic: nn.Module, images: Tensor) -> Tensor:
        return self.weight * _distance_from_one(_input_gradient(critic, images))


@dataclass(frozen=True)
class WeightClipping(Penalty):
    """No term; every parameter of the critic is clamped to [−c, c] after its step."""

    bound: float = 0.01

    @torch.no_grad()
    def after_step(self, critic: nn.Module) -> None:
        parameters: list[Tensor] = list(critic.parameters())
        torch._foreach_clamp_min_(parameters, -self.bound)
        torch._foreach_clamp_max_(parameters, self.bound)


def none(options: PenaltyOptions) -> Penalty:
    return Penalty()


def gp(options: WeightedOptions) -> Penalty:
    return GradientPenalty(options.weight)


def r1(options: WeightedOptions) -> Penalty:
    return ZeroCenteredPenalty(options.weight, at_fake=False)


def r2(options: WeightedOptions) -> Penalty:
    return ZeroCenteredPenalty(options.weight, at_real=False)


def r1r2(options: WeightedOptions) -> Penalty:
    return ZeroCenteredPenalty(options.weight)


def dragan(options: WeightedOptions) -> Penalty:
    return DraganPenalty(options.weight)


def clip(options: WeightedOptions) -> Penalty:
    return WeightClipping(options.weight)


def build_penalty(options: PenaltyOptions) -> Penalty:
    """The penalty that ``options.name`` names.

    Raises:
        ConfigError: an unknown name; or other people's that fails, is no :class:`Penalty` or has terms that are no
            scalars.
    """
    penalty: Penalty = PENALTIES.build(options.name, options, of=Penalty, trial=_try)
    return penalty


@torch.enable_grad()
def _try(name: str, penalty: Penalty) -> None:
    with torch.random.fork_rng(devices=[]):
        real, fake = torch.randn(2, 4, 3, 8, 8).unbind()
        critic = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1), nn.Flatten(0))
        for points in penalty.points(real, fake):
            check_scalar(penalty.term(critic, points), "penalty.name", f"{name}.term")
