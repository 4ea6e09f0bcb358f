"""Fréchet distance: the literature's FID, with the literature's network."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import Metric

from relgan.metrics.scores import Batch, FeatureScore
from relgan.metrics.statistics import FeatureMoments, Gaussian, Reference


def frechet_distance(generated: Gaussian, reference: Reference) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 √(Σ₁Σ₂)) (Heusel et al. 2017, arXiv 1706.08500).

    With Σ₂ = L Lᵀ the eigenvalues of Σ₁Σ₂ are those of Lᵀ Σ₁ L, which is symmetric and positive: no matrix
    square root, nothing complex, never NaN, and L is computed once for a reference.
    """
    product = reference.factor.T @ generated.covariance @ reference.factor
    values = torch.linalg.eigvalsh((product + product.T) / 2)
    values = values[-max(1, generated.images - 1) :].clamp(min=0)
    mean_term = (generated.mean - reference.mean).square().sum()
    trace = generated.covariance.trace() + reference.factor.square().sum()
    return max(0.0, float(mean_term + trace - 2 * values.sqrt().sum()))


class Frechet(FeatureScore):
    """Distance of two Gaussians with the moments of the generated and of the real images' features."""

    needs_real = "moments"

    def accumulator(self) -> Metric:
        return FeatureMoments(self.extractor.num_features)

    def update(self, accumulator: Any, batch: Batch) -> None:
        accumulator.update(batch.features)

    def compute(self, accumulated: Any) -> dict[str, float]:
        fewest, features = min(accumulated.images, self.real.gaussian.images), self.extractor.num_features
        if fewest <= features:
            self.warn_once(
                f"the Fréchet distance of {fewest} images in {features} dimensions is far too high in absolute terms; "
                "compare it only with others of the same counts"
            )
        return {"fid": frechet_distance(accumulated, self.real.gaussian)}
