"""A copy of the local records for TensorBoard, in RUN/tensorboard/: `tensorboard --logdir outputs` shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from relgan.options import ConfigError
from relgan.registry import TrackerOptions
from relgan.tracking.base import Context, Copy, Facts, Kind

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardTracker(Copy):
    """Scalars and pictures under their full keys; the protocol of the scores as text."""

    def __init__(self, writer: SummaryWriter, logged: Mapping[str, int]) -> None:
        super().__init__(logged)
        self._writer = writer

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        if not self.is_new(step, kind):
            return
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        if protocol is not None:
            self._writer.add_text("protocol", _code(protocol), step)
        self._writer.flush()

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        import numpy as np
        from PIL import Image

        if self.is_new(step):
            with Image.open(path) as image:
                self._writer.add_image(key, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, exit_code: int) -> None:
        self._writer.close()


def start(options: TrackerOptions, context: Context) -> TensorBoardTracker:
    """Begin new event files, or go on with those of the run.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("tracker", "tensorboard is not installed; pip install 'relgan[tensorboard]'") from None
    folder = context.run_dir / FOLDER
    logged = context.logged if folder.exists() else {}
    writer = SummaryWriter(str(folder))
    writer.add_text("config", _code(context.options))
    return TensorBoardTracker(writer, logged)


def _code(values: Mapping[str, object]) -> str:
    return f"```json\n{json.dumps(values, indent=2, default=str)}\n```"
