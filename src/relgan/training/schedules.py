"""Values that move during training, as functions of the images that the critic has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Adam, Optimizer

from relgan.config import Config
from relgan.registry import RandomOptions
from relgan.training.optimizers import MovingAdam
from relgan.training.state import TrainState, set_rate
from relgan.training.update import Update

Course = Callable[[int], float]


@dataclass(frozen=True)
class Cosine:
    """From ``first`` to ``last`` along half a cosine over ``burn_in`` images, then constant (R3GAN, 2501.05441)."""

    first: float
    last: float
    burn_in: float

    def __call__(self, images: int) -> float:
        done = min(images / self.burn_in, 1.0)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class ExponentialDecay:
    """``first``, multiplied by 1 − ``decay`` after each epoch of that many images."""

    first: float
    decay: float
    epoch: int

    def __call__(self, images: int) -> float:
        return float(self.first * (1 - self.decay) ** (images // self.epoch))


@dataclass(frozen=True)
class ScheduledValue:
    """One value that moves: as a function of the images seen, and what sets it."""

    at: Course
    set: Callable[[float], None]


class Schedules:
    """Everything that moves in one run. It keeps nothing: the images seen so far say it all, also after a resume.

    Attributes:
        moving: name, as it is logged, -> the value.
    """

    def __init__(self, config: Config, num_images: int, state: TrainState, update: Update) -> None:
        self._images = config.images_per_update
        self.moving = dict(_moving(config, num_images, state, update))

    def apply(self, step: int) -> None:
        """Set every value for the update that follows ``step`` generator updates."""
        for value in self.moving.values():
            value.set(value.at(step * self._images))

    def values(self, step: int) -> dict[str, float]:
        """Each value as the newest of ``step`` updates used it, by the key it is logged under."""
        images = max(0, step - 1) * self._images
        return {f"train/{name}": value.at(images) for name, value in self.moving.items()}


def _moving(config: Config, num_images: int, state: TrainState, update: Update) -> Iterator[tuple[str, ScheduledValue]]:
    schedule, optimizer = config.schedule, config.optimizer
    burn_in = schedule.burn_in or 1.0

    def cosine(first: float, last: float | None) -> Course | None:
        return None if last is None else Cosine(first, last, burn_in)

    rates = {"lr_g": (optimizer.lr_g, schedule.lr_g), "lr_d": (optimizer.lr_d, schedule.lr_d)}
    for (name, (first, last)), target in zip(rates.items(), state.optimizers, strict=True):
        if optimizer.decay:
            yield name, ScheduledValue(ExponentialDecay(first, optimizer.decay, num_images), _rate_of(target))
        elif course := cosine(first, last):
            yield name, ScheduledValue(course, _rate_of(target))
    if course := cosine(optimizer.betas[1], schedule.beta2):
        yield "beta2", ScheduledValue(course, _beta2_of(*state.optimizers))
    weight = getattr(config.penalty, "weight", 1.0)
    if course := cosine(weight, schedule.gamma):
        yield "gamma", ScheduledValue(course, lambda value: _fill(update.penalty_scale, value / weight))
    if isinstance(config.augment, RandomOptions) and (course := cosine(config.augment.p, schedule.augment_p)):
        yield "augment_p", ScheduledValue(course, lambda value: _fill(update.strength.p, value))
    if course := cosine(0.0, schedule.ema_half_life):
        yield (
            "ema_half_life",
            ScheduledValue(course, lambda value: state.ema.set_half_life(value / config.images_per_update)),
        )


def _fill(tensor: Tensor, value: float) -> None:
    tensor.fill_(value)


def _rate_of(optimizer: Optimizer) -> Callable[[float], None]:
    def put(value: float) -> None:
        for group in optimizer.param_groups:
            set_rate(group, value)

    return put


def _beta2_of(*optimizers: Optimizer) -> Callable[[float], None]:
    """RMSprop's α is its β₂."""

    def put(value: float) -> None:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                if isinstance(optimizer, MovingAdam):
                    group["betas"][1].fill_(value)
                elif isinstance(optimizer, Adam):
                    group["betas"] = (group["betas"][0], value)
                else:
                    group["alpha"] = value

    return put
