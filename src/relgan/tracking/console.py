"""What a person sees in the terminal: log lines above one progress bar."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

WITHOUT_TERMINAL = (160, 24)  # columns and lines


def console() -> Console:
    """Standard output, as wide as the terminal or COLUMNS; a table is not cut where neither says anything sensible."""
    from rich.console import Console

    return Console(width=shutil.get_terminal_size(WITHOUT_TERMINAL).columns)


class ConsoleHandler(logging.Handler):
    """Writes to the current ``sys.stdout``, which a live progress bar replaces so that lines appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stdout.write(self.format(record) + "\n")
            sys.stdout.flush()
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


class ProgressBar:
    """Generator updates done, losses, images per second and time left; silent where nobody watches."""

    def __init__(self, total: int, start: int, *, visible: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.live = visible and sys.stdout.isatty()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=Console(),  # the shared one remembers what standard output was before
            disable=not self.live,
        )
        self._task: TaskID = self._progress.add_task("", total=total, completed=start, losses="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self) -> None:
        self._progress.advance(self._task)

    def show(self, values: Mapping[str, float]) -> None:
        """Show the newest losses and speed."""
        self._progress.update(self._task, losses=training_line(values))


def training_line(values: Mapping[str, float]) -> str:
    """The newest losses and speed in one short text."""
    return "D {train/loss_d:.3f}  G {train/loss_g:.3f}  {train/images_per_second:,.0f} img/s".format_map(values)


def ending_line(seconds: float) -> str:
    """When something ends that takes ``seconds`` more, and how long that is."""
    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    clock = end.strftime("%H:%M" if end.date() == now.date() else "%a %d %b %H:%M")
    minutes = round(seconds / 60)
    left = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "a minute"
    return f"ends at about {clock}, in {left}"
