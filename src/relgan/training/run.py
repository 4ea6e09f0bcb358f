"""One training run: its parts, its pictures, its scores and its summary."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import BaseFileLock
from torch import Tensor, nn

from relgan.config import Config
from relgan.data.store import PackedStore
from relgan.distributed import is_main, world_size
from relgan.images import grid, save_png, to_uint8
from relgan.metrics.direction import direction
from relgan.networks.sampling import sample_images
from relgan.rundir import RunDir
from relgan.tracking.base import Tracker
from relgan.training.iteration import Iteration
from relgan.training.state import TrainState
from relgan.training.step import Step
from relgan.training.summary import Status, best_of, hardware, peak_memory_bytes, update_best, versions

if TYPE_CHECKING:
    from relgan.metrics.evaluator import Evaluator

log = logging.getLogger("relgan")


@dataclass
class Run:
    """Everything one run needs; put together by ``relgan.build``."""

    config: Config
    dir: RunDir
    device: torch.device
    store: PackedStore
    state: TrainState
    step: Step
    iteration: Iteration
    engine: str
    evaluator: Evaluator | None
    trackers: Tracker
    total: int
    command: list[str]
    lock: BaseFileLock
    resumed_from: str | None = None
    final: dict[str, float] = field(default_factory=dict)
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    ranking: dict[int, float] = field(default_factory=dict)
    visited: bool = True
    """Whether everything due at the current update was done; False where a signal came before."""

    def describe(self) -> str:
        config, store = self.config, self.store
        ranks = "" if world_size() == 1 else f" × {world_size()} ranks"
        penalty = "" if config.penalty.name == "none" else f" + {config.penalty.name} {config.penalty.weight:g}"
        return (
            f"{config.loss.name}{penalty} · {config.model.name} width {config.model.width} · {store.meta['name']} "
            f"{len(store):,} images {store.image_size}×{store.image_size}×{store.channels} · "
            f"{self.device.type}{ranks} {self.step.precision.name} {self.engine} · seed {config.seed} · {self.dir.path}"
        )

    @property
    def averaged(self) -> nn.Module:
        """The generator people look at: the moving average where there is one."""
        return self.state.ema.module if self.config.train.ema_decay > 0 else self.state.generator

    @property
    def protocol(self) -> dict[str, Any]:
        """How the scores are made; empty with ``metrics=none``."""
        return {} if self.evaluator is None else self.evaluator.protocol

    def evaluate(self) -> dict[str, float]:
        """Scores of the current generator under their full keys; empty with ``metrics=none``."""
        if self.evaluator is None:
            return {}
        generator = self.averaged if self.config.metrics.generator == "ema" else self.state.generator
        scores = self.evaluator.evaluate(generator)
        if is_main():
            self._save_neighbours(self.evaluator, generator)
        return scores

    def _save_neighbours(self, evaluator: Evaluator, generator: nn.Module) -> None:
        """The picture that shows memorising, where it was asked for; without it the scores still count."""
        try:
            picture = evaluator.neighbours(generator)
            if picture is not None:
                save_png(picture, self.dir.samples / f"neighbours_{self.state.step:08d}.png")
        except (OSError, torch.OutOfMemoryError) as error:
            log.warning("no picture of neighbours at update %d (%s)", self.state.step, error)

    def remember(self, scores: Mapping[str, float]) -> list[Path]:
        """Keep the scores for the summary; returns the checkpoints they deserve by the first that has a direction."""
        self.final = dict(scores)
        directions = {key: way for key in scores if (way := direction(key)) is not None}
        improved = update_best(self.best, scores, self.state.step, directions)
        if not directions:
            return []
        key, way = next(iter(directions.items()))
        step, count = self.state.step, self.config.train.keep_best
        self.ranking = best_of({**self.ranking, step: scores[key]}, way, count)
        earned = [self.dir.best] if key in improved else []
        return [*earned, self.dir.kept_best(step)] if count > 1 and step in self.ranking else earned

    def save_real_grid(self) -> None:
        """Some real images, once."""
        if (self.dir.samples / "real.png").exists():
            return
        count = min(self.config.train.sample_count, len(self.store))
        self._save(torch.from_numpy(self.store.images[:count].copy()).permute(0, 3, 1, 2), "real.png")

    def save_grids(self, training_images: Tensor | None) -> None:
        """The fixed noise under the averaged generator, and the newest training images.

        Args:
            training_images: (N, C, H, W) in [−1, 1]; None before the first update.
        """
        config, step = self.config, self.state.step
        fixed = self._samples(self.averaged, mode="eval")
        path = self._save(fixed, f"step_{step:08d}.png")
        self.trackers.log_image("samples/fixed_noise", step, path, f"{config.loss.name}, {step} updates, fixed noise")
        if training_images is None:
            drawn = self._samples(self.state.generator, mode="train")
        else:
            drawn = to_uint8(training_images[: config.train.sample_count]).cpu()
        self._save(drawn, f"train_{step:08d}.png")

    def _samples(self, network: nn.Module, mode: str) -> Tensor:
        config = self.config
        batches = sample_images(
            network,
            config.train.sample_count,
            latent_dim=config.model.latent_dim,
            seed=config.seed,
            batch_size=config.train.sample_count,
            mode=mode,
        )
        return torch.cat([batch.cpu() for batch in batches])

    def _save(self, images: Tensor, name: str) -> Path:
        stacked = self.store.meta["name"].startswith("stacked")
        path = self.dir.samples / name
        save_png(grid(images, separate_channels=stacked), path)
        return path

    def checkpoint(self) -> dict[str, Any]:
        """What :func:`relgan.training.checkpoint.save` writes."""
        return {
            **self.state.state_dict(),
            "config": asdict(self.config),
            "channels": self.store.channels,
            "tracker_run_id": self.trackers.run_id,
            "best": self.best,
            "final": self.final,
            "ranking": self.ranking,
            "visited": self.visited,
            "data_fingerprint": self.store.fingerprint,
        }

    def write_summary(
        self, status: Status, *, images_per_second: float | None = None, error: str | None = None
    ) -> None:
        """Replace summary.json, on rank 0; a disk that is full leaves the old one."""
        if not is_main():
            return
        summary = {
            "status": status,
            "step": self.state.step,
            "seconds": round(self.state.seconds, 3),
            "images_per_second": images_per_second,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "seed": self.config.seed,
            "final": self.final,
            "best": self.best,
            "protocol": self.protocol,
            "data_fingerprint": self.store.fingerprint,
            "resumed_from": self.resumed_from,
            "tracker_run_id": self.trackers.run_id,
            "command": self.command,
            "versions": versions(),
            "hardware": hardware(self.device),
            "error": error,
        }
        try:
            self.dir.write_summary(summary)
        except OSError as problem:
            log.warning("summary.json could not be written (%s)", problem)

    @staticmethod
    def score_line(scores: Mapping[str, float]) -> str:
        """The scores as one line for the console, without their common prefix."""
        return "  ".join(f"{key.removeprefix('eval/')} {value:.4g}" for key, value in scores.items())
