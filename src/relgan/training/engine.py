"""How an iteration runs: kernel by kernel, through torch's compiler, or as one CUDA graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from relgan.config import Config
from relgan.data.batches import Batch
from relgan.options import ConfigError
from relgan.training.state import Snapshot, without_learning
from relgan.training.update import CriticResult, GeneratorResult, Update

log = logging.getLogger("relgan")

Results = tuple[CriticResult, GeneratorResult]


class Iteration(Protocol):
    """All updates of one step."""

    def __call__(self, reals: Sequence[Batch], *, penalised: bool = True) -> Results:
        """Update the networks; returns what the last updates saw.

        Args:
            reals: the real images of each critic update, and then those of the generator's.
            penalised: whether the critic's penalty takes part.
        """


T = TypeVar("T")
Capture = Callable[[Callable[[], T], Callable[[], None]], tuple[Callable[[], None], T]]

WARM_UPS = 3


def choose_engine(name: str, device: torch.device, config: Config, *, ranks: int) -> str:
    """``auto``: a CUDA graph where one can be recorded, else eager; compiled networks brought nothing on CPUs.

    Raises:
        ConfigError: the named engine cannot run this.
    """
    obstacles = {
        "needs a CUDA device": device.type != "cuda",
        "needs train.accumulate=1": config.train.accumulate > 1,
        # torch takes β₂ as a number, which a graph would keep.
        "needs schedule.beta2=null": config.schedule.beta2 is not None,
        "runs in one process only": ranks > 1,
    }
    obstacle = next((reason for reason, applies in obstacles.items() if applies), None)
    if name == "auto":
        name = "eager" if obstacle else "cudagraph"
        log.info("engine: %s (%s)", name, f"a CUDA graph {obstacle}" if obstacle else "one launch per iteration")
    if name == "cudagraph" and obstacle:
        raise ConfigError("engine", f"cudagraph {obstacle} (accepted here: auto, eager, compiled)")
    return name


def build_iteration(
    name: str, eager: Eager, examples: Callable[[], Sequence[Batch]], *, chosen_by_user: bool
) -> tuple[str, Iteration]:
    """The iteration in the form that :func:`choose_engine` named, after the name of the form it really has.

    Args:
        examples: makes images of the shapes to come, values in [−1, 1].
        chosen_by_user: a graph that cannot be recorded, or comes to other numbers, is an error, not a fallback.

    Raises:
        ConfigError: see ``chosen_by_user``.
    """
    update = eager.update
    if name == "compiled":
        # Not the critic itself: penalties differentiate it twice, which compiled code cannot.
        update.generate, update.judge = torch.compile(update.generator), torch.compile(update.critic)
    if name != "cudagraph":
        return name, eager
    reals = examples()
    try:
        with warnings.catch_warnings():
            # The warm-up and the comparison run eagerly what is made for a graph.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            captured = Captured(eager, reals)
            problem = None if agree(eager, captured, update, reals) else "its first iteration differs from eager's"
    except (RuntimeError, AssertionError) as error:
        problem = str(error).splitlines()[0]
    if problem is None:
        return name, captured
    if chosen_by_user:
        raise ConfigError("engine", f"cudagraph cannot be used here: {problem} (accepted: auto, eager, compiled)")
    log.warning("engine: eager, because a CUDA graph cannot be used here: %s", problem)
    return "eager", eager


@dataclass(frozen=True)
class Eager:
    """The iteration as written; ``latents`` draws z for one update."""

    update: Update
    latents: Callable[[], Tensor]

    def __call__(self, reals: Sequence[Batch], *, penalised: bool = True) -> Results:
        *for_critic, for_generator = reals
        with self.update.precision.in_force():
            for real in for_critic:
                critic = self.update.update_critic(real, self.latents(), penalised=penalised)
            return critic, self.update.update_generator(for_generator, self.latents())


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
    """An eager iteration recorded and replayed: no time between its hundreds of small kernels.

    Where the penalty skips some iterations, those are recorded, too.

    The optimizers must have been built with ``captured`` (``relgan.training.optimizers``).

    Args:
        eager: left in the state it is in.
        reals: images of the shapes to come, for the warm-up.
        capture: :func:`cuda_graph`, or a stand-in where there is no GPU.
    """

    def __init__(self, eager: Eager, reals: Sequence[Batch], capture: Capture[Results] = cuda_graph) -> None:
        self._reals = [
            Batch(real.images.clone(), None if real.labels is None else real.labels.clone()) for real in reals
        ]
        self._recorded: dict[bool, tuple[Callable[[], None], Results]] = {}
        snapshot = Snapshot(eager.update)
        for penalised in (True, False) if eager.update.penalty.interval > 1 else (True,):
            try:
                work = partial(eager, self._reals, penalised=penalised)
                self._recorded[penalised] = capture(work, snapshot.restore)
            finally:
                snapshot.restore()

    def __call__(self, reals: Sequence[Batch], *, penalised: bool = True) -> Results:
        torch._foreach_copy_(_tensors(self._reals), _tensors(reals))
        replay, results = self._recorded[penalised]
        replay()
        return results


def _tensors(batches: Iterable[Batch]) -> list[Tensor]:
    return [values for batch in batches for values in batch if values is not None]


def agree(first: Iteration, second: Iteration, update: Update, reals: Sequence[Batch]) -> bool:
    """Whether two ways to run ``update`` come to the same losses and gradient norms from its present state.

    Nothing is learnt meanwhile: Adam's first updates are signs, which blow rounding up to whole steps.
    """
    numbers = []
    with without_learning(update):
        for iteration in (first, second):
            snapshot = Snapshot(update)
            critic, generator = iteration(reals)
            seen = [critic.loss, critic.penalty, critic.grad_norm, generator.loss, generator.grad_norm]
            numbers.append(torch.stack(seen).clone())
            snapshot.restore()
    # Two kernels may round bfloat16, of 8 bits, in different orders.
    return torch.allclose(numbers[0], numbers[1], rtol=5e-2, atol=2e-2, equal_nan=True)
