"""The scores as pure functions of statistics; everything that sums does so in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

KID_SEED = 2020  # torch-fidelity's default: the same subsets, hence the same number


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


class Score(NamedTuple):
    """A mean with the spread that belongs to it."""

    mean: float
    std: float


def factorise(gaussian: Gaussian) -> Reference:
    """Factor a covariance by symmetric eigendecomposition.

    The covariance of n samples has rank n − 1 at most, so later eigenvalues are rounding and are left out.
    """
    values, vectors = torch.linalg.eigh(gaussian.covariance)
    rank = max(1, min(len(values), gaussian.images - 1))
    values, vectors = values[-rank:], vectors[:, -rank:]
    return Reference(gaussian.mean, vectors * values.clamp(min=0).sqrt(), gaussian.images)


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


def classifier_score(probabilities: Tensor, negentropy: Tensor, counts: Tensor) -> Score:
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
    return Score(float(scores.mean()), float(scores.std(correction=0)))


def mode_kl(histogram: Tensor) -> float:
    """KL(generated modes ‖ uniform over all modes) in nats; 0 is even coverage, log K is one mode only.

    Args:
        histogram: (K,) images assigned to each mode, not all zero.
    """
    p = histogram.to(torch.float64) / histogram.sum()
    return max(0.0, math.log(len(histogram)) + float(torch.xlogy(p, p).sum()))


def _mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x·y / F + 1)³, x and y float32 (m, F)."""
    m, dim = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T).double().div_(dim).add_(1).pow_(3)

    xx, yy = kernel(x, x), kernel(y, y)
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return float(within / (m * (m - 1)) - 2 * kernel(x, y).sum() / (m * m))


def kernel_distance(generated: Tensor, reference: Tensor, *, subsets: int, subset_size: int) -> Score:
    """KID (Bińkowski et al. 2018, arXiv 1801.01401): mean and std of the unbiased MMD² over random subsets.

    Subsets are drawn as torch-fidelity draws them, and are smaller where there are fewer images than
    ``subset_size``. A value slightly below zero is normal for equal distributions.

    Args:
        generated, reference: float32 (N, F) and (M, F), N and M at least 2.
    """
    size = min(subset_size, len(generated), len(reference))
    if size < 2:
        raise ValueError("KID needs at least two images on each side")
    rng = np.random.RandomState(KID_SEED)  # the legacy stream is the one to agree with
    values = []
    for _ in range(subsets):
        x, y = (f[torch.from_numpy(rng.choice(len(f), size, replace=False))] for f in (generated, reference))
        values.append(_mmd2(x, y))
    return Score(float(np.mean(values)), float(np.std(values)))


def _radii(features: Tensor, k: int, chunk: int) -> Tensor:
    """Distance of each row to its k-th nearest other row, (N,)."""
    # k + 1: the nearest row is the row itself.
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1).values for part in features.split(chunk)])


def _covered(points: Tensor, centres: Tensor, radii: Tensor, chunk: int) -> float:
    """Share of points inside the ball of at least one centre."""
    inside = [(torch.cdist(part, centres) <= radii).any(dim=1) for part in points.split(chunk)]
    return float(torch.cat(inside).double().mean())


def precision_recall(generated: Tensor, reference: Tensor, *, k: int = 3, chunk: int = 1000) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    Distances are taken ``chunk`` rows at a time: memory is chunk × N, never N × N.

    Args:
        generated, reference: float32 (N, F) and (M, F), N and M above k.
    """
    if min(len(generated), len(reference)) <= k:
        raise ValueError(f"precision and recall with k = {k} need more than {k} images on each side")
    precision = _covered(generated, reference, _radii(reference, k, chunk), chunk)
    recall = _covered(reference, generated, _radii(generated, k, chunk), chunk)
    return precision, recall


def nearest(queries: Tensor, reference: Tensor, *, k: int, chunk: int = 5000) -> Tensor:
    """Indices (Q, k) of the k reference rows nearest to each query row, nearest first."""
    distances = torch.cat([torch.cdist(queries, part) for part in reference.split(chunk)], dim=1)
    return distances.topk(min(k, len(reference)), dim=1, largest=False).indices
