"""Accumulators over a stream of batches, as torchmetrics.Metric: float64, reset and reduced over ranks.

Their memory does not depend on the number of images, except for FeatureBank, which keeps one row per image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from relgan.metrics.scores import Gaussian, Score, classifier_score


class FeatureMoments(Metric):
    """Mean and covariance of features."""

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


class ClassMarginals(Metric):
    """Sums behind the classifier score; image i of n belongs to the split that an ordered cut gives it."""

    full_state_update = False
    probabilities: Tensor
    negentropy: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, num_images: int, splits: int) -> None:
        super().__init__()
        splits = min(splits, num_images)
        self.edges = torch.tensor([i * num_images // splits for i in range(1, splits)])
        self.add_state("probabilities", torch.zeros(splits, num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negentropy", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(splits, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, index: Tensor) -> None:
        """Add logits (N, K) of the images at positions index (N,) of the whole stream."""
        log_p = logits.to(torch.float64).log_softmax(dim=1)
        p = log_p.exp()
        split = torch.bucketize(index, self.edges.to(index.device), right=True)
        # A product with a one-hot matrix, not index_add_, which is not deterministic on CUDA.
        member = torch.nn.functional.one_hot(split, len(self.counts)).to(p)
        self.probabilities += member.T @ p
        self.negentropy += member.T @ (p * log_p).sum(dim=1)
        self.counts += member.sum(dim=0).long()

    def compute(self) -> Score:
        return classifier_score(self.probabilities, self.negentropy, self.counts)


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
        self.histogram += torch.bincount(best.indices, minlength=len(self.histogram))
        self.confidence += best.values.sum()

    def compute(self) -> tuple[Tensor, float]:
        """The histogram (K,) and the mean confidence."""
        return self.histogram, float(self.confidence / self.histogram.sum())


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


class RunningMean(Metric):
    """Mean of independent values with its standard error."""

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add values (N,)."""
        values = values.to(torch.float64)
        self.total += values.sum()
        self.squares += values.square().sum()
        self.count += len(values)

    def compute(self) -> Score:
        """Mean and standard error; the error of a single value is 0."""
        n = int(self.count)
        mean = self.total / n
        variance = (self.squares / n - mean.square()).clamp(min=0) * n / max(1, n - 1)
        return Score(float(mean), float((variance / n).sqrt()))
