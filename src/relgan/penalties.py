"""Regularisers of the critic. Each is a term added to the critic's loss, or an action after its step.

Gulrajani et al. 2017 (gp), Mescheder et al. 2018 (r1, r2), Lin et al. 2025, arXiv 2501.08316 (ar1, ar2: R1 and R2
without double backward), Kodali et al. 2017 (dragan), Arjovsky et al. 2017 (clip). Norms are taken per sample, in
float32 even where the critic runs in a lower precision. Nothing here waits for the device, so that a step with
penalties can be captured in a CUDA graph. Random numbers come from the device's default generator; ranks draw the
same numbers for the whole batch, and each uses its part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from relgan.builtin import ApproximateOptions, ClipOptions, WeightedOptions, ZeroCenteredOptions
from relgan.distributed import global_mean, own_part, world_size
from relgan.losses import check_scalar
from relgan.registry import PENALTIES, PenaltyOptions

Critic = Callable[[Tensor], Tensor]
"""Maps images (n, C, H, W) to logits (n,), (n, 1) or (n, 1, H, W)."""


class Penalty:
    """A regulariser of the critic: the sum of its :meth:`term` over its :meth:`points`. This one has none of either.

    Attributes:
        interval: k if it only takes part in every k-th iteration, k times as strongly ("lazy regularisation",
            Karras et al. 2020). Both are left to the training loop.
    """

    interval: int = 1

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        """Where the critic's gradient is looked at.

        Args:
            real: float (N, C, H, W), what the critic saw, before any augmentation.
            fake: of the same shape; gradients to the generator are cut.

        Returns:
            Groups of points, each at one of the first images, in their order. They depend on the whole batch of all
            ranks; a term takes any part of a group.
        """
        return ()

    def term(self, critic: Critic, images: Tensor) -> Tensor:
        """Mean over ``images`` (n, C, H, W), one group of points or a part of it.

        Args:
            critic: differentiated twice (so not compiled), unless a penalty says otherwise.

        Returns:
            float32 scalar with a graph to the critic's parameters.
        """
        return torch.zeros((), device=images.device)

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
        """The whole of what is added to the critic's loss: float32 scalar; arguments as above."""
        terms = [self.term(critic, images) for images in self.points(real, fake)]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=real.device)

    def after_step(self, critic: nn.Module) -> None:
        """Act on the critic's parameters after its optimizer has stepped."""


def _input_gradient(critic: Critic, images: Tensor) -> Tensor:
    """∂C/∂x at each image: float32 or wider, the shape of ``images``, with a graph."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        total = critic(images).float().sum()
        # Autocast would round what it differentiates, also behind layers that ran in float32.
        with torch.autocast(images.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return _widened(gradient)


def _widened(values: Tensor) -> Tensor:
    """In float32 unless they are wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


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
    interval: int = 1

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        if real.shape != fake.shape:
            raise ValueError(f"gp mixes real with fake, got {tuple(real.shape)} and {tuple(fake.shape)}")
        return (torch.lerp(fake.detach(), real.detach(), _uniform(real)),)

    def term(self, critic: Critic, images: Tensor) -> Tensor:
        return self.weight * _distance_from_one(_input_gradient(critic, images))


@dataclass(frozen=True)
class ZeroCenteredPenalty(Penalty):
    """(γ/2)·E‖∇C‖² at the real images (R1), the fake ones (R2), or the sum of both.

    Attributes:
        share: of the images, the first ones of each rank's batch, that is looked at; at least one is.
    """

    weight: float = 1.0
    at_real: bool = True
    at_fake: bool = True
    interval: int = 1
    share: float = 1.0

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        groups = ([real] if self.at_real else []) + ([fake] if self.at_fake else [])
        return [images[: max(1, round(self.share * len(images)))] for images in groups]

    def term(self, critic: Critic, images: Tensor) -> Tensor:
        return self.weight / 2 * _squared_norm(_input_gradient(critic, images))


@dataclass(frozen=True)
class ApproximatePenalty(ZeroCenteredPenalty):
    """(γ/2)·E[(C(x + σn) − C(x))²]/σ², n ~ N(0, I): without the curvature of C, (γ/2)·E‖∇C‖².

    The critic is differentiated only once; it may be compiled if it has no parametrizations. Its two passes must
    differ by σn alone:

    - They run in float32. In bfloat16 the difference is mostly rounding: for critics trained with R1 and σ = 0.01,
      8 to 18 times the penalty, with a gradient that points elsewhere.
    - They share the weights of parametrizations. One more power iteration of spectral norm moves the logits far more
      than σn does.
    - Batch norm lets each logit feel the noise of its neighbours, too, and follows both passes.

    Attributes:
        sigma: σ, in the unit of the images.
    """

    sigma: float = 0.01

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        """Pairs of x and x + σn, (n, 2, C, H, W)."""
        return [self._pairs(images.detach()) for images in super().points(real, fake)]

    def _pairs(self, x: Tensor) -> Tensor:
        n = own_part(torch.randn(len(x) * world_size(), *x.shape[1:], device=x.device, dtype=x.dtype))
        return torch.stack((x, x + self.sigma * n), dim=1)

    def term(self, critic: Critic, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False), parametrize.cached():
            here, moved = (_widened(critic(x)) for x in images.unbind(dim=1))
        change = (moved - here).reshape(len(images), -1).sum(dim=1) / self.sigma
        return self.weight / 2 * change.square().mean()


@dataclass(frozen=True)
class DraganPenalty(Penalty):
    """λ·E(‖∇C(x̂)‖₂ − 1)² at x̂ = x + α·½·std(x)·u.

    α ~ U(0, 1) is one number per sample, u ~ U(0, 1) one per value, std(x) that of the whole batch.
    """

    weight: float = 10.0
    interval: int = 1

    def points(self, real: Tensor, fake: Tensor) -> Sequence[Tensor]:
        real = real.detach()
        return (real + _uniform(real) * (0.5 * _global_std(real)) * _uniform(real, *real.shape[1:]),)

    def term(self, critic: Critic, images: Tensor) -> Tensor:
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
    return GradientPenalty(options.weight, options.interval)


def _zero_centered(options: ZeroCenteredOptions, *, at_real: bool = True, at_fake: bool = True) -> Penalty:
    return ZeroCenteredPenalty(options.weight, at_real, at_fake, options.interval, options.share)


r1r2 = _zero_centered
r1 = partial(_zero_centered, at_fake=False)
r2 = partial(_zero_centered, at_real=False)


def _approximate(options: ApproximateOptions, *, at_real: bool = True, at_fake: bool = True) -> Penalty:
    return ApproximatePenalty(options.weight, at_real, at_fake, options.interval, options.share, options.sigma)


ar1r2 = _approximate
ar1 = partial(_approximate, at_fake=False)
ar2 = partial(_approximate, at_real=False)


def dragan(options: WeightedOptions) -> Penalty:
    return DraganPenalty(options.weight, options.interval)


def clip(options: ClipOptions) -> Penalty:
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
