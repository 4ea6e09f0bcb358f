"""FID against torch-fidelity and torchmetrics: the same network, the same pictures, the same numbers, less time.

``python -m benchmarks.scores`` prints times, ratios and memory; ``--table`` prints every score of 500 + 500 pictures
beside the other libraries'; ``--rows`` prints seconds and memory of the scores that keep every row of features, beside
prdc and torch-fidelity; ``--bf16`` shows how far bfloat16 moves the scores. The Inception weights are random
(seeded): the arithmetic is that of the published ones, the numbers mean nothing outside of a comparison.

The pictures are CIFAR-10's where RELGAN_TEST_DATA names a folder with its sample, else blobs of colour.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from prdc import compute_prdc
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from benchmarks.timing import Measured, Prepare, interleave, peak_memory, show
from relgan.config import MetricsConfig
from relgan.data.store import fixed_subset
from relgan.device import has_bf16_units, keep_freed_memory
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.reference import Pictures
from relgan.metrics.scores.agreement import Probe
from relgan.metrics.scores.copies import authenticity
from relgan.metrics.scores.frechet import frechet_distance
from relgan.metrics.scores.inception import ClassMarginals
from relgan.metrics.scores.infinity import extrapolate, frechet_of, score_of
from relgan.metrics.scores.kernel import kernel_distance
from relgan.metrics.scores.manifold import Neighbourhoods
from relgan.metrics.scores.vendi import vendi_of
from relgan.metrics.statistics import FeatureMoments, RealStatistics, Reference, accumulate, factorise
from relgan.registry import DATASETS

BATCH = 50
CLASSES = 1008  # of Inception
SCORES = ["fid", "is", "kid", "precision", "recall"]
THEIRS = {
    "eval/fid": "frechet_inception_distance",
    "eval/is": "inception_score_mean",
    "eval/is_std": "inception_score_std",
    "eval/kid": "kernel_inception_distance_mean",
    "eval/precision": "precision",
    "eval/recall": "recall",
}


def random_inception(path: Path) -> Path:
    """Write a seeded state dict of torch-fidelity's Inception whose features and logits vary between pictures."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    module = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    with (
        torch.random.fork_rng(devices=[]),
        patch(module, return_value={}),
        patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
            elif isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.8, 1.2)
        # Features share a large mean, which the class weights must leave out to tell pictures apart.
        noise = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        mean = network(noise)[0].mean(0)
        network.fc.weight.normal_(std=3.0)
        network.fc.weight -= torch.outer(network.fc.weight @ mean, mean) / mean.square().sum()
    torch.save(network.state_dict(), path)
    return path


class InMemory(torch.utils.data.Dataset[Tensor]):
    """Pictures for torch-fidelity and torchmetrics, and as relgan's Images."""

    def __init__(self, name: str, images: Tensor, labels: NDArray[np.int64] | None = None) -> None:
        self.images, self.fingerprint, self.labels = images, name, labels
        self.size: tuple[int, ...] = tuple(images.shape[2:])
        self.meta: dict[str, Any] = {"name": name}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def batches(self, indices: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        yield from self.images[torch.from_numpy(indices)].split(batch_size)


def pictures(count: int) -> tuple[InMemory, InMemory]:
    """As many pictures to score (CIFAR-10's test set) as to compare with (its training set)."""
    folder = Path(os.environ.get("RELGAN_TEST_DATA", ""))
    found = []
    for part in ("test", "train"):
        path = folder / f"cifar10-{part}-jpeg.zip"
        if path.is_file():
            files = Pictures(str(path), "RELGAN_TEST_DATA")
            images = torch.cat(list(files.batches(fixed_subset(len(files), count), count)))
        else:
            coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(len(part))) * 255
            images = nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)
        found.append(InMemory(part, images))
    return found[0], found[1]


def relgan_scores(
    made: InMemory, real: InMemory, scores: list[str], precision: str, extractor: str, weights: Path | None
) -> dict[str, float]:
    """Nothing is cached: the reference is computed every time."""
    config = MetricsConfig(
        scores=scores,
        extractor=extractor,
        weights=None if weights is None else str(weights),
        num_images=len(made),
        batch_size=BATCH,
        precision=precision,
        kid_subset_size=min(1000, len(made)),
        kid_subsets=10,
    )
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, RELGAN_CACHE=cache):
        judge = Evaluator(config, DATASETS["folder"].options, real, latent_dim=0, seed=0, device=torch.device("cpu"))
        starts = range(0, len(made), BATCH)
        return judge.score(zip(starts, made.images.split(BATCH), strict=True))


def fidelity_scores(made: InMemory, real: InMemory, weights: Path, *, only_fid: bool) -> dict[str, float]:
    from torch_fidelity import calculate_metrics

    scores: dict[str, float] = calculate_metrics(
        input1=made,
        input2=real,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        fid=True,
        isc=not only_fid,
        kid=not only_fid,
        prc=not only_fid,
        kid_subset_size=min(1000, len(made)),
        kid_subsets=10,
        samples_shuffle=False,
        batch_size=BATCH,
        cuda=False,
        save_cpu_ram=True,  # reads the pictures in this process
        cache=False,
        verbose=False,
    )
    return scores


