"""FID and inception score of infinitely many images, by extrapolation (Chong & Forsyth 2020, arXiv 1911.07023).

Both are biased, by about c / N for N images, and c is each generator's own: scores of the same N may still rank two
generators wrongly. The value at 1/N = 0 has no such bias.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from relgan.metrics.scores import Batch, FeatureScore, RowScore
from relgan.metrics.scores.frechet import frechet_distance
from relgan.metrics.scores.inception import ClassMarginals
from relgan.metrics.statistics import Estimate, FeatureBank, FeatureMoments, Reference, accumulate

ENOUGH = 4  # images for each feature, from which on the line is one
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
    values = [value(torch.randperm(count, generator=rng, device="cpu")[:size]) for size in sizes]
    line, covariance = np.polyfit(1 / sizes, values, deg=1, cov=True)
    return Estimate(float(line[1]), float(np.sqrt(covariance[1, 1])))


class FrechetInfinity(RowScore):
    """Fréchet distance of infinitely many generated images to the real ones at hand."""

    needs_real = "moments"

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        images, features = accumulated.shape
        if images < ENOUGH * features:
            few = f"the Fréchet distance of {images} images in {features} dimensions cannot be extrapolated"
            self.warn_once(f"{few}; that takes {ENOUGH} for each")
        fit = extrapolate(lambda chosen: frechet_of(accumulated[chosen], self.real.gaussian), images)
        return {"fid_infinity": fit.mean, "fid_infinity_se": fit.spread}


def frechet_of(rows: Tensor, reference: Reference) -> float:
    """Fréchet distance of rows of features, float32 (N, F)."""
    with rows.device:
        moments = FeatureMoments(rows.shape[1])
    return frechet_distance(accumulate(moments, rows), reference)


class InceptionInfinity(FeatureScore):
    """Inception score of infinitely many generated images, which are one split."""

    def accumulator(self) -> FeatureBank:
        return FeatureBank(self.extractor.num_classes)

    def update(self, accumulator: FeatureBank, batch: Batch) -> None:
        accumulator.update(batch.logits, batch.index)

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        fit = extrapolate(lambda chosen: score_of(accumulated[chosen]), len(accumulated))
        return {"is_infinity": fit.mean, "is_infinity_se": fit.spread}


def score_of(logits: Tensor) -> float:
    """Inception score of rows of logits, float32 (N, K), as one split."""
    with logits.device:
        marginals = ClassMarginals(logits.shape[1], len(logits), splits=1)
    score: Estimate = accumulate(marginals, logits, torch.arange(len(logits), device=logits.device))
    return score.mean
