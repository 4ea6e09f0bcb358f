"""What training adds to the critic's loss, whichever it is: terms of the logits alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import relu

from relgan.distributed import average
from relgan.losses import flat_logits
from relgan.registry import LossOptions

DECAY = 0.99


class SideTerms:
    """λ_c·E[(r + f)²] + λ_l·E[relu(r − α_F)² + relu(α_R − f)²], r and f the logits of real and of fake images.

    The first, centring (Lin et al. 2025, arXiv 2511.22475), holds the middle of each pair at 0, which a loss of
    differences alone leaves to drift. The second, LeCam (Tseng et al. 2021), holds the logits near the other side's
    moving average, for little data.

    Args:
        centring: λ_c.
        lecam: λ_l.
        device: of the logits.

    Attributes:
        real, fake: α_R and α_F, 0-d float32: averages of the logits of all updates observed, an update weighing 0.99
            times the next one; 0 before the first.
        observed: how many updates that were, 0-d float32.
    """

    def __init__(self, centring: float = 0.0, lecam: float = 0.0, device: torch.device | str | None = None) -> None:
        self.centring, self.lecam = centring, lecam
        self.real, self.fake, self.observed = (torch.zeros((), device=device) for _ in range(3))

    def __call__(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """The terms that have a coefficient.

        Args:
            real_logits, fake_logits: those of :meth:`relgan.losses.Loss.compare`, as many of each, paired.

        Returns:
            scalar, float32 or wider, with gradients to both logits but not to the averages.
        """
        r, f = flat_logits(real_logits, "real"), flat_logits(fake_logits, "fake")
        total = r.new_zeros(())
        if self.centring:
            total = total + self.centring * (r + f).square().mean()
        if self.lecam:
            distance = relu(r - self.fake).square().mean() + relu(self.real - f).square().mean()
            total = total + self.lecam * distance
        return total

    @torch.no_grad()
    def observe(self, real_logits: Tensor, fake_logits: Tensor) -> None:
        """Take the logits of an update, those of all ranks, into the averages; the authors do so before its term.

        In place and without waiting for the device. Without a LeCam term nothing needs the averages.
        """
        if not self.lecam:
            return
        self.observed += 1
        # Corrects for the start at 0, as Adam does.
        rate = (1 - DECAY) / (1 - DECAY**self.observed)
        for mean, logits in ((self.real, real_logits), (self.fake, fake_logits)):
            mean.lerp_(average(logits.float().mean()), rate)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that follow later updates (not copies)."""
        return {"real": self.real, "fake": self.fake, "observed": self.observed}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave, in place."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def build_side_terms(options: LossOptions, device: torch.device) -> SideTerms:
    return SideTerms(options.centring, options.lecam, device)
