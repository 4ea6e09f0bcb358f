"""Adversarial losses: four cost functions f₁, f₂, g₁, g₂ times one of five ways to compare real with fake.

The equations are those of Jolicoeur-Martineau, "The relativistic discriminator" (arXiv 1807.00734), "On
relativistic f-divergences" (1901.02474) and Huang et al., "The GAN is dead; long live the GAN!" (2501.05441).
A loss takes the critic's raw outputs r = C(x) and f = C(G(z)), each of shape (N,)::

    discriminator = w · [E f₁(a_real) + E f₂(a_fake)]
    generator     = w · [E g₁(a_real) + E g₂(a_fake)]

    form        a_real        a_fake      w
    standard    r             f           1     (the generator's g₁ term is constant for it and left out)
    paired      r − f         f − r       ½     RGAN
    average     r − f̄         f − r̄       ½     RaGAN
    centered    r − c         f − c       1     RcGAN, c = (r̄ + f̄) / 2
    all_pairs   rᵢ − fⱼ       fⱼ − rᵢ     1     RpGAN-MVUE, a matrix of all pairs

Means r̄ and f̄ (and all pairs) are taken over all ranks, which must therefore all call a loss together, and
gradients flow through them. Paired losses expect batches of equal length. Everything is computed in float32
(float64 if the logits are), whatever precision the networks used. A critic may also return (N, 1), or a map
(N, 1, H, W) of logits of patches (Isola et al. 2017), each of which then counts as a sample.

Which cost in which form is called what: :mod:`relgan.builtin`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from relgan.distributed import global_cat, global_mean
from relgan.options import ConfigError, check
from relgan.registry import COSTS, LOSSES, TWO_TERM_FORMS, Combination, Form, LossOptions

__all__ = ["LOSSES", "AdversarialLoss", "Cost", "Loss", "get_loss"]

Elementwise = Callable[[Tensor], Tensor]

WEIGHTS: Mapping[Form, float] = MappingProxyType(
    {"standard": 1.0, "paired": 0.5, "average": 0.5, "centered": 1.0, "all_pairs": 1.0}
)


@dataclass(frozen=True)
class Cost:
    """The critic's costs f1 (of real) and f2 (of fake), the generator's g1 and g2.

    ``alone`` is the generator's cost of a fake in the standard GAN of the same name: what
    ``generator_terms=standard`` uses against a relativistic critic.
    """

    f1: Elementwise
    f2: Elementwise
    g1: Elementwise
    g2: Elementwise
    alone: Elementwise


def _negative(cost: Elementwise) -> Elementwise:
    return lambda a: -cost(a)


def non_saturating(f1: Elementwise, f2: Elementwise, alone: Elementwise | None = None) -> Cost:
    """The generator's costs are the critic's with real and fake exchanged."""
    return Cost(f1, f2, g1=f2, g2=f1, alone=alone or f1)


def _log_real(a: Tensor) -> Tensor:
    return softplus(-a)


def _target_plus(a: Tensor) -> Tensor:
    return (a - 1).square()


def _target_minus(a: Tensor) -> Tensor:
    return (a + 1).square()


def _hinge_real(a: Tensor) -> Tensor:
    return relu(1 - a)


def _hinge_fake(a: Tensor) -> Tensor:
    return relu(1 + a)


def log_cost(form: Form) -> Cost:
    return non_saturating(_log_real, softplus)


def saturating_cost(form: Form) -> Cost:
    return Cost(_log_real, softplus, g1=_negative(_log_real), g2=_negative(softplus), alone=_negative(softplus))


def square_cost(form: Form) -> Cost:
    """Least squares aims at 1 and 0 in the standard form, at +1 and −1 in the relativistic ones."""
    return non_saturating(_target_plus, torch.square if form == "standard" else _target_minus)


def hinge_cost(form: Form) -> Cost:
    """The standard generator is linear; the relativistic ones keep the hinge."""
    if form == "standard":
        return Cost(_hinge_real, _hinge_fake, g1=torch.positive, g2=torch.neg, alone=torch.neg)
    return non_saturating(_hinge_real, _hinge_fake, alone=torch.neg)


def linear_cost(form: Form) -> Cost:
    return non_saturating(torch.neg, torch.positive)


def flat_logits(logits: Tensor, which: str = "the") -> Tensor:
    """Logits (N,), (N, 1) or a map (N, 1, H, W) as one dimension, in float32 or wider.

    Raises:
        ValueError: another shape, or none at all.
    """
    if not (logits.ndim == 1 or (logits.ndim in (2, 4) and logits.shape[1] == 1)) or not logits.numel():
        raise ValueError(
            f"{which} logits must have the shape (N,), (N, 1) or (N, 1, H, W) with N ≥ 1, got {tuple(logits.shape)}"
        )
    return logits.flatten().to(torch.promote_types(logits.dtype, torch.float32))


class Loss(ABC):
    """A critic's and a generator's loss, from the critic's logits of real and of fake images.

    Attributes:
        form: how real and fake are compared, a tag of a run.
        needs_real_for_generator: whether the generator's loss depends on the real logits, which are then computed.
    """

    form: str = "own"
    needs_real_for_generator: bool = True

    @abstractmethod
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The critic's loss: a scalar with gradients to both; arguments as in :meth:`compare`."""

    @abstractmethod
    def generator(self, real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
        """The generator's loss: a scalar.

        Args:
            real_logits: as in :meth:`compare`; None is accepted unless :attr:`needs_real_for_generator`.
            fake_logits: as in :meth:`compare`.
        """

    def compare(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits as this loss compares them; here, as they are.

        Args:
            real_logits: (N,), (N, 1) or (N, 1, H, W), any floating type.
            fake_logits: the same of M images; M = N for the paired form.

        Returns:
            a_real and a_fake of the module's table, flat.

        Raises:
            ValueError: logits of another shape, or without a partner in a paired loss.
        """
        return flat_logits(real_logits, "real"), flat_logits(fake_logits, "fake")

    @torch.no_grad()
    def probabilities(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Mean sigmoid of what :meth:`compare` returns: how real the critic finds real and fake images."""
        a_real, a_fake = self.compare(real_logits, fake_logits)
        return a_real.sigmoid().mean(), a_fake.sigmoid().mean()

    def pull(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """How hard the critic's loss pulls on real and on fake images: mean |∂L_D/∂rᵢ| and mean |∂L_D/∂fᵢ|.

        The derivatives are those of the sum over samples, so that the batch size drops out: for sgan the two
        numbers are the means of 1 − σ(r) and of σ(f). Once a standard critic is sure of the real images the
        first vanishes and they teach it nothing more, which is the paper's case against the standard form.

        Returns:
            two scalars without a graph.
        """
        with torch.enable_grad():
            r = flat_logits(real_logits, "real").detach().clone().requires_grad_()
            f = flat_logits(fake_logits, "fake").detach().clone().requires_grad_()
            by_real, by_fake = torch.autograd.grad(self.discriminator(r, f), (r, f), materialize_grads=True)
        return by_real.abs().sum(), by_fake.abs().sum()


@dataclass(frozen=True)
class AdversarialLoss(Loss):
    """A cost in one of the five forms.

    Attributes:
        name: what it is called.
        form: how real and fake logits are compared.
        cost: the elementwise costs.
        generator_terms: "both", or an ablation of two-term losses: only the "fake" or the "real" term (with
            its weight), or the "standard" GAN's generator loss.
    """

    name: str
    form: Form = field()  # without the default of Loss
    cost: Cost
    generator_terms: str = "both"

    def __post_init__(self) -> None:
        if self.generator_terms != "both" and self.form not in TWO_TERM_FORMS:
            raise ConfigError(
                "loss.generator_terms",
                f"only both is accepted with loss={self.name}; "
                f"{self.generator_terms} needs a two-term relativistic loss, such as rasgan",
            )

    @property
    def needs_real_for_generator(self) -> bool:  # type: ignore[override]
        return self.form != "standard" and self.generator_terms != "standard"

    def compare(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        r, f = super().compare(real_logits, fake_logits)
        if self.form == "standard":
            return r, f
        if self.form == "paired":
            if len(r) != len(f):
                raise ValueError(f"{self.name} pairs real with fake, but got {len(r)} and {len(f)} logits")
            return r - f, f - r
        if self.form == "average":
            return r - global_mean(f), f - global_mean(r)
        if self.form == "centered":
            center = (global_mean(r) + global_mean(f)) / 2
            return r - center, f - center
        difference = global_cat(r)[:, None] - global_cat(f)[None, :]
        return difference, -difference

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        a_real, a_fake = self.compare(real_logits, fake_logits)
        return WEIGHTS[self.form] * (self.cost.f1(a_real).mean() + self.cost.f2(a_fake).mean())

    def generator(self, real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
        if not self.needs_real_for_generator:
            cost = self.cost.g2 if self.form == "standard" else self.cost.alone
            return cost(flat_logits(fake_logits, "fake")).mean()
        if real_logits is None:
            raise ValueError(f"the generator's loss of {self.name} needs the real logits")
        a_real, a_fake = self.compare(real_logits, fake_logits)
        terms = []
        if self.generator_terms != "fake":
            terms.append(self.cost.g1(a_real).mean())
        if self.generator_terms != "real":
            terms.append(self.cost.g2(a_fake).mean())
        return WEIGHTS[self.form] * torch.stack(terms).sum()


def combined(options: LossOptions) -> AdversarialLoss:
    """The loss that is registered as one cost in one form."""
    made: Combination = LOSSES[options.name].facts
    cost = COSTS.build(made.cost, made.form, of=Cost)
    return AdversarialLoss(options.name, made.form, cost, getattr(options, "generator_terms", "both"))


def get_loss(name: str, **options: Any) -> Loss:
    """The loss of that name, with options of its own (``generator_terms="fake"``), without :mod:`relgan.side_terms`.

    Raises:
        ConfigError: an unknown name or option, or a value it does not accept.
    """
    defaults = LOSSES[name].options
    # What every loss has are coefficients of the side terms.
    own = {f.name for f in fields(defaults)} - {f.name for f in fields(LossOptions)}
    if others := options.keys() - own:
        raise ConfigError(f"loss.{min(others)}", f"{name} has no such option")
    chosen = replace(defaults, **options)
    check(chosen, "loss.")
    return build_loss(chosen)


def build_loss(options: LossOptions) -> Loss:
    """The loss that ``options.name`` names.

    Raises:
        ConfigError: an unknown name; or other people's that fails, is no :class:`Loss` or does not return scalars.
    """
    # relgan's own are not tried: their means wait for all ranks, and one process may want a loss without the others.
    loss: Loss = LOSSES.build(options.name, options, of=Loss, trial=_try)
    return loss


@torch.enable_grad()
def _try(name: str, loss: Loss) -> None:
    logits = torch.linspace(-1, 1, 4).requires_grad_()
    for method in (loss.discriminator, loss.generator):
        check_scalar(method(logits, logits.flip(0)), "loss.name", f"{name}.{method.__name__}")


def check_scalar(value: object, option: str, what: str) -> None:
    """Raise ConfigError unless ``value`` can be added to a loss: a scalar with a graph."""
    if not (isinstance(value, Tensor) and value.ndim == 0 and value.requires_grad):
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(option, f"{what} must return a scalar with a graph, got {got}")
