"""FID and inception score of infinitely many images, by extrapolation (Chong & Forsyth 2020, arXiv 1911.07023).

Both are biased, by about c / N for N images, and c is each generator's own: scores of the same N may still rank two
generators wrongly. The value at 1/N = 0 has no such bias.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from relgan.metrics.scores import Batch, FeatureScore
from relgan.metrics.scores.frechet import Frechet, frechet_distance
from relgan.metrics.scores.inception import ClassMarginals, InceptionScore
from relgan.metrics.statistics import Estimate, FeatureBank, FeatureMoments, accumulate

POINTS = 15  # as the authors' code
SMALLEST = 10  # the smallest subset is this part of all images: their 5,000 of 50,000
SEED = 2020


def extrapolate(value: Callable[[Tensor], float], count: int) -> Estimate:
    """The value at 1/N = 0 of the least-squares line through (1/N, value), and its standard error.

    The error is that of the fit. The subsets are drawn from the same images, so it is smaller than the difference
    between two sets of images.

    Args:
        value: of the images at some indices, int64 (N,).
        count: how many images there are; random subsets have a tenth of them, and more up to all.

    Raises:
        ValueError: there are too few images for subsets of different sizes.
    """
    if count < 2 * SMALLEST:
        raise ValueError(f"needs at least {2 * SMALLEST} images")
    rng = torch.Generator().manual_seed(SEED)
    sizes = np.linspace(count // SMALLEST, count, POINTS).astype(int)
    values = [value(torch.randperm(count, generator=rng)[:size]) for size in sizes]
    line, covariance = np.polyfit(1 / sizes, values, deg=1, cov=True)
    return Estimate(float(line[1]), float(np.sqrt(covariance[1, 1])))


class FrechetInfinity(Frechet):
    """Fréchet distance of infinitely many generated images to the real ones at hand."""

    enough = 4
    caution = "cannot be extrapolated; that takes more than four images for each dimension"
    shared = "rows"

    def accumulator(self) -> FeatureBank:
        return FeatureBank(self.extractor.num_features)

    def update(self, accumulator: FeatureBank, batch: Batch) -> None:
        accumulator.update(batch.features, batch.index)

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        self.warn_of_few(len(accumulated))
        fit = extrapolate(lambda chosen: self._distance(accumulated[chosen]), len(accumulated))
        return {"fid_infinity": fit.mean, "fid_infinity_se": fit.std}

    def _distance(self, rows: Tensor) -> float:
        moments = FeatureMoments(rows.shape[1]).to(rows.device)
        return frechet_distance(accumulate(moments, rows), self.real.gaussian)


class InceptionInfinity(InceptionScore):
    """Inception score of infinitely many generated images, which are one split."""

    settings = FeatureScore.settings  # there are no splits

    def accumulator(self) -> FeatureBank:
        return FeatureBank(self.extractor.num_classes)

    def update(self, accumulator: FeatureBank, batch: Batch) -> None:
        accumulator.update(batch.logits, batch.index)

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        fit = extrapolate(lambda chosen: self._score(accumulated[chosen]), len(accumulated))
        return {"is_infinity": fit.mean, "is_infinity_se": fit.std}

    def _score(self, logits: Tensor) -> float:
        marginals = ClassMarginals(self.extractor.num_classes, len(logits), splits=1).to(logits.device)
        index = torch.arange(len(logits), device=logits.device)
        score: Estimate = accumulate(marginals, logits, index)
        return score.mean
