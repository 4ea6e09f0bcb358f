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
    """Generated rows, float32 (N, F), and which real balls they lie in.

    The balls are closed for precision and recall and open for density and coverage, as their authors have it. That
    matters for copies: they lie on the edge of each ball that reaches to the image they are copies of.
    """

    def __init__(self, generated: Tensor) -> None:
        self.generated = generated
        self._open: dict[int, Hits] = {}

    def in_open_balls(self, real: RealStatistics, k: int) -> Hits:
        """Generated rows in the open balls around real ones, found once for all scores."""
        if k not in self._open:
            self._open[k] = distances.hits(self.generated, real.features, real.radii(k), closed=False)
        return self._open[k]

    def precision(self, real: RealStatistics, k: int) -> float:
        """Share of the generated rows in any real ball."""
        return _mean(distances.hits(self.generated, real.features, real.radii(k), closed=True).balls > 0)

    def recall(self, real: RealStatistics, k: int) -> float:
        """Share of the real rows in any generated ball."""
        reach = distances.radii(self.generated, k=k)
        return _mean(distances.hits(real.features, self.generated, reach, closed=True).balls > 0)

    def density(self, real: RealStatistics, k: int) -> float:
        """Mean number of real balls around a generated row, in units of k."""
        return _mean(self.in_open_balls(real, k).balls) / k

    def coverage(self, real: RealStatistics, k: int) -> float:
        """Share of the real balls that hold a generated row."""
        return _mean(self.in_open_balls(real, k).occupied)


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


class OpenBalls(ManifoldScore):
    """Density and coverage have a rank of their own."""

    @property
    def k(self) -> int:
        return self.metrics.density_neighbourhood


class Density(OpenBalls):
    """How many real images a generated one lies near; 1 is what real images themselves have."""

    def compute(self, accumulated: Neighbourhoods) -> dict[str, float]:
        return {"density": accumulated.density(self.real, self.k)}


class Coverage(OpenBalls):
    """Share of the real images that a generated one lies near."""

    def compute(self, accumulated: Neighbourhoods) -> dict[str, float]:
        return {"coverage": accumulated.coverage(self.real, self.k)}
