"""The mathematics of training: a critic update and a generator update, whole or in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from relgan.augment import Augmentation
from relgan.data.batches import Batch
from relgan.device import Precision
from relgan.distributed import average_gradients, global_mean, own_part, world_size
from relgan.losses import Loss, flat_logits
from relgan.networks.blocks import one_power_iteration
from relgan.penalties import Penalty
from relgan.side_terms import SideTerms
from relgan.training.strength import Strength

Inputs = tuple[Tensor, ...]
Forward = Callable[..., Tensor]


@dataclass
class CriticResult:
    """What a critic update saw on this rank: 0-d and (N,) float32 tensors on the training device."""

    loss: Tensor
    penalty: Tensor
    grad_norm: Tensor
    real_logits: Tensor
    fake_logits: Tensor


@dataclass
class GeneratorResult:
    """What a generator update saw; ``images`` are its fakes, (N, C, H, W)."""

    loss: Tensor
    grad_norm: Tensor
    images: Tensor


@dataclass
class Update:
    """Updates one pair of networks under one loss, penalty, augmentation and pair of optimizers.

    After a loss or gradient that is not finite no update is applied any more: ``diverged`` (0-d float32 on the
    device, 0 or 1) stays set and masks them, so that nothing needs to wait for the device to find out.

    Attributes:
        generate, judge: run the two networks; an engine may replace them by faster equivalents, except for
            penalties, which differentiate the critic itself twice.
        penalty_scale: factor of the penalty, 0-d float32 on the device, where a schedule moves its coefficient.
        accumulate: parts that a batch is split into to save memory.
    """

    generator: nn.Module
    critic: nn.Module
    loss: Loss
    penalty: Penalty
    optimizer_g: Optimizer
    optimizer_d: Optimizer
    precision: Precision
    side_terms: SideTerms
    augmentation: Augmentation
    strength: Strength
    pack: int = 1
    accumulate: int = 1
    diverged: Tensor = field(init=False)
    penalty_scale: Tensor = field(init=False)
    generate: Forward = field(init=False)
    judge: Forward = field(init=False)

    def __post_init__(self) -> None:
        self.diverged = torch.zeros((), device=self.precision.device)
        self.penalty_scale = torch.ones((), device=self.precision.device)
        self.generate, self.judge = self.generator, self.critic

    @property
    def networks(self) -> tuple[nn.Module, nn.Module]:
        """The generator and the critic."""
        return self.generator, self.critic

    def keep_fakes(self, real: Batch, z: Tensor) -> Tensor | None:
        """Fakes of latents ``z`` with their graph, for both updates; None for a batch in parts, which save memory."""
        if self.accumulate > 1:
            return None
        with one_power_iteration((self.generator,)):
            return self._fakes(z, *real.condition)

    def _fakes(self, z: Tensor, *condition: Tensor) -> Tensor:
        with self.precision.autocast():
            return self.generate(z, *condition)

    def update_critic(
        self, real: Batch, z: Tensor, *, fake: Tensor | None = None, penalised: bool = True
    ) -> CriticResult:
        """Update the critic on real images and on fakes of latents ``z`` (N, latent_dim), which share their labels.

        Args:
            fake: what :meth:`keep_fakes` has made of ``z``, if anything.
            penalised: whether the penalty takes part in this update.
        """
        self.optimizer_d.zero_grad(set_to_none=True)
        with one_power_iteration(self.networks if fake is None else (self.critic,)):
            with torch.no_grad():
                made = self._fakes(z, *real.condition) if fake is None else fake.detach()
                made = made.to(real.images.dtype)
            reals, fakes = (self._view(images, *real.condition) for images in (real.images, made))
            loss, (real_logits, fake_logits) = backward(
                self._logits, (reals, fakes), self._critic_loss, self.accumulate, (self.critic,)
            )
            penalty = self._backward_penalty(reals, fakes) if penalised else torch.zeros_like(loss)
        grad_norm = self._apply(self.optimizer_d, self.critic, loss + penalty)
        self.penalty.after_step(self.critic)
        self.strength.steer(self.loss.compare(real_logits, fake_logits)[0])
        return CriticResult(loss, penalty, grad_norm, real_logits, fake_logits)

    def update_generator(
        self, real: Batch, z: Tensor, *, fake: Tensor | None = None, redrawn: bool = True
    ) -> GeneratorResult:
        """Update the generator; real images are only looked at by losses whose generator term compares with them.

        Args:
            fake: what :meth:`keep_fakes` has made of ``z``, if anything.
            redrawn: false where the critic's update had the same ``z``, and its fakes are to be the same again.
        """
        images: list[Tensor] = []

        def logits_of_fakes(z: Tensor, u: Tensor, *condition: Tensor) -> Tensor:
            made = self._fakes(z, *condition) if fake is None else fake
            images.append(made.detach())
            return self._logits(pack(made, self.pack), self._by_pack(u), *condition)

        def loss_of_fakes(fake_logits: Tensor) -> Tensor:
            return self.loss.generator(self._constant_logits(real), fake_logits)

        self.critic.requires_grad_(False)
        self.optimizer_g.zero_grad(set_to_none=True)
        try:
            fakes = (z, self._draw(len(z)), *real.condition)
            moving, still = (self.networks, ()) if redrawn else ((self.critic,), (self.generator,))
            with one_power_iteration(moving, still=still):
                loss, _ = backward(logits_of_fakes, (fakes,), loss_of_fakes, self.accumulate, self.networks)
        finally:
            self.critic.requires_grad_(True)
        grad_norm = self._apply(self.optimizer_g, self.generator, loss)
        # With several parts, the first of two passes has made them, too.
        made = images[0] if self.accumulate == 1 else torch.cat(images[-self.accumulate :])
        return GeneratorResult(loss, grad_norm, made)

    def _draw(self, count: int) -> Tensor:
        """The augmentation's random numbers for ``count`` images of this rank: (count, its numbers)."""
        shape = (count * world_size(), self.augmentation.numbers)
        return own_part(torch.rand(shape, device=self.precision.device))

    def _view(self, images: Tensor, *condition: Tensor) -> Inputs:
        """What the critic is shown: packed images, random numbers (N/k, k, …) for them, and their labels if any."""
        return pack(images, self.pack), self._by_pack(self._draw(len(images))), *condition

    def _by_pack(self, u: Tensor) -> Tensor:
        by_pack: Tensor = u.unflatten(0, (-1, self.pack))
        return by_pack

    def _augmented(self, images: Tensor, u: Tensor) -> Tensor:
        changed = self.augmentation(unpack(images, self.pack), u.flatten(0, 1), self.strength.p)
        return pack(changed, self.pack)

    def _logits(self, images: Tensor, u: Tensor, *condition: Tensor) -> Tensor:
        """What losses see: (n,), in float32 whatever the networks computed in."""
        seen = self._augmented(images, u)
        with self.precision.autocast():
            logits = self.judge(seen, *condition)
        return flat_logits(logits)

    def _critic_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        self.side_terms.observe(real_logits, fake_logits)
        return self.loss.discriminator(real_logits, fake_logits) + self.side_terms(real_logits, fake_logits)

    def _constant_logits(self, real: Batch) -> Tensor | None:
        """Logits of the real images where the generator's loss compares with them; no graph is kept."""
        if not self.loss.needs_real_for_generator:
            return None
        with torch.no_grad():
            view = self._view(real.images, *real.condition)
            return torch.cat([self._logits(*part) for part in in_parts(view, self.accumulate)])

    def _backward_penalty(self, reals: Inputs, fakes: Inputs) -> Tensor:
        """Add the penalty's gradient to the critic's parameters; returns its value."""
        total = torch.zeros_like(self.penalty_scale)
        labels = reals[2:]
        for points in self.penalty.points(reals[0], fakes[0]):
            count = len(points)
            view = (points, self._by_pack(self._draw(count * self.pack)), *(values[:count] for values in labels))
            for images, u, *condition in in_parts(view, self.accumulate):
                with self.precision.autocast():
                    term = self.penalty.term(self._judge_as(u, *condition), images)
                # A penalty may look at fewer images than there are, which parts share unequally.
                term = term * (self.penalty.interval * len(images) / count) * self.penalty_scale
                term.backward()
                total += term.detach()
        return total

    def _judge_as(self, u: Tensor, *condition: Tensor) -> Forward:
        """The critic itself, of images with these labels under this augmentation."""
        return lambda images: self.critic(self._augmented(images, u), *condition)

    def _apply(self, optimizer: Optimizer, network: nn.Module, loss: Tensor) -> Tensor:
        """Update by the gradients at hand unless anything was ever not finite; returns the gradient's norm."""
        parameters = [p for p in network.parameters() if p.grad is not None]
        average_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # Both the same on all ranks by now, so all ranks stop at the same update.
        not_finite = (~torch.isfinite(norm + global_mean(loss))).float()
        # In place: a CUDA graph reads and writes the same memory at every replay.
        torch.maximum(self.diverged, not_finite, out=self.diverged)
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


