"""Where things are computed and in which arithmetic: one preparation for training, scores and samples alike."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from relgan.options import ConfigError

log = logging.getLogger("relgan")


def prepare_device(name: str, *, deterministic: bool | None = None) -> torch.device:
    """The device of that name, made ready: for training, scores and samples alike.

    ``auto``: CUDA, else MPS, else the CPU. Float32 is float32, which TF32 is not; :meth:`Precision.in_force` allows it.

    Args:
        deterministic: whether a GPU takes kernels that add in the same order each time, where torch has them; it warns
            of an operation that has none. None: as it was.

    Raises:
        ConfigError: the named device is not there.
    """
    device = _choose_device(name)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device.type == "cuda" and deterministic is not None:
        torch.backends.cudnn.deterministic = deterministic
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        if deterministic:
            # Read when cuBLAS is first used.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Batches have one size, so looking once for the fastest convolutions pays. Another run may find others.
    torch.backends.cudnn.benchmark = device.type == "cuda" and not torch.backends.cudnn.deterministic
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
class Precision:
    """Arithmetic of networks; parameters and losses are float32 in each.

    Attributes:
        name: "fp32"; "tf32", float32 whose products and convolutions keep 10 bits of the mantissa; or "bf16", bfloat16
            in the forward passes, with float32 as in fp32 where autocast leaves it and in critics' last layers.
    """

    device: torch.device
    name: str

    def autocast(self) -> torch.autocast:
        """For a forward pass."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.name == "bf16")

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """For everything, backward passes too: float32 products are TF32 or not as the name says, whatever was set."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = _allows_tf32(cudnn), _allows_tf32(matmul)
        cudnn.allow_tf32 = matmul.allow_tf32 = self.name == "tf32"
        try:
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before


def _allows_tf32(backend: Any) -> bool:
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:  # somebody has set fp32_precision, too, after which torch reads neither
        return False


def choose_precision(name: str, device: torch.device) -> Precision:
    """``auto``: bf16 where the device has units for it, else fp32.

    Raises:
        ConfigError: the device does not compute in the named one.
    """
    if name == "auto":
        name = "bf16" if has_bf16_units(device) else "fp32"
    return checked_precision("precision", name, device)


def checked_precision(option: str, name: str, device: torch.device) -> Precision:
    """The arithmetic that is the value of ``option``, which :class:`ConfigError` names where there is none such."""
    if name == "tf32" and not has_tf32_units(device):
        raise ConfigError(option, "tf32 needs an NVIDIA GPU since Ampere (accepted here: auto, fp32, bf16)")
    return Precision(device, name)


def has_bf16_units(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def has_tf32_units(device: torch.device) -> bool:
    """Whether TF32 is more than another name for float32."""
    return device.type == "cuda" and bool(torch.cuda.is_tf32_supported())
