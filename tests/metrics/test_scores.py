"""The score functions against closed forms, scipy, torch-fidelity and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from relgan.metrics.scores.frechet import frechet_distance
from relgan.metrics.scores.inception import ClassMarginals, classifier_score
from relgan.metrics.scores.infinity import extrapolate, score_of
from relgan.metrics.scores.kernel import kernel_distance
from relgan.metrics.scores.lpips import RunningMean
from relgan.metrics.scores.modes import ModeHistogram, mode_kl
from relgan.metrics.scores.vendi import vendi_score
from relgan.metrics.statistics import FeatureMoments, Gaussian, factorise


def features(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator) / math.sqrt(dim)
    return torch.randn(n, dim, generator=generator) @ mix + shift


def moments(*batches: Tensor) -> Gaussian:
    metric = FeatureMoments(batches[0].shape[1])
    for batch in batches:
        metric.update(batch)
    gaussian: Gaussian = metric.compute()
    return gaussian


def distance(x: Tensor, y: Tensor) -> float:
    return frechet_distance(moments(x), factorise(moments(y)))


def test_frechet_distance_of_known_gaussians() -> None:
    # Diagonal covariances: Σ (μ₁−μ₂)² + (σ₁−σ₂)².
    a = Gaussian(torch.tensor([1.0, 2.0, 3.0]).double(), torch.diag(torch.tensor([4.0, 9.0, 0.25]).double()), 10)
    b = Gaussian(torch.tensor([0.0, 2.0, 5.0]).double(), torch.diag(torch.tensor([1.0, 16.0, 0.0]).double()), 10)
    expected = (1 + 0 + 4) + (2 - 1) ** 2 + (3 - 4) ** 2 + (0.5 - 0) ** 2
    assert frechet_distance(a, factorise(b)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(500, 400), (20, 400), (500, 20), (20, 30)])
def test_frechet_distance_agrees_with_the_matrix_square_root(n: int, m: int) -> None:
    x, y = features(n, 40, 1), features(m, 40, 2, 0.3)
    a, b = np.cov(x.double().numpy(), rowvar=False), np.cov(y.double().numpy(), rowvar=False)
    # A little of the identity, because sqrtm is not defined on singular matrices.
    root = sqrtm((a + 1e-12 * np.eye(40)) @ (b + 1e-12 * np.eye(40))).real
    mean = x.double().mean(0) - y.double().mean(0)
    expected = float(mean @ mean) + np.trace(a + b) - 2 * np.trace(root)
    assert distance(x, y) == pytest.approx(expected, rel=1e-4)
    assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(600, 500), (30, 40)])
def test_frechet_distance_equals_torchmetrics(n: int, m: int) -> None:
    from torchmetrics.image.fid import _compute_fid

    x, y = moments(features(n, 50, 3)), moments(features(m, 50, 4, 0.2))
    expected = float(_compute_fid(x.mean, x.covariance, y.mean, y.covariance))
    assert frechet_distance(x, factorise(y)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_a_number_in_every_degenerate_case() -> None:
    many, one = features(100, 30, 1), features(1, 30, 2)
    constant = one.expand(50, -1)
    assert distance(many, many) == pytest.approx(0, abs=1e-9)
    assert distance(one, one) == 0
    trace = float(torch.cov(many.double().T).trace())
    for degenerate in (one, constant):
        expected = float((many.double().mean(0) - one[0].double()).square().sum()) + trace
        assert distance(degenerate, many) == pytest.approx(expected, rel=1e-7)
        assert distance(many, degenerate) == pytest.approx(expected, rel=1e-7)
    assert distance(features(3, 30, 1), features(2, 30, 2)) > 0


def test_moments_follow_numpy_and_do_not_depend_on_batches_or_order() -> None:
    x = features(101, 8, 5, 7.0)
    whole, parts = moments(x), moments(*x.flip(0).split(13))
    assert whole.images == parts.images == 101
    np.testing.assert_allclose(whole.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=1e-10)
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-10)
    np.testing.assert_allclose(parts.mean, x.double().mean(0), rtol=1e-12)


def naive_score(logits: Tensor, splits: int) -> tuple[float, float]:
    p = logits.double().softmax(1)
    n = len(p)
    values = []
    for i in range(splits):
        part = p[i * n // splits : (i + 1) * n // splits]
        kl = (part * (part.log() - part.mean(0, keepdim=True).log())).sum(1)
        values.append(float(kl.mean().exp()))
    return float(np.mean(values)), float(np.std(values))


@pytest.mark.parametrize(("n", "splits"), [(100, 10), (103, 10), (50, 1)])
def test_classifier_score_is_exp_mean_kl_over_ordered_splits(n: int, splits: int) -> None:
    logits = 3 * features(n, 12, 6)
    metric = ClassMarginals(12, n, splits)
    for start in range(0, n, 17):
        metric.update(logits[start : start + 17], torch.arange(start, min(n, start + 17)))
    assert metric.compute() == pytest.approx(naive_score(logits, splits), rel=1e-12)


def test_classifier_score_of_certain_even_classes_is_their_number() -> None:
    metric = ClassMarginals(10, 40, 1)
    metric.update(torch.eye(10).repeat(4, 1) * 1e4, torch.arange(40))
    assert metric.compute() == pytest.approx((10.0, 0.0))
    single = ClassMarginals(10, 1, 10)
    single.update(torch.eye(10)[:1], torch.arange(1))
    assert single.compute() == pytest.approx((1.0, 0.0))


def test_empty_splits_are_left_out() -> None:
    sums = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double()
    score = classifier_score(sums, torch.tensor([0.0, 0.0]).double(), torch.tensor([2, 0]))
    assert score == pytest.approx((2.0, 0.0))


def test_mode_kl_is_nats_from_uniform() -> None:
    assert mode_kl(torch.full((1000,), 7)) == pytest.approx(0, abs=1e-12)
    assert mode_kl(torch.eye(1000)[3]) == pytest.approx(math.log(1000))
    assert mode_kl(torch.tensor([3, 1, 0, 0])) == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1))


def test_mode_histogram_counts_the_most_likely_class() -> None:
    metric = ModeHistogram(4)
    metric.update(torch.tensor([[0.0, 5.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 0.0, 9.0]]))
    histogram, confidence = metric.compute()
    assert histogram.tolist() == [0, 2, 0, 1]
    expected = np.mean([math.exp(5) / (math.exp(5) + 3), math.exp(2) / (math.exp(2) + math.e + 2), 1])
    assert confidence == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("n", "m", "size"), [(60, 60, 60), (80, 60, 25)])
def test_kernel_distance_equals_torch_fidelity(n: int, m: int, size: int) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = features(n, 30, 7), features(m, 30, 8, 0.2)
    theirs = kid_features_to_metric(x, y, kid_subsets=9, kid_subset_size=size, verbose=False)
    ours = kernel_distance(x, y, subsets=9, subset_size=size)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours.spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3, abs=1e-6)


def test_kernel_distance_is_unbiased_and_refuses_single_images() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 600, 5, generator=generator)
    same = kernel_distance(x, y, subsets=200, subset_size=20)
    biased = 2 * (float(torch.cat([x, y]).square().sum(1).div(5).add(1).pow(3).mean()) - 1.6) / 20
    assert abs(same.mean) < 0.25 * biased
    assert kernel_distance(x, y + 1, subsets=30, subset_size=300).mean > 0.1
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(features(1, 5, 1), features(9, 5, 2), subsets=3, subset_size=20)


def test_running_mean_has_the_standard_error() -> None:
    values = features(50, 1, 3).flatten()
    metric = RunningMean()
    for part in values.split(7):
        metric.update(part)
    expected = (float(values.mean()), float(values.std() / math.sqrt(50)))
    assert metric.compute() == pytest.approx(expected, rel=1e-5)


def test_extrapolation_finds_the_value_at_infinity_and_how_well_the_line_fits() -> None:
    line = extrapolate(lambda chosen: 3 + 50 / len(chosen), 400)
    assert line == pytest.approx((3, 0), abs=1e-6)
    rng = np.random.default_rng(0)
    noisy = extrapolate(lambda chosen: 3 + 50 / len(chosen) + rng.normal(scale=0.1), 400)
    assert 0.01 < noisy.spread < 0.2
    assert abs(noisy.mean - 3) < 4 * noisy.spread


def test_extrapolation_takes_random_subsets_from_a_tenth_to_all() -> None:
    seen: list[Tensor] = []
    extrapolate(lambda chosen: float(seen.append(chosen) or len(chosen)), 500)
    assert [len(chosen) for chosen in (seen[0], seen[-1])] == [50, 500]
    assert all(len(chosen.unique()) == len(chosen) for chosen in seen)
    assert float(seen[0].double().mean()) == pytest.approx(250, abs=60)
    with pytest.raises(ValueError, match="at least 20"):
        extrapolate(lambda chosen: 0.0, 19)


def test_extrapolated_distance_loses_the_bias_of_few_images() -> None:
    dim = 20
    real = factorise(Gaussian(torch.zeros(dim).double(), torch.eye(dim).double(), 10**6))
    rows = 2 * torch.randn(800, dim, generator=torch.Generator().manual_seed(0))
    fit = extrapolate(lambda chosen: frechet_distance(moments(rows[chosen]), real), len(rows))
    few, truth = frechet_distance(moments(rows[:80]), real), float(dim)
    assert abs(fit.mean - truth) < 0.05 * truth < abs(few - truth)


def test_extrapolated_score_is_that_of_each_subset() -> None:
    logits = 3 * features(60, 12, 6)
    for chosen in (torch.arange(60), torch.arange(7, 31)):
        assert score_of(logits[chosen]) == pytest.approx(naive_score(logits[chosen], 1)[0], rel=1e-12)


def test_vendi_is_the_entropy_of_the_kernels_eigenvalues() -> None:
    x = torch.nn.functional.normalize(features(40, 12, 5, 0.4).double())
    eigenvalues = np.linalg.eigvalsh((x @ x.T / 40).numpy()).clip(1e-15)
    expected = float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))
    assert 1.5 < expected < 12
    assert vendi_score(x @ x.T / 40) == pytest.approx(expected, rel=1e-9)
    assert vendi_score(x.T @ x / 40) == pytest.approx(expected, rel=1e-9)


def test_vendi_counts_different_images() -> None:
    different = torch.eye(6).double()
    assert vendi_score(different / 6) == pytest.approx(6)
    twice = different.repeat(2, 1)
    assert vendi_score(twice.T @ twice / 12) == pytest.approx(6)
    same = torch.ones(6, 6).double() / 6
    assert vendi_score(same) == pytest.approx(1)


def test_vendi_takes_vectors_of_zeros_for_copies_of_each_other() -> None:
    x = torch.eye(4)[[0, 1, 2, 2]].double()
    blind = torch.cat([x, torch.zeros(4, 4)])
    seen = torch.cat([x, torch.zeros(4, 4)], dim=1)
    seen = torch.cat([seen, torch.eye(8)[[7] * 4].double()])  # a direction of their own
    assert vendi_score(blind.T @ blind / 8) == pytest.approx(vendi_score(seen.T @ seen / 8))
    assert vendi_score(torch.zeros(4, 4).double()) == pytest.approx(1)
