"""Regularisers of the critic. Each is a term added to the critic's loss, or an action after its step.

Gulrajani et al. 2017 (gp), Mescheder et al. 2018 (r1, r2), Kodali et al. 2017 (dragan), Arjovsky et al. 2017
(clip). Norms are taken per sample, in float32 even where the critic runs in a lower precision. Nothing here
waits for the device, so that a step with penalties can be captured in a CUDA graph. Random numbers come
from the device's default generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from relgan.config import PENALTY_NAMES, ConfigError, PenaltyConfig


class Penalty(Protocol):
    """A regulariser of the critic."""

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """The term to add to the critic's loss.

        Args:
            critic: maps images to logits (N,); must be differentiable twice (not compiled).
            real: float (N, C, H, W), what the critic saw, before any augmentation.
            fake: of the same shape; gradients to the generator are cut.

        Returns:
            float32 scalar with a graph to the critic's parameters.
        """
        ...

    def after_step(self, critic: nn.Module) -> None:
        """Act on the critic's parameters after its optimizer has stepped."""
        ...


def _input_gradient(critic: nn.Module, images: Tensor) -> Tensor:
    """∂C/∂x at each image: float32, the shape of ``images``, with a graph."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(images).float().sum(), images, create_graph=True)
    in_float32: Tensor = gradient.float()
    return in_float32


def _sample_dims(images: Tensor) -> tuple[int, ...]:
    return tuple(range(1, images.ndim))


def _distance_from_one(gradient: Tensor) -> Tensor:
    """E(‖∇C‖₂ − 1)²."""
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=_sample_dims(gradient))
    return (norm - 1).square().mean()


def _squared_norm(gradient: Tensor) -> Tensor:
    """E‖∇C‖²."""
    return gradient.square().sum(dim=_sample_dims(gradient)).mean()


def _uniform_per_sample(images: Tensor) -> Tensor:
    shape = (len(images), *(1 for _ in images.shape[1:]))
    return torch.rand(shape, device=images.device, dtype=images.dtype)


class _LossTerm:
    def after_step(self, critic: nn.Module) -> None:
        """A penalty of the loss leaves the parameters alone."""


@dataclass(frozen=True)
class GradientPenalty(_LossTerm):
    """λ·E(‖∇C(x̂)‖₂ − 1)² at x̂ = u·x + (1−u)·G(z), one u ~ U(0, 1) per sample."""

    weight: float = 10.0

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        if real.shape != fake.shape:
            raise ValueError(f"gp mixes real with fake, got {tuple(real.shape)} and {tuple(fake.shape)}")
        between = torch.lerp(fake.detach(), real.detach(), _uniform_per_sample(real))
        return self.weight * _distance_from_one(_input_gradient(critic, between))


@dataclass(frozen=True)
class ZeroCenteredPenalty(_LossTerm):
    """(γ/2)·E‖∇C‖² at the real images (R1), the fake ones (R2), or the sum of both."""

    weight: float = 1.0
    at_real: bool = True
    at_fake: bool = True

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        places = ([real] if self.at_real else []) + ([fake] if self.at_fake else [])
        terms = [_squared_norm(_input_gradient(critic, images)) for images in places]
        return self.weight / 2 * torch.stack(terms).sum()


@dataclass(frozen=True)
class DraganPenalty(_LossTerm):
    """λ·E(‖∇C(x̂)‖₂ − 1)² at x̂ = x + α·½·std(x)·u.

    α ~ U(0, 1) is one number per sample, u ~ U(0, 1) one per value, std(x) that of the whole batch.
    """

    weight: float = 10.0

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        real = real.detach()
        around = real + _uniform_per_sample(real) * (0.5 * real.std()) * torch.rand_like(real)
        return self.weight * _distance_from_one(_input_gradient(critic, around))


@dataclass(frozen=True)
class WeightClipping:
    """No term; every parameter of the critic is clamped to [−c, c] after its step."""

    bound: float = 0.01

    def __call__(self, critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        return torch.zeros((), device=real.device)

    @torch.no_grad()
    def after_step(self, critic: nn.Module) -> None:
        parameters: list[Tensor] = list(critic.parameters())
        torch._foreach_clamp_min_(parameters, -self.bound)
        torch._foreach_clamp_max_(parameters, self.bound)


def build_penalty(config: PenaltyConfig) -> Penalty | None:
    """The penalty of that name and weight (λ, γ or c); None for "none".

    Raises:
        ConfigError: an unknown name.
    """
    match config.name:
        case "none":
            return None
        case "gp":
            return GradientPenalty(config.weight)
        case "r1":
            return ZeroCenteredPenalty(config.weight, at_fake=False)
        case "r2":
            return ZeroCenteredPenalty(config.weight, at_real=False)
        case "r1r2":
            return ZeroCenteredPenalty(config.weight)
        case "dragan":
            return DraganPenalty(config.weight)
        case "clip":
            return WeightClipping(config.weight)
    raise ConfigError("penalty.name", f"{config.name!r} is not one of {', '.join(PENALTY_NAMES)}")
