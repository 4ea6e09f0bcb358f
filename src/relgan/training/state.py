"""Everything of a run that must survive a stop, in one place."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relgan.data.batches import Batches
from relgan.distributed import broadcast
from relgan.metrics.catalogue import direction
from relgan.options import RelganError
from relgan.side_terms import SideTerms
from relgan.training.strength import Strength
from relgan.training.update import Update


class EMA:
    """A copy of a network whose parameters follow the original's slowly.

    Each update moves every parameter by 1 − d towards the original, with d = min(decay, (1 + t) / (10 + t))
    at the t-th update: without this start, a run of fewer updates than 1 / (1 − decay) would end with much of
    its initial noise in the average. A half-life that grows from 0 needs no such start. Buffers (running statistics)
    are copied.

    Attributes:
        module: the average, in evaluation mode and without gradients.
        decay: 0 makes the copy equal to the original.
        updates: t, the updates so far.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.module = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self._starts_slowly = True

    def set_half_life(self, updates: float) -> None:
        """From now on let the weight of what was averaged halve in that many updates; 0: at once."""
        self.decay = 0.5 ** (1 / updates) if updates > 0 else 0.0
        self._starts_slowly = False

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards ``network``, which must have the structure of the original; no synchronisation."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self._starts_slowly else self.decay
        averages: list[Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(averages, list(network.parameters()), 1 - decay)
        buffers = list(self.module.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(network.buffers()))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Tensors that follow later updates (not copies), and numbers."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; the decay stays this object's own."""
        self.module.load_state_dict(state["module"])
        self.updates = int(state["updates"])


@dataclass
class History:
    """What the run has been scored so far.

    Attributes:
        final: the newest scores.
        best: the best value of each score that has a direction, and its step.
        ranking: step -> value of the first score in ``best``, for the ``train.keep_best`` best.
        visited: whether everything due at the current update was done; False where a signal came before.
    """

    final: dict[str, float] = field(default_factory=dict)
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    ranking: dict[int, float] = field(default_factory=dict)
    visited: bool = True

    def remember(self, scores: Mapping[str, float], step: int, keep: int) -> bool:
        """Take in new scores and rank the step among the ``keep`` best; whether it is the best so far.

        That is by the first score which the first evaluation had. A generator that was never trained is not the best
        of anything.
        """
        self.final = dict(scores)
        if step == 0:
            return False
        ways = {key: way for key in scores if (way := direction(key)) is not None}
        improved = [key for key, way in ways.items() if self._improves(key, way, scores[key], step)]
        key = next(iter(self.best), None)
        if key not in ways:
            return False
        sign = 1 if ways[key] == "min" else -1
        ranked = {**self.ranking, step: scores[key]}
        # Of equals the earlier.
        ordered = sorted(ranked, key=lambda s: (sign * ranked[s], s))
        self.ranking = {s: ranked[s] for s in ordered[:keep]}
        return key in improved

    def _improves(self, key: str, way: str, value: float, step: int) -> bool:
        kept = self.best.get(key)
        better = kept is None or (value < kept["value"] if way == "min" else value > kept["value"])
        if better:
            self.best[key] = {"value": value, "step": step}
        return better


@dataclass
class TrainState:
    """Networks, average, optimizers, data order and scores, with the generator updates done so far."""

    generator: nn.Module
    critic: nn.Module
    ema: EMA
    optimizers: tuple[Optimizer, Optimizer]
    side_terms: SideTerms
    strength: Strength
    batches: Batches
    device: torch.device
    history: History = field(default_factory=History)
    step: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and containers of them."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer_state(optimizer) for optimizer in self.optimizers],
            "side_terms": self.side_terms.state_dict(),
            "strength": self.strength.state_dict(),
            "batches": self.batches.state_dict(),
            "rng": rng_state(self.device),
            "history": vars(self.history),
        }

    def share_buffers(self) -> None:
        """Give every rank rank 0's buffers: running statistics of batch norm, which each follows on its own."""
        for network in (self.generator, self.critic, self.ema.module):
            broadcast(network.buffers())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken.

        Raises:
            RelganError: the networks do not fit.
        """
        try:
            self.generator.load_state_dict(state["generator"])
            self.critic.load_state_dict(state["critic"])
            self.ema.load_state_dict(state["ema"])
        except RuntimeError as error:
            raise RelganError(f"resume: the checkpoint holds another model ({str(error).splitlines()[0]})") from error
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer_state(optimizer, saved)
        self.side_terms.load_state_dict(state["side_terms"])
        self.strength.load_state_dict(state["strength"])
        self.batches.load_state_dict(state["batches"])
        self.history = History(**state["history"])
        self.step, self.seconds = state["step"], state["seconds"]
        set_rng_state(state["rng"], self.device)


def optimizer_state(optimizer: Optimizer) -> dict[int, Any]:
    """Its moments. Rates and betas come from the configuration, or a schedule that sets them before every update."""
    state: dict[int, Any] = optimizer.state_dict()["state"]
    return state


def load_optimizer_state(optimizer: Optimizer, state: dict[int, Any]) -> None:
    """Continue from :func:`optimizer_state` of any engine in the manner of this one."""
    groups = [dict(group) for group in optimizer.param_groups]
    # With this engine's flags, load_state_dict also puts the step counts on the device where it wants them.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        # A graph reads a rate from the tensor that it has met.
        group.update(own)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's learning rate, in its tensor where it has one, which a CUDA graph reads."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """States of torch's default generators that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore what :func:`rng_state` took; a run moved to another kind of device keeps that device's own state."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


class Snapshot:
    """An update's weights, buffers, optimizers and random numbers, to be put back into the same memory."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self._saved = {id(tensor): tensor.detach().clone() for tensor in _tensors(update)}
        self._random = rng_state(update.precision.device)

    @torch.no_grad()
    def restore(self) -> None:
        for tensor in _tensors(self._update):
            # An optimizer's state begins, at its first update, as zeros.
            saved = self._saved.get(id(tensor))
            tensor.copy_(torch.zeros_like(tensor) if saved is None else saved)
        set_rng_state(self._random, self._update.precision.device)


def _tensors(update: Update) -> Iterator[Tensor]:
    yield from (update.diverged, update.penalty_scale)
    yield from (*update.side_terms.state_dict().values(), *update.strength.state_dict().values())
    for network in update.networks:
        yield from network.parameters()
        yield from network.buffers()
    for optimizer in (update.optimizer_g, update.optimizer_d):
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


@contextlib.contextmanager
def scaled_rates(update: Update, factor: float) -> Iterator[None]:
    """Learning rates times ``factor``, in the tensors that a graph reads."""
    groups = [group for optimizer in (update.optimizer_g, update.optimizer_d) for group in optimizer.param_groups]
    rates = [float(group["lr"]) for group in groups]
    try:
        for group, rate in zip(groups, rates, strict=True):
            set_rate(group, factor * rate)
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            set_rate(group, rate)
