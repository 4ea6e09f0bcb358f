"""Whether two sets of images differ by more than chance: known spreads, known answers, and how often it is right."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from in_memory import InMemory
from relgan.config import MetricsConfig
from relgan.data import prepare
from relgan.metrics.catalogue import Key, ScoreCard, direction
from relgan.metrics.compare import WIDTH, Sample, compare, exchanged, spread
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.extractors import Extractor
from relgan.metrics.scores import Batch, FeatureScore, Seen
from relgan.metrics.statistics import FeatureMoments, Gaussian
from relgan.registry import DatasetOptions, register_score

CPU = torch.device("cpu")
DIGITS = DatasetOptions(name="digits")
SCORES = ["fid", "is", "kid", "precision", "recall", "density", "coverage", "vendi", "authenticity"]

THIRD = 599


def real_digits() -> Tensor:
    """In random order, uint8 (1797, 1, 32, 32)."""
    images = torch.from_numpy(np.array(prepare(DIGITS, progress=False).images)).permute(0, 3, 1, 2)
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


def judge(count: int, scores: list[str]) -> Evaluator:
    """Of ``count`` images, against a third of the digits."""
    config = MetricsConfig(scores=scores, num_images=count, splits=1, kid_subsets=1, kid_subset_size=count)
    return Evaluator(config, DIGITS, InMemory(real_digits()[:THIRD]), latent_dim=4, seed=3, device=CPU)


@pytest.fixture(scope="module")
def rows(shared_cache: Path) -> tuple[Tensor, Tensor]:
    """Features and logits of the other two thirds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(shared_cache))
        return extractor_of(judge(10, ["fid"]))(real_digits()[THIRD:])


def extractor_of(evaluator: Evaluator) -> Extractor:
    extractor = evaluator.scores[0].extractor
    assert extractor is not None
    return extractor


def seen(evaluator: Evaluator, features: Tensor, logits: Tensor) -> list[Seen]:
    """What :meth:`Evaluator.see` returns of images with these rows."""
    parts = zip(features.split(100), logits.split(100), strict=True)
    none = torch.zeros(100, 1, 0, 0, dtype=torch.uint8)
    return [
        {extractor_of(evaluator): Batch(none[: len(part)], part, row, 100 * number)}
        for number, (part, row) in enumerate(parts)
    ]


class FirstFeature(FeatureScore):
    """The mean of one feature."""

    def accumulator(self) -> FeatureMoments:
        return FeatureMoments(self.extractor.num_features)

    def update(self, accumulator: FeatureMoments, batch: Batch) -> None:
        accumulator.update(batch.features)

    def compute(self, accumulated: Gaussian) -> dict[str, float]:
        return {"first": float(accumulated.mean[0])}


@pytest.mark.usefixtures("_registries")
def test_the_spread_of_a_mean_is_the_known_one(rows: tuple[Tensor, Tensor]) -> None:
    register_score("first", None, FirstFeature, facts=ScoreCard((Key("first", "First", "max"),)))
    evaluator = judge(500, ["first"])
    features, logits = rows
    one, other = (seen(evaluator, features[part], logits[part]) for part in (slice(0, 500), slice(500, 1000)))
    expected = float((features[:500, 0] - features[500:1000, 0]).double().square().sum().sqrt()) / 500
    assert spread(evaluator, one, other)["eval/first_digits"] == pytest.approx(expected, rel=0.25)
    found = compare(evaluator, Sample(one, other), Sample(other, one))["eval/first_digits"]
    alone = float(features[:500, 0].double().std()) / 500**0.5
    assert found.run.high - found.run.value == pytest.approx(2 * alone, rel=0.25)


