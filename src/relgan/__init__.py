"""relgan: relativistic and standard GANs, composed by Hydra, trained, scored and compared.

From Python::

    import relgan

    run = relgan.train(["loss=ragan", "dataset=digits"])
    generator = relgan.load(run.directory)
    generator.sample(16)  # uint8 (16, C, H, W)

Importing relgan imports no torch; what is used is imported when it is used.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relgan.api import train
    from relgan.generator import load
    from relgan.losses import get_loss
    from relgan.options import Options, RelganError, option
    from relgan.registry import (
        AugmentOptions,
        DatasetOptions,
        LossOptions,
        ModelOptions,
        PenaltyOptions,
        TrackerOptions,
        register_augment,
        register_cost,
        register_dataset,
        register_extractor,
        register_loss,
        register_model,
        register_penalty,
        register_score,
        register_tracker,
    )

_HOMES = {
    "train": "relgan.api",
    "load": "relgan.generator",
    "get_loss": "relgan.losses",
    **dict.fromkeys(("Options", "RelganError", "option"), "relgan.options"),
    **dict.fromkeys(
        (
            *("AugmentOptions", "DatasetOptions", "LossOptions", "ModelOptions", "PenaltyOptions", "TrackerOptions"),
            *("register_augment", "register_cost", "register_dataset", "register_extractor", "register_loss"),
            *("register_model", "register_penalty", "register_score", "register_tracker"),
        ),
        "relgan.registry",
    ),
}

__all__ = [
    "AugmentOptions",
    "DatasetOptions",
    "LossOptions",
    "ModelOptions",
    "Options",
    "PenaltyOptions",
    "RelganError",
    "TrackerOptions",
    "get_loss",
    "load",
    "option",
    "register_augment",
    "register_cost",
    "register_dataset",
    "register_extractor",
    "register_loss",
    "register_model",
    "register_penalty",
    "register_score",
    "register_tracker",
    "train",
]

try:
    __version__ = version("relgan")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'relgan' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
