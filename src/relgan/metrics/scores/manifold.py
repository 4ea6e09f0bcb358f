"""Precision, recall and nearest neighbours: who lies close to whom among the features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relgan.config import MetricsConfig
from relgan.metrics.extractors import Extractors
from relgan.metrics.scores import RowScore


def share_inside(points: Tensor, others: Tensor, *, k: int, chunk: int = 1000) -> float:
    """Share of points on the manifold of the others: inside the ball of one, which reaches to its k-th nearest other.

    Of generated points and real others this is the improved precision, the other way round the improved recall
    (Kynkäänniemi et al. 2019, arXiv 1904.06991). Distances are taken ``chunk`` rows at a time: memory is
    chunk × N, never N × N.

    Args:
        points, others: float32 (N, F) and (M, F).

    Raises:
        ValueError: N or M is not above k.
    """
    if min(len(points), len(others)) <= k:
        raise ValueError(f"with k = {k}, needs more than {k} images on each side")
    # k + 1: the nearest row is the row itself.
    radii = torch.cat([torch.cdist(part, others).kthvalue(k + 1).values for part in others.split(chunk)])
    inside = [(torch.cdist(part, others) <= radii).any(dim=1) for part in points.split(chunk)]
    return float(torch.cat(inside).double().mean())


def nearest(queries: Tensor, reference: Tensor, *, k: int, chunk: int = 5000) -> Tensor:
    """Indices (Q, k) of the k reference rows nearest to each query row, nearest first."""
    distances = torch.cat([torch.cdist(queries, part) for part in reference.split(chunk)], dim=1)
    return distances.topk(min(k, len(reference)), dim=1, largest=False).indices


class Precision(RowScore):
    """Share of the generated images that look like real ones."""

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        return {"precision": share_inside(accumulated, self.real.features, k=self.metrics.neighbourhood)}


class Recall(RowScore):
    """Share of the real images that look like generated ones."""

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        return {"recall": share_inside(self.real.features, accumulated, k=self.metrics.neighbourhood)}


class Neighbours:
    """Not a score but a picture to spot memorising: generated images and the training images nearest to each."""

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        self.extractor = extractors.chosen

    def find(self, images: Tensor, real: Tensor, k: int) -> Tensor:
        """Indices (n, k) of the real images nearest to each of ``images``.

        Args:
            images: uint8 (n, C, H, W).
            real: features of all training images, float32 (N, F).
        """
        return nearest(self.extractor(images)[0], real, k=k)
