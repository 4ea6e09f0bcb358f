"""The length of a run, and at which updates something happens."""

from __future__ import annotations

import math

from relgan.config import Config


def total_iterations(config: Config, num_images: int) -> int:
    """Generator updates of the whole run; an epoch is one pass of the critic's updates over the images."""
    train = config.train
    if train.iterations is not None:
        return train.iterations
    assert train.epochs is not None
    return max(1, math.ceil(train.epochs * num_images / config.images_per_update))


def is_due(step: int, every: int, total: int) -> bool:
    """Whether a cadence of ``every`` updates (0: never) falls on ``step``; the end is always due."""
    return step == total or (every > 0 and step > 0 and step % every == 0)


def quarters(total: int) -> set[int]:
    """Steps 0, ¼, ½, ¾ and the end."""
    return {round(total * part / 4) for part in range(5)}
