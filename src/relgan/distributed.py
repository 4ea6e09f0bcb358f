"""The few collective operations relgan needs; each is the identity in a single process.

Ranks share one state of the default random generators: what is random is drawn for the whole batch everywhere,
and each rank uses its part (:func:`own_part`). A run therefore computes the same on any number of ranks, and the
checkpoint of rank 0 continues them all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=10)


def join() -> None:
    """Join the ranks that torchrun started; one that then waits longer than ``TIMEOUT`` for the others fails."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if (number := int(os.environ["LOCAL_RANK"])) < torch.cuda.device_count():
        torch.cuda.set_device(number)
    dist.init_process_group(backend, timeout=TIMEOUT)


def leave() -> None:
    """The end of what :func:`join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to people."""
    return rank() == 0


def own_part(values: Tensor) -> Tensor:
    """This rank's rows of what every rank has computed for the whole batch."""
    return values.chunk(world_size())[rank()]


def largest(value: int) -> int:
    """The largest of all ranks' values; all ranks must ask together."""
    if not is_distributed():
        return value
    values = torch.tensor(value)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values.item())


def from_main(text: str) -> str:
    """Rank 0's text, everywhere."""
    texts = [text]
    if is_distributed():
        dist.broadcast_object_list(texts, 0)
    return texts[0]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite every rank's tensors with those of rank 0."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on the sum.
        return _sum_over_ranks(gradient)


def _sum_over_ranks(values: Tensor) -> Tensor:
    """Differentiable any number of times."""
    total: Tensor = _AllReduce.apply(values)
    return total


def global_mean(values: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Mean over all elements (or ``dim``) of all ranks, with gradients to every rank's elements.

    Each rank's loss is the mean over its own part and gradients are averaged over ranks, so the backward pass
    averages too: a local mean is 13 % off in the gradient and a detached global one 65 %.
    """
    mean = values.mean() if dim is None else values.mean(dim)
    if not is_distributed():
        return mean
    return _sum_over_ranks(mean) / world_size()


def global_cat(values: Tensor) -> Tensor:
    """All ranks' (N,) tensors as one, with gradients to each (all-pairs losses)."""
    if not is_distributed():
        return values
    slots = [torch.zeros_like(values)] * world_size()
    slots[rank()] = values
    return _sum_over_ranks(torch.cat(slots))


def average(values: Tensor) -> Tensor:
    """Elementwise mean over ranks, in place and without gradients."""
    if is_distributed():
        dist.all_reduce(values)
        values /= world_size()
    return values


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over ranks, in one flat all-reduce."""
    if not is_distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
