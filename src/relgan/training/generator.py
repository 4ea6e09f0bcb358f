"""A trained generator out of a checkpoint, for scores and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from relgan.config import Config, ConfigError
from relgan.networks import build_networks
from relgan.rundir import RunDir
from relgan.training import checkpoint


def load_checkpoint(run: str, which: str) -> dict[str, Any]:
    """A checkpoint of a run directory by its name (best, last, step_00000500 …), or the file ``run`` itself."""
    path = Path(run).expanduser()
    folder = RunDir(path).checkpoints
    names = ("best", "last", *sorted(file.stem for file in folder.glob("*_*.pt")))
    if which not in names:
        raise ConfigError("checkpoint", f"{which!r} is not one of {', '.join(names)}")
    return checkpoint.load(folder / f"{which}.pt" if path.is_dir() else path)


def load_generator(saved: dict[str, Any], config: Config, *, weights: str, device: torch.device) -> nn.Module:
    """The checkpoint's generator on ``device``.

    Args:
        weights: "ema" (the weights themselves where there is no moving average) or "raw".
    """
    with torch.random.fork_rng(devices=[]):
        generator, _ = build_networks(config.model, config.dataset.image_size, saved["channels"])
    averaged = weights == "ema" and config.train.ema_decay > 0
    generator.load_state_dict(saved["ema"]["module"] if averaged else saved["generator"])
    # The memory format decides which convolution runs, and so the last bits of a score.
    return generator.to(device).to(memory_format=torch.channels_last)
