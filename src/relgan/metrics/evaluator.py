"""From a generator, or any stream of pictures, to scores in one pass, with nothing on disk."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from relgan.config import DatasetConfig, MetricsConfig
from relgan.data import PackedStore
from relgan.distributed import rank, world_size
from relgan.metrics.extractors import STACKED_SETS, Extractor, build_digits, build_extractor
from relgan.metrics.panel import COMPARING, KEEPING, Panel
from relgan.metrics.reference import Images, ReferenceStatistics, StoreImages, reference_statistics
from relgan.networks.sampling import sample_images

_FEATURE_SCORES = COMPARING | {"is"}
_PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity", "lpips", "numpy", "relgan")


class Evaluator:
    """Scores generators against one set of real images, always with the same latents.

    Every rank of a distributed job calls :meth:`evaluate` and gets the same scores.

    Args:
        config: which scores, how many images, which networks.
        dataset: the real images' options; they decide which networks and scores make sense.
        real: the real images.
        latent_dim: of the generators.
        seed: of the latents.
        device: of the feature networks.

    Raises:
        ConfigError: the weights of a network that the scores need cannot be had. Nothing is deferred to the
            first evaluation but the statistics of the real images.
    """

    def __init__(
        self,
        config: MetricsConfig,
        dataset: DatasetConfig,
        real: PackedStore | Images,
        *,
        latent_dim: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.latent_dim, self.seed = config, latent_dim, seed
        self.real: Images = StoreImages(real) if isinstance(real, PackedStore) else real
        self.scores = [s for s in config.scores if s != "modes" or dataset.name in STACKED_SETS]
        self.extractor: Extractor | None = None
        self.mode_judge: Extractor | None = None
        if _FEATURE_SCORES & set(self.scores):
            self.extractor = build_extractor(config, dataset, device)
        if "modes" in self.scores:
            own = self.extractor is not None and self.extractor.name == "digits"
            self.mode_judge = self.extractor if own else build_digits(dataset.name, device)

    @cached_property
    def reference(self) -> ReferenceStatistics | None:
        """Statistics of the real images, computed or read from the cache at first use."""
        if self.extractor is None or not COMPARING & set(self.scores):
            return None
        return reference_statistics(
            self.real,
            self.extractor,
            count=self.config.reference_images,
            keep_features=bool(KEEPING & set(self.scores)),
            batch_size=self.config.batch_size,
        )

    @cached_property
    def _panels(self) -> list[Panel]:
        """One per network; the digit classifier may be both the judge of modes and the feature network."""
        panels = []
        features = [s for s in self.scores if s in _FEATURE_SCORES - {"neighbours"}]
        modes = ["modes"] if self.mode_judge is not None else []
        if self.extractor is not None:
            own = features + (modes if self.mode_judge is self.extractor else [])
            panels.append(Panel(self.config, self.extractor, own, self.reference))
        if self.mode_judge is not None and self.mode_judge is not self.extractor:
            panels.append(Panel(self.config, self.mode_judge, modes, None))
        return panels

    def evaluate(self, generator: nn.Module) -> dict[str, float]:
        """Scores of a generator under their full keys, and ``eval/seconds``.

        Raises:
            ValueError: the generator returned values that are not finite, or outside [−1, 1].
        """
        if not self.scores:
            return {}
        return self.score(
            sample_images(
                generator,
                max(panel.wanted for panel in self._panels),
                latent_dim=self.latent_dim,
                seed=self.seed,
                batch_size=self.config.batch_size,
                mode=self.config.generator_mode,
                rank=rank(),
                world_size=world_size(),
            )
        )

    @torch.no_grad()
    def score(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """Scores of this rank's part of a stream of uint8 batches (n, C, H, W).

        Every batch but the last of the whole stream has ``metrics.batch_size`` images.
        """
        started = time.perf_counter()
        for panel in self._panels:
            panel.reset()
        for number, images in enumerate(batches):
            start = (number * world_size() + rank()) * self.config.batch_size
            for panel in self._panels:
                panel.update(images, start)
        results: dict[str, float] = {}
        for panel in self._panels:
            results |= panel.compute()
        return {**results, "eval/seconds": time.perf_counter() - started}

    @property
    def protocol(self) -> dict[str, Any]:
        """How the numbers were made, JSON-able; two scores may be ranked together only where all but seed agree."""
        config = self.config
        facts: dict[str, Any] = {
            "metrics": config.name,
            "num_images": config.num_images,
            "reference_images": min(config.reference_images or len(self.real), len(self.real)),
            "reference": {**self.real.meta, "fingerprint": self.real.fingerprint},
            "generator": config.generator,
            "generator_mode": config.generator_mode,
            "batch_size": config.batch_size,
            "seed": self.seed,
            "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        }
        if self.extractor is not None:
            facts |= self.extractor.identity
        if self.mode_judge is not None:
            facts |= {"modes_images": config.modes_images, "modes_weights": self.mode_judge.fingerprint}
        return facts


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
