"""Scores outside of training: of a checkpoint, or of any pictures. Composes objects, like :mod:`relgan.build`."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import torch

from relgan.config import Config, DatasetConfig, RelganError
from relgan.data import prepare
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.pictures import Pictures
from relgan.metrics.reference import Images, choose
from relgan.training.engine import choose_device, keep_freed_memory
from relgan.training.generator import load_generator

log = logging.getLogger("relgan")


class Result(NamedTuple):
    """What ``out=FILE.json`` holds."""

    scores: dict[str, float]
    protocol: dict[str, Any]


def _device(config: Config) -> torch.device:
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def score_run(saved: dict[str, Any], config: Config) -> Result:
    """Score a checkpoint's generator; with the run's own configuration the numbers are those of training.

    Raises:
        RelganError: the data or the weights cannot be had, or the generator cannot be scored.
    """
    device = _device(config)
    store = prepare(config.dataset)
    generator = load_generator(saved, config, weights=config.metrics.generator, device=device)
    evaluator = Evaluator(
        config.metrics, config.dataset, store, latent_dim=config.model.latent_dim, seed=config.seed, device=device
    )
    try:
        return Result(evaluator.evaluate(generator), {**evaluator.protocol, "step": saved["step"]})
    except ValueError as error:
        raise RelganError(str(error)) from error


def score_pictures(pictures: Pictures, real: Images, config: Config, kind: DatasetConfig, limit: int | None) -> Result:
    """Score all pictures, or a fixed random ``limit`` of them, at their native size.

    Args:
        kind: the dataset that decides which networks and scores make sense.
    """
    if real.size != pictures.size:
        sizes = ("×".join(map(str, size)) for size in (pictures.size, real.size))
        log.warning("the pictures are %s, the reference %s: a score then also measures that difference", *sizes)
    indices = choose(pictures, limit)
    metrics = dataclasses.replace(
        config.metrics,
        scores=[score for score in config.metrics.scores if score != "neighbours"],
        num_images=len(indices),
        modes_images=len(indices),
        lpips_pairs=min(config.metrics.lpips_pairs, len(indices) // 2),
    )
    evaluator = Evaluator(metrics, kind, real, latent_dim=0, seed=config.seed, device=_device(config))
    scores = evaluator.score(pictures.positioned(indices, metrics.batch_size))
    made = {"images": {**pictures.meta, "fingerprint": pictures.fingerprint}}
    unused = ("generator", "generator_mode", "seed")
    return Result(scores, {**{key: v for key, v in evaluator.protocol.items() if key not in unused}, **made})
