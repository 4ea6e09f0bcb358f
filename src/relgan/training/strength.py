"""How strongly the critic's images are augmented."""

from __future__ import annotations

import torch
from torch import Tensor

from relgan.distributed import average
from relgan.registry import AugmentOptions, RandomOptions

_MEMORY = 0.75  # of the mean sign per update: about the four batches of the paper


class Strength:
    """The probability p of an augmentation: constant, moved by a schedule, or steered (Karras et al. 2020, ADA).

    Steered, p rises while the critic tells its real images apart more surely than ``target`` and falls while it does
    not. Everything stays on the device and is changed in place.

    Args:
        options: of the augmentation; those that are no RandomOptions do not read p.
        batch_size: real images of an update, over all ranks.
        scheduled: whether a schedule sets p, which is then not steered.

    Attributes:
        p: 0-d float32 in [0, 1].
        sign: 0-d float32 in [−1, 1], the recent mean sign of what the loss compares for real images.
        steered: whether the critic moves p.
    """

    def __init__(
        self, options: AugmentOptions, batch_size: int, device: torch.device, *, scheduled: bool = False
    ) -> None:
        known = options if isinstance(options, RandomOptions) else RandomOptions(p=0.0)
        self.steered = known.target is not None and not scheduled
        self._target = known.target or 0.0
        self._step = batch_size / known.ramp
        self.p = torch.tensor(known.p, device=device)
        self.sign = torch.tensor(self._target, device=device)

    @torch.no_grad()
    def steer(self, compared: Tensor) -> None:
        """Move p by what the critic said of a batch.

        Args:
            compared: (N,), a_real of the loss: r for a standard one, r − f for a paired one.
        """
        if not self.steered:
            return
        self.sign.lerp_(average(compared.sign().mean()), 1 - _MEMORY)
        self.p.add_((self.sign - self._target).sign(), alpha=self._step).clamp_(0, 1)

    def state_dict(self) -> dict[str, Tensor]:
        return {"p": self.p, "sign": self.sign}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.p.copy_(state["p"])
        self.sign.copy_(state["sign"])
