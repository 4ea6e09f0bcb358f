"""LPIPS diversity: how different two generated images look on average; 0 for a generator of one picture."""

from __future__ import annotations

import logging
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from relgan.config import ConfigError, MetricsConfig
from relgan.images import to_float
from relgan.metrics.extractors.base import hash_file
from relgan.metrics.statistics import RunningMean
from relgan.metrics.weights import WeightFile, load_state

WEIGHTS = WeightFile(
    option="metrics.lpips_weights",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    sha256="7be5be79",
)
# lpips spreads AlexNet's feature layers over slices, which keep the layers' numbers.
_SLICES = {"0": "slice1", "3": "slice2", "6": "slice3", "8": "slice4", "10": "slice5"}

log = logging.getLogger("relgan")


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


class Diversity:
    """Mean LPIPS between images 2i and 2i + 1 of a stream: independent pairs of a generator's samples.

    Raises:
        ConfigError: the AlexNet weights cannot be had, or pairs would not fit into batches.
    """

    def __init__(self, config: MetricsConfig, device: torch.device) -> None:
        if config.batch_size % 2:
            raise ConfigError("metrics.batch_size", f"lpips_diversity needs an even number, got {config.batch_size}")
        path = WEIGHTS.find(config.lpips_weights)
        try:
            self.network = _build_network(load_state(path, WEIGHTS.option)).to(device)
        except (KeyError, RuntimeError) as error:
            raise ConfigError(WEIGHTS.option, f"{path} does not hold torchvision's AlexNet") from error
        self.device = device
        self.wanted = 2 * config.lpips_pairs
        self.fingerprint = hash_file(path)
        self.weights_known = self.fingerprint.startswith(WEIGHTS.sha256)
        if not self.weights_known:
            log.warning("metrics.lpips_weights: these are not the published AlexNet weights; not comparable")
        self._mean = RunningMean()

    @property
    def identity(self) -> dict[str, Any]:
        """What the protocol says about it."""
        return {
            "lpips_pairs": self.wanted // 2,
            "lpips_weights": self.fingerprint,
            "lpips_weights_known": self.weights_known,
        }

    def reset(self) -> None:
        self._mean.reset()
        # A rank without pairs takes part in the mean, too.
        self._mean.update(torch.zeros(0))

    @torch.no_grad()
    def update(self, images: Tensor, start: int) -> None:
        """Look at uint8 images (n, C, H, W) of one size, the first of which is number ``start`` of the stream."""
        images = images[start % 2 : max(0, self.wanted - start)]
        pairs = len(images) // 2
        if pairs:
            rgb = to_float(images[: 2 * pairs].to(self.device)).expand(-1, 3, -1, -1)
            self._mean.update(self.network(rgb[0::2], rgb[1::2]).flatten().cpu())

    def compute(self) -> dict[str, float]:
        """Mean and standard error; empty, with a warning, where there was no pair."""
        score = self._mean.compute()
        if math.isnan(score.mean):
            log.warning("lpips_diversity needs at least two images")
            return {}
        return {"eval/lpips_diversity": score.mean, "eval/lpips_diversity_se": score.std}
