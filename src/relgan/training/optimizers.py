"""The optimizers of both networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from relgan.config import OptimizerConfig


class MovingAdam(Adam):
    """Adam whose β₂ a CUDA graph reads at every replay, as it does the learning rate (Kingma & Ba 2015, algorithm 1).

    torch's own takes a number: aten::_fused_adam_ has a float, and its other ways (optim/adam.py, torch 2.14) give β₂
    to functions that want one. The state is that of torch's, so that each continues what the other has begun.
    """

    # Told by found_inf, 1 instead of 0, to leave the parameters as they are.
    _step_supports_amp_scaling = True
    found_inf: Tensor

    def __init__(self, parameters: list[nn.Parameter], lr: Tensor, betas: tuple[float, float], eps: float) -> None:
        super().__init__(parameters, lr, betas, eps, capturable=True)
        for group in self.param_groups:
            group["betas"] = (betas[0], torch.tensor(betas[1], device=lr.device))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            self._step(group)

    def _step(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        finite, zero = self.found_inf == 0, torch.zeros_like(self.found_inf)
        gradients = [torch.where(finite, p.grad, zero) for p in parameters]
        states = [self._state_of(p) for p in parameters]
        steps, means, squares = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_mul_(gradients, gradients)
        torch._foreach_mul_(gradients, 1 - beta2)
        torch._foreach_add_(squares, gradients)
        # Unlike torch's, it takes all parameters to have had a gradient in every step.
        roots = torch._foreach_sqrt(squares)
        torch._foreach_mul_(roots, torch.rsqrt(1 - beta2 ** steps[0]))
        torch._foreach_add_(roots, group["eps"])
        moves = torch._foreach_div(means, roots)
        torch._foreach_mul_(moves, group["lr"] / (1 - beta1 ** steps[0]) * (1 - self.found_inf))
        torch._foreach_sub_(parameters, moves)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def build_optimizers(
    config: OptimizerConfig,
    generator: nn.Module,
    critic: nn.Module,
    *,
    captured: bool = False,
    moving_beta2: bool = False,
) -> tuple[Optimizer, Optimizer]:
    """The generator's and the critic's optimizer.

    Args:
        captured: for a CUDA graph; the learning rate is then a tensor that the graph reads at every replay.
        moving_beta2: whether a schedule moves Adam's β₂, which is then such a tensor, too.
    """

    def build(network: nn.Module, rate: float) -> Optimizer:
        parameters = list(network.parameters())
        device = parameters[0].device
        lr = torch.tensor(rate, device=device) if captured else rate
        beta1, beta2 = config.betas
        if config.name == "adam" and isinstance(lr, Tensor) and moving_beta2:
            return MovingAdam(parameters, lr, (beta1, beta2), config.eps)
        if config.name == "adam":
            # Apple's fused kernel does not know the mask that keeps weights from a gradient that is not finite.
            fused = device.type != "mps"
            return Adam(parameters, lr, (beta1, beta2), config.eps, fused=fused, capturable=captured)
        return RMSprop(parameters, lr, beta2, config.eps, foreach=True, capturable=captured)

    return build(generator, config.lr_g), build(critic, config.lr_d)
