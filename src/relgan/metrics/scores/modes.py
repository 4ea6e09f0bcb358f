"""Mode coverage: which of the 1,000 stacked digits a generator makes, with the digit classifier as judge."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from relgan.config import MetricsConfig
from relgan.metrics.extractors import Extractor, Extractors
from relgan.metrics.scores import Batch, Score


def mode_kl(histogram: Tensor) -> float:
    """KL(generated modes ‖ uniform over all modes) in nats; 0 is even coverage, log K is one mode only.

    Args:
        histogram: (K,) images assigned to each mode, not all zero.
    """
    p = histogram.to(torch.float64) / histogram.sum()
    return max(0.0, math.log(len(histogram)) + float(torch.xlogy(p, p).sum()))


class ModeHistogram(Metric):
    """Images assigned to each mode (the most likely class) and the probability of that class."""

    full_state_update = False
    histogram: Tensor
    confidence: Tensor

    def __init__(self, num_modes: int) -> None:
        super().__init__()
        self.add_state("histogram", torch.zeros(num_modes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("confidence", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """Add logits (N, K)."""
        best = logits.to(torch.float64).softmax(dim=1).max(dim=1)
        # Not bincount, which waits for the device.
        self.histogram.index_add_(0, best.indices, torch.ones_like(best.indices))
        self.confidence += best.values.sum()

    def compute(self) -> tuple[Tensor, float]:
        """The histogram (K,) and the mean confidence."""
        return self.histogram, float(self.confidence / self.histogram.sum())


class Modes(Score):
    """How many modes appear, how evenly, and how sure the judge is."""

    extractor: Extractor

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        super().__init__(options, metrics, extractors)
        self.extractor = extractors["digits"]
        self.images = metrics.modes_images

    def accumulator(self) -> ModeHistogram:
        return ModeHistogram(self.extractor.num_classes)

    def update(self, accumulator: ModeHistogram, batch: Batch) -> None:
        accumulator.update(batch.logits)

    def compute(self, accumulated: tuple[Tensor, float]) -> dict[str, float]:
        histogram, confidence = accumulated
        return {
            "modes": float((histogram > 0).sum()),
            "mode_kl": mode_kl(histogram),
            "mode_confidence": confidence,
        }

    @property
    def identity(self) -> dict[str, object]:
        return {**super().identity, "modes_weights": self.extractor.fingerprint}
