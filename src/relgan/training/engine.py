"""How an iteration runs: kernel by kernel, through torch's compiler, or as one CUDA graph."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from relgan.config import Config
from relgan.data.batches import Batch
from relgan.distributed import largest, world_size
from relgan.options import ConfigError, first_line
from relgan.training.state import Snapshot, scaled_rates
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


class NotRecorded(RuntimeError):
    """A CUDA graph cannot be made of an iteration that runs without one."""


def choose_engine(name: str, device: torch.device, config: Config) -> str:
    """``auto``: a CUDA graph where one can be recorded, else eager; compiled networks brought nothing on CPUs.

    Raises:
        ConfigError: the named engine cannot run this.
    """
    obstacles = {
        "needs a CUDA device": device.type != "cuda",
        # A graph would keep the α it has met, which torch's RMSprop takes as a number.
        "needs schedule.beta2=null for RMSprop": config.schedule.beta2 is not None
        and config.optimizer.name == "rmsprop",
    }
    obstacle = next((reason for reason, applies in obstacles.items() if applies), None)
    if name == "auto":
        name = "eager" if obstacle else "cudagraph"
        log.info("engine: %s (%s)", name, f"a CUDA graph {obstacle}" if obstacle else "one launch per iteration")
    if name == "cudagraph" and obstacle:
        raise ConfigError("engine", f"cudagraph {obstacle} (accepted here: auto, eager, compiled)")
    return name


def build_iteration(
    name: str,
    eager: Eager,
    examples: Callable[[], Sequence[Batch]],
    *,
    chosen_by_user: bool,
    capture: Capture[Results] | None = None,
) -> tuple[str, Iteration]:
    """The iteration in the form that :func:`choose_engine` named, after the name of the form it really has.

    Args:
        examples: makes images of the shapes to come, values in [−1, 1].
        chosen_by_user: a graph that cannot be recorded, or comes to other numbers, is an error, not a fallback.
        capture: :func:`cuda_graph`, or a stand-in where there is no GPU.

    Raises:
        ConfigError: see ``chosen_by_user``; or one of several ranks has no memory for a graph.
    """
    update = eager.update
    if name == "compiled":
        # Not the critic itself: penalties differentiate it twice, which compiled code cannot.
        update.generate, update.judge = (torch.compile(network, dynamic=False) for network in update.networks)
    if name != "cudagraph":
        return name, eager
    with warnings.catch_warnings():
        # The warm-up and the comparison run eagerly what is made for a graph.
        warnings.filterwarnings("ignore", message=".*capturable=True")
        made = _recorded(eager, examples(), capture or partial(cuda_graph, pool=torch.cuda.graph_pool_handle()))
    release_memory(update)
    if not isinstance(made, str):
        return name, made
    if chosen_by_user:
        raise ConfigError("engine", f"cudagraph cannot be used here: {made} (accepted: auto, eager, compiled)")
    log.warning("engine: eager, because a CUDA graph cannot be used here: %s", made)
    return "eager", eager


def _recorded(eager: Eager, reals: Sequence[Batch], capture: Capture[Results]) -> Captured | str:
    """The recorded iteration, or why there is none; the same kind on all ranks.

    Raises:
        ConfigError: one of several ranks has no memory for it.
    """
    try:
        captured = Captured(eager, reals, capture)
        # A graph that keeps the images it was recorded with is right about those.
        same = agree(eager, captured, eager.update, [real._replace(images=-real.images) for real in reals])
    except NotRecorded as error:
        return first_line(error)
    except torch.OutOfMemoryError as error:
        # The comparison needs the memory of a second step.
        reason = first_line(error)
        if world_size() > 1:
            # The others wait for this rank inside an iteration: only its end frees them.
            raise ConfigError("engine", f"cudagraph has no memory here ({reason}); give engine=eager") from error
        return reason
    return "its first iteration differs from eager's" if largest(not same) else captured


def release_memory(update: Update) -> None:
    """Give back what warm-up, recording and comparison have used: as much again as the recorded step itself."""
    for optimizer in (update.optimizer_g, update.optimizer_d):
        optimizer.zero_grad(set_to_none=True)
    if update.precision.device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Eager:
    """The iteration as written.

    Attributes:
        latents: draws z for one update.
        redraw_fake: whether the generator's update has latents of its own, or those of the last critic update.
    """

    update: Update
    latents: Callable[[], Tensor]
    redraw_fake: bool = True

    def __call__(self, reals: Sequence[Batch], *, penalised: bool = True) -> Results:
        update = self.update
        *others, last, for_generator = reals
        with update.precision.in_force():
            for real in others:
                update.update_critic(real, self.latents(), penalised=penalised)
            z, redraw = self.latents(), self.redraw_fake
            kept = None if redraw else update.keep_fakes(last, z)
            critic = update.update_critic(last, z, fake=kept, penalised=penalised)
            if redraw:
                z = self.latents()
            return critic, update.update_generator(for_generator, z, fake=kept, redrawn=redraw)


def cuda_graph(
    work: Callable[[], T], undo: Callable[[], None], pool: torch.cuda._POOL_HANDLE | None = None
) -> tuple[Callable[[], None], T]:
    """Record ``work``: returns what plays it again and the results, which every replay overwrites.

    Args:
        work: does the same to the same memory at every call, without waiting for the device.
        undo: puts back what ``work`` changed. Libraries must have run once before they can be recorded.
        pool: memory shared with other graphs, none of which runs at the same time; None: the graph has its own.

    Raises:
        NotRecorded: ``work`` runs, but not as a graph; torch is as it was before.
    """
    outside, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    outside.wait_stream(stream)
    undo()
    graph, pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
    try:
        # Other threads may go on meanwhile, such as NCCL's watchdog, which asks how far its events are.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = work()
    except (RuntimeError, AssertionError) as error:
        _end_of_capture(outside, pool)
        raise NotRecorded(_cause(error)) from error
    return graph.replay, results


def _end_of_capture(outside: torch.cuda.Stream, pool: tuple[int, int]) -> None:
    """What torch leaves undone where the end of a capture raises, seen in its source from 2.6 to 2.14."""
    torch.cuda.set_stream(outside)
    # Until 2.11 the generator believes that it is still recorded.
    rng = torch.cuda.default_generators[outside.device_index]
    rng.graphsafe_set_state(torch.Generator(outside.device))
    # Else the allocator keeps what was recorded and refuses to empty its cache. It complains where the graph does both.
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(outside.device_index, pool)
        torch._C._cuda_releasePool(outside.device_index, pool)


def _cause(error: BaseException) -> str:
    """The first line of the error that came first: the end of a broken capture raises one of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return first_line(error)


