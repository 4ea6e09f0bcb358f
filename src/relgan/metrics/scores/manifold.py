"""Precision, recall, density and coverage: who lies in whose ball among the features.

A ball around a row reaches to the k-th nearest other row of its set, and the balls of a set stand for its manifold.
Precision and recall are those of Kynkäänniemi et al. 2019 (arXiv 1904.06991), density and coverage of Naeem et al.
2020 (arXiv 2002.09797).
"""

from __future__ import annotations

from torch import Tensor

from relgan.metrics import distances
from relgan.metrics.distances import Hits
from relgan.metrics.scores import RowScore
from relgan.metrics.statistics import FeatureBank, RealStatistics


class Neighbourhoods:
    """Generated rows, float32 (N, F), and which real balls they lie in, found once for all scores."""

    def __init__(self, generated: Tensor) -> None:
        self.generated = generated
        self._hits: dict[int, Hits] = {}

    def in_real_balls(self, real: RealStatistics, k: int) -> Hits:
        """Generated rows in the balls around real ones."""
        if k not in self._hits:
            self._hits[k] = distances.hits(self.generated, real.features, real.radii(k))
        return self._hits[k]

    def precision(self, real: RealStatistics, k: int) -> float:
        """Share of the generated rows in any real ball."""
        return _mean(self.in_real_balls(real, k).balls > 0)

    def recall(self, real: RealStatistics, k: int) -> float:
        """Share of the real rows in any generated ball."""
        reach = distances.radii(self.generated, k=k)
        return _mean(distances.hits(real.features, self.generated, reach).balls > 0)

    def density(self, real: RealStatistics, k: int) -> float:
        """Mean number of real balls around a generated row, in units of k."""
        return _mean(self.in_real_balls(real, k).balls) / k

    def coverage(self, real: RealStatistics, k: int) -> float:
        """Share of the real balls that hold a generated row."""
        return _mean(self.in_real_balls(real, k).occupied)


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


class NeighbourhoodBank(FeatureBank):
    """Every feature row, as Neighbourhoods."""

    def compute(self) -> Neighbourhoods:  # type: ignore[override]
        return Neighbourhoods(super().compute())


class ManifoldScore(RowScore):
    """A score of balls: :meth:`compute` gets Neighbourhoods."""

    shared = "neighbourhoods"

    @property
    def k(self) -> int:
        """Rank of the neighbour that a ball reaches to."""
        return self.metrics.neighbourhood

    @property
    def settings(self) -> dict[str, object]:
        return {"k": self.k}

    def accumulator(self) -> NeighbourhoodBank:
        return NeighbourhoodBank(self.extractor.num_features)


class Precision(ManifoldScore):
    """Share of the generated images that look like real ones."""

    def compute(self, accumulated: Neighbourhoods) -> dict[str, float]:
        return {"precision": accumulated.precision(self.real, self.k)}


class Recall(ManifoldScore):
    """Share of the real images that look like generated ones."""

    def compute(self, accumulated: Neighbourhoods) -> dict[str, float]:
        return {"recall": accumulated.recall(self.real, self.k)}


class Density(ManifoldScore):
    """How many real images a generated one lies near; 1 is what real images themselves have."""

    @property
    def k(self) -> int:
        return self.metrics.density_neighbourhood

    def compute(self, accumulated: Neighbourhoods) -> dict[str, float]:
        return {"density": accumulated.density(self.real, self.k)}


class Coverage(ManifoldScore):
    """Share of the real images that a generated one lies near."""

    @property
    def k(self) -> int:
        return self.metrics.density_neighbourhood

    def compute(self, accumulated: Neighbourhoods) -> dict[str, float]:
        return {"coverage": accumulated.coverage(self.real, self.k)}
