"""Kernel distance: the literature's KID, with the literature's network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from relgan.metrics.scores import RowScore
from relgan.metrics.statistics import Estimate

SEED = 2020  # torch-fidelity's default: the same subsets, hence the same number


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ, float32 (m, m). Of a aᵀ, which is symmetric, NumPy computes one half."""
    return torch.from_numpy(a.numpy() @ b.numpy().T) if a.device.type == "cpu" else a @ b.T


def _mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x·y / F + 1)³, x and y float32 (m, F)."""
    m, dim = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return _products(a, b).div_(dim).add_(1).pow_(3)

    def total(kernels: Tensor) -> Tensor:
        return kernels.sum(dtype=torch.float64)

    xx, yy = kernel(x, x), kernel(y, y)
    within = total(xx) - total(xx.diagonal()) + total(yy) - total(yy.diagonal())
    return float(within / (m * (m - 1)) - 2 * total(kernel(x, y)) / (m * m))


def kernel_distance(generated: Tensor, reference: Tensor, *, subsets: int, subset_size: int) -> Estimate:
    """KID (Bińkowski et al. 2018, arXiv 1801.01401): mean and std of the unbiased MMD² over random subsets.

    Subsets are drawn as torch-fidelity draws them, and are smaller where there are fewer images than
    ``subset_size``. A value slightly below zero is normal for equal distributions.

    Args:
        generated, reference: float32 (N, F) and (M, F).

    Raises:
        ValueError: N or M is below 2.
    """
    size = min(subset_size, len(generated), len(reference))
    if size < 2:
        raise ValueError("needs at least two images on each side")
    rng = np.random.RandomState(SEED)  # the legacy stream is the one to agree with
    values = []
    for _ in range(subsets):
        x, y = (f[torch.from_numpy(rng.choice(len(f), size, replace=False))] for f in (generated, reference))
        values.append(_mmd2(x, y))
    return Estimate(float(np.mean(values)), float(np.std(values)))


class Kernel(RowScore):
    """Squared maximum mean discrepancy of generated and real features, with its spread over subsets."""

    @property
    def settings(self) -> dict[str, object]:
        return {"subsets": self.metrics.kid_subsets, "subset_size": self.metrics.kid_subset_size}

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        subsets, size = self.metrics.kid_subsets, self.metrics.kid_subset_size
        score = kernel_distance(accumulated, self.real.features, subsets=subsets, subset_size=size)
        return {"kid": score.mean, "kid_std": score.spread}