def torchmetrics_fid(made: InMemory, real: InMemory, weights: Path, *, antialias: bool) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(weights), antialias=antialias)
    with torch.no_grad():
        for dataset in (real, made):
            for batch in dataset.images.split(BATCH):
                metric.update(batch, real=dataset is real)
    return float(metric.compute())


def _whole(which: str, count: int, weights: Path) -> Callable[[], object]:
    """For a process of its own: the FID of ``count`` against ``count`` pictures."""
    logging.disable()
    torch.set_num_threads(2)
    made, real = pictures(count)
    if which == "fidelity":
        return partial(fidelity_scores, made, real, weights, only_fid=True)
    keep_freed_memory()
    return partial(relgan_scores, made, real, ["fid"], which, "inception", weights)


def whole_fid(count: int, rounds: int, weights: Path) -> None:
    contestants: dict[str, Prepare] = {
        "torch-fidelity": partial(_whole, "fidelity", count, weights),
        "relgan, fp32": partial(_whole, "fp32", count, weights),
    }
    if has_bf16_units(torch.device("cpu")):
        contestants["relgan, bf16"] = partial(_whole, "bf16", count, weights)
    measured = interleave(contestants, rounds=rounds, warmup=0)
    show(f"FID of {count} against {count} pictures, both sides computed, 2 threads", measured, "torch-fidelity")


def distance_only(rounds: int = 5, dim: int = 2048) -> None:
    from torchmetrics.image.fid import _compute_fid

    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -3, dim)
    moments = []
    for shift in (0.0, 0.01):
        metric = FeatureMoments(dim)
        for _ in range(4):
            metric.update(torch.randn(1500, dim, generator=generator) * scale + shift)
        moments.append(metric.compute())
    a, b = moments
    reference = factorise(b)
    ways: dict[str, Callable[[], float]] = {
        "torchmetrics": lambda: float(_compute_fid(a.mean, a.covariance, b.mean, b.covariance)),
        "relgan": lambda: frechet_distance(a, reference),
    }
    values = {name: way() for name, way in ways.items()}
    measured = {name: Measured([]) for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            measured[name].seconds.append(time.perf_counter() - start)
    show(f"Fréchet distance of {dim} features, the reference's factor cached", measured, "torchmetrics")
    difference = abs(values["relgan"] / values["torchmetrics"] - 1)
    print(f"values {values['relgan']:.9g} and {values['torchmetrics']:.9g}, relative difference {difference:.1e}")


def memory() -> None:
    """Peak memory after more and more images through the accumulators of fid and is."""
    moments, marginals = FeatureMoments(2048), ClassMarginals(1008, 50_000, 10)
    features, logits = torch.rand(100, 2048), torch.rand(100, 1008)
    for start in range(0, 50_000, 100):
        moments.update(features)
        marginals.update(logits, torch.arange(start, start + 100))
        if start + 100 in (1_000, 10_000, 50_000):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"peak memory after {start + 100:6,} images: {peak:.0f} MiB")


def _manifold(generated: Tensor, real: Tensor) -> None:
    moments = Reference(real[0], real[:1].T, len(real))  # which these scores do not look at
    near, statistics = Neighbourhoods(generated), RealStatistics(moments, real)
    for score in (near.precision, near.recall, near.density, near.coverage):
        score(statistics, 5)


def _prdc(generated: Tensor, real: Tensor) -> None:
    compute_prdc(real.numpy(), generated.numpy(), nearest_k=5)


def _fidelity_manifold(generated: Tensor, real: Tensor) -> None:
    prc_features_to_metric(generated, real, prc_neighborhood=5, save_cpu_ram=True, verbose=False)


def _fidelity_kernel(generated: Tensor, real: Tensor) -> None:
    kid_features_to_metric(generated, real, kid_subsets=100, kid_subset_size=1000, verbose=False)


def _gaussian(rows: Tensor) -> Reference:
    return factorise(accumulate(FeatureMoments(rows.shape[1]), rows))


def _frechet(generated: Tensor, real: Tensor) -> None:
    frechet_of(generated, _gaussian(real))


def _fidelity_frechet(generated: Tensor, real: Tensor) -> None:
    fid_statistics_to_metric(*(fid_features_to_statistics(rows) for rows in (generated, real)), verbose=False)


def _classified(generated: Tensor, real: Tensor) -> None:
    marginals = ClassMarginals(CLASSES, len(generated), splits=10)
    accumulate(marginals, generated[:, :CLASSES], torch.arange(len(generated)))


def _fidelity_classified(generated: Tensor, real: Tensor) -> None:
    isc_features_to_metric(generated[:, :CLASSES], splits=10)


def _classified_infinity(generated: Tensor, real: Tensor) -> None:
    logits = generated[:, :CLASSES].contiguous()
    extrapolate(lambda chosen: score_of(logits[chosen]), len(logits))


