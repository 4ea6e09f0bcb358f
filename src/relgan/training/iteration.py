"""One whole iteration, n_critic critic updates and a generator update: kernel by kernel, or as one CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from relgan.training.schedule import set_rate
from relgan.training.state import rng_state, set_rng_state
from relgan.training.step import CriticResult, GeneratorResult, Step

Results = tuple[CriticResult, GeneratorResult]
Iteration = Callable[[Sequence[Tensor]], Results]
"""Takes the real images of each critic update and then those of the generator's; returns what the last ones saw."""

T = TypeVar("T")
Capture = Callable[[Callable[[], T], Callable[[], None]], tuple[Callable[[], None], T]]

WARM_UPS = 3


@dataclass(frozen=True)
class Eager:
    """The iteration as written; ``latents`` draws z for one update."""

    step: Step
    latents: Callable[[], Tensor]

    def __call__(self, reals: Sequence[Tensor]) -> Results:
        *for_critic, for_generator = reals
        for real in for_critic:
            critic = self.step.update_critic(real, self.latents())
        return critic, self.step.update_generator(for_generator, self.latents())


def cuda_graph(work: Callable[[], T], undo: Callable[[], None]) -> tuple[Callable[[], None], T]:
    """Record ``work``: returns what plays it again and the results, which every replay overwrites.

    Args:
        work: does the same to the same memory at every call, without waiting for the device.
        undo: puts back what ``work`` changed. Libraries must have run once before they can be recorded.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    undo()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph.replay, results


class Captured:
    """An eager iteration recorded once and replayed: no time between its hundreds of small kernels.

    The optimizers must have been built with ``captured`` (``relgan.training.schedule``).

    Args:
        eager: left in the state it is in.
        reals: images of the shapes to come, for the warm-up.
        capture: :func:`cuda_graph`, or a stand-in where there is no GPU.
    """

    def __init__(self, eager: Eager, reals: Sequence[Tensor], capture: Capture[Results] = cuda_graph) -> None:
        self._reals = [real.clone() for real in reals]
        snapshot = Snapshot(eager.step)
        try:
            self._replay, self._results = capture(lambda: eager(self._reals), snapshot.restore)
        finally:
            snapshot.restore()

    def __call__(self, reals: Sequence[Tensor]) -> Results:
        torch._foreach_copy_(self._reals, list(reals))
        self._replay()
        return self._results


class Snapshot:
    """A step's weights, buffers, optimizers and random numbers, to be put back into the same memory."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._saved = {id(tensor): tensor.detach().clone() for tensor in _tensors(step)}
        self._random = rng_state(step.precision.device)

    @torch.no_grad()
    def restore(self) -> None:
        for tensor in _tensors(self._step):
            # An optimizer's state begins, at its first update, as zeros.
            saved = self._saved.get(id(tensor))
            tensor.copy_(torch.zeros_like(tensor) if saved is None else saved)
        set_rng_state(self._random, self._step.precision.device)


def _tensors(step: Step) -> Iterator[Tensor]:
    yield step.diverged
    for network in (step.generator, step.critic):
        yield from network.parameters()
        yield from network.buffers()
    for optimizer in (step.optimizer_g, step.optimizer_d):
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def agree(first: Iteration, second: Iteration, step: Step, reals: Sequence[Tensor]) -> bool:
    """Whether two ways to run ``step`` come to the same losses and gradient norms from its present state.

    Nothing is learnt meanwhile: Adam's first updates are signs, which blow rounding up to whole steps.
    """
    numbers = []
    with _without_learning(step):
        for iteration in (first, second):
            snapshot = Snapshot(step)
            critic, generator = iteration(reals)
            seen = [critic.loss, critic.penalty, critic.grad_norm, generator.loss, generator.grad_norm]
            numbers.append(torch.stack(seen).clone())
            snapshot.restore()
    # Two kernels may round bfloat16, of 8 bits, in different orders.
    return torch.allclose(numbers[0], numbers[1], rtol=5e-2, atol=2e-2, equal_nan=True)


@contextlib.contextmanager
def _without_learning(step: Step) -> Iterator[None]:
    """Learning rates of 0, in the tensors that a graph reads."""
    groups = [group for optimizer in (step.optimizer_g, step.optimizer_d) for group in optimizer.param_groups]
    rates = [float(group["lr"]) for group in groups]
    try:
        for group in groups:
            set_rate(group, 0.0)
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            set_rate(group, rate)
