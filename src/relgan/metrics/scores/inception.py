"""Inception score: the literature's IS, with the literature's network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from relgan.metrics.scores import Batch, FeatureScore
from relgan.metrics.statistics import Estimate


def classifier_score(probabilities: Tensor, negentropy: Tensor, counts: Tensor) -> Estimate:
    """exp E KL(p(y|x) ‖ p(y)) over splits (Salimans et al. 2016, arXiv 1606.03498), from sums per split.

    Args:
        probabilities: float64 (S, K), sum of p(y|x) over the split's images.
        negentropy: float64 (S,), sum of Σ_y p log p.
        counts: (S,) images in each split; empty splits are left out.

    Returns:
        mean and population standard deviation over the splits.
    """
    used = counts > 0
    n = counts[used].to(torch.float64)
    marginal = probabilities[used] / n[:, None]
    scores = (negentropy[used] / n - torch.xlogy(marginal, marginal).sum(dim=1)).exp()
    return Estimate(float(scores.mean()), float(scores.std(correction=0)))


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

    def compute(self) -> Estimate:
        return classifier_score(self.probabilities, self.negentropy, self.counts)


class InceptionScore(FeatureScore):
    """High where the classifier is sure of each image and finds all classes equally often."""

    @property
    def settings(self) -> dict[str, object]:
        return {"splits": self.metrics.splits}

    def accumulator(self) -> Metric:
        return ClassMarginals(self.extractor.num_classes, self.images, self.metrics.splits)

    def update(self, accumulator: Any, batch: Batch) -> None:
        accumulator.update(batch.logits, batch.index)

    def compute(self, accumulated: Any) -> dict[str, float]:
        return {"is": accumulated.mean, "is_std": accumulated.spread}
