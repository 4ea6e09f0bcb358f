"""LPIPS diversity: how different two generated images look on average; 0 for a generator of one picture."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from relgan.config import MetricsConfig
from relgan.device import Precision
from relgan.images import to_float
from relgan.metrics.extractors import Extractors, hash_file
from relgan.metrics.scores import Batch, Score
from relgan.metrics.statistics import Estimate
from relgan.metrics.weights import WeightFile, load_state
from relgan.options import ConfigError

WEIGHTS = WeightFile(
    option="metrics.lpips_weights",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    sha256="7be5be79",
)
SMALLEST = 31  # side in pixels of which AlexNet's two poolings leave one
# lpips spreads AlexNet's feature layers over slices, which keep the layers' numbers.
_SLICES = {"0": "slice1", "3": "slice2", "6": "slice3", "8": "slice4", "10": "slice5"}


def _build_network(state: dict[str, Tensor]) -> torch.nn.Module:
    """LPIPS 0.1 with the package's own heads on an AlexNet given as torchvision's state dict."""
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")  # the package still says pretrained=
        network: torch.nn.Module = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    renamed = {
        f"{_SLICES[layer]}.{layer}.{kind}": state[f"features.{layer}.{kind}"]
        for layer in _SLICES
        for kind in ("weight", "bias")
    }
    network.net.load_state_dict(renamed)  # type: ignore[union-attr]
    return network.eval().requires_grad_(False)


class RunningMean(Metric):
    """Mean of independent values with its standard error."""

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add values (N,)."""
        values = values.to(self.total.device).to(torch.float64)  # one after the other: Apple's GPUs have no float64
        self.total += values.sum()
        self.squares += values.square().sum()
        self.count += len(values)

    def compute(self) -> Estimate:
        """Mean and standard error; the error of a single value is 0.

        Raises:
            ValueError: there is no value.
        """
        n = int(self.count)
        if n == 0:
            raise ValueError("needs at least two images")
        mean = self.total / n
        variance = (self.squares / n - mean.square()).clamp(min=0) * n / max(1, n - 1)
        return Estimate(float(mean), float((variance / n).sqrt()))


class PairDistances(RunningMean):
    """Distances of pairs of images; not defined if any image is too small for the network."""

    side: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("side", torch.tensor(SMALLEST), dist_reduce_fx="min")

    def update(self, values: Tensor, side: int) -> None:  # type: ignore[override]
        """Add values (N,), none if the shorter ``side`` of the images is below ``SMALLEST`` pixels."""
        super().update(values)
        self.side.clamp_(max=side)

    def compute(self) -> Estimate:
        """As of RunningMean.

        Raises:
            ValueError: also if an image was too small.
        """
        if (side := int(self.side)) < SMALLEST:
            raise ValueError(f"needs images of at least {SMALLEST}×{SMALLEST} pixels; one has a side of {side}")
        return super().compute()


class Diversity(Score):
    """Mean LPIPS between images 2i and 2i + 1 of a stream: independent pairs of a generator's samples.

    Raises:
        ConfigError: the AlexNet weights cannot be had, images are too small, or pairs would not fit into batches.
    """

    def __init__(self, options: Any, metrics: MetricsConfig, extractors: Extractors) -> None:
        super().__init__(options, metrics, extractors)
        if metrics.batch_size % 2:
            raise ConfigError("metrics.batch_size", f"lpips_diversity needs an even number, got {metrics.batch_size}")
        size = extractors.dataset.image_size
        if size < SMALLEST:
            needed = f"lpips_diversity needs images of at least {SMALLEST}×{SMALLEST} pixels, not {size}×{size}"
            raise ConfigError("metrics.scores", needed)
        path = WEIGHTS.find(metrics.lpips_weights)
        try:
            self.network = _build_network(load_state(path, WEIGHTS.option)).to(extractors.device)
        except (KeyError, RuntimeError) as error:
            raise ConfigError(WEIGHTS.option, f"{path} does not hold torchvision's AlexNet") from error
        self.images = 2 * metrics.lpips_pairs
        self.fingerprint = hash_file(path)
        self.weights_known = WEIGHTS.is_published(self.fingerprint)

    def accumulator(self) -> PairDistances:
        return PairDistances()

    def update(self, accumulator: PairDistances, batch: Batch) -> None:
        images = batch.images[batch.start % 2 :]
        pairs, side = len(images) // 2, min(images.shape[2:])
        # Pictures have the size of their files, whatever the data set's options say.
        seen = images[: 2 * pairs if side >= SMALLEST else 0]
        accumulator.update(self._distances(seen) if len(seen) else torch.zeros(0), side)

    def _distances(self, images: Tensor) -> Tensor:
        rgb = to_float(images).expand(-1, 3, -1, -1)
        with Precision(rgb.device, "fp32").in_force():
            distances: Tensor = self.network(rgb[0::2], rgb[1::2]).flatten()
        return distances

    def compute(self, accumulated: Estimate) -> dict[str, float]:
        return {"lpips_diversity": accumulated.mean, "lpips_diversity_se": accumulated.spread}

    @property
    def identity(self) -> dict[str, object]:
        return {
            "lpips_pairs": self.images // 2,
            "lpips_weights": self.fingerprint,
            "lpips_weights_known": self.weights_known,
        }
