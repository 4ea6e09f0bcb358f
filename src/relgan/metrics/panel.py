"""One feature network's scores over one stream of images."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from relgan.config import MetricsConfig
from relgan.metrics.extractors.base import Extractor
from relgan.metrics.reference import ReferenceStatistics
from relgan.metrics.scores import frechet_distance, kernel_distance, mode_kl, precision_recall
from relgan.metrics.statistics import ClassMarginals, FeatureBank, FeatureMoments, ModeHistogram

COMPARING = frozenset({"fid", "kid", "precision", "recall"})  # with real images
KEEPING = COMPARING - {"fid"}  # need every feature row, not only moments

log = logging.getLogger("relgan")

# What each accumulator is fed of features, logits and positions in the stream.
_FEED: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    "moments": lambda features, logits, index: (features,),
    "marginals": lambda features, logits, index: (logits, index),
    "bank": lambda features, logits, index: (features, index),
    "modes": lambda features, logits, index: (logits,),
}


class Panel:
    """Accumulates features and logits, then computes the scores asked for.

    Args:
        scores: of fid, is, kid, precision, recall and modes.
        reference: of the real images; None where no score compares with them.
    """

    def __init__(
        self, config: MetricsConfig, extractor: Extractor, scores: list[str], reference: ReferenceStatistics | None
    ) -> None:
        self.config, self.extractor, self.scores, self.reference = config, extractor, scores, reference
        self._warned: set[str] = set()
        self._metrics: dict[str, tuple[Metric, int]] = {}
        images = config.num_images
        if "fid" in scores:
            self._add("moments", FeatureMoments(extractor.num_features), images)
        if "is" in scores:
            self._add("marginals", ClassMarginals(extractor.num_classes, images, config.splits), images)
        if KEEPING & set(scores):
            self._add("bank", FeatureBank(extractor.num_features), images)
        if "modes" in scores:
            self._add("modes", ModeHistogram(extractor.num_classes), config.modes_images)

    def _add(self, name: str, metric: Metric, limit: int) -> None:
        self._metrics[name] = metric.to(self.extractor.home), limit

    @property
    def wanted(self) -> int:
        """How many images it looks at."""
        return max((limit for _, limit in self._metrics.values()), default=0)

    def reset(self) -> None:
        for metric, _ in self._metrics.values():
            metric.reset()

    def update(self, images: Tensor, start: int) -> None:
        """Look at uint8 images (n, C, H, W), the first of which is number ``start`` of the stream."""
        if start >= self.wanted:
            return
        features, logits = self.extractor(images[: self.wanted - start])
        index = torch.arange(start, start + len(features), device=features.device)
        for name, (metric, limit) in self._metrics.items():
            if start < limit:
                metric.update(*(rows[: limit - start] for rows in _FEED[name](features, logits, index)))

    def compute(self) -> dict[str, float]:
        """Scores in the order asked for; one that is not defined for so few images is left out, with a warning."""
        ways = {
            "fid": self._frechet,
            "is": self._classifier,
            "kid": self._kernel,
            "precision": self._manifold,
            "recall": self._manifold,
            "modes": self._modes,
        }
        results: dict[str, float] = {}
        for way in dict.fromkeys(ways[score] for score in self.scores):
            try:
                results |= way()
            except ValueError as error:
                self._warn_once(str(error))
        return results

    def _key(self, literature: str, general: str) -> str:
        """Only the literature's network may use the literature's name."""
        return f"eval/{literature if self.extractor.name == 'inception' else f'{general}_{self.extractor.name}'}"

    def _frechet(self) -> dict[str, float]:
        assert self.reference is not None
        generated = self._metrics["moments"][0].compute()
        fewest = min(generated.images, self.reference.gaussian.images)
        if fewest <= self.extractor.num_features:
            self._warn_once(
                f"the Fréchet distance of {fewest} images in {self.extractor.num_features} dimensions is far too "
                "high in absolute terms; compare it only with others of the same counts"
            )
        return {self._key("fid", "fd"): frechet_distance(generated, self.reference.gaussian)}

    def _classifier(self) -> dict[str, float]:
        score = self._metrics["marginals"][0].compute()
        key = self._key("is", "score")
        return {key: score.mean, f"{key}_std": score.std}

    def _features(self) -> tuple[Tensor, Tensor]:
        assert self.reference is not None
        assert self.reference.features is not None
        generated: Tensor = self._metrics["bank"][0].compute()
        return generated, self.reference.features.to(generated.device)

    def _kernel(self) -> dict[str, float]:
        score = kernel_distance(
            *self._features(), subsets=self.config.kid_subsets, subset_size=self.config.kid_subset_size
        )
        key = self._key("kid", "kd")
        return {key: score.mean, f"{key}_std": score.std}

    def _manifold(self) -> dict[str, float]:
        precision, recall = precision_recall(*self._features(), k=self.config.neighbourhood)
        both = {"precision": precision, "recall": recall}
        return {self._key(name, name): value for name, value in both.items() if name in self.scores}

    def _modes(self) -> dict[str, float]:
        histogram, confidence = self._metrics["modes"][0].compute()
        return {
            "eval/modes": float((histogram > 0).sum()),
            "eval/mode_kl": mode_kl(histogram),
            "eval/mode_confidence": confidence,
        }

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning("%s", message)
