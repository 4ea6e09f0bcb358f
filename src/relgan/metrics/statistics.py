"""Statistics of features, generated and real: float64 moments, or every row. Accumulators are reduced over ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from relgan.metrics import distances

_PART = 4096  # rows that are float64 at a time


class Gaussian(NamedTuple):
    """Moments of a set of features: ``mean`` (F,), ``covariance`` (F, F) with N − 1, both float64."""

    mean: Tensor
    covariance: Tensor
    images: int


class Reference(NamedTuple):
    """A Gaussian whose covariance is kept as ``factor`` (F, r), factor @ factor.T = covariance."""

    mean: Tensor
    factor: Tensor
    images: int


class Estimate(NamedTuple):
    """A mean with its spread: a standard deviation or a standard error, as who makes it says."""

    mean: float
    spread: float


@dataclass(frozen=True)
class RealStatistics:
    """What scores need of the real images.

    Attributes:
        features: float32 (N, F), rows only where asked for.
        labels: of all the images, int64 (N,); None where they have none.
    """

    gaussian: Reference
    features: Tensor
    labels: Tensor | None = None
    _radii: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def radii(self, k: int) -> Tensor:
        """:func:`relgan.metrics.distances.radii` of the features, found once."""
        if k not in self._radii:
            self._radii[k] = distances.radii(self.features, k=k)
        return self._radii[k]


def factorise(gaussian: Gaussian) -> Reference:
    """Factor a covariance by symmetric eigendecomposition.

    The covariance of n samples has rank n − 1 at most, so later eigenvalues are rounding and are left out.
    """
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    rank = max(1, min(len(values), gaussian.images - 1))
    values, vectors = values[-rank:], vectors[:, -rank:]
    return Reference(gaussian.mean, vectors * values.clamp(min=0).sqrt(), gaussian.images)


class FeatureMoments(Metric):
    """Mean and covariance of features, in memory that does not depend on the number of images."""

    full_state_update = False
    total: Tensor
    outer: Tensor
    count: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(num_features, num_features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Add features (N, F)."""
        rows = features.to(self.total)
        self.total += rows.sum(dim=0)
        self.outer.addmm_(rows.T, rows)
        self.count += len(rows)

    def compute(self) -> Gaussian:
        """Moments with N − 1 in the covariance; a single image has covariance zero."""
        n = int(self.count)
        mean = self.total / n
        covariance = (self.outer - n * torch.outer(mean, mean)) / max(1, n - 1)
        return Gaussian(mean, covariance if n > 1 else torch.zeros_like(covariance), n)


def accumulate(accumulator: Metric, *columns: Tensor) -> Any:
    """What an accumulator makes of rows that are all at hand here, shown to it a part at a time."""
    accumulator.sync_on_compute = False
    for parts in zip(*(column.split(_PART) for column in columns), strict=True):
        accumulator.update(*parts)
    return accumulator.compute()


class FeatureBank(Metric):
    """Every feature row, in the order of the stream whatever rank made it."""

    full_state_update = False
    features: list[Tensor]
    index: list[Tensor]

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        # A rank without images has rows to send, too: none, of the right width and type.
        index = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.update(torch.zeros(0, self.num_features, device=self.device), index)

    def update(self, features: Tensor, index: Tensor) -> None:
        """Keep features (N, F) of the images at positions index (N,)."""
        self.features.append(features)
        self.index.append(index)

    def compute(self) -> Tensor:
        """float32 (N, F)."""
        return dim_zero_cat(self.features)[dim_zero_cat(self.index).argsort()]
