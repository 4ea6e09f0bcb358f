"""From a generator, or any stream of pictures, to scores in one pass, with nothing on disk."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from relgan.config import MetricsConfig
from relgan.data import PackedStore
from relgan.data.store import fixed_subset
from relgan.distributed import is_main, largest, rank, world_size
from relgan.environment import versions
from relgan.images import grid
from relgan.metrics.catalogue import ScoreCard, card_of
from relgan.metrics.extractors import Extractor, Extractors, home, own_options
from relgan.metrics.reference import Images, StoreImages, real_statistics
from relgan.metrics.scores import Batch, Score, Seen, WarnOnce
from relgan.metrics.scores.copies import Neighbours
from relgan.metrics.statistics import RealStatistics
from relgan.networks.sampling import UNSCORABLE, draw_labels, sample_images
from relgan.options import ConfigError, first_line
from relgan.progress import progress_bar
from relgan.registry import DATASETS, SCORES, DatasetOptions

_PACKAGES = ("torch", "torchvision", "torchmetrics", "torch-fidelity", "lpips", "scikit-learn", "numpy", "relgan")

log = logging.getLogger("relgan")


class Evaluator:
    """Scores generators against one set of real images, always with the same latents and labels.

    Every rank of a distributed job calls :meth:`evaluate` and gets the same scores.

    Args:
        config: which scores, how many images, which networks.
        dataset: the real images' options; they decide which networks and scores make sense.
        real: the real images.
        latent_dim: of the generators.
        seed: of the latents and labels.
        device: of the feature networks.
        class_counts: real images of each class, which the generators are asked for as often; empty: they have none.

    Attributes:
        scores: those computed; what makes no sense for this data set or these generators is left out.

    Raises:
        ConfigError: the weights of a network that the scores need cannot be had. Nothing is deferred to the
            first evaluation but the statistics of the real images.
    """

    def __init__(
        self,
        config: MetricsConfig,
        dataset: DatasetOptions,
        real: PackedStore | Images,
        *,
        latent_dim: int,
        seed: int,
        device: torch.device,
        class_counts: Sequence[int] = (),
    ) -> None:
        self.config, self.latent_dim, self.seed, self.device = config, latent_dim, seed, device
        self.class_counts = class_counts
        self.real: Images = StoreImages(real) if isinstance(real, PackedStore) else real
        self._extractors = Extractors(config, dataset, device)
        built = [self._build(name) for name in self._sensible(dataset)]
        self.scores = [score for score in built if isinstance(score, Score)]
        self._neighbours = next((picture for picture in built if isinstance(picture, Neighbours)), None)
        self._references: dict[tuple[Extractor, int], RealStatistics] = {}
        # Of which networks, and for which numbers of real images, every row of features is needed.
        self._featured = {
            self._which(each.reference_images, each.extractor) for each in self.scores if each.needs_real == "features"
        }
        if self._neighbours is not None:
            self._featured.add(self._which(None, None))
        self._accumulators: dict[Score, Metric] = {}
        # For each network the scores that feed its accumulators: one of those that share an accumulator.
        self._feeding: dict[Extractor | None, list[Score]] = {}
        self._prepare_accumulators()
        self._warn_once = WarnOnce()

    def _sensible(self, dataset: DatasetOptions) -> list[str]:
        """The scores that are asked for and make sense."""
        names = [name for name in self.config.scores if self._suits(card_of(name), dataset)]
        by_classes = [name for name in names if card_of(name).by_classes]
        if not by_classes or self._extractors.chosen.num_classes:
            return names
        needed = f"an extractor with classes is needed for {' and '.join(by_classes)}"
        reason = f"{needed}; {self._extractors.chosen.name} has none"
        if names == by_classes:
            raise ConfigError("metrics.scores", reason)
        log.info("left out: %s", reason)
        return [name for name in names if name not in by_classes]

    def _suits(self, card: ScoreCard, dataset: DatasetOptions) -> bool:
        return card.suits(DATASETS[dataset.name].facts) and (bool(self.class_counts) or not card.conditional)

    def _build(self, name: str) -> Score | Neighbours:
        options = own_options(self.config, name, SCORES[name].options)
        score: Score | Neighbours = SCORES.build(name, options, self.config, self._extractors, of=(Score, Neighbours))
        return score

    def _prepare_accumulators(self) -> None:
        made: dict[Hashable, Metric] = {}
        for score in self.scores:
            same = (score.shared or score, score.extractor, score.images)
            if same not in made:
                made[same] = score.accumulator().to(home(self.device))
                self._feeding.setdefault(score.extractor, []).append(score)
            self._accumulators[score] = made[same]

    def reference(self, count: int | None, extractor: Extractor | None = None) -> RealStatistics:
        """Statistics of all real images, or of a fixed random ``count``: computed or read from the cache once.

        Args:
            extractor: whose features; by default those of ``metrics.extractor``.
        """
        which = self._which(count, extractor)
        if which not in self._references:
            network, images = which
            self._references[which] = real_statistics(
                self.real,
                network,
                count=images,
                keep_features=which in self._featured,
                batch_size=self.config.batch_size,
            )
        return self._references[which]

    def _which(self, count: int | None, extractor: Extractor | None) -> tuple[Extractor, int]:
        """The network, and how many real images ``count`` means."""
        return extractor or self._extractors.chosen, min(count or len(self.real), len(self.real))

    @cached_property
    def _accumulated_real(self) -> dict[Score, Any]:
        """Of the scores that look at real images, what they accumulate of those; at first use."""
        return {score: self._accumulate_real(score) for score in self.scores if score.looks_at_real}

    def _accumulate_real(self, score: Score) -> Any:
        accumulator = score.accumulator().to(home(self.device))
        indices = fixed_subset(len(self.real), score.reference_images)
        labels = None if self.real.labels is None else torch.from_numpy(self.real.labels[indices])
        start = 0
        with progress_bar(len(indices), f"real images, {score.options.name}") as bar:
            for images in self.real.batches(indices, self.config.batch_size):
                score.update(accumulator, self._batch(images, score.extractor, start, labels))
                start += len(images)
                bar.advance(len(images))
        # Every rank sees all images here, so nothing is to be reduced.
        accumulator.sync_on_compute = False
        return accumulator.compute()

    def _labels(self, count: int, seed: int) -> Tensor | None:
        """The classes of the first ``count`` generated images, int64 (count,)."""
        return draw_labels(self.class_counts, count, seed) if self.class_counts else None

    @property
    def _wanted(self) -> int:
        """Images that the scores look at."""
        return max((score.images for score in self.scores), default=0)

    def evaluate(self, generator: nn.Module) -> dict[str, float]:
        """Scores of a generator under their full keys.

        Raises:
            ValueError: the generator returned values that are not finite, or images of another size.
        """
        if not self.scores:
            return {}
        wanted, size = self._wanted, self.config.batch_size
        starts = range(rank() * size, wanted, world_size() * size)
        # Closed, so that an evaluation broken off has given the generator its mode and buffers back.
        with closing(self._sample(generator, wanted, rank=rank(), world_size=world_size())) as images:
            return self.score(zip(starts, images, strict=True), self._labels(wanted, self.seed))

    def see(self, generator: nn.Module, *, latent_dim: int, seed: int) -> list[Seen]:
        """What the networks make of a generator's images, batch by batch, for :meth:`judge`; in one process.

        The images themselves are not kept.

        Args:
            latent_dim, seed: of its latents, and the seed of its labels.

        Raises:
            ValueError: as :meth:`evaluate`.
        """
        wanted = self._wanted
        labels = self._labels(wanted, seed)
        starts = range(0, wanted, self.config.batch_size)
        seen: list[Seen] = []
        with (
            torch.no_grad(),
            closing(self._sample(generator, wanted, latent_dim=latent_dim, seed=seed)) as batches,
            progress_bar(wanted, "sampling") as bar,
        ):
            for start, images in zip(starts, batches, strict=True):
                looks = self._look(images, start, labels)
                seen.append({each: batch.without_images() for each, batch in looks.items() if each is not None})
                bar.advance(len(images))
        return seen

    def judge(self, seen: Iterable[Seen]) -> dict[str, float]:
        """Scores of what networks saw, as :meth:`score` computes them; those without a network are left out."""
        self._start()
        for part in seen:
            self._feed(part)
        return self._finish([score for score in self.scores if score.extractor is not None])

    def _sample(
        self,
        generator: nn.Module,
        count: int,
        *,
        latent_dim: int | None = None,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> Generator[Tensor, None, None]:
        """Of rank ``rank`` of ``world_size``; latents are by default the evaluator's own."""
        seed = self.seed if seed is None else seed
        batches = sample_images(
            generator,
            count,
            latent_dim=latent_dim or self.latent_dim,
            seed=seed,
            labels=self._labels(count, seed),
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
    def score(self, batches: Iterable[tuple[int, Tensor]], labels: Tensor | None = None) -> dict[str, float]:
        """Scores of a stream of images, under their full keys.

        A score that is not defined for these images, or not finite, is left out with a warning.

        Args:
            batches: (position in the whole stream, uint8 images (n, C, H, W)); this rank's part of it.
            labels: the classes asked for, int64, of the whole stream.
        """
        problem: Exception | None = None
        with progress_bar(self._wanted, "scoring") as bar:
            try:
                self._start()
                for start, images in batches:
                    self._feed(self._look(images, start, labels))
                    bar.advance(world_size() * len(images))
            except UNSCORABLE as error:
                problem = error
            # Together, because ranks that went on would wait for the others' statistics.
            if largest(problem is not None):
                raise problem or ValueError("the images of another rank cannot be scored")
            bar.title = "computing scores"
            return self._finish(self.scores)

    def _start(self) -> None:
        """Empty the accumulators, and let the scores know the real images."""
        for score in self.scores:
            if score.needs_real is not None:
                score.real = self.reference(score.reference_images, score.extractor)
            if score.looks_at_real:
                score.accumulated_real = self._accumulated_real[score]
            self._accumulators[score].reset()

    def _finish(self, scores: Iterable[Score]) -> dict[str, float]:
        """The numbers of some scores, from what was put into the accumulators."""
        gathered: dict[Score, Any] = {}
        with warnings.catch_warnings():
            # A rank without images takes part in the sums, too.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before")
            # Ranks wait for each other here, so all of this comes before the formulas, where one may fail alone.
            for score in scores:
                with self._costs_only(score):
                    gathered[score] = self._gather(score)
        results: dict[str, float] = {}
        for score, accumulated in gathered.items():
            with self._costs_only(score):
                results |= self._compute(score, accumulated)
        return results

    def _gather(self, score: Score) -> Any:
        """What all ranks have summed.

        Raises:
            RuntimeError: a rank that has no memory for it ends, because the others wait for it.
        """
        try:
            return self._accumulators[score].compute()
        except torch.OutOfMemoryError as error:
            if world_size() > 1:
                raise RuntimeError(f"{score.options.name}: no memory for what the ranks have summed") from error
            raise

    @contextmanager
    def _costs_only(self, score: Score) -> Iterator[None]:
        """Where a score is not defined, needs too much memory or is wrongly written, the others still count."""
        name = score.options.name
        try:
            yield
        except Exception as error:
            undefined = (ValueError, torch.linalg.LinAlgError, torch.OutOfMemoryError)  # type: ignore[attr-defined]
            if not (isinstance(error, undefined) or SCORES[name].foreign):
                raise
            self._warn_once(f"{name}: {first_line(error)}")

    def _look(self, images: Tensor, start: int, labels: Tensor | None) -> Seen:
        """Show a batch to each network once, as far as a score wants that many images."""
        wanted = {extractor: max(score.images for score in scores) for extractor, scores in self._feeding.items()}
        return {
            extractor: self._batch(images[: count - start], extractor, start, labels)
            for extractor, count in wanted.items()
            if count > start
        }

    def _feed(self, seen: Seen) -> None:
        """Show it to every score that wants that many images."""
        for extractor, batch in seen.items():
            for score in self._feeding[extractor]:
                if batch.start < score.images:
                    score.update(self._accumulators[score], batch.first(score.images - batch.start))

    def _batch(self, images: Tensor, extractor: Extractor | None, start: int, labels: Tensor | None) -> Batch:
        """``labels``: of the whole stream."""
        images = images.to(self.device)
        nothing = torch.zeros(len(images), 0, device=images.device)
        features, logits = (nothing, nothing) if extractor is None else extractor(images)
        own = None if labels is None else labels[start : start + len(images)].to(features.device)
        return Batch(images, features, logits, start, own)

    def _compute(self, score: Score, accumulated: Any) -> dict[str, float]:
        values = {score.key(number): float(value) for number, value in score.compute(accumulated).items()}
        if unusable := [key for key, value in values.items() if not math.isfinite(value)]:
            self._warn_once(f"{score.options.name} is left out: {', '.join(unusable)} not finite")
            return {}
        return values

    @property
    def by_class(self) -> dict[str, dict[int, float]]:
        """Of the last scores, those that are known for each class, under their full keys."""
        return {score.key(name): dict(values) for score in self.scores for name, values in score.by_class.items()}

    def neighbours(self, generator: nn.Module, *, count: int = 8, k: int = 5) -> Tensor | None:
        """A picture to spot memorising: each row a generated image and the ``k`` training images nearest to it.

        Near in the features of the extractor, among all training images; the generated ones are the first of those
        scored. For all ranks to call, which wait while one computes the features.

        Args:
            count: of generated images, at most a batch.

        Returns:
            uint8 (H, W, 3), on rank 0; None unless ``metrics.scores`` names neighbours.
        """
        if self._neighbours is None:
            return None
        features = self.reference(None).features
        if not is_main():
            return None
        # As scoring does it: latents, and the statistics of a batch, depend on how many images are made at once.
        with closing(self._sample(generator, self._wanted or self.config.batch_size)) as batches:
            images = next(batches)[:count]
        rows = self._neighbours.find(images, features, k)
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
            "versions": versions(_PACKAGES),
        }
        for score in self.scores:
            facts |= score.identity
        if own := {score.options.name: values for score in self.scores if (values := score.settings)}:
            facts["options"] = own
        return facts