def pack(images: Tensor, k: int) -> Tensor:
    """Stack each k neighbouring images on the channel axis (PacGAN, Lin et al. 2018).

    Args:
        images: (N, C, H, W), N a multiple of k.

    Returns:
        (N/k, k·C, H, W), in the memory format of ``images``.
    """
    if len(images) % k:
        raise ValueError(f"{len(images)} images cannot be packed by {k}")
    if k == 1:
        return images
    n, channels, height, width = images.shape
    packed = images.reshape(n // k, k * channels, height, width)
    if images.is_contiguous(memory_format=torch.channels_last):
        return packed.contiguous(memory_format=torch.channels_last)
    return packed


def unpack(images: Tensor, k: int) -> Tensor:
    """The inverse of :func:`pack`: (N/k, k·C, H, W) to (N, C, H, W)."""
    if k == 1:
        return images
    n, channels, height, width = images.shape
    return images.reshape(n * k, channels // k, height, width)


def in_parts(batch: Inputs, count: int) -> Iterator[Inputs]:
    """The ``count`` equal parts of ``batch``."""
    return zip(*(values.chunk(count) for values in batch), strict=True)


def backward(
    forward: Forward, batches: Sequence[Inputs], loss: Callable[..., Tensor], count: int, networks: Sequence[nn.Module]
) -> tuple[Tensor, list[Tensor]]:
    """Add the gradient of ``loss(*[forward(*batch) for batch in batches])`` to the parameters.

    A relativistic loss couples all samples, so ∂L/∂logits is taken over the whole batch before any part is
    differentiated: with more than one part every forward pass runs twice, first without a graph.

    With one part, real and fake images meet a critic that judges each alone in one pass, others in two: batch norm must
    not mix their statistics.

    Args:
        forward: from inputs (n, …) to logits (n,); run once or twice per part.
        batches: the inputs of each, (N, …), N a multiple of ``count``. They meet ``forward`` in this order.
        count: parts of a batch.
        networks: what ``forward`` and ``loss`` run; their buffers end as after one pass.

    Returns:
        the loss and the logits of each batch, without graph.
    """
    if count == 1:
        together = all(getattr(network, "judges_each_image_alone", False) for network in networks)
        logits = _forward_together(forward, batches) if together else [forward(*batch) for batch in batches]
        value = loss(*logits)
        value.backward()
        return value.detach(), [values.detach() for values in logits]
    buffers = [buffer for network in networks for buffer in network.buffers()]
    before = [buffer.clone() for buffer in buffers]
    with torch.no_grad():
        logits = [torch.cat([forward(*p) for p in in_parts(batch, count)]) for batch in batches]
    value = loss(*(values.requires_grad_() for values in logits))
    gradients = torch.autograd.grad(value, logits)
    after = [buffer.clone() for buffer in buffers]
    _restore(buffers, before)
    for batch, gradient in zip(batches, gradients, strict=True):
        parts = in_parts(batch, count)
        for part, of_logits in zip(parts, gradient.chunk(count), strict=True):
            forward(*part).backward(of_logits)
    _restore(buffers, after)
    return value.detach(), [values.detach() for values in logits]


def _forward_together(forward: Forward, batches: Sequence[Inputs]) -> list[Tensor]:
    joined = (torch.cat(values) for values in zip(*batches, strict=True))
    return list(forward(*joined).chunk(len(batches)))


@torch.no_grad()
def _restore(buffers: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
