"""Inception scores against torch-fidelity and torchmetrics: one seeded random state dict for all."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from in_memory import InMemory, pictures
from relgan.config import MetricsConfig
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.reference import Images, StoreImages
from relgan.registry import DatasetOptions

N_GENERATED, N_REAL = 10, 9
CPU = torch.device("cpu")
# Formulas are compared with the same packages elsewhere, on the same features.
pytestmark = pytest.mark.slow


def evaluator(weights: Path, real: Images, **options: object) -> Evaluator:
    config = MetricsConfig(
        scores=["fid", "is", "kid", "precision", "recall"],
        extractor="inception",
        weights=str(weights),
        num_images=N_GENERATED,
        batch_size=8,
        splits=2,
        kid_subsets=5,
        kid_subset_size=min(N_GENERATED, N_REAL),
    )
    return Evaluator(replace(config, **options), DatasetOptions(name="folder"), real, latent_dim=0, seed=0, device=CPU)


@pytest.fixture(scope="module")
def ours(inception_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RELGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = pictures(N_GENERATED, 1)
        judge = evaluator(inception_weights, InMemory(pictures(N_REAL, 2)))
        return judge.score((start, made[start : start + 8]) for start in range(0, N_GENERATED, 8))


@pytest.fixture(scope="module")
def theirs(inception_weights: Path) -> dict[str, float]:
    from torch_fidelity import calculate_metrics

    scores: dict[str, float] = calculate_metrics(
        input1=InMemory(pictures(N_GENERATED, 1)),
        input2=InMemory(pictures(N_REAL, 2)),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_weights),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=2,
        kid_subsets=5,
        kid_subset_size=min(N_GENERATED, N_REAL),
        samples_shuffle=False,
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=8,
        save_cpu_ram=True,
    )
    return scores


@pytest.mark.parametrize(
    ("key", "their_key", "tolerance"),
    [
        ("eval/fid", "frechet_inception_distance", 1e-3),
        ("eval/is", "inception_score_mean", 1e-4),
        ("eval/is_std", "inception_score_std", 1e-3),
        ("eval/kid", "kernel_inception_distance_mean", 1e-3),
        ("eval/precision", "precision", 1e-7),
        ("eval/recall", "recall", 1e-7),
    ],
)
def test_scores_equal_torch_fidelity(
    ours: dict[str, float], theirs: dict[str, float], key: str, their_key: str, tolerance: float
) -> None:
    assert math.isfinite(ours[key])
    assert ours[key] == pytest.approx(theirs[their_key], rel=tolerance)


def test_the_comparison_is_not_trivial(ours: dict[str, float]) -> None:
    assert ours["eval/fid"] > 1
    assert ours["eval/is"] > 1.05
    assert ours["eval/kid"] > 1e-4
    assert 0 < ours["eval/precision"] < 1
    assert 0 < ours["eval/recall"] < 1


def test_fid_equals_torchmetrics_without_antialiasing(ours: dict[str, float], inception_weights: Path) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(
        feature=2048, feature_extractor_weights_path=str(inception_weights), antialias=False
    ).set_dtype(torch.float64)
    metric.update(pictures(N_REAL, 2), real=True)
    metric.update(pictures(N_GENERATED, 1), real=False)
    assert ours["eval/fid"] == pytest.approx(float(metric.compute()), rel=1e-3)


def test_cifar10_train_against_test_gives_the_known_fid() -> None:
    """With the published weights and CIFAR-10 at hand (RELGAN_CIFAR10=PATH of the original archive)."""
    from relgan.data import prepare
    from relgan.metrics.extractors.inception import WEIGHTS

    archive = os.environ.get("RELGAN_CIFAR10")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS.name
    if archive is None or not cached.is_file():
        pytest.skip(f"needs RELGAN_CIFAR10 and {WEIGHTS.name} in the torch hub cache")
    train, test = (
        StoreImages(prepare(DatasetOptions(name="cifar10", path=archive, split=split))) for split in ("train", "test")
    )
    judge = evaluator(cached, train, scores=["fid"], num_images=len(test), batch_size=100)
    batches = test.batches(np.arange(len(test)), 100)
    scores = judge.score((100 * number, images) for number, images in enumerate(batches))
    assert scores["eval/fid"] == pytest.approx(3.15, abs=0.05)
