"""The evaluator: from a generator to scores, the reference cache, degenerate generators."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from relgan.config import MetricsConfig
from relgan.data import PackedStore, prepare
from relgan.data.store import fixed_subset
from relgan.images import to_uint8
from relgan.metrics import reference
from relgan.metrics.catalogue import direction, score_of
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.reference import Pictures
from relgan.metrics.scores.vendi import vendi_score
from relgan.options import ConfigError
from relgan.registry import DatasetOptions

CPU = torch.device("cpu")
DIGITS = DatasetOptions(name="digits", num_images=200)
FEATURE_SCORES = [
    *("fid", "is", "kid", "precision", "recall", "density", "coverage", "fid_infinity", "is_infinity", "vendi"),
    "authenticity",
]
STACKED = DatasetOptions(name="stacked_digits", num_images=400)


class Replay(nn.Module):
    """A generator that repeats given images in [−1, 1], whatever the latents, and keeps a buffer."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = nn.Parameter(images)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.position = 0

    def forward(self, z: Tensor) -> Tensor:
        index = (torch.arange(len(z)) + self.position) % len(self.images)
        self.position += len(z)
        self.seen += len(z)
        return self.images[index]


def real_images(store: PackedStore, count: int) -> Tensor:
    return torch.from_numpy(np.array(store.images[:count])).permute(0, 3, 1, 2).float() / 127.5 - 1


def evaluator(dataset: DatasetOptions = DIGITS, **options: Any) -> Evaluator:
    config = MetricsConfig(**{"num_images": 60, "modes_images": 100, "batch_size": 20, "splits": 2} | options)
    return Evaluator(config, dataset, prepare(dataset, progress=False), latent_dim=4, seed=3, device=CPU)


