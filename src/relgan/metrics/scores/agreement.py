"""Label agreement: whether a generator makes what it is asked for, in the eyes of a classifier.

Digits are judged by the digit classifier. Elsewhere the judge is a linear probe: a logistic regression of the labels
of real images on their features. How often a judge is right about real images stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relgan.config import MetricsConfig
from relgan.metrics.catalogue import full_key
from relgan.metrics.extractors import Extractor, Extractors
from relgan.metrics.scores import Batch, Score
from relgan.metrics.statistics import FeatureBank
from relgan.registry import DATASETS

HELD_OUT = 5  # one real image in so many is kept from the probe, to be asked about
STRENGTH = 1e-3  # of the probe's data against its penalty (scikit-learn's C): there are features by the thousand
SEED = 2020


def answers(seen: Tensor, labels: Tensor) -> Tensor:
    """For each image, float32 (N, 2): its class, and 1 where that is what was ``seen``, else 0."""
    return torch.stack([labels, seen == labels], dim=1).float()


class Probe:
    """A linear classifier of features, fitted to a random part of some rows.

    Args:
        features: float32 (N, F).
        labels: int64 (N,).

    Attributes:
        held_out: its :func:`answers` about the other rows.

    Raises:
        ValueError: the rows are too few, or of one class.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(SEED))
        asked, used = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
        if not len(asked) or len(labels[used].unique()) < 2:
            raise ValueError(f"a probe needs at least {HELD_OUT} real images, of two classes")
        self._model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
        self._model.fit(features[used].cpu().numpy(), labels[used].cpu().numpy())
        self.held_out = answers(self(features[asked]), labels[asked])

    def __call__(self, features: Tensor) -> Tensor:
        """The most likely class of each row, int64 (N,)."""
        found: np.ndarray = self._model.predict(features.cpu().numpy())
        return torch.from_numpy(found).to(features.device)


class LabelAgreement(Score):
    """Share of the images in which a judge sees their label: of generated ones, and of real ones for comparison."""

    extractor: Extractor

    def shares(self, generated: Tensor, real: Tensor) -> dict[str, float]:
        """The two numbers by their names, from :func:`answers` about both kinds of images."""
        both = {"label_agreement": generated, "label_agreement_real": real}
        self.by_class = {name: _by_class(rows) for name, rows in both.items()}
        return {name: float(rows[:, 1].double().mean()) for name, rows in both.items()}

    def key(self, name: str) -> str:
        return full_key(name, self.extractor.name)

    @property
    def identity(self) -> dict[str, object]:
        judge = {**self.extractor.identity, "reference_images": self.reference_images}
        return {**super().identity, **{f"label_agreement_{fact}": value for fact, value in judge.items()}}


def _by_class(rows: Tensor) -> Mapping[int, float]:
    return {int(label): float(rows[rows[:, 0] == label, 1].double().mean()) for label in rows[:, 0].unique()}


class DigitAgreement(LabelAgreement):
    """The judge is the digit classifier; the label of stacked digits is all three of them.

    It has been trained on four fifths of scikit-learn's digits, so that it does a little better on real ones than on
    new ones.
    """

    looks_at_real = True

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        super().__init__(options, metrics, extractors)
        self.extractor = extractors["digits"]

    def accumulator(self) -> FeatureBank:
        return FeatureBank(2)

    def update(self, accumulator: FeatureBank, batch: Batch) -> None:
        assert batch.labels is not None
        accumulator.update(answers(batch.logits.argmax(dim=1), batch.labels), batch.index)

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        return self.shares(accumulated, self.accumulated_real)


class ProbeAgreement(LabelAgreement):
    """The judge is a linear probe of the features of ``metrics.extractor``, asked about real images it has not seen."""

    needs_real = "features"

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        super().__init__(options, metrics, extractors)
        self.extractor = extractors.chosen

    @cached_property
    def _probe(self) -> Probe:
        if self.real.labels is None:
            raise ValueError("the real images have no labels")
        return Probe(self.real.features, self.real.labels)

    def accumulator(self) -> FeatureBank:
        return FeatureBank(self.extractor.num_features + 1)

    def update(self, accumulator: FeatureBank, batch: Batch) -> None:
        assert batch.labels is not None
        accumulator.update(torch.cat([batch.features, batch.labels[:, None].float()], dim=1), batch.index)

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        features, labels = accumulated[:, :-1], accumulated[:, -1].long()
        return self.shares(answers(self._probe(features), labels), self._probe.held_out)


def build(options: Any, metrics: MetricsConfig, extractors: Extractors) -> LabelAgreement:
    """The one whose judge knows what the images show."""
    kind = DigitAgreement if DATASETS[extractors.dataset.name].facts.digits else ProbeAgreement
    return kind(options, metrics, extractors)
