"""Label agreement: whether a generator makes the digits it is asked for, with the digit classifier as judge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from relgan.config import MetricsConfig
from relgan.metrics.extractors import Extractor, Extractors
from relgan.metrics.scores import Batch, Score


class LabelAgreement(Score):
    """Share of the images whose most likely class is their label: of generated ones, and of real ones for comparison.

    The label of stacked digits is all three of them.
    """

    looks_at_real = True
    extractor: Extractor

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        super().__init__(options, metrics, extractors)
        self.extractor = extractors["digits"]

    def accumulator(self) -> Metric:
        return MeanMetric().set_dtype(torch.float64)

    def update(self, accumulator: MeanMetric, batch: Batch) -> None:
        assert batch.labels is not None
        accumulator.update((batch.logits.argmax(dim=1) == batch.labels).double())

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        return {"label_agreement": float(accumulated), "label_agreement_real": float(self.accumulated_real)}

    @property
    def identity(self) -> dict[str, object]:
        return {**super().identity, "label_agreement_weights": self.extractor.fingerprint}