def test_an_exchanged_image_takes_all_along() -> None:
    evaluator = judge(3, ["fid"])

    def made(value: int) -> list[Seen]:
        row = torch.full((3, 2), float(value))
        images = torch.zeros(3, 1, 0, 0, dtype=torch.uint8)
        batches = (Batch(images, row, row + 10, start, row[:, 0].long() + 20) for start in (0, 3))
        return [{extractor_of(evaluator): batch} for batch in batches]

    chosen = torch.tensor([True, False, False, False, True, True])
    for part, expected in zip(exchanged(made(1), made(2), chosen), ([2, 1, 1], [1, 2, 2]), strict=True):
        (batch,) = part.values()
        assert batch.features[:, 1].tolist() == expected
        assert batch.logits[:, 1].tolist() == [10 + value for value in expected]
        assert batch.labels is not None
        assert batch.labels.tolist() == [20 + value for value in expected]


@pytest.mark.slow
def test_a_set_and_itself_are_not_told_apart(rows: tuple[Tensor, Tensor]) -> None:
    evaluator = judge(300, SCORES)
    features, logits = rows
    one, other = (seen(evaluator, features[part], logits[part]) for part in (slice(0, 300), slice(300, 600)))
    found = compare(evaluator, Sample(one, other), Sample(one, other))
    assert len(found) == len(SCORES)
    for key, each in found.items():
        assert each.difference == (0, 0, 0), key
        assert each.better is None
        assert each.run == each.against
        assert each.run.low < each.run.value < each.run.high, key


def test_noise_is_told_apart_and_the_better_one_named(rows: tuple[Tensor, Tensor]) -> None:
    names = ("fd", "score", "precision", "coverage")
    evaluator = judge(300, ["fid", "is", "precision", "coverage"])
    features, logits = rows
    real = Sample(*(seen(evaluator, features[part], logits[part]) for part in (slice(0, 300), slice(300, 600))))
    rng = torch.Generator().manual_seed(0)
    noisy = features + 3 * torch.randn(features.shape, generator=rng)
    unsure = 0.3 * logits
    bad = Sample(*(seen(evaluator, noisy[part], unsure[part]) for part in (slice(598, 898), slice(898, 1198))))
    found = compare(evaluator, real, bad)
    back = compare(evaluator, bad, real)
    for name in names:
        assert found[f"eval/{name}_digits"].better == "run", name
        assert back[f"eval/{name}_digits"].better == "against", name
        assert back[f"eval/{name}_digits"].difference.value == -found[f"eval/{name}_digits"].difference.value


def test_a_score_that_one_side_lacks_is_left_out(rows: tuple[Tensor, Tensor]) -> None:
    evaluator = judge(3, ["fid", "recall"])
    features, logits = rows
    few = Sample(*(seen(evaluator, features[part], logits[part]) for part in (slice(0, 3), slice(3, 6))))
    assert list(compare(evaluator, few, few)) == ["eval/fd_digits"]


def halves(rows: tuple[Tensor, Tensor], scores: list[str], repetitions: int) -> dict[str, Tensor]:
    """Differences between two random halves of the real digits, and their estimated deviations: (repetitions, 2)."""
    features, logits = rows
    count = len(features) // 2
    evaluator = judge(count, scores)
    rng = torch.Generator().manual_seed(0)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repetitions):
        order = torch.randperm(len(features), generator=rng)
        one, other = (
            seen(evaluator, features[part], logits[part]) for part in (order[:count], order[count : 2 * count])
        )
        values = [evaluator.judge(each) for each in (one, other)]
        for key, deviation in spread(evaluator, one, other).items():
            if direction(key) is not None:
                found.setdefault(key, []).append((values[0][key] - values[1][key], deviation))
    return {key: torch.tensor(each) for key, each in found.items()}


@pytest.mark.slow
def test_halves_of_the_real_images_are_told_apart_in_five_of_a_hundred_times(rows: tuple[Tensor, Tensor]) -> None:
    error = math.sqrt(0.95 * 0.05 / 100)
    for key, found in halves(rows, SCORES, 100).items():
        differences, deviations = found.T
        held = (differences.abs() <= WIDTH * deviations).double().mean()
        assert float(held) == pytest.approx(0.95, abs=3 * error), key
        # Nor are the intervals too wide.
        ratio = deviations.square().mean().sqrt() / differences.square().mean().sqrt()
        assert float(ratio) == pytest.approx(1, abs=0.3), key
