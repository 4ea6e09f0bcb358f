"""From a generator, or any stream of pictures, to scores in one pass, with nothing on disk."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import closing
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from relgan.config import DatasetConfig, MetricsConfig
from relgan.data import PackedStore
from relgan.distributed import largest, rank, world_size
from relgan.images import grid
from relgan.metrics.extractors import STACKED_SETS, Extractor, build_digits, build_extractor
from relgan.metrics.panel import COMPARING, KEEPING, Panel
from relgan.metrics.perceptual import Diversity
from relgan.metrics.reference import Images, ReferenceStatistics, StoreImages, reference_statistics
from relgan.metrics.scores import nearest
from relgan.networks.sampling import UNSCORABLE, sample_images

_FEATURE_SCORES = COMPARING | {"is"}
_NEEDS_EXTRACTOR = _FEATURE_SCORES | {"neighbours"}
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
        if _NEEDS_EXTRACTOR & set(self.scores):
            self.extractor = build_extractor(config, dataset, device)
        if "modes" in self.scores:
            own = self.extractor is not None and self.extractor.name == "digits"
            self.mode_judge = self.extractor if own else build_digits(dataset.name, device)

        self.diversity = Diversity(config, device) if "lpips_diversity" in self.scores else None

    @cached_property
    def reference(self) -> ReferenceStatistics | None:
        """Statistics of the real images, computed or read from the cache at first use."""
        if self.extractor is None or not COMPARING & set(self.scores):
            return None
        return self._statistics(self.config.reference_images, keep_features=bool(KEEPING & set(self.scores)))

    def _statistics(self, count: int | None, *, keep_features: bool) -> ReferenceStatistics:
        assert self.extractor is not None
        return reference_statistics(
            self.real,
            self.extractor,
            count=count,
            keep_features=keep_features,
            batch_size=self.config.batch_size,
        )

    @cached_property
    def _panels(self) -> list[Panel | Diversity]:
        """One per network; the digit classifier may be both the judge of modes and the feature network."""
        panels: list[Panel | Diversity] = []
        features = [score for score in self.scores if score in _FEATURE_SCORES]
        modes = ["modes"] if self.mode_judge is not None else []
        if self.extractor is not None:
            own = features + (modes if self.mode_judge is self.extractor else [])
            panels.append(Panel(self.config, self.extractor, own, self.reference))
        if self.mode_judge is not None and self.mode_judge is not self.extractor:
            panels.append(Panel(self.config, self.mode_judge, modes, None))
        if self.diversity is not None:
            panels.append(self.diversity)
        return panels

    def evaluate(self, generator: nn.Module) -> dict[str, float]:
        """Scores of a generator under their full keys, and ``eval/seconds``.

        Raises:
            ValueError: the generator returned values that are not finite, outside [−1, 1], or of another size.
        """
        if not self._panels:
            return {}
        wanted = max(panel.wanted for panel in self._panels)
        size = self.config.batch_size
        starts = range(rank() * size, wanted, world_size() * size)
        # Closed, so that an evaluation broken off has given the generator its mode and buffers back.
        with closing(self._sample(generator, wanted, rank(), world_size())) as images:
            return self.score(zip(starts, images, strict=True))

    def _sample(self, generator: nn.Module, count: int, rank: int, world_size: int) -> Generator[Tensor, None, None]:
        batches = sample_images(
            generator,
            count,
            latent_dim=self.latent_dim,
            seed=self.seed,
            batch_size=self.config.batch_size,
            mode=self.config.generator_mode,
            rank=rank,
            world_size=world_size,
        )
        with closing(batches):
            for images in batches:
                made, real = ("×".join(map(str, size)) for size in (images.shape[2:], self.real.size))
                if made != real:
                    raise ValueError(f"generated images are {made}, the real ones {real}")
                yield images

    @torch.no_grad()
    def score(self, batches: Iterable[tuple[int, Tensor]]) -> dict[str, float]:
        """Scores of a stream of (position in the whole stream, uint8 images (n, C, H, W)); this rank's part of it."""
        problem: Exception | None = None
        try:
            panels = self._panels  # may first compute the reference, which is not the generator's time
            started = time.perf_counter()
            for panel in panels:
                panel.reset()
            for start, images in batches:
                for panel in panels:
                    panel.update(images, start)
        except UNSCORABLE as error:
            problem = error
        # Together, because ranks that went on would wait for the others' statistics.
        if largest(problem is not None):
            raise problem or ValueError("the images of another rank cannot be scored")
        results: dict[str, float] = {}
        for panel in panels:
            results |= panel.compute()
        return {**results, "eval/seconds": time.perf_counter() - started}

    def neighbours(self, generator: nn.Module, *, count: int = 8, k: int = 5) -> Tensor | None:
        """A picture to spot memorising: each row a generated image and the ``k`` training images nearest to it.

        Near in the features of the extractor, among all training images. For one rank to call.

        Returns:
            uint8 (H, W, 3); None unless ``metrics.scores`` names neighbours.
        """
        if "neighbours" not in self.scores:
            return None
        assert self.extractor is not None
        everything = self._statistics(None, keep_features=True)
        assert everything.features is not None
        images = next(self._sample(generator, count, 0, 1))
        rows = nearest(self.extractor(images)[0], everything.features.to(self.extractor.home), k=k)
        real = torch.cat(list(self.real.batches(rows.flatten().cpu().numpy(), self.config.batch_size)))
        table = torch.cat([images.cpu()[:, None], real.unflatten(0, tuple(rows.shape))], dim=1)
        return grid(table.flatten(0, 1), columns=table.shape[1])

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
        if self.diversity is not None:
            facts |= self.diversity.identity
        if self.mode_judge is not None:
            facts |= {"modes_images": config.modes_images, "modes_weights": self.mode_judge.fingerprint}
        return facts


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
