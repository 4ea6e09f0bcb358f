"""The gradient of a whole batch with the graph of only a part of it in memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from relgan.networks.blocks import SpectralNorm

Forward = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def held_spectral_norms(networks: Iterable[nn.Module]) -> Iterator[None]:
    """No power iteration: the parts of a batch meet the weights that the whole of it would meet."""
    norms = [m for network in networks for m in network.modules() if isinstance(m, SpectralNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def in_parts(batch: Tensor, count: int, networks: Sequence[nn.Module]) -> Iterator[Tensor]:
    """The ``count`` equal parts of ``batch``; after the first, spectral norms stay as it left them."""
    first, *others = batch.chunk(count)
    yield first
    with held_spectral_norms(networks):
        yield from others


def backward(
    forward: Forward, batches: Sequence[Tensor], loss: Callable[..., Tensor], count: int, networks: Sequence[nn.Module]
) -> tuple[Tensor, list[Tensor]]:
    """Add the gradient of ``loss(*[forward(batch) for batch in batches])`` to the parameters.

    A relativistic loss couples all samples, so ∂L/∂logits is taken over the whole batch before any part is
    differentiated: with more than one part every forward pass runs twice, first without a graph.

    Args:
        forward: from inputs (n, …) to logits (n,); run once or twice per part.
        batches: each (N, …), N a multiple of ``count``. They meet ``forward`` in this order, in batches of
            their own: batch norm sees one part at a time.
        count: parts of a batch.
        networks: what ``forward`` and ``loss`` run; their buffers end as after one pass.

    Returns:
        the loss and the logits of each batch, without graph.
    """
    if count == 1:
        logits = [forward(batch) for batch in batches]
        value = loss(*logits)
        value.backward()
        return value.detach(), [values.detach() for values in logits]
    buffers = [buffer for network in networks for buffer in network.buffers()]
    before = [buffer.clone() for buffer in buffers]
    with torch.no_grad():
        logits = [torch.cat([forward(p) for p in in_parts(batch, count, networks)]) for batch in batches]
    value = loss(*(values.requires_grad_() for values in logits))
    gradients = torch.autograd.grad(value, logits)
    after = [buffer.clone() for buffer in buffers]
    _restore(buffers, before)
    for batch, gradient in zip(batches, gradients, strict=True):
        parts = in_parts(batch, count, networks)
        for part, of_logits in zip(parts, gradient.chunk(count), strict=True):
            forward(part).backward(of_logits)
    _restore(buffers, after)
    return value.detach(), [values.detach() for values in logits]


@torch.no_grad()
def _restore(buffers: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
