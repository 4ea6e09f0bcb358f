"""Where and in which arithmetic the step runs."""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from relgan.config import ConfigError
from relgan.training.iteration import Captured, Eager, Iteration, agree
from relgan.training.step import Precision

log = logging.getLogger("relgan")


def choose_device(name: str) -> torch.device:
    """``auto``: CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: the named device is not there.
    """
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
    """``auto``: bf16 where the device has units for it, else fp32, which TF32 is not."""
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "bf16" if has_bf16_units(device) else "fp32"
    return Precision(device, name)


def choose_engine(name: str, device: torch.device, *, accumulate: int, ranks: int) -> str:
    """``auto``: a CUDA graph where one can be recorded, else eager; compiled networks brought nothing on CPUs.

    Raises:
        ConfigError: the named engine cannot run this.
    """
    obstacle = next(
        (
            reason
            for reason, applies in {
                "needs a CUDA device": device.type != "cuda",
                "needs train.accumulate=1": accumulate > 1,
                "runs in one process only": ranks > 1,
            }.items()
            if applies
        ),
        None,
    )
    if name == "auto":
        name = "eager" if obstacle else "cudagraph"
        log.info("engine: %s (%s)", name, f"a CUDA graph {obstacle}" if obstacle else "one launch per iteration")
    if name == "cudagraph" and obstacle:
        raise ConfigError("engine", f"cudagraph {obstacle} (accepted here: auto, eager, compiled)")
    return name


def build_iteration(
    name: str, eager: Eager, examples: Callable[[], Sequence[Tensor]], *, chosen_by_user: bool
) -> tuple[str, Iteration]:
    """The iteration in the form that :func:`choose_engine` named, after the name of the form it really has.

    Args:
        examples: makes images of the shapes to come, values in [−1, 1].
        chosen_by_user: a graph that cannot be recorded, or comes to other numbers, is an error, not a fallback.

    Raises:
        ConfigError: see ``chosen_by_user``.
    """
    step = eager.step
    if name == "compiled":
        # Not the critic itself: penalties differentiate it twice, which compiled code cannot.
        step.generate, step.judge = torch.compile(step.generator), torch.compile(step.critic)
    if name != "cudagraph":
        return name, eager
    reals = examples()
    try:
        with warnings.catch_warnings():
            # The warm-up and the comparison run eagerly what is made for a graph.
            warnings.filterwarnings("ignore", message=".*capturable=True")
            captured = Captured(eager, reals)
            problem = None if agree(eager, captured, step, reals) else "its first iteration differs from eager's"
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