def _agreement(generated: Tensor, real: Tensor) -> None:
    """Real rows as many as ``metrics.reference_images`` has by default."""
    real = real[:5000]
    Probe(real, torch.arange(len(real)) % 10)(generated)


def _extrapolated(generated: Tensor, real: Tensor) -> None:
    reference = _gaussian(real)
    extrapolate(lambda chosen: frechet_of(generated[chosen], reference), len(generated))


def _vendi(generated: Tensor, real: Tensor) -> None:
    vendi_of(accumulate(FeatureMoments(generated.shape[1]), nn.functional.normalize(generated)))


ROW_SCORES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "fid: relgan": _frechet,
    "fid: torch-fidelity": _fidelity_frechet,
    "is: relgan": _classified,
    "is: torch-fidelity": _fidelity_classified,
    "precision, recall, density, coverage: relgan": _manifold,
    "precision, recall, density, coverage: prdc": _prdc,
    "precision, recall: torch-fidelity": _fidelity_manifold,
    "kid: relgan": partial(kernel_distance, subsets=100, subset_size=1000),
    "kid: torch-fidelity": _fidelity_kernel,
    "authenticity": authenticity,
    "fid_infinity": _extrapolated,
    "is_infinity": _classified_infinity,
    "vendi": _vendi,
    "label_agreement": _agreement,
}
PRDC_BYTES = 16  # of each pair of rows: their distance in float64 and an index to sort it by


def row_scores(counts: Sequence[int]) -> None:
    """Markdown, for docs/scores.md; prdc is left out where it would not fit into memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| score | rows on each side | processor seconds | peak memory |")
    print("|---|---|---|---|")
    for count, name in product(counts, ROW_SCORES):
        if "prdc" in name and PRDC_BYTES * count**2 > memory:
            continue
        seconds, peak = _alone(name, count)
        print(f"| {name} | {count:,} | {seconds:.1f} | {peak / 2**30:.1f} GiB |", flush=True)


def _alone(name: str, count: int) -> tuple[float, float]:
    """The cost in a process of its own, which starts no others: prdc would, and their cost would not be seen."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_cost, (name, count))


def _cost(name: str, count: int) -> tuple[float, float]:
    """Processor seconds and peak bytes of one thread; random features as wide as Inception's."""
    rng = torch.Generator().manual_seed(0)
    generated, real = torch.randn(count, 2048, generator=rng), torch.randn(count, 2048, generator=rng) + 3
    before = time.process_time()
    ROW_SCORES[name](generated, real)
    return time.process_time() - before, peak_memory()


def table(count: int, weights: Path) -> None:
    """Markdown, for docs/scores.md."""
    made, real = pictures(count)
    ours = relgan_scores(made, real, SCORES, "fp32", "inception", weights)
    fidelity = fidelity_scores(made, real, weights, only_fid=False)
    fids = [torchmetrics_fid(made, real, weights, antialias=antialias) for antialias in (False, True)]
    print("| score | relgan | torch-fidelity | torchmetrics, antialias=False | torchmetrics, default |")
    print("|---|---|---|---|---|")
    for key, theirs in THEIRS.items():
        others = [f"{fid:.6f}" for fid in fids] if key == "eval/fid" else ["", ""]
        print(f"| `{key}` | {ours[key]:.6f} | {fidelity[theirs]:.6f} | {' | '.join(others)} |", flush=True)


def bf16_study(count: int, weights: Path) -> None:
    """Relative change of every score when the network computes in bfloat16; slow without bf16 units."""
    made, real = pictures(count)
    shown = Table(title=f"bfloat16 against float32, {count} against {count} pictures")
    for column in ("score", "fp32", "bf16", "change"):
        shown.add_column(column)
    for extractor in ("inception", "efficientnet_lite0"):
        fp32, bf16 = (
            relgan_scores(made, real, SCORES, precision, extractor, weights if extractor == "inception" else None)
            for precision in ("fp32", "bf16")
        )
        for key, value in fp32.items():
            shown.add_row(key, f"{value:.5g}", f"{bf16[key]:.5g}", f"{bf16[key] / value - 1:+.2%}")
    Console().print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=500, help="pictures on each side")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of the whole FID")
    parser.add_argument("--table", action="store_true", help="print the scores beside the other libraries' and stop")
    parser.add_argument("--rows", type=int, nargs="+", help="time the scores of so many random features and stop")
    parser.add_argument("--bf16", action="store_true", help="print how far bfloat16 moves the scores and stop")
    arguments = parser.parse_args()
    logging.getLogger("relgan").setLevel(logging.ERROR)
    if arguments.rows:
        row_scores(arguments.rows)
        return
    with tempfile.TemporaryDirectory() as folder:
        weights = random_inception(Path(folder) / "inception-random.pth")
        if arguments.table:
            table(arguments.images, weights)
        elif arguments.bf16:
            bf16_study(arguments.images, weights)
        else:
            memory()
            distance_only()
            whole_fid(arguments.images, arguments.rounds, weights)


if __name__ == "__main__":
    main()
