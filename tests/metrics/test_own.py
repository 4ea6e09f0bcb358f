"""Scores and extractors of other people's: chosen by name, computed, ranked and titled beside the built-in ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from relgan.config import metrics_class, with_defaults
from relgan.data import prepare
from relgan.metrics.catalogue import Key, ScoreCard, direction, family, score_of, spellings, title
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.extractors import Extractor, Extractors
from relgan.metrics.scores import Batch, RowScore, Score
from relgan.options import ConfigError, Options, option
from relgan.registry import EXTRACTORS, SCORES, DatasetOptions, register_extractor, register_score
from relgan.report.dashboard import shown_scores

CPU = torch.device("cpu")
DIGITS = DatasetOptions(name="digits", num_images=100)


@dataclass
class SharpnessOptions(Options):
    distance: int = option(1, "pixels between the columns that are compared", ge=1)


class Sharpness(Score):
    """Mean difference of neighbouring columns."""

    def accumulator(self) -> MeanMetric:
        return MeanMetric()

    def update(self, accumulator: MeanMetric, batch: Batch) -> None:
        columns = batch.images.float()
        accumulator.update((columns - columns.roll(self.options.distance, dims=3)).abs().mean(dim=(1, 2, 3)))

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        return {"sharpness": float(accumulated)}


class Reach(RowScore):
    """Distance of the means of all rows."""

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        return {"reach": float((accumulated.mean(0) - self.real.features.mean(0)).norm()), "reach_se": 0.0}


@dataclass
class PoolingOptions(Options):
    side: int = option(4, "side of the pooled picture, pixels", ge=1)


class Pooled(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = nn.functional.adaptive_avg_pool2d(images.float(), self.side).flatten(1)
        return features, features[:, :0]


def pooling(metrics: Any, dataset: DatasetOptions, device: torch.device) -> Extractor:
    """Average pooling: no weights."""
    side = metrics.pooling.side
    return Extractor(network=Pooled(side), device=device, num_features=3 * side**2)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (SCORES, EXTRACTORS):
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    card = ScoreCard((Key("sharpness", "Sharpness", "max"),), family="sharpness")
    register_score("sharpness", SharpnessOptions, facts=card)(Sharpness)
    register_score("reach", facts=ScoreCard((Key("reach", "Reach", "min"),)))(Reach)
    register_extractor("pooling", PoolingOptions)(pooling)


def test_an_option_of_ones_own_that_is_younger_than_a_run_had_its_default() -> None:
    metrics = {"scores": ["sharpness"], "extractor": "pooling", "sharpness": {}}
    filled = with_defaults({"metrics": metrics})
    assert (filled["metrics.sharpness.distance"], filled["metrics.pooling.side"]) == (1, 4)
    assert "metrics.pooling.side" not in with_defaults({"metrics": {**metrics, "extractor": "digits"}})


def evaluator(dataset: DatasetOptions = DIGITS, **options: Any) -> Evaluator:
    config = metrics_class()(**{"num_images": 40, "batch_size": 20, "extractor": "pooling"} | options)
    return Evaluator(config, dataset, prepare(dataset, progress=False), latent_dim=4, seed=3, device=CPU)


def generator() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 1024), nn.Tanh(), nn.Unflatten(1, (1, 32, 32)))


def test_they_are_computed_in_the_same_pass_as_the_built_in_ones() -> None:
    judge = evaluator(scores=["sharpness", "fid", "reach", "kid"], kid_subsets=3)
    scores = judge.evaluate(generator())
    names = ["sharpness", "fd_pooling", "reach_pooling", "reach_pooling_se", "kd_pooling", "kd_pooling_std"]
    assert list(scores) == [f"eval/{name}" for name in names]
    accumulators = {id(accumulator) for accumulator in judge._accumulators.values()}
    assert len(accumulators) == 3  # reach and kid share the rows
    assert all(score_of(key) in judge.config.scores for key in scores)


def test_their_keys_are_ranked_and_titled_with_any_extractor() -> None:
    assert (direction("eval/sharpness"), title("eval/sharpness"), family("eval/sharpness")) == (
        "max",
        "Sharpness",
        "sharpness",
    )
    assert (direction("eval/reach"), title("eval/reach")) == ("min", "Reach")
    assert (direction("eval/reach_pooling"), title("eval/reach_pooling")) == ("min", "Reach (pooling)")
    assert (direction("eval/reach_pooling_se"), score_of("eval/reach_pooling_se")) == (None, "reach")
    assert (direction("eval/kd_pooling"), title("eval/kd_pooling")) == ("min", "Kernel distance (pooling)")
    assert spellings("sharpness") == ["eval/sharpness"]
    assert set(spellings("reach")) > {"eval/reach", "eval/reach_digits", "eval/reach_pooling"}
    assert {"eval/sharpness", "eval/reach_pooling", "eval/fd_pooling"} <= set(shown_scores())


def test_their_options_change_the_numbers_and_are_part_of_their_identity() -> None:
    options = {"scores": ["sharpness", "reach"]}
    usual = evaluator(**options)
    changed = evaluator(**options, sharpness=SharpnessOptions("sharpness", 5), pooling=PoolingOptions("pooling", 2))
    first, second = (judge.evaluate(generator()) for judge in (usual, changed))
    assert all(first[key] != second[key] for key in ("eval/sharpness", "eval/reach_pooling"))
    assert usual.protocol["options"] == {"sharpness": {"distance": 1}}
    assert usual.protocol["extractor_options"] == {"side": 4}
    assert usual.protocol["extractor"] == "pooling"
    assert usual.protocol["weights_known"]
    assert usual.protocol["sharpness_images"] == 40
    assert changed.protocol["options"] == {"sharpness": {"distance": 5}}


class ReachOfDigits(Reach):
    """In the features of one network, whichever the others look through."""

    def __init__(self, options: Any, metrics: Any, extractors: Extractors) -> None:
        super().__init__(options, metrics, extractors)
        self.extractor = extractors["digits"]


def test_each_is_compared_with_real_images_as_its_own_network_sees_them() -> None:
    register_score("reach_of_digits")(ReachOfDigits)
    judge = evaluator(scores=["reach", "reach_of_digits"])
    beside = judge.evaluate(generator())
    assert [score.real.features.shape for score in judge.scores] == [(100, 48), (100, 64)]
    assert beside["eval/reach_pooling"] == evaluator(scores=["reach"]).evaluate(generator())["eval/reach_pooling"]
    digits = evaluator(scores=["reach"], extractor="digits").evaluate(generator())
    assert beside["eval/reach_digits"] == digits["eval/reach_digits"]


def test_a_score_that_needs_no_network_builds_none() -> None:
    judge = evaluator(scores=["sharpness"], extractor="inception", weights="/nowhere.pth")
    assert list(judge.evaluate(generator())) == ["eval/sharpness"]
    assert "extractor" not in judge.protocol


@pytest.mark.parametrize(
    ("result", "warning"),
    [(math.nan, "reach is left out: eval/reach_pooling not finite"), (ValueError("too dark"), "reach: too dark")],
)
def test_a_score_that_cannot_be_computed_costs_only_itself_and_one_warning(
    result: float | Exception, warning: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compute(score: Score, accumulated: Tensor) -> dict[str, float]:
        if isinstance(result, Exception):
            raise result
        return {"reach": result}

    monkeypatch.setattr(Reach, "compute", compute)
    judge = evaluator(scores=["reach", "sharpness"])
    for _ in range(2):
        assert list(judge.evaluate(generator())) == ["eval/sharpness"]
    assert [record.message for record in caplog.records].count(warning) == 1


def test_features_that_are_not_finite_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pooled, "forward", lambda self, images: (images.float().flatten(1)[:, :48] / 0, images[:, :0]))
    with pytest.raises(ValueError, match=r"^pooling computes features that are not finite$"):
        evaluator(scores=["fid"]).evaluate(generator())


def test_what_a_builder_returns_is_checked() -> None:
    register_extractor("wrong", about="no extractor")(lambda metrics, dataset, device: nn.Identity())
    with pytest.raises(ConfigError, match=r"metrics\.extractor: wrong builds a Identity, not a .*Extractor"):
        evaluator(scores=["fid"], extractor="wrong")
    register_score("bare", about="no score")(lambda options, metrics, extractors: 5)
    with pytest.raises(ConfigError, match=r"metrics\.scores: bare builds a int, not a .*Score"):
        evaluator(scores=["bare"])


def test_a_score_is_left_out_where_it_makes_no_sense() -> None:
    card = ScoreCard((Key("reach", "Reach", "min"),), suits=lambda dataset: dataset.stacked)
    register_score("stacked_reach", facts=card)(Reach)
    assert evaluator(scores=["stacked_reach"]).evaluate(generator()) == {}
    stacked = evaluator(DatasetOptions(name="stacked_digits", num_images=100), scores=["stacked_reach"])
    assert [type(score) for score in stacked.scores] == [Reach]