@pytest.fixture(autouse=True)
def _few_images_are_meant(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relgan")


def test_default_scores_of_stacked_digits_and_their_order() -> None:
    judge = evaluator(STACKED)
    scores = judge.evaluate(Replay(real_images(prepare(STACKED), 300)))
    assert list(scores) == [
        "eval/fd_digits",
        "eval/score_digits",
        "eval/score_digits_std",
        "eval/modes",
        "eval/mode_kl",
        "eval/mode_confidence",
    ]
    assert all(np.isfinite(value) for value in scores.values())
    labels = prepare(STACKED).labels
    assert labels is not None
    assert scores["eval/modes"] == pytest.approx(len(set(labels[:100].tolist())), abs=3)
    assert scores["eval/mode_confidence"] > 0.8


def test_noise_does_not_look_good() -> None:
    judge = evaluator(STACKED)
    good = judge.evaluate(Replay(real_images(prepare(STACKED), 300)))
    noise = judge.evaluate(Replay(torch.rand(300, 3, 32, 32) * 2 - 1))
    for key in ("eval/fd_digits", "eval/score_digits", "eval/mode_kl", "eval/mode_confidence"):
        better = good[key] < noise[key] if direction(key) == "min" else good[key] > noise[key]
        assert better, key


def test_modes_are_left_out_where_there_are_none_and_none_means_none() -> None:
    assert "eval/modes" not in evaluator().evaluate(Replay(real_images(prepare(DIGITS), 60)))
    assert evaluator(scores=[]).evaluate(Replay(torch.zeros(1, 1, 32, 32))) == {}


def test_an_evaluation_repeats_bitwise_and_touches_nothing() -> None:
    network = Replay(real_images(prepare(DIGITS), 60))
    network.train()
    judge = evaluator(generator_mode="train")
    state = torch.random.get_rng_state()
    first = judge.evaluate(network)
    assert torch.equal(state, torch.random.get_rng_state())
    assert network.training
    assert int(network.seen) == 0
    network.position = 0
    assert judge.evaluate(network) == first


def test_the_batch_size_does_not_matter() -> None:
    images = real_images(prepare(DIGITS), 60)
    one, other = (evaluator(batch_size=size).evaluate(Replay(images)) for size in (20, 7))
    assert one["eval/fd_digits"] == pytest.approx(other["eval/fd_digits"], rel=1e-4)
    assert one["eval/score_digits"] == pytest.approx(other["eval/score_digits"], rel=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 1, 32, 32), torch.nan), "not finite"),
        (torch.full((1, 1, 32, 32), torch.inf), "not finite"),
        (torch.zeros(1, 1, 64, 64), "64×64, the real ones 32×32"),
    ],
)
def test_impossible_images_are_refused_by_name(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluator().evaluate(Replay(image))


@pytest.mark.parametrize("count", [1, 2, 30])
def test_few_images_and_a_constant_generator_give_numbers(count: int, caplog: pytest.LogCaptureFixture) -> None:
    judge = evaluator(scores=FEATURE_SCORES, num_images=count, reference_images=50)
    network = Replay(torch.zeros(1, 1, 32, 32))
    scores = judge.evaluate(network)
    assert all(np.isfinite(value) for value in scores.values())
    assert scores["eval/score_digits"] == pytest.approx(1)
    assert scores["eval/vendi_digits"] == pytest.approx(1)
    fewest = {"kd": 2, "recall": 4, "fd_infinity": 20, "score_infinity": 20}
    for name in ("fd", "precision", "density", "coverage", "authenticity", *fewest):
        assert (f"eval/{name}_digits" in scores) == (count >= fewest.get(name, 1)), name
    if count == 30:
        assert scores["eval/fd_infinity_digits"] == pytest.approx(scores["eval/fd_digits"])
        assert scores["eval/fd_infinity_digits_se"] == pytest.approx(0, abs=1e-6)
    assert "far too high" in caplog.text
    assert "cannot be extrapolated" in caplog.text or count < 20
    lines = len(caplog.records)
    judge.evaluate(network)
    assert len(caplog.records) == lines


@pytest.mark.parametrize(
    "error", [torch.linalg.LinAlgError("failed to converge"), torch.OutOfMemoryError("out of memory")]
)
def test_a_decomposition_that_fails_costs_its_score_and_one_warning(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(matrix: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    scores = evaluator(scores=["vendi", "is"]).evaluate(Replay(real_images(prepare(DIGITS), 60)))
    assert list(scores) == ["eval/score_digits", "eval/score_digits_std"]
    assert [record.message for record in caplog.records].count(f"vendi: {error}") == 1


def test_ranks_wait_for_each_other_before_any_formula_which_may_fail_on_one_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judge, order = evaluator(scores=["fid", "is", "kid"], kid_subsets=3), []

    def noted(owner: Any, what: str) -> None:
        compute = owner.compute
        monkeypatch.setattr(owner, "compute", lambda *gathered: (order.append(what), compute(*gathered))[1])

    for score in judge.scores:
        noted(judge._accumulators[score], "together")
        noted(score, "alone")
    judge.evaluate(Replay(real_images(prepare(DIGITS), 60)))
    assert order == ["together"] * 3 + ["alone"] * 3


def test_copies_of_the_training_set_are_told_by_all_of_it() -> None:
    """Also those that are not among the images which the other scores compare with."""
    judge = evaluator(scores=["authenticity", "coverage"], num_images=200, reference_images=50)
    copies = judge.evaluate(Replay(real_images(prepare(DIGITS), 200)))
    assert copies["eval/authenticity_digits"] < 0.02
    assert copies["eval/coverage_digits"] == 1
    assert judge.reference(50).features.shape == (50, 64)
    noise = judge.evaluate(Replay(torch.rand(200, 1, 32, 32) * 2 - 1))
    assert noise["eval/authenticity_digits"] > 0.9


def test_vendi_is_that_of_the_cosines_between_the_features() -> None:
    images = real_images(prepare(DIGITS), 30)
    judge = evaluator(scores=["vendi"], num_images=30)
    (vendi,) = judge.scores
    assert vendi.extractor is not None
    features, _ = vendi.extractor(to_uint8(images))
    cosines = nn.functional.cosine_similarity(features[:, None].double(), features[None].double(), dim=2)
    assert judge.evaluate(Replay(images))["eval/vendi_digits"] == pytest.approx(vendi_score(cosines / 30), rel=1e-6)


def test_all_scores_come_from_one_pass_of_the_generator(alexnet_weights: Path) -> None:
    """Whichever networks they look through: digits, AlexNet and, beside them, a second one of features."""
    pytest.importorskip("efficientnet_lite_pytorch")
    network = Replay(real_images(prepare(STACKED), 60))
    own = {"extractor": "efficientnet_lite0", "input_size": 32, "kid_subsets": 3}
    names = [*FEATURE_SCORES, "modes", "lpips_diversity"]
    judge = evaluator(STACKED, scores=names, modes_images=60, lpips_weights=str(alexnet_weights), lpips_pairs=30, **own)
    assert len(judge._feeding) == 3
    scores = judge.evaluate(network)
    assert network.position == 60
    assert {score_of(key) for key in scores} == set(names)


def test_all_scores_by_their_names() -> None:
    judge = evaluator(scores=["recall", "kid", "fid", "precision"], kid_subsets=3)
    scores = judge.evaluate(Replay(real_images(prepare(DIGITS), 60)))
    names = ["recall_digits", "kd_digits", "kd_digits_std", "fd_digits", "precision_digits"]
    assert list(scores) == [f"eval/{name}" for name in names]
    assert scores["eval/precision_digits"] == 1
    assert [score_of(key) for key in scores] == ["recall", "kid", "kid", "fid", "precision"]


def test_reference_is_computed_once_and_shared(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = reference._compute
    monkeypatch.setattr(reference, "_compute", lambda *a: calls.append(a[2].size) or compute(*a))
    monkeypatch.setattr("relgan.metrics.extractors.digits.train", _untrained)
    network = Replay(real_images(prepare(DIGITS, progress=False), 60))
    first = evaluator(scores=["fid"]).evaluate(network)["eval/fd_digits"]
    assert evaluator(scores=["fid"]).evaluate(network)["eval/fd_digits"] == first
    assert calls == [200]
    evaluator(scores=["fid"], reference_images=50).evaluate(network)
    evaluator(scores=["kid"], reference_images=50, kid_subsets=2).evaluate(network)
    assert calls == [200, 50, 50]
    assert not list(cache.glob("reference/*tmp*"))


def test_damaged_reference_statistics_are_computed_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relgan.metrics.extractors.digits.train", _untrained)
    network = Replay(real_images(prepare(DIGITS, progress=False), 60))
    first = evaluator(scores=["fid"]).evaluate(network)["eval/fd_digits"]
    (path,) = cache.glob("reference/*.npz")
    path.write_bytes(path.read_bytes()[:1000])
    assert evaluator(scores=["fid"]).evaluate(network)["eval/fd_digits"] == first


def _untrained(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Any:
    from relgan.metrics.extractors.digits import DigitNet

    torch.manual_seed(0)
    return DigitNet().eval(), 1.0


def _reference_in_a_process(cache: str, results: Any) -> None:
    os.environ["RELGAN_CACHE"] = cache
    computed = []
    compute = reference._compute
    reference._compute = lambda *a: computed.append(1) or compute(*a)
    statistics = evaluator(scores=["fid"]).reference(None)
    results.put((len(computed), float(statistics.gaussian.mean.sum())))


@pytest.mark.slow
def test_two_processes_that_start_together_compute_it_once(shared_cache: Path, tmp_path: Path) -> None:
    evaluator(scores=["fid"])  # the classifier is there already
    for path in (shared_cache / "reference").glob("*.np?"):
        path.unlink()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    jobs = [context.Process(target=_reference_in_a_process, args=(str(shared_cache), results)) for _ in range(2)]
    for job in jobs:
        job.start()
    answers = [results.get(timeout=200) for _ in jobs]
    for job in jobs:
        job.join()
    assert sorted(count for count, _ in answers) == [0, 1]
    assert answers[0][1] == answers[1][1]


def _score_in_a_rank(rank: int, cache: str, store: str, results: Any) -> None:
    os.environ["RELGAN_CACHE"] = cache
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results.put(_distributed_scores())
    torch.distributed.destroy_process_group()


def _distributed_scores() -> dict[str, float]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 1024), nn.Tanh(), nn.Unflatten(1, (1, 32, 32)))
    judge = evaluator(scores=FEATURE_SCORES, kid_subsets=3)
    # One batch for two ranks: the second has no images.
    small = evaluator(scores=["kid"], kid_subsets=3, num_images=20, batch_size=20, kid_subset_size=10)
    alone = {f"small {key}": value for key, value in small.evaluate(network).items()}
    return judge.evaluate(network) | alone


@pytest.mark.slow
def test_two_ranks_share_the_images_and_agree_with_one(shared_cache: Path, tmp_path: Path) -> None:
    alone = _distributed_scores()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (str(shared_cache), str(tmp_path / "rendezvous"), results)
    jobs = [context.Process(target=_score_in_a_rank, args=(rank, *arguments)) for rank in range(2)]
    for job in jobs:
        job.start()
    both = [results.get(timeout=200) for _ in jobs]
    for job in jobs:
        job.join()
    for scores in both:
        assert scores.keys() == alone.keys()
        for key in alone:
            assert scores[key] == pytest.approx(alone[key], rel=1e-6), key


def test_reference_statistics_use_a_fixed_random_part() -> None:
    part = fixed_subset(200, 50)
    assert len(set(part.tolist())) == 50
    assert part.max() > 100
    np.testing.assert_array_equal(part, fixed_subset(200, 50))
    np.testing.assert_array_equal(fixed_subset(200, 500), np.arange(200))


def test_the_picture_of_neighbours_shows_images_that_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode each image depends on those that are made with it."""
    judge, drawn, scored = evaluator(scores=["fid", "neighbours"], generator_mode="train"), [], []
    assert judge._neighbours is not None
    find, look = judge._neighbours.find, judge._look
    monkeypatch.setattr(judge._neighbours, "find", lambda images, *rest: drawn.append(images) or find(images, *rest))
    monkeypatch.setattr(judge, "_look", lambda images, *rest: scored.append(images) or look(images, *rest))
    torch.manual_seed(0)
    layers = nn.Linear(4, 1024), nn.BatchNorm1d(1024), nn.Tanh(), nn.Unflatten(1, (1, 32, 32))
    network = nn.Sequential(*layers).eval()
    judge.evaluate(network)
    judge.neighbours(network)
    assert torch.equal(drawn[0], scored[0][:8])
    assert not network.training


def test_every_rank_waits_for_the_features_that_the_picture_of_neighbours_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relgan.metrics.evaluator.is_main", lambda: False)
    judge = evaluator(scores=["neighbours"])
    assert judge.neighbours(Replay(real_images(prepare(DIGITS), 8))) is None
    [statistics] = judge._references.values()
    assert len(statistics.features) == 200


def test_neighbours_finds_the_copied_images() -> None:
    store = prepare(DIGITS)
    picture = evaluator(scores=["neighbours"]).neighbours(Replay(real_images(store, 8)), count=4, k=3)
    assert picture is not None
    assert picture.dtype == torch.uint8
    cell = 34
    assert picture.shape == (4 * cell + 2, 4 * cell + 2, 3)
    rows = [picture[2 + cell * i : 34 + cell * i] for i in range(4)]
    assert all(torch.equal(row[:, 2:34], row[:, 2 + cell : 34 + cell]) for row in rows)
    assert not torch.equal(rows[0][:, 2:34], rows[0][:, 2 + 2 * cell : 34 + 2 * cell])
    assert evaluator(scores=["fid"]).neighbours(Replay(real_images(store, 8))) is None


def test_protocol_says_how_the_numbers_were_made() -> None:
    protocol = json.loads(json.dumps(evaluator(STACKED, reference_images=100).protocol))
    assert protocol["extractor"] == "digits"
    assert len(protocol["weights"]) == 64
    assert protocol["weights_known"] is True
    assert protocol["num_images"] == 60
    assert protocol["reference_images"] == 100
    assert protocol["modes_images"] == 100
    assert protocol["reference"]["split"] == "all"
    assert protocol["reference"]["fingerprint"] == prepare(STACKED).fingerprint
    assert {"resize", "generator", "generator_mode", "seed", "precision", "input_size"} <= protocol.keys()
    assert {"torch", "torch-fidelity", "scikit-learn", "relgan"} <= protocol["versions"].keys()
    scores = ["is", "kid", "recall", "coverage", "fid", "is_infinity"]
    options = evaluator(scores=scores, neighbourhood=2, kid_subsets=7).protocol["options"]
    assert options == {
        "is": {"splits": 2},
        "kid": {"subsets": 7, "subset_size": 1000},
        "recall": {"k": 2},
        "coverage": {"k": 5},
    }


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_diversity_equals_the_package_on_the_same_pairs(alexnet_weights: Path) -> None:
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    judge = evaluator(
        STACKED, scores=["lpips_diversity"], lpips_weights=str(alexnet_weights), lpips_pairs=5, batch_size=4
    )
    scores = judge.evaluate(Replay(images))
    rounded = ((images + 1) * 127.5).round() / 127.5 - 1
    package = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    weights = torch.load(alexnet_weights, weights_only=True).values()  # in the order of the layers
    with torch.no_grad():
        for parameter, values in zip(package.net.parameters(), weights, strict=True):
            parameter.copy_(values)
        expected = package(*(rounded[start:10:2].expand(-1, 3, -1, -1) for start in (0, 1))).flatten()
    assert scores["eval/lpips_diversity"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert scores["eval/lpips_diversity_se"] == pytest.approx(float(expected.std() / 5**0.5), rel=1e-3)
    same = judge.evaluate(Replay(images[:1]))
    assert same["eval/lpips_diversity"] == pytest.approx(0, abs=1e-6)
    assert judge.protocol["lpips_weights_known"] is False


def test_lpips_weights_are_missed_before_training(
    alexnet_weights: Path, inception_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.lpips_weights: /nowhere"):
        evaluator(scores=["lpips_diversity"], lpips_weights="/nowhere")
    with pytest.raises(ConfigError, match="does not hold torchvision's AlexNet"):
        evaluator(scores=["lpips_diversity"], lpips_weights=str(inception_weights))
    with pytest.raises(ConfigError, match=r"metrics\.batch_size.*even"):
        evaluator(scores=["lpips_diversity"], lpips_weights=str(alexnet_weights), batch_size=5)


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_diversity_of_images_that_are_too_small(alexnet_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"scores": ["lpips_diversity", "is"], "lpips_weights": str(alexnet_weights), "lpips_pairs": 10}
    tiny = DatasetOptions(name="digits", num_images=20, image_size=16)
    complaint = r"^metrics\.scores: lpips_diversity needs images of at least 31×31 pixels, not 16×16$"
    with pytest.raises(ConfigError, match=complaint):
        evaluator(tiny, **options)
    # Of pictures the options of a data set do not tell.
    judge = evaluator(**options)
    for height, width in ((31, 31), (31, 30)):
        scores = judge.score([(0, torch.randint(256, (20, 1, height, width), dtype=torch.uint8))])
        assert ("eval/lpips_diversity" in scores) == (width == 31)
        assert "eval/score_digits" in scores
    assert "lpips_diversity: needs images of at least 31×31 pixels; one has a side of 30" in caplog.messages


@pytest.fixture
def judged_pictures(sample_data: Path) -> dict[str, float]:
    pytest.importorskip("efficientnet_lite_pytorch")
    n = 250
    train, test, faces = (
        Pictures(str(sample_data / name), "images")
        for name in ("cifar10-train-jpeg.zip", "cifar10-test-jpeg.zip", "celeba-10k-89x109.zip")
    )
    rng = torch.Generator().manual_seed(0)
    clean = torch.cat(list(test.batches(fixed_subset(len(test), n), n)))
    noisy = (clean + 12 * torch.randn(clean.shape, generator=rng)).clamp(0, 255).to(torch.uint8)
    small = nn.functional.interpolate(clean.float(), size=(8, 8), mode="area")
    blurred = nn.functional.interpolate(small, size=(32, 32), mode="bilinear").clamp(0, 255).to(torch.uint8)
    shown = torch.cat(list(faces.batches(fixed_subset(len(faces), n), n)))
    shown = nn.functional.interpolate(shown.float(), size=(32, 32), mode="area").to(torch.uint8)
    config = MetricsConfig(
        scores=["fid"], extractor="efficientnet_lite0", num_images=n, reference_images=n, batch_size=50
    )
    judge = Evaluator(config, DatasetOptions(name="folder"), train, latent_dim=0, seed=0, device=CPU)
    kinds = {"clean": clean, "noisy": noisy, "blurred": blurred, "faces": shown}
    return {
        kind: judge.score((s, images[s : s + 50]) for s in range(0, n, 50))["eval/fd_efficientnet_lite0"]
        for kind, images in kinds.items()
    }


@pytest.mark.slow
def test_the_distance_of_real_pictures_moves_the_right_way(judged_pictures: dict[str, float]) -> None:
    """CIFAR-10's test set against its training set, then noisy and blurred copies, then faces."""
    values = [judged_pictures[kind] for kind in ("clean", "noisy", "blurred", "faces")]
    assert values == sorted(values), judged_pictures
