"""How far something is that takes longer than a moment: a row for each, on one display below the log lines.

It is shown where there is a terminal, and only by the process that a person has started: not by a worker of a sweep or
another rank.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from relgan.streams import beside

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

WIDEST_BAR = 40


@dataclass
class Clock:
    """Time that has passed, and time that is left by the pace since the first advance, in seconds.

    What comes before the first advance is done once and says nothing about the pace.
    """

    began: float = field(default_factory=time.monotonic)
    first: tuple[float, float] | None = None
    """When the first advance was, and how much was done then."""

    def advanced(self, done: float) -> None:
        self.first = self.first or (time.monotonic(), done)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def left(self, done: float, total: float | None) -> float | None:
        """None where that cannot be told yet."""
        if total is None or self.first is None or done <= self.first[1]:
            return None
        start, before = self.first
        return (time.monotonic() - start) * (total - done) / (done - before)


@dataclass
class Sweep:
    """Jobs that this process runs one after the other.

    Attributes:
        total: None where nobody knows.
        job: what the running one is called.
        ended: how many have.
        share: how much of the running one is done, from 0 to 1.
    """

    total: int | None
    job: str = ""
    ended: int = 0
    share: float = 0.0
    clock: Clock = field(default_factory=Clock)

    title = "sweep"

    @property
    def done(self) -> float:
        return self.ended + self.share

    @property
    def counted(self) -> str:
        return f"{self.ended + 1}/{self.total or '?'}"

    @property
    def lines(self) -> tuple[str, ...]:
        return (self.job,)

    def advanced(self, share: float) -> None:
        self.share = share
        self.clock.advanced(self.done)

    def end_job(self, *, worked: bool) -> None:
        """The running job has ended.

        Args:
            worked: whether it took time.
        """
        self.ended, self.share = self.ended + 1, 0.0
        if not worked and self.clock.first is not None:
            start, before = self.clock.first
            self.clock.first = start, before + 1


@dataclass(eq=False)
class Bar:
    """Some work that is being done.

    Attributes:
        total: None where it is unknown.
        unit: "MB" where bytes are counted.
        whole: whether it is the whole work of a sweep's job.
        live: whether it is shown.
        lines: the newest numbers, below all rows.
    """

    title: str
    total: int | None
    done: int = 0
    unit: Literal["", "MB"] = ""
    whole: bool = False
    live: bool = False
    lines: tuple[str, ...] = ()
    clock: Clock = field(default_factory=Clock)

    @property
    def counted(self) -> str:
        if self.unit == "MB":
            return f"{self.done / 1e6:,.1f}/{'?' if self.total is None else f'{self.total / 1e6:,.1f}'} MB"
        return "" if self.total is None else f"{self.done:,}/{self.total:,}"

    def advance(self, count: int = 1) -> None:
        self.done += count
        self.clock.advanced(self.done)
        if self.whole and _sweep is not None and self.total:
            _sweep.advanced(self.done / self.total)

    def show(self, *lines: str) -> None:
        self.lines = lines


_sweep: Sweep | None = None
_display: _Display | None = None


def in_sweep(sweep: Sweep | None) -> None:
    """Show above whatever its jobs show how far the sweep is; None: there is no sweep any more."""
    global _sweep
    _sweep = sweep


@contextlib.contextmanager
def progress_bar(
    total: int,
    title: str,
    *,
    done: int = 0,
    unit: Literal["", "MB"] = "",
    whole: bool = False,
    show: bool = True,
) -> Iterator[Bar]:
    """Show a bar while the block runs; one that is opened inside gets the row below.

    Args:
        total: 0 where it is unknown.
        done: how much of it was done before.
        unit, whole: as a :class:`Bar` has them.
        show: whether a terminal shows it.
    """
    global _display
    bar = Bar(title, total or None, done, unit, whole)
    with contextlib.ExitStack() as undo:
        if show and _display is None and (console := _watched()):
            _display = _Display(console)
            undo.callback(_close)
        if show and _display is not None:
            bar.live = True
            _display.bars.append(bar)
            undo.callback(_display.bars.remove, bar)
        yield bar


def _close() -> None:
    global _display
    assert _display is not None
    _display.live.stop()
    _display = None


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Take the display away while something is written."""
    display = _display
    if display is None:
        yield
        return
    display.live.stop()
    try:
        yield
    finally:
        display.live = display.draw()


@contextlib.contextmanager
def streams_untouched() -> Iterator[None]:
    """Let prints run into the display, for code that takes hold of the standard streams to record them."""
    display = _display
    if display is None:
        yield
        return
    with aside():
        display.catches = False
    try:
        yield
    finally:
        with aside():
            display.catches = True


def _watched() -> Console | None:
    """The terminal of a person who waits, if there is one."""
    if multiprocessing.current_process().name != "MainProcess" or os.environ.get("RANK", "0") != "0":
        return None
    stream = next((each for each in (sys.stdout, sys.stderr) if each is not None and each.isatty()), None)
    if stream is None:
        return None
    from rich.console import Console

    # Past what is put around the usual streams: W&B would record every one of the many pictures of a bar.
    return Console(file=beside(stream))


class _Display:
    """The bars that are open now.

    Attributes:
        catches: whether what is printed appears above it.
    """

    def __init__(self, console: Console) -> None:
        self.bars: list[Bar] = []
        self.catches = True
        self._console = console
        self.live = self.draw()

    def draw(self) -> Live:
        """Draw it from now on, again and again."""
        from rich.live import Live

        live = Live(
            console=self._console,
            get_renderable=self._picture,
            transient=True,
            redirect_stdout=self.catches and sys.stdout.isatty(),
            redirect_stderr=self.catches and sys.stderr.isatty(),
        )
        live.start(refresh=True)
        return live

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.constrain import Constrain
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table
        from rich.text import Text

        table = Table.grid(
            Column(no_wrap=True),
            Column(max_width=WIDEST_BAR),
            Column(no_wrap=True, justify="right", style="progress.download"),
            Column(no_wrap=True, style="progress.remaining"),
            padding=(0, 1),
        )
        rows: list[Sweep | Bar] = [*self.bars] if _sweep is None else [_sweep, *self.bars]
        for row in rows:
            table.add_row(row.title, ProgressBar(row.total, row.done), row.counted, _times(row))
        lines = [line for row in rows for line in row.lines]
        shown = Group(table, *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines))
        # Not to the edge, where the ^C that a terminal shows would begin another line.
        return Constrain(shown, self._console.width - len("^C^C"))


def _times(row: Sweep | Bar) -> str:
    left = row.clock.left(row.done, row.total)
    elapsed = timedelta(seconds=int(row.clock.elapsed))
    return f"{elapsed}" if left is None else f"{elapsed}, {timedelta(seconds=round(left))} left"
