"""The mathematics of one step: a critic update and a generator update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from relgan.distributed import average_gradients, global_mean
from relgan.losses import AdversarialLoss
from relgan.networks.blocks import pack
from relgan.penalties import Penalty


@dataclass
class Precision:
    """Arithmetic of the networks' forward passes; parameters and losses stay float32."""

    device: torch.device
    name: str

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.name == "bf16")


@dataclass
class CriticResult:
    """What a critic update saw: 0-d and (N,) float32 tensors on the training device."""

    loss: Tensor
    penalty: Tensor
    grad_norm: Tensor
    real_logits: Tensor
    fake_logits: Tensor


@dataclass
class GeneratorResult:
    """What a generator update saw; ``images`` are its fakes, (N, C, H, W) in [−1, 1]."""

    loss: Tensor
    grad_norm: Tensor
    images: Tensor


@dataclass
class Step:
    """One pair of networks under one loss, penalty and pair of optimizers.

    After a loss or gradient that is not finite no update is applied any more: ``diverged`` (0-d float32 on the
    device, 0 or 1) stays set and masks them, so that nothing needs to wait for the device to find out.
    """

    generator: nn.Module
    critic: nn.Module
    loss: AdversarialLoss
    penalty: Penalty | None
    optimizer_g: Optimizer
    optimizer_d: Optimizer
    precision: Precision
    pack: int = 1
    diverged: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.diverged = torch.zeros((), device=self.precision.device)

    def update_critic(self, real: Tensor, z: Tensor) -> CriticResult:
        """Update the critic on ``real`` (N, C, H, W) in [−1, 1] and latents ``z`` (N, latent_dim)."""
        with torch.no_grad(), self.precision.autocast():
            fake = self.generator(z)
        real, fake = pack(real, self.pack), pack(fake.float(), self.pack)
        with self.precision.autocast():
            # Two forwards: batch norm must not mix the statistics of real and fake images.
            real_logits = self.critic(real).float()
            fake_logits = self.critic(fake).float()
        loss = self.loss.discriminator(real_logits, fake_logits)
        penalty = torch.zeros_like(loss)
        if self.penalty is not None:
            with self.precision.autocast():
                penalty = self.penalty(self.critic, real, fake)
        grad_norm = self._apply(self.optimizer_d, self.critic, loss + penalty)
        if self.penalty is not None:
            self.penalty.after_step(self.critic)
        return CriticResult(loss.detach(), penalty.detach(), grad_norm, real_logits.detach(), fake_logits.detach())

    def update_generator(self, real: Tensor, z: Tensor) -> GeneratorResult:
        """Update the generator; ``real`` is only looked at by losses whose generator term compares with it."""
        self.critic.requires_grad_(False)
        try:
            with self.precision.autocast():
                images = self.generator(z)
                fake_logits = self.critic(pack(images, self.pack)).float()
                # With the critic frozen this forward is constant: no graph is kept.
                real_logits = self.critic(pack(real, self.pack)).float() if self.loss.needs_real_for_generator else None
            loss = self.loss.generator(real_logits, fake_logits)
            grad_norm = self._apply(self.optimizer_g, self.generator, loss)
        finally:
            self.critic.requires_grad_(True)
        return GeneratorResult(loss.detach(), grad_norm, images.detach())

    def _apply(self, optimizer: Optimizer, network: nn.Module, loss: Tensor) -> Tensor:
        """Backward and update unless anything was ever not finite; returns the global norm of the gradient."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for p in network.parameters() if p.grad is not None]
        average_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # Both the same on all ranks by now, so all ranks stop at the same update.
        self.diverged = torch.maximum(self.diverged, (~torch.isfinite(norm + global_mean(loss.detach()))).float())
        _masked_step(optimizer, gradients, self.diverged)
        return norm.detach()


def _masked_step(optimizer: Optimizer, gradients: Iterable[Tensor], masked: Tensor) -> None:
    """Let ``optimizer`` update, or leave the parameters as they are where ``masked`` is 1."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = masked  # type: ignore[attr-defined]
    elif isinstance(optimizer, Adam):
        # Its momentum would move the parameters on a zero gradient; the one case that waits for the device.
        if masked.item():
            return
    else:
        for gradient in gradients:
            gradient.copy_(torch.where(masked > 0, 0.0, gradient))
    optimizer.step()
