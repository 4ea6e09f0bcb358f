"""What all scores have in common; each module here holds one: its accumulator, its formula and its class."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from relgan.config import MetricsConfig
from relgan.metrics.catalogue import full_key
from relgan.metrics.extractors import Extractor, Extractors, own_values
from relgan.metrics.statistics import FeatureBank, RealStatistics

log = logging.getLogger("relgan")


@dataclass(frozen=True)
class Batch:
    """Consecutive images of a stream, as a score sees them.

    Attributes:
        images: uint8 (n, C, H, W).
        features: float32 (n, F); F is 0 for a score without an extractor.
        logits: float32 (n, K), likewise.
        start: position of the first image in the whole stream.
        labels: int64 (n,), the classes asked for, or those of real images; None without labels.
    """

    images: Tensor
    features: Tensor
    logits: Tensor
    start: int
    labels: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """Position of each image, int64 (n,)."""
        return torch.arange(self.start, self.start + len(self.features), device=self.features.device)

    def first(self, count: int) -> Batch:
        labels = None if self.labels is None else self.labels[:count]
        return Batch(self.images[:count], self.features[:count], self.logits[:count], self.start, labels)

    def without_images(self) -> Batch:
        """The same with images of no size."""
        return replace(self, images=self.images[..., :0, :0])


class WarnOnce:
    """Logs each warning the first time."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            log.warning("%s", message)


Seen = Mapping[Extractor | None, Batch]
"""What each network makes of the same images; None stands for no network."""


class Score(ABC):
    """Numbers about the first images that a generator makes; the base of a score of one's own.

    Each batch is put into an accumulator by :meth:`update`; of what the accumulators of all ranks hold together,
    :meth:`compute` makes numbers. The evaluator logs each number as :meth:`key` calls it.

    Args:
        options: its own, ``metrics.NAME``.
        metrics: of the whole evaluation.
        extractors: the networks that scores share.

    Attributes:
        images: how many images it looks at; by default metrics.num_images.
        reference_images: how many real ones it is compared with, None: all; by default metrics.reference_images.
        extractor: whose features and logits the batches hold; None: only images.
        needs_real: what is to be known of the real images' features, those of ``extractor``, if None of
            ``metrics.extractor``; "features" keeps every row of them.
        real: that, there when :meth:`compute` is called.
        looks_at_real: whether real images, with their labels, are put into an accumulator as well.
        accumulated_real: what that returned, there when :meth:`compute` is called.
        by_class: of numbers that are shares of the images, the same for the images of each class; there when
            :meth:`compute` has returned.
        shared: scores that name the same accumulator here, and feed it alike, share one.
    """

    needs_real: ClassVar[Literal["moments", "features"] | None] = None
    shared: ClassVar[str | None] = None
    looks_at_real: ClassVar[bool] = False
    extractor: Extractor | None = None
    real: RealStatistics
    accumulated_real: Any
    by_class: Mapping[str, Mapping[int, float]] = MappingProxyType({})

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        self.options, self.metrics = options, metrics
        self.warn_once = WarnOnce()
        self.images = metrics.num_images
        self.reference_images = metrics.reference_images

    @abstractmethod
    def accumulator(self) -> Metric:
        """A new, empty accumulator."""

    @abstractmethod
    def update(self, accumulator: Any, batch: Batch) -> None:
        """Put a batch into the accumulator."""

    @abstractmethod
    def compute(self, accumulated: Any) -> Mapping[str, float]:
        """The numbers by their names in the catalogue.

        Args:
            accumulated: what the accumulator's own ``compute`` returned.

        Raises:
            ValueError: it is not defined for these images; the evaluation then goes on without it.
        """

    def key(self, name: str) -> str:
        """The full key of a number."""
        return f"eval/{name}"

    @property
    def settings(self) -> dict[str, object]:
        """Options that its numbers depend on, its own by default; also a part of the protocol."""
        return own_values(self.options)

    @property
    def identity(self) -> dict[str, object]:
        """What the protocol says of it: two scores may be ranked together only where this agrees."""
        return {f"{self.options.name}_images": self.images}


class FeatureScore(Score):
    """A score of the features or logits of ``metrics.extractor``."""

    extractor: Extractor

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        super().__init__(options, metrics, extractors)
        self.extractor = extractors.chosen

    def key(self, name: str) -> str:
        return full_key(name, self.extractor.name)

    @property
    def identity(self) -> dict[str, object]:
        return self.extractor.identity


class RowScore(FeatureScore):
    """A score of every feature row: :meth:`compute` gets the generated ones, float32 (N, F), beside the real."""

    needs_real: ClassVar[Literal["moments", "features"] | None] = "features"
    shared = "rows"

    def accumulator(self) -> FeatureBank:
        return FeatureBank(self.extractor.num_features)

    def update(self, accumulator: FeatureBank, batch: Batch) -> None:
        accumulator.update(batch.features, batch.index)
