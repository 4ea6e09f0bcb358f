"""Nearest neighbours, balls and copies, against prdc, torch-fidelity and what is known beforehand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relgan.metrics import distances
from relgan.metrics.scores.copies import authenticity
from relgan.metrics.scores.manifold import Neighbourhoods
from relgan.metrics.statistics import RealStatistics, Reference


def features(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator) / math.sqrt(dim)
    return torch.randn(n, dim, generator=generator) @ mix + shift


def real_statistics(rows: Tensor) -> RealStatistics:
    gaussian = Reference(rows.mean(dim=0), torch.zeros(rows.shape[1], 1), len(rows))
    return RealStatistics(gaussian, rows)


def all_four(generated: Tensor, real: Tensor, k: int) -> dict[str, float]:
    near, statistics = Neighbourhoods(generated), real_statistics(real)
    return {
        "precision": near.precision(statistics, k),
        "recall": near.recall(statistics, k),
        "density": near.density(statistics, k),
        "coverage": near.coverage(statistics, k),
    }


@pytest.fixture(params=[7, 2048])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "TILE", request.param)


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_all_four_equal_prdc(shift: float) -> None:
    """Also where the features have a large mean in common, beside which their differences are small."""
    from prdc import compute_prdc

    rows = features(160, 16, 9)
    generated, real = 0.9 * rows[:90] + 0.5 + shift, rows[90:] + shift
    ours = all_four(generated, real, k=5)
    assert all(0.05 < ours[key] < 0.95 for key in ("precision", "recall", "density", "coverage")), ours
    theirs = compute_prdc(real_features=real.numpy(), fake_features=generated.numpy(), nearest_k=5)
    assert ours == pytest.approx({key: float(value) for key, value in theirs.items()}, rel=1e-9)


@pytest.mark.usefixtures("_tile")
def test_precision_and_recall_equal_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    generated, real = features(90, 16, 9), 1.6 * features(70, 16, 9, 0.5).flip(0)
    theirs = prc_features_to_metric(generated, real, verbose=False)
    ours = all_four(generated, real, k=3)
    assert 0 < ours["precision"] < 1
    assert 0 < ours["recall"] < 1
    for key in ("precision", "recall"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-7)


@pytest.mark.usefixtures("_tile")
def test_nearest_equals_a_search_in_all_distances() -> None:
    queries, rows = features(30, 8, 1, 50.0), features(40, 8, 2, 50.0)
    expected = torch.cdist(queries.double(), rows.double()).square().topk(4, largest=False)
    found = distances.nearest(queries, rows, k=4)
    assert torch.equal(found.indices, expected.indices)
    assert found.distances.double() == pytest.approx(expected.values, rel=1e-4)
    assert distances.nearest(queries, rows[:2], k=4).indices.shape == (30, 2)


def test_balls_need_a_neighbour_to_reach_to() -> None:
    many, few = features(50, 4, 2), features(3, 4, 1)
    for generated, real, score in ((many, few, "precision"), (many, few, "coverage"), (few, many, "recall")):
        with pytest.raises(ValueError, match="rank 3 need more than 3 images, not 3"):
            getattr(Neighbourhoods(generated), score)(real_statistics(real), 3)
    assert Neighbourhoods(many[:1]).precision(real_statistics(many), 3) == 1


def test_real_balls_are_found_once_for_all_scores_and_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    tiles = distances._tiles
    monkeypatch.setattr(distances, "_tiles", lambda *a: calls.append(tuple(map(len, a))) or tiles(*a))
    real = real_statistics(features(60, 8, 1))
    for _ in range(2):
        near = Neighbourhoods(features(50, 8, 2))
        for score in (near.precision, near.density, near.coverage):
            score(real, 3)
    # The radii once; in each evaluation, closed balls for precision and open ones for the others.
    assert calls == [(60, 60), *[(50, 60)] * 4]


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_copies_of_the_training_set(shift: float) -> None:
    """They lie on the edges of balls, where rounding decides unless something else does."""
    from prdc import compute_prdc

    real = features(200, 12, 3, 2.0) + shift
    copies = real.flip(0).clone()
    scores = all_four(copies, real, k=5)
    assert scores == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    theirs = compute_prdc(real_features=real.double().numpy(), fake_features=copies.double().numpy(), nearest_k=5)
    assert (scores["density"], scores["coverage"]) == (theirs["density"], theirs["coverage"])
    assert authenticity(copies, real) == 0
    assert authenticity(torch.cat([copies[:50], features(50, 12, 4, 9.0)]), real) == 0.5


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_an_image_that_the_real_set_holds_more_than_k_times_has_a_ball_without_size(scale: float) -> None:
    """Rounding makes it none, wherever the image stands."""
    one, other = features(1, 600, 1), scale * features(1, 600, 2)
    copies = other.expand(7, -1)
    generated = torch.cat([one, copies, copies + 1])
    first, last = (all_four(generated, real, k=5) for real in (torch.cat([one, copies]), torch.cat([copies, one])))
    # Only the ball around the single image, to whose edge the copies lie, has an inside.
    assert first == last
    assert first["coverage"] == 1 / 8
    assert first["precision"] >= 8 / 15
    assert not distances.radii(torch.cat([one, copies]), k=5)[1:].any()


def test_copies_of_an_image_that_the_training_set_holds_several_times_are_copies() -> None:
    real = torch.cat([features(40, 12, 3), features(5, 12, 3)])
    assert authenticity(real[:10].clone(), real) == 0


@pytest.mark.usefixtures("_tile")
def test_authenticity_follows_its_definition() -> None:
    generated, real = features(110, 3, 5).split([60, 50])
    between = torch.cdist(generated, real)
    within = torch.cdist(real, real).fill_diagonal_(math.inf).amin(dim=1)
    model = between.argmin(dim=1)
    expected = (between.amin(dim=1) > within[model]).double().mean()
    assert 0.2 < expected < 0.8
    assert authenticity(generated, real) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="two real images"):
        authenticity(generated, real[:1])


def test_coverage_falls_to_the_share_of_the_classes_that_are_left() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = 20 * torch.randn(10, 8, generator=rng)
    real, generated = (centres.repeat(40, 1) + torch.randn(400, 8, generator=rng) for _ in range(2))
    every, half = (all_four(rows, real, k=5) for rows in (generated, generated.view(40, 10, 8)[:, :5].flatten(0, 1)))
    assert every["coverage"] > 0.9
    assert half["coverage"] == pytest.approx(every["coverage"] / 2, abs=0.05)
    assert half["precision"] == pytest.approx(every["precision"], abs=0.05)


def test_one_image_for_ever() -> None:
    real = features(100, 12, 3)
    inside = real[:1].expand(50, -1).clone()
    scores = all_four(inside, real, k=5)
    assert scores["precision"] == 1
    assert scores["coverage"] < 0.3
    assert scores["recall"] == pytest.approx(0.01, abs=0.01)
    # Its balls have no size; an open one holds nothing then.
    assert all_four(inside, inside, k=5) == {"precision": 1, "recall": 1, "density": 0, "coverage": 0}


def test_memory_is_that_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "TILE", 10)
    largest = 0
    tiles = distances._tiles

    def watched(*rows: Tensor) -> list[tuple[slice, Tensor]]:
        nonlocal largest
        made = list(tiles(*rows))
        largest = max(largest, *(tile.numel() for _, tile in made))
        return made

    monkeypatch.setattr(distances, "_tiles", watched)
    all_four(features(45, 4, 1), features(64, 4, 2), k=3)
    authenticity(features(45, 4, 1), features(64, 4, 2))
    assert largest == 100
