"""Vendi score: how many different images a generator makes, without a look at real ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from relgan.metrics.scores import Batch, FeatureScore
from relgan.metrics.statistics import FeatureMoments, Gaussian


def vendi_score(similarity: Tensor) -> float:
    """exp of the entropy of a similarity matrix's eigenvalues (Friedman & Dieng 2022, arXiv 2210.02410).

    1 for images that are all alike, N for N images that have nothing in common.

    Args:
        similarity: X Xᵀ / N of N unit vectors, or Xᵀ X / N, which has the same eigenvalues but for zeros; float64.
            Vectors of zeros, which have no cosine, count as copies of each other and unlike the rest: what the trace
            lacks of 1 is the eigenvalue that they would have.
    """
    of_zeros = 1 - similarity.trace()
    values = torch.cat([torch.linalg.eigvalsh(similarity), of_zeros[None]]).clamp(min=0)
    return float((-torch.xlogy(values, values).sum()).exp())


def vendi_of(moments: Gaussian) -> float:
    """The score of unit vectors with these moments."""
    mean, covariance, n = moments
    return vendi_score(covariance * (n - 1) / n + torch.outer(mean, mean))


class Vendi(FeatureScore):
    """The effective number of different images by the cosines between their features."""

    def accumulator(self) -> FeatureMoments:
        return FeatureMoments(self.extractor.num_features)

    def update(self, accumulator: FeatureMoments, batch: Batch) -> None:
        accumulator.update(F.normalize(batch.features, dim=1))

    def compute(self, accumulated: Gaussian) -> dict[str, float]:
        return {"vendi": vendi_of(accumulated)}
