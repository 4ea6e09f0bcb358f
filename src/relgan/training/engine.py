"""How an iteration runs: on which device, in which arithmetic, kernel by kernel or as one CUDA graph."""

from __future__ import annotations

import ctypes
import logging
import os
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
from relgan.training.update import CriticResult, GeneratorResult, Precision, Update

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


def prepare_device(name: str) -> torch.device:
    """The device of that name, made ready: for training, scores and samples alike.

    ``auto``: CUDA, else MPS, else the CPU. Float32 is float32, which TF32 is not.

    Raises:
        ConfigError: the named device is not there.
    """
    device = _choose_device(name)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    # Batches have one size, so looking once for the fastest convolutions pays.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _choose_device(name: str) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    elif not available[name]:
        present = ", ".join(kind for kind, there in available.items() if there)
        raise ConfigError("device", f"{name} is not available on this machine (accepted here: auto, {present})")
    if name != "cuda":
        return torch.device(name)
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise ConfigError("device", f"there are {count} GPUs for {number + 1} or more ranks; start fewer, or use cpu")
    # The one that this rank has chosen (relgan.distributed.join).
    return torch.device(name, torch.cuda.current_device())


def has_bf16_units(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def choose_precision(name: str, device: torch.device) -> Precision:
    """``auto``: bf16 where the device has units for it, else fp32."""
    if name == "auto":
        name = "bf16" if has_bf16_units(device) else "fp32"
    return Precision(device, name)


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


def keep_freed_memory() -> None:
    """Stop glibc from returning freed activations to the system, only to fault them in again every iteration.

    Elsewhere (macOS, musl) this does nothing.
    """
    m_mmap_max, m_trim_threshold = -4, -1
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    except (OSError, AttributeError):
        log.debug("no glibc here; its allocator stays as it is")


@dataclass(frozen=True)
class Eager:
    """The iteration as written; ``latents`` draws z for one update."""

    update: Update
    latents: Callable[[], Tensor]

    def __call__(self, reals: Sequence[Batch], *, penalised: bool = True) -> Results:
        *for_critic, for_generator = reals
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
