"""An exponential moving average of the generator's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class EMA:
    """A copy of a network whose parameters follow the original's slowly.

    Each update moves every parameter by 1 − d towards the original, with d = min(decay, (1 + t) / (10 + t))
    at the t-th update: without this start, a run of fewer updates than 1 / (1 − decay) would end with much of
    its initial noise in the average. Buffers (running statistics) are copied.

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

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards ``network``, which must have the structure of the original; no synchronisation."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
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
