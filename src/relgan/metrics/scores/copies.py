"""Copies of the training set: authenticity, and a picture of the training images nearest to generated ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relgan.config import MetricsConfig
from relgan.metrics.distances import between, nearest
from relgan.metrics.extractors import Extractors
from relgan.metrics.scores import RowScore


def authenticity(generated: Tensor, real: Tensor) -> float:
    """Share of the generated rows that are further from the real row nearest to them than its own nearest neighbour is.

    That neighbour is another real row (Alaa et al. 2022, arXiv 2102.08921). Copies of real rows give 0; new rows of
    the same distribution give one third in one dimension, and in many whatever held-out real rows give.

    Args:
        generated, real: float32 (N, F) and (M, F).

    Raises:
        ValueError: M is below 2.
    """
    if len(real) < 2:
        raise ValueError("needs at least two real images")
    models, place = nearest(generated, real, k=1).indices[:, 0].unique(return_inverse=True)
    first, second = nearest(real[models], real, k=2).indices.unbind(dim=1)
    others = torch.where(first == models, second, first)
    room = between(real[models], real, others)
    gap = between(generated, real, models[place])
    return float((gap > room[place]).double().mean())


class Authenticity(RowScore):
    """Share of the generated images that are no near copies, with all training images to compare with."""

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        super().__init__(options, metrics, extractors)
        self.reference_images = None

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        return {"authenticity": authenticity(accumulated, self.real.features)}


class Neighbours:
    """Not a score but a picture: generated images and the training images nearest to each."""

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        self.extractor = extractors.chosen

    def find(self, images: Tensor, real: Tensor, k: int) -> Tensor:
        """Indices (n, k) of the real images nearest to each of ``images``, nearest first.

        Args:
            images: uint8 (n, C, H, W).
            real: features of all training images, float32 (N, F).
        """
        return nearest(self.extractor(images)[0], real, k=k).indices
