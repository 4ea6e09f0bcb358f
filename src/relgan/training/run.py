"""One training run: its parts, its pictures, its scores and its summary."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from filelock import BaseFileLock
from torch import Tensor, nn

from relgan.config import Config, as_values, foreign_parts
from relgan.data.store import PackedStore
from relgan.distributed import is_main, world_size
from relgan.environment import git_commit, hardware, peak_memory_bytes, peak_reserved_bytes, versions
from relgan.images import class_rows, grid, save_png, to_uint8
from relgan.metrics.catalogue import split_spread
from relgan.networks.sampling import UNSCORABLE, sample_images, sample_rows
from relgan.registry import DATASETS
from relgan.rundir import RunDir
from relgan.tracking.base import Trackers
from relgan.training.cadence import total_iterations
from relgan.training.engine import Iteration
from relgan.training.schedules import Schedules
from relgan.training.state import TrainState
from relgan.training.update import Update

if TYPE_CHECKING:
    from relgan.metrics.evaluator import Evaluator

log = logging.getLogger("relgan")

EVALUATIONS = 10  # of a run, unless metrics.every says otherwise
Status = Literal["running", "finished", "diverged", "failed", "interrupted"]
# Packages that can change a number.
PACKAGES = ("relgan", "torch", "torchvision", "torchmetrics", "hydra-core", "numpy", "pillow")


@dataclass
class Run:
    """Everything one run needs; put together by ``relgan.build``."""

    config: Config
    dir: RunDir
    store: PackedStore
    class_counts: list[int]
    """Training images of each class that the networks are told of; empty without labels."""
    state: TrainState
    update: Update
    schedules: Schedules
    iteration: Iteration
    engine: str
    evaluator: Evaluator | None
    command: list[str]
    resumed_from: str | None
    trackers: Trackers = field(init=False)
    lock: BaseFileLock = field(init=False)
    """Both are there once the run has its directory (relgan.resume.begin)."""

    def close(self, exit_code: int) -> None:
        """Give back what others wait for; a closed run trains no more."""
        # A communicator of NCCL waits, at its end, for every graph that has recorded its calls.
        del self.iteration
        self.trackers.close(exit_code)
        self.lock.release()

    @property
    def device(self) -> torch.device:
        return self.state.device

    @cached_property
    def values(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return as_values(self.config)

    @cached_property
    def foreign(self) -> dict[str, str]:
        """Parts of the configuration that are other people's code, and the module of each."""
        return foreign_parts(self.values)

    @cached_property
    def total(self) -> int:
        """Generator updates of the whole run."""
        return total_iterations(self.config, len(self.store))

    @property
    def score_every(self) -> int:
        """Generator updates between evaluations; 0: only at the start and the end."""
        every = self.config.metrics.every
        return max(1, round(self.total / EVALUATIONS)) if every is None else every

    def describe(self) -> str:
        config, store = self.config, self.store
        ranks = "" if world_size() == 1 else f" × {world_size()} ranks"
        weight = f" {config.penalty.weight:g}" if hasattr(config.penalty, "weight") else ""
        penalty = "" if config.penalty.name == "none" else f" + {config.penalty.name}{weight}"
        augment = "" if config.augment.name == "none" else f" + {config.augment.name}"
        labels = f", {len(self.class_counts)} classes" if self.class_counts else ""
        width = f" width {config.model.width}" if hasattr(config.model, "width") else ""
        computing = f"{self.device.type}{ranks} {self.update.precision.name} {self.engine}"
        return (
            f"{config.loss.name}{penalty}{augment} · {config.model.name}{width} · {store.meta['name']} "
            f"{len(store):,} images {store.image_size}×{store.image_size}×{store.channels}{labels} · "
            f"{computing} · seed {config.seed}"
        )

    @property
    def protocol(self) -> dict[str, Any]:
        """How the scores are made; empty with ``metrics=none``."""
        return {} if self.evaluator is None else self.evaluator.protocol

    def evaluate(self) -> dict[str, float]:
        """Scores of the current generator under their full keys; empty with ``metrics=none``."""
        if self.evaluator is None:
            return {}
        generator = self.state.ema.module if self.config.metrics.generator == "ema" else self.state.generator
        scores = self.evaluator.evaluate(generator)
        self._save_neighbours(self.evaluator, generator)
        return scores

    def _save_neighbours(self, evaluator: Evaluator, generator: nn.Module) -> None:
        """The picture that shows memorising, where it was asked for; without it the scores still count."""
        try:
            picture = evaluator.neighbours(generator)
            if picture is not None:
                save_png(picture, self.dir.samples / f"neighbours_{self.state.step:08d}.png")
        except UNSCORABLE as error:
            log.warning("no picture of neighbours at update %d (%s)", self.state.step, error)

    def remember(self, scores: Mapping[str, float]) -> list[Path]:
        """Keep the scores for the summary; returns the checkpoints they deserve by the one that ranks."""
        history, step, count = self.state.history, self.state.step, self.config.train.keep_best
        earned = [self.dir.best] if history.remember(scores, step, count) else []
        return [*earned, self.dir.kept_best(step)] if count > 1 and step in history.ranking else earned

    def save_real_grid(self) -> None:
        """Some real images, once."""
        if (self.dir.samples / "real.png").exists():
            return
        count = min(self.config.train.sample_count, len(self.store))
        path = self._save(torch.from_numpy(self.store.images[:count].copy()).permute(0, 3, 1, 2), "real.png")
        self.trackers.log_image("samples/real", self.state.step, path, f"{count} real images")

    def save_grids(self, training_images: Tensor | None) -> None:
        """The fixed noise under the averaged generator, and the newest training images.

        Args:
            training_images: (N, C, H, W), −1 black and 1 white; None before the first update.
        """
        config, step = self.config, self.state.step
        fixed, columns = self._samples(self.state.ema.module, mode="eval")
        path = self._save(fixed, f"step_{step:08d}.png", columns)
        self.trackers.log_image("samples/fixed_noise", step, path, f"{config.loss.name}, {step} updates, fixed noise")
        if training_images is None:
            drawn, columns = self._samples(self.state.generator, mode="train")
        else:
            drawn, columns = to_uint8(training_images[: config.train.sample_count]).cpu(), None
        self._save(drawn, f"train_{step:08d}.png", columns)

    def _samples(self, network: nn.Module, mode: str) -> tuple[Tensor, int | None]:
        """Images of the fixed noise, and in how many columns they are shown: with labels, each class has a row."""
        count, seed, dims = self.config.train.sample_count, self.config.seed, self.config.model.latent_dim
        columns = None
        if self.class_counts:
            classes, columns = class_rows(count, len(self.class_counts))
            batches = sample_rows(network, classes, columns, latent_dim=dims, seed=seed, batch_size=count, mode=mode)
        else:
            batches = sample_images(network, count, latent_dim=dims, seed=seed, batch_size=count, mode=mode)
        return torch.cat([batch.cpu() for batch in batches]), columns

    def _save(self, images: Tensor, name: str, columns: int | None = None) -> Path:
        path = self.dir.samples / name
        stacked = DATASETS[self.config.dataset.name].facts.stacked
        save_png(grid(images, columns=columns, separate_channels=stacked), path)
        return path

    def checkpoint(self) -> dict[str, Any]:
        """What :func:`relgan.training.checkpoint.save` writes."""
        return {
            **self.state.state_dict(),
            "config": self.values,
            "channels": self.store.channels,
            "classes": self.store.classes if self.class_counts else [],
            "class_counts": self.class_counts,
            "data_fingerprint": self.store.fingerprint,
            "protocol": self.protocol,
            "tracker_runs": self.trackers.run_ids,
            "foreign": self.foreign,
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
            "peak_reserved_bytes": peak_reserved_bytes(self.device),
            "seed": self.config.seed,
            "final": self.state.history.final,
            "best": self.state.history.best,
            "protocol": self.protocol,
            "data_fingerprint": self.store.fingerprint,
            "resumed_from": self.resumed_from,
            "tracker_runs": self.trackers.run_ids,
            "tracker_urls": self.trackers.urls,
            "command": self.command,
            "foreign": self.foreign,
            "versions": {"python": platform.python_version(), **versions(PACKAGES)},
            "git_commit": git_commit(),
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
        texts: dict[str, str] = {}
        for key, value in scores.items():
            name, spread = split_spread(key)
            if spread and name in texts:
                texts[name] += f" ± {value:.2g}"
            else:
                texts[key] = f"{value:.4g}"
        return "  ".join(f"{key.removeprefix('eval/')} {text}" for key, text in texts.items())
