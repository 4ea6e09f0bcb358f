"""Everything that must survive a stop, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from relgan.config import RelganError
from relgan.data.sampler import Batches
from relgan.distributed import broadcast
from relgan.training.ema import EMA
from relgan.training.schedule import load_optimizer_state, optimizer_state


@dataclass
class TrainState:
    """Networks, average, optimizers, schedules and data order, with the generator updates done so far."""

    generator: nn.Module
    critic: nn.Module
    ema: EMA
    optimizers: tuple[Optimizer, Optimizer]
    schedules: tuple[ExponentialLR, ExponentialLR]
    batches: Batches
    device: torch.device
    step: int = 0
    epoch: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and containers of them."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer_state(optimizer) for optimizer in self.optimizers],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
            "batches": self.batches.state_dict(),
            "rng": rng_state(self.device),
        }

    def share_buffers(self) -> None:
        """Give every rank rank 0's buffers: running statistics of batch norm, which each follows on its own."""
        for network in (self.generator, self.critic, self.ema.module):
            broadcast(network.buffers())

    def load_state_dict(self, state: dict[str, Any]) -> None:
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
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)
        self.batches.load_state_dict(state["batches"])
        self.step, self.epoch, self.seconds = state["step"], state["epoch"], state["seconds"]
        set_rng_state(state["rng"], self.device)


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
