"""Optimizers, whatever engine runs them, and their states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from relgan.config import OptimizerConfig


def build_optimizers(
    config: OptimizerConfig, generator: nn.Module, critic: nn.Module, *, fused: bool = True, captured: bool = False
) -> tuple[Optimizer, Optimizer]:
    """The generator's and the critic's optimizer.

    Args:
        fused: Adam's one-kernel update.
        captured: for a CUDA graph; the learning rate is then a tensor that the graph reads at every replay.
    """

    def build(network: nn.Module, rate: float) -> Optimizer:
        parameters = list(network.parameters())
        lr = torch.tensor(rate, device=parameters[0].device) if captured else rate
        beta1, beta2 = config.betas
        if config.name == "adam":
            return Adam(parameters, lr, (beta1, beta2), config.eps, fused=fused, capturable=captured)
        return RMSprop(parameters, lr, beta2, config.eps, foreach=True, capturable=captured)

    return build(generator, config.lr_g), build(critic, config.lr_d)


# How an optimizer computes, not what; and the learning rate, a number or a tensor.
_OWN = ("lr", "initial_lr", "fused", "foreach", "capturable")


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Its state_dict, the learning rate as a plain number whatever the engine."""
    state = optimizer.state_dict()
    numbers = [{key: float(group[key]) for key in _OWN[:2] if key in group} for group in state["param_groups"]]
    return {**state, "param_groups": [group | n for group, n in zip(state["param_groups"], numbers, strict=True)]}


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Continue from :func:`optimizer_state` of any engine in the manner of this one."""
    own = [{key: group[key] for key in _OWN if key in group} for group in optimizer.param_groups]
    flags = [{key: value for key, value in group.items() if key not in _OWN[:2]} for group in own]
    # With them in place, load_state_dict also puts the step counts on the device where this engine wants them.
    groups = [saved | ours for saved, ours in zip(state["param_groups"], flags, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, kept, saved in zip(optimizer.param_groups, own, state["param_groups"], strict=True):
        group.update(kept)
        for key in _OWN[:2]:
            if key in saved:
                set_rate(group, saved[key], key)


def set_rate(group: dict[str, Any], rate: float, key: str = "lr") -> None:
    """Set a group's learning rate, in its tensor where it has one, which a CUDA graph reads."""
    if isinstance(group.get(key), Tensor):
        group[key].fill_(rate)
    else:
        group[key] = rate
