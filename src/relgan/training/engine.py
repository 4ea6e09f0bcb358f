"""Where and in which arithmetic the step runs."""

from __future__ import annotations

import ctypes
import logging

import torch

from relgan.config import ConfigError
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
    # The one that this rank has chosen (relgan.distributed.join).
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


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
