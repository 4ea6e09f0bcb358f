"""Checkpoints: plain tensors and numbers, written so that a valid one is always there, loaded without running code."""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from relgan.files import atomic_write
from relgan.options import RelganError
from relgan.rundir import previous

log = logging.getLogger("relgan")

FORMAT = 4
KEYS = (
    # The run: its configuration, the colour channels, classes (names and sizes) and fingerprint of its images, how its
    # scores are made, its trackers' runs, and which of its parts come from whose code.
    *("format", "config", "channels", "classes", "class_counts", "data_fingerprint", "protocol"),
    *("tracker_runs", "foreign"),
    # relgan.training.state.TrainState
    *("step", "seconds", "generator", "critic", "ema", "optimizers", "side_terms", "strength"),
    *("batches", "rng", "history"),
)


def save(content: dict[str, Any], path: Path, *, keep_previous: bool = True) -> None:
    """Write a checkpoint; the one it replaces stays beside it as ``*.previous.pt`` unless told otherwise.

    Args:
        content: every one of :data:`KEYS` but the format.

    Raises:
        OSError: it could not be written; the checkpoint that was there is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A process killed between the two renames leaves the previous one, which load_newest falls back to;
        # a file cut short must not take its place.
        with atomic_write(path, keep=previous(path) if keep_previous and zipfile.is_zipfile(path) else None) as file:
            torch.save({"format": FORMAT, **content}, file)
    except RuntimeError as error:  # torch's archive writer, when a write comes up short
        raise OSError(str(error).splitlines()[0]) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        RelganError: missing, damaged, of another format, or holding anything but tensors and plain values.
    """
    if not path.exists():
        raise RelganError(f"{path}: no such checkpoint")
    try:
        # torch does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise zipfile.BadZipFile(member)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RelganError(f"{path}: refused, it holds more than tensors and plain values") from error
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise RelganError(f"{path}: damaged or not a checkpoint") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise RelganError(f"{path}: not a relgan checkpoint")
    if content["format"] != FORMAT:
        raise RelganError(f"{path}: written by another relgan (format {content['format']}; this one reads {FORMAT})")
    if missing := [key for key in KEYS if key not in content]:
        raise RelganError(f"{path}: not a relgan checkpoint (no {', '.join(missing)})")
    return content


def load_newest(path: Path) -> dict[str, Any]:
    """Read ``path``, or with a warning the one before it where ``path`` is damaged or missing."""
    try:
        return load(path)
    except RelganError as error:
        if not previous(path).exists():
            raise
        log.warning("%s; using the one before it, %s", error, previous(path).name)
        return load(previous(path))
