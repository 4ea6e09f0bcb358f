"""What a person sees in the terminal besides progress: log lines, numbers, times."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from relgan.progress import aside

if TYPE_CHECKING:
    from rich.console import Console

WITHOUT_TERMINAL = (160, 24)  # columns and lines


def console() -> Console:
    """Standard output, as wide as the terminal or COLUMNS; a table is not cut where neither says anything sensible."""
    from rich.console import Console

    return Console(width=shutil.get_terminal_size(WITHOUT_TERMINAL).columns)


class ConsoleHandler(logging.Handler):
    """Writes to what is the standard stream at that moment, above any progress.

    Args:
        stream: its name.
    """

    def __init__(self, stream: Literal["stdout", "stderr"] = "stdout") -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with aside():
                stream = getattr(sys, self._stream)
                stream.write(self.format(record) + "\n")
                stream.flush()
        except Exception:
            self.handleError(record)


class FileHandler(logging.FileHandler):
    """train.log; a full disk or a lost directory loses lines, and is reported once by what failed, not by every one."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # of opening the file, which comes with the first line
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing more can be done where there is no room to write."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def training_line(values: Mapping[str, float]) -> str:
    """The newest losses and speed in one short text."""
    return "D {train/loss_d:.3f}  G {train/loss_g:.3f}  {train/images_per_second:,.0f} images/s".format_map(values)


def ending_line(seconds: float) -> str:
    """When something ends that takes ``seconds`` more, and how long that is."""
    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    clock = end.strftime("%H:%M" if end.date() == now.date() else "%a %d %b %H:%M")
    return f"ends at about {clock}, in {lasting(seconds)}"


def lasting(seconds: float) -> str:
    """A time as one says it."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
