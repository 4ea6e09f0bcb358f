"""Label agreement: whether a generator makes what it is asked for, said beside what the judge makes of real images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relgan.config import MetricsConfig
from relgan.data import PackedStore, prepare
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.extractors import Extractor, digits
from relgan.metrics.scores import agreement
from relgan.networks.sampling import draw_labels
from relgan.registry import DatasetOptions, register_extractor

CPU = torch.device("cpu")
DIGITS = DatasetOptions(name="digits", num_images=600, labels=True)
STACKED = DatasetOptions(name="stacked_digits", num_images=3000, labels=True)
KEYS = ["eval/label_agreement", "eval/label_agreement_real"]


def images_of(store: PackedStore) -> Tensor:
    return torch.from_numpy(np.array(store.images)).permute(0, 3, 1, 2)


def seen_in(images: Tensor, dataset: DatasetOptions) -> Tensor:
    """What the judge takes uint8 images for, int64 (N,), in one batch."""
    return digits.build(MetricsConfig(), dataset, CPU)(images)[1].argmax(dim=1)


class Copying(nn.Module):
    """A generator that answers with a real image of the class asked for, or of the next one where z₀ > ``limit``."""

    def __init__(self, dataset: DatasetOptions, limit: float) -> None:
        super().__init__()
        store = prepare(dataset, progress=False)
        images, labels = images_of(store), torch.from_numpy(store.labels)
        clear = seen_in(images, dataset) == labels
        self.images = {int(label): images[clear & (labels == label)][0] for label in labels[clear].unique()}
        self.limit = nn.Parameter(torch.tensor(limit))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        answers = torch.where(z[:, 0] > self.limit, (labels + 1) % 10 + labels // 10 * 10, labels)
        return torch.stack([self.images[int(label)] for label in answers]).float() / 127.5 - 1


def evaluator(dataset: DatasetOptions, counts: list[int] | None = None, **options: Any) -> Evaluator:
    store = prepare(dataset, progress=False)
    values: dict[str, Any] = {"scores": ["label_agreement"], "num_images": 130, "batch_size": 40, **options}
    config = MetricsConfig(**values)
    class_counts = store.class_counts if counts is None else counts
    return Evaluator(config, dataset, store, latent_dim=4, seed=3, device=CPU, class_counts=class_counts)


def test_the_share_of_images_that_are_what_was_asked_for() -> None:
    z = torch.cat([part[:, 0] for part in _latents(130)])
    for limit in (-9.0, 0.3, 9.0):
        scores = evaluator(DIGITS).evaluate(Copying(DIGITS, limit))
        assert list(scores) == KEYS
        assert scores["eval/label_agreement"] == float((z <= limit).double().mean())


def _latents(count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(3)
    return [torch.randn(min(40, count - start), 4, generator=rng) for start in range(0, count, 40)]


@pytest.mark.parametrize("count", [None, 250])
def test_real_images_are_judged_with_their_own_labels(count: int | None) -> None:
    store = prepare(DIGITS, progress=False)
    assert store.labels is not None
    part = np.arange(600) if count is None else np.sort(np.random.default_rng(0).choice(600, count, replace=False))
    right = seen_in(images_of(store)[part], DIGITS) == torch.from_numpy(store.labels[part])
    judge = evaluator(DIGITS, reference_images=count)
    for _ in range(2):
        scores = judge.evaluate(Copying(DIGITS, 0.0))
        assert scores["eval/label_agreement_real"] == float(right.double().mean()) > 0.9


def test_all_three_digits_of_a_stacked_image_must_be_right() -> None:
    # Classes whose neighbour was drawn too, so that the generator can be wrong by the last digit.
    known = Copying(STACKED, 0.0).images
    counts = [int(label in known and (label + 1) % 10 + label // 10 * 10 in known) for label in range(1000)]
    judge = evaluator(STACKED, counts, scores=["modes", "label_agreement"], modes_images=200)
    assert judge.evaluate(Copying(STACKED, 9.0))["eval/label_agreement"] == 1
    wrong = judge.evaluate(Copying(STACKED, -9.0))
    assert wrong["eval/label_agreement"] == 0
    assert wrong["eval/label_agreement_real"] > 0.8


def test_classes_are_asked_for_as_often_as_they_are_in_the_data() -> None:
    asked = []

    class Listening(Copying):
        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            asked.append(labels)
            return super().forward(z, labels)

    evaluator(DIGITS, [1, 0, 3, 0, 0, 0, 0, 0, 0, 0], num_images=2000).evaluate(Listening(DIGITS, 9.0))
    found = torch.bincount(torch.cat(asked), minlength=10).double() / 2000
    assert found.tolist() == pytest.approx([0.25, 0, 0.75, 0, 0, 0, 0, 0, 0, 0], abs=0.03)


def test_labels_follow_the_position_in_the_stream() -> None:
    """Each rank sees some batches only."""
    judge = evaluator(DIGITS)
    labels = draw_labels(judge.class_counts, 130, 3)
    known = Copying(DIGITS, 9.0).images
    images = torch.stack([known[int(label)] for label in labels])
    starts = [80, 0, 120, 40]
    scores = judge.score([(start, images[start : start + 40]) for start in starts], labels)
    assert scores["eval/label_agreement"] == 1


def test_it_is_left_out_where_nothing_is_asked_for() -> None:
    assert evaluator(DIGITS, []).scores == []


def test_each_class_has_its_own_share() -> None:
    class Wrong(Copying):
        """Wrong about the class 3 only."""

        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            return super().forward(z, torch.where(labels == 3, 8, labels))

    judge = evaluator(DIGITS)
    judge.evaluate(Wrong(DIGITS, 9.0))
    assert list(judge.by_class) == KEYS
    assert judge.by_class[KEYS[0]] == {label: float(label != 3) for label in range(10)}
    assert all(share > 0.7 for share in judge.by_class[KEYS[1]].values())


@pytest.fixture
def pixels(_registries: None) -> None:
    """An extractor that is no classifier: 64 pixels."""

    class Small(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            features = nn.functional.avg_pool2d(images[:, :1].float(), 4).flatten(1)
            return features, features[:, :0]

    @register_extractor("pixels")
    def build(metrics: MetricsConfig, dataset: DatasetOptions, device: torch.device) -> Extractor:
        return Extractor(network=Small(), device=device, num_features=64)


def probed(store: PackedStore, **options: Any) -> Evaluator:
    """A judge of the digits that does not know what they are."""
    config = MetricsConfig(**{"scores": ["label_agreement"], "extractor": "pixels", "num_images": 130, **options})
    folder = DatasetOptions(name="folder", labels=True)
    return Evaluator(config, folder, store, latent_dim=4, seed=3, device=CPU, class_counts=store.class_counts)


@pytest.mark.usefixtures("pixels")
def test_where_no_digits_are_shown_a_probe_judges() -> None:
    judge = probed(prepare(DIGITS, progress=False))
    right, wrong = (judge.evaluate(Copying(DIGITS, limit)) for limit in (9.0, -9.0))
    assert list(right) == [f"{key}_pixels" for key in KEYS] == list(judge.by_class)
    assert right[f"{KEYS[0]}_pixels"] > 0.9
    assert wrong[f"{KEYS[0]}_pixels"] < 0.2
    assert 0.8 < right[f"{KEYS[1]}_pixels"] == wrong[f"{KEYS[1]}_pixels"] < 1
    assert judge.protocol["label_agreement_extractor"] == "pixels"


@pytest.mark.usefixtures("pixels")
def test_a_probe_is_asked_about_images_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels by chance cannot be known, and one that is free enough knows 130 images by heart."""
    monkeypatch.setattr(agreement, "STRENGTH", 1e3)
    store = prepare(DIGITS, progress=False)
    store.labels = np.random.default_rng(0).permutation(store.labels)
    scores = probed(store, reference_images=130).evaluate(Copying(DIGITS, 9.0))
    assert scores[f"{KEYS[1]}_pixels"] < 0.35


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize(("count", "labels"), [(4, None), (100, 7)])
def test_a_probe_that_cannot_be_fitted_costs_one_warning(
    count: int, labels: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = prepare(DIGITS, progress=False)
    if labels is not None:
        store.labels = np.full_like(store.labels, labels)
    judge = probed(store, scores=["fid", "label_agreement"], reference_images=count)
    caplog.clear()
    generator = Copying(DIGITS, 9.0)
    generator.images = dict.fromkeys(range(10), generator.images[0])
    assert list(judge.evaluate(generator)) == ["eval/fd_pixels"]
    assert caplog.text.count("label_agreement: a probe needs") == 1


def test_the_protocol_names_the_judge() -> None:
    protocol = evaluator(DIGITS).protocol
    assert protocol["label_agreement_images"] == 130
    assert len(protocol["label_agreement_weights"]) == 64