class Captured:
    """An eager iteration recorded and replayed: no time between its hundreds of small kernels.

    Where the penalty skips some iterations, those are recorded, too.

    The optimizers must have been built with ``captured`` (``relgan.training.optimizers``).

    Args:
        eager: left in the state it is in.
        reals: images of the shapes to come, for the warm-up.
        capture: :func:`cuda_graph`, or a stand-in where there is no GPU.

    Raises:
        NotRecorded: there is no graph of it, here or on another rank.
    """

    def __init__(self, eager: Eager, reals: Sequence[Batch], capture: Capture[Results]) -> None:
        self._reals = [
            Batch(real.images.clone(), None if real.labels is None else real.labels.clone()) for real in reals
        ]
        self._recorded: dict[bool, tuple[Callable[[], None], Results]] = {}
        snapshot = Snapshot(eager.update)
        for penalised in kinds(eager.update):
            problem = ""
            try:
                work = partial(eager, self._reals, penalised=penalised)
                self._recorded[penalised] = capture(work, snapshot.restore)
            except NotRecorded as error:
                problem = first_line(error)
            finally:
                snapshot.restore()
            # Before the next kind, because its updates talk to the other ranks.
            if largest(bool(problem)):
                raise NotRecorded(problem or "it could not be recorded on another rank")

    def __call__(self, reals: Sequence[Batch], *, penalised: bool = True) -> Results:
        torch._foreach_copy_(_tensors(self._reals), _tensors(reals))
        replay, results = self._recorded[penalised]
        replay()
        return results


def _tensors(batches: Iterable[Batch]) -> list[Tensor]:
    return [values for batch in batches for values in batch if values is not None]


def kinds(update: Update) -> tuple[bool, ...]:
    """Whether the penalty takes part, in each kind of iteration that there is."""
    return (True, False) if update.penalty.interval > 1 else (True,)


def agree(first: Iteration, second: Iteration, update: Update, reals: Sequence[Batch]) -> bool:
    """Whether two ways to run ``update`` do the same from its present state.

    They come to the same losses and gradient norms while nothing is learnt: Adam's first updates are signs, which blow
    rounding up to whole steps. And the networks go as far at half their rates, which a graph must read anew.
    """
    return all(_agree(first, second, update, reals, penalised) for penalised in kinds(update))


def _agree(first: Iteration, second: Iteration, update: Update, reals: Sequence[Batch], penalised: bool) -> bool:
    numbers, ways = [], []
    for iteration in (first, second):
        with _undone(update), scaled_rates(update, 0.0):
            critic, generator = iteration(reals, penalised=penalised)
            seen = [critic.loss, critic.penalty, critic.grad_norm, generator.loss, generator.grad_norm]
            numbers.append(torch.stack(seen).clone())
        with _undone(update), scaled_rates(update, 0.5):
            before = [[p.detach().clone() for p in network.parameters()] for network in update.networks]
            iteration(reals, penalised=penalised)
            ways.append(torch.stack([_distance(*pair) for pair in zip(before, update.networks, strict=True)]))
    # Two kernels may round bfloat16, of 8 bits, in different orders. A rate that is not read is off by a factor of 2.
    return torch.allclose(numbers[0], numbers[1], rtol=5e-2, atol=2e-2, equal_nan=True) and torch.allclose(
        ways[0], ways[1], rtol=0.25, equal_nan=True
    )


@contextlib.contextmanager
def _undone(update: Update) -> Iterator[None]:
    snapshot = Snapshot(update)
    try:
        yield
    finally:
        snapshot.restore()


@torch.no_grad()
def _distance(before: list[Tensor], network: nn.Module) -> Tensor:
    """How far the parameters have gone: 0-d."""
    moved = torch._foreach_sub(list(network.parameters()), before)
    distance: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(moved)))
    return distance
