"""The smallest run that is a real one, in this process and without Hydra; and its readers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from relgan.augment import build_augmentation
from relgan.build import build_run
from relgan.builtin import ConvOptions
from relgan.config import Config, OptimizerConfig, resolve
from relgan.device import Precision
from relgan.losses import get_loss
from relgan.networks import build_networks
from relgan.penalties import Penalty, build_penalty
from relgan.registry import AUGMENTATIONS, LOSSES, MODELS, PENALTIES
from relgan.side_terms import build_side_terms
from relgan.training.loop import Outcome, train
from relgan.training.optimizers import build_optimizers
from relgan.training.strength import Strength
from relgan.training.update import Update

SIZE = (
    "dataset.num_images=64",
    "dataset.image_size=32",
    "model.width=2",
    "model.latent_dim=4",
    "train.batch_size=4",
    "train.sample_count=4",
    "train.iterations=4",
    "precision=fp32",
    "device=cpu",
)
CPU = torch.device("cpu")
# Batch norm in both networks, and Adam as in the papers.
CALM = ("model.spectral_norm=false", "optimizer.lr_g=2e-4", "optimizer.lr_d=2e-4", "optimizer.betas=[0.5,0.999]")
OPTIONS = ("dataset.name=digits", "tracker.name=none", "metrics.scores=[]", *CALM, *SIZE)
ARGUMENTS = ("dataset=digits", "tracker=none", "metrics=none", *SIZE)


def config(*overrides: str) -> Config:
    """The tiny configuration with dotted ``overrides`` (loss.name=wgan, not loss=wgan), checked."""
    torch.set_num_threads(1)
    options = [word for word in OPTIONS if "model.name=r3gan" not in overrides or "spectral_norm" not in word]
    return resolve(OmegaConf.from_dotlist([*options, *overrides]))


def run(directory: Path, *overrides: str) -> Outcome:
    """Train the tiny configuration in ``directory``; the overrides are also the words of its command line."""
    return train(build_run(config(*overrides), directory, overrides))


def model(name: str = "dcgan", **options: Any) -> ConvOptions:
    """Options of a network pair; without spectral norm unless they say so."""
    made = dataclasses.replace(MODELS[name].options, **{"spectral_norm": False, **options})
    assert isinstance(made, ConvOptions)
    return made


def mostly_slow(values: Iterable[str]) -> list[Any]:
    """One in four of the values, and the others as parameters of slow tests."""
    slow = pytest.mark.slow
    return [pytest.param(value, marks=[slow] if number % 4 else []) for number, value in enumerate(values)]


def penalty(name: str, weight: float | None = None) -> Penalty:
    """A penalty; ``weight`` None: its own default."""
    return build_penalty(dataclasses.replace(PENALTIES[name].options, **({} if weight is None else {"weight": weight})))


def records(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return found


def last(directory: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint as it was written, without relgan's own reader."""
    content: dict[str, Any] = torch.load(directory / "checkpoints" / f"{name}.pt", weights_only=True)
    return content


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, tensor or number) of everything in nested dicts and lists."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}.{index}")
    else:
        yield name, value


def differing(a: Any, b: Any) -> list[str]:
    """Names of the leaves that are not bitwise equal."""
    first, second = dict(leaves(a)), dict(leaves(b))
    names = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        x, y = first[name], second[name]
        same = torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        if not same:
            names.append(name)
    return names


def update(
    options: ConvOptions,
    loss: str,
    *,
    penalty: str | Penalty = "none",
    augment: str = "none",
    classes: int = 0,
    optimizer: OptimizerConfig | None = None,
    precision: str = "fp32",
    dtype: torch.dtype = torch.float32,
    accumulate: int = 1,
    pack: int = 1,
    channels: int = 1,
    size: int = 32,
    device: torch.device = CPU,
    **of_loss: Any,
) -> Update:
    """An update of new size×size networks; ``of_loss`` are options of the loss."""
    generator, critic = (network.to(device, dtype) for network in build_networks(options, size, channels, classes))
    augmentation = AUGMENTATIONS[augment].options
    optimizer_g, optimizer_d = build_optimizers(optimizer or OptimizerConfig(lr_g=2e-4, lr_d=2e-4), generator, critic)
    return Update(
        generator=generator,
        critic=critic,
        loss=get_loss(loss),
        penalty=build_penalty(PENALTIES[penalty].options) if isinstance(penalty, str) else penalty,
        optimizer_g=optimizer_g,
        optimizer_d=optimizer_d,
        precision=Precision(device, precision),
        side_terms=build_side_terms(dataclasses.replace(LOSSES[loss].options, **of_loss), device),
        augmentation=build_augmentation(augmentation, channels),
        strength=Strength(augmentation, 6, device),
        pack=pack,
        accumulate=accumulate,
    )
