"""summary.json: how a run stands, in one small file."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch

Status = Literal["running", "finished", "diverged", "failed", "interrupted"]

PACKAGES = ("relgan", "torch", "torchvision", "torchmetrics", "hydra-core", "numpy", "pillow")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The training device and the processor beside it."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: the device's for CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Speed:
    """Images per second from the medians of whole logging intervals; the first interval is warm-up."""

    images_per_iteration: int
    seconds: list[float] = field(default_factory=list)

    def add(self, seconds: float, iterations: int) -> float:
        """Record an interval; returns its images per second."""
        self.seconds.append(seconds / iterations)
        return self.images_per_iteration * iterations / seconds

    @property
    def images_per_second(self) -> float | None:
        measured = self.seconds[1:] or self.seconds
        return self.images_per_iteration / statistics.median(measured) if measured else None


def update_best(
    best: dict[str, dict[str, float]], scores: Mapping[str, float], step: int, directions: Mapping[str, str]
) -> set[str]:
    """Keep the best value and its step of every score with a direction; returns the keys that improved."""
    improved = set()
    for key, direction in directions.items():
        value, kept = scores[key], best.get(key)
        better = kept is None or (value < kept["value"] if direction == "min" else value > kept["value"])
        if better:
            best[key] = {"value": value, "step": step}
            improved.add(key)
    return improved


def best_of(scores: Mapping[int, float], direction: str, count: int) -> dict[int, float]:
    """The ``count`` best of the scores by step, the best first; of equals the earlier."""
    sign = 1 if direction == "min" else -1
    ordered = sorted(scores, key=lambda step: (sign * scores[step], step))
    return {step: scores[step] for step in ordered[:count]}
