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
(float64 if the logits are), whatever precision the networks used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from relgan.config import GENERATOR_TERMS, ConfigError
from relgan.distributed import global_cat, global_mean

Form = Literal["standard", "paired", "average", "centered", "all_pairs"]
Elementwise = Callable[[Tensor], Tensor]

WEIGHTS: Mapping[Form, float] = MappingProxyType(
    {"standard": 1.0, "paired": 0.5, "average": 0.5, "centered": 1.0, "all_pairs": 1.0}
)
TWO_TERM_FORMS: tuple[Form, ...] = ("average", "centered")


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


def _non_saturating(f1: Elementwise, f2: Elementwise, alone: Elementwise | None = None) -> Cost:
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


LOG = _non_saturating(_log_real, softplus)
LOG_SATURATING = Cost(_log_real, softplus, g1=_negative(_log_real), g2=_negative(softplus), alone=_negative(softplus))
# Least squares aims at 1 and 0 in the standard form, at +1 and −1 in the relativistic ones.
SQUARE_STANDARD = _non_saturating(_target_plus, torch.square)
SQUARE = _non_saturating(_target_plus, _target_minus)
# The standard hinge generator is linear; the relativistic ones keep the hinge.
HINGE_STANDARD = Cost(_hinge_real, _hinge_fake, g1=torch.positive, g2=torch.neg, alone=torch.neg)
HINGE = _non_saturating(_hinge_real, _hinge_fake, alone=torch.neg)
LINEAR = _non_saturating(torch.neg, torch.positive)


def _check_logits(logits: Tensor, which: str) -> Tensor:
    if logits.ndim != 1 or not len(logits):
        raise ValueError(f"{which} logits must have the shape (N,) with N ≥ 1, got {tuple(logits.shape)}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass(frozen=True)
class AdversarialLoss:
    """One named pair of discriminator and generator losses.

    Attributes:
        name: its name in ``LOSSES``.
        form: how real and fake logits are compared.
        cost: the elementwise costs.
        generator_terms: "both", or an ablation of two-term losses: only the "fake" or the "real" term (with
            its weight), or the "standard" GAN's generator loss.
        penalty: the regulariser the loss was published with, a name that ``relgan.penalties`` knows.
    """

    name: str
    form: Form
    cost: Cost
    generator_terms: str = "both"
    penalty: str = "none"

    def __post_init__(self) -> None:
        if self.generator_terms not in GENERATOR_TERMS:
            accepted = ", ".join(GENERATOR_TERMS)
            raise ConfigError("loss.generator_terms", f"{self.generator_terms!r} is not one of {accepted}")
        if self.generator_terms != "both" and self.form not in TWO_TERM_FORMS:
            raise ConfigError(
                "loss.generator_terms",
                f"only both is accepted with loss={self.name}; "
                f"{self.generator_terms} needs a two-term relativistic loss, such as rasgan",
            )

    @property
    def needs_real_for_generator(self) -> bool:
        """Whether the generator's loss depends on the real logits."""
        return self.form != "standard" and self.generator_terms != "standard"

    def compare(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits as this loss compares them.

        Args:
            real_logits: (N,), any floating type.
            fake_logits: (M,); M = N for the paired form.

        Returns:
            a_real and a_fake of the module's table: shapes (N,) and (M,), or (N, M) twice for all pairs.

        Raises:
            ValueError: logits that are not one-dimensional, are empty, or have no partner in a paired loss.
        """
        r, f = _check_logits(real_logits, "real"), _check_logits(fake_logits, "fake")
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
        """The critic's loss, a scalar with gradients to both; arguments as in :meth:`compare`."""
        a_real, a_fake = self.compare(real_logits, fake_logits)
        return WEIGHTS[self.form] * (self.cost.f1(a_real).mean() + self.cost.f2(a_fake).mean())

    def generator(self, real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
        """The generator's loss, a scalar.

        Args:
            real_logits: as in :meth:`compare`; None is accepted unless :attr:`needs_real_for_generator`.
            fake_logits: as in :meth:`compare`.
        """
        if not self.needs_real_for_generator:
            cost = self.cost.g2 if self.form == "standard" else self.cost.alone
            return cost(_check_logits(fake_logits, "fake")).mean()
        if real_logits is None:
            raise ValueError(f"the generator's loss of {self.name} needs the real logits")
        a_real, a_fake = self.compare(real_logits, fake_logits)
        terms = []
        if self.generator_terms != "fake":
            terms.append(self.cost.g1(a_real).mean())
        if self.generator_terms != "real":
            terms.append(self.cost.g2(a_fake).mean())
        return WEIGHTS[self.form] * torch.stack(terms).sum()

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
            r = _check_logits(real_logits, "real").detach().clone().requires_grad_()
            f = _check_logits(fake_logits, "fake").detach().clone().requires_grad_()
            by_real, by_fake = torch.autograd.grad(self.discriminator(r, f), (r, f))
        return by_real.abs().sum(), by_fake.abs().sum()


def _catalogue() -> Mapping[str, AdversarialLoss]:
    losses = [
        AdversarialLoss("sgan", "standard", LOG),
        AdversarialLoss("sgan_saturating", "standard", LOG_SATURATING),
        AdversarialLoss("lsgan", "standard", SQUARE_STANDARD),
        AdversarialLoss("hinge", "standard", HINGE_STANDARD),
        AdversarialLoss("wgan", "standard", LINEAR, penalty="clip"),
        AdversarialLoss("wgan_gp", "standard", LINEAR, penalty="gp"),
    ]
    forms: tuple[tuple[str, Form], ...] = (
        ("r{}", "paired"),
        ("ra{}", "average"),
        ("rc{}", "centered"),
        ("r{}_allpairs", "all_pairs"),
    )
    for pattern, form in forms:
        for base, cost in (("sgan", LOG), ("lsgan", SQUARE), ("hinge", HINGE)):
            losses.append(AdversarialLoss(pattern.format(base), form, cost))
    named = {loss.name: loss for loss in losses}
    variants = (
        ("ragan", "rasgan", "none"),
        ("rsgan_gp", "rsgan", "gp"),
        ("rasgan_gp", "rasgan", "gp"),
        ("rpgan_r1r2", "rsgan", "r1r2"),
    )
    for name, base, penalty in variants:
        named[name] = replace(named[base], name=name, penalty=penalty)
    return MappingProxyType(named)


LOSSES: Mapping[str, AdversarialLoss] = _catalogue()
"""Every named loss; its recommended penalty is a hint, not part of the loss's value."""


def get_loss(name: str, generator_terms: str = "both") -> AdversarialLoss:
    """The loss of that name.

    Raises:
        ConfigError: an unknown name, or ``generator_terms`` this loss does not accept.
    """
    if name not in LOSSES:
        raise ConfigError("loss.name", f"{name!r} is not one of {', '.join(LOSSES)}")
    return replace(LOSSES[name], generator_terms=generator_terms)
