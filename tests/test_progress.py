"""Bars on a terminal, their times, and the place of a sweep; nothing where nobody watches."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from relgan import progress
from relgan.metrics.extractors import digits
from relgan.metrics.extractors.digits import DigitNet
from relgan.progress import Bar, Clock, Sweep, in_sweep, progress_bar, streams_untouched
from relgan.tracking.console import ConsoleHandler, ending_line, lasting
from relgan.training.run import Run


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock, in seconds from here."""
    start = time.monotonic()

    def be(seconds: float) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: start + seconds)

    be(0)
    return be


class Terminal:
    """A pseudo-terminal as standard output, and what it was sent."""

    def __init__(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))
        self._mine, theirs = pty.openpty()
        self.stream = io.TextIOWrapper(io.FileIO(theirs, "w"), encoding="utf-8", write_through=True)
        self._sent = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        monkeypatch.setattr(sys, "stdout", self.stream)

    def _read(self) -> None:
        try:
            while data := os.read(self._mine, 65536):
                self._sent += data
        except OSError:  # the other side is closed
            pass

    def sent(self) -> str:
        """Everything, once nothing more can come; without colours."""
        self.stream.close()
        self._reader.join(20)
        os.close(self._mine)
        return re.sub(r"\x1b\[[\d;]*m", "", self._sent.decode())


@pytest.fixture(autouse=True)
def _no_sweep() -> Iterator[None]:
    yield
    in_sweep(None)


def drawn(text: str) -> list[str]:
    """The lines of all pictures, without control sequences."""
    parts = re.split(r"[\r\n]+|\x1b\[\??[\d;]*[A-Za-z]", text)
    return [part.strip() for part in parts if part.strip()]


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_shows_rows_numbers_and_lines_above(
    columns: int, now: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, wrapped = Terminal(columns, monkeypatch), io.StringIO()
    in_sweep(Sweep(12, job="loss=ragan seed=3", ended=2))
    with progress_bar(2400, "training", done=600, whole=True) as bar:
        bar.advance()
        now(30.5)
        bar.advance(599)
        bar.show("D 0.081  G 3.077", "at 1,200: fd_digits 34.1", 300 * "-")
        with progress_bar(2000, "scoring") as scoring:
            scoring.advance(500)
            # What W&B does, to record what is printed.
            with streams_untouched():
                assert sys.stdout is terminal.stream
                monkeypatch.setattr(sys.stdout, "write", wrapped.write)
            ConsoleHandler().emit(logging.makeLogRecord({"msg": "a line"}))
            monkeypatch.delattr(terminal.stream, "write")
            print("of somebody else")
    lines = drawn(terminal.sent())
    assert wrapped.getvalue() == "a line\n"
    assert "of somebody else" in lines
    for row in (
        r"sweep +━+.* 3/12 0:00:30, \d:\d\d:\d\d left",
        r"training +━+.* 1,200/2,400 0:00:30, 0:01:01 left",
        r"scoring +━+.* 500/2,000 0:00:30",
    ):
        assert any(re.fullmatch(row, line) for line in lines), (row, lines)
    assert {"loss=ragan seed=3", "D 0.081  G 3.077", "at 1,200: fd_digits 34.1"} <= set(lines)
    # Room for the ^C that a terminal shows.
    assert max(map(len, lines)) <= columns - 4
    assert bar.live
    assert progress._display is None


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    """Every bar that is opened."""
    opened: list[Bar] = []

    class Kept(Bar):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            opened.append(self)

    monkeypatch.setattr(progress, "Bar", Kept)
    return opened


def test_every_long_part_of_a_run_has_a_bar_that_fills(tmp_path: Path, cache: Path, bars: list[Bar]) -> None:
    classifier = cache / "extractors" / f"digits-v{digits.VERSION}.pt"
    classifier.parent.mkdir(parents=True)
    digits._save(classifier, DigitNet())
    scored = ("metrics.scores=[fid]", "metrics.num_images=16", "metrics.reference_images=32")
    tiny.run(tmp_path / "run", *scored, "metrics.batch_size=8")
    assert [(bar.title, bar.counted) for bar in bars] == [
        ("preparing digits", "64/64"),
        ("training", "4/4"),
        ("computing scores", "16/16"),  # "scoring" until all images are seen
        ("real images", "32/32"),
        *[("computing scores", "16/16")] * 4,
    ]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_the_digit_classifier_has_a_bar(monkeypatch: pytest.MonkeyPatch, bars: list[Bar]) -> None:
    monkeypatch.setattr(digits, "_epoch", lambda *_: None)
    digits.train(np.zeros((10, 32, 32), np.uint8), np.zeros(10, np.int64))
    assert [(bar.title, bar.counted) for bar in bars] == [("digit classifier", "24/24")]


def test_what_is_not_shown_is_counted_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(10, "work") as bar:
        bar.advance(3)
        bar.show("numbers")
    assert (bar.live, bar.done) == (False, 3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("who", ["worker", "rank", "unasked"])
def test_only_one_process_draws_and_only_when_asked(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(80, monkeypatch)
    if who == "worker":
        monkeypatch.setattr(multiprocessing.current_process(), "name", "LokyProcess-1")
    if who == "rank":
        monkeypatch.setenv("RANK", "1")
    with progress_bar(10, "work", show=who != "unasked") as bar:
        bar.advance()
    assert not bar.live
    assert terminal.sent() == ""


def test_what_comes_before_the_first_advance_says_nothing_about_the_pace(now: Callable[[float], None]) -> None:
    clock = Clock()
    now(100)  # statistics of the real images, once
    clock.advanced(1)
    assert clock.left(1, 11) is None
    now(104)
    clock.advanced(3)
    assert clock.elapsed == pytest.approx(104, abs=1)
    assert clock.left(3, 11) == pytest.approx(16)
    assert clock.left(3, None) is None


def test_a_sweep_goes_by_the_jobs_that_worked(now: Callable[[float], None]) -> None:
    sweep = Sweep(10)
    for share in (0.0, 0.5):
        sweep.advanced(share)
        now(60)
    sweep.end_job(worked=True)
    now(120)
    left = sweep.clock.left(sweep.done, sweep.total)
    assert left == pytest.approx(120 * 9)
    # Eight that had been finished before leave one to do.
    for _ in range(8):
        sweep.end_job(worked=False)
    assert sweep.clock.left(sweep.done, sweep.total) == pytest.approx(120)
    assert sweep.counted == "10/10"


@pytest.mark.parametrize(
    ("total", "unit", "counted"), [(None, "", ""), (2400, "", "1,000/2,400"), (None, "MB", "0.0/? MB")]
)
def test_counts(total: int | None, unit: str, counted: str) -> None:
    assert Bar("work", total, 1000, unit).counted == counted  # type: ignore[arg-type]


def test_a_spread_stands_beside_its_score() -> None:
    scores = {"eval/is": 8.0444, "eval/is_std": 0.123, "eval/fid": 12.345, "eval/lone_std": 1.0}
    assert Run.score_line(scores) == "is 8.044 ± 0.12  fid 12.35  lone_std 1"


def test_times_as_one_says_them() -> None:
    said = [lasting(seconds) for seconds in (3.4, 61, 130, 3600 * 2 + 300)]
    assert said == ["3 s", "61 s", "2 min", "2 h 5 min"]
    assert re.fullmatch(r"ends at about .*\d\d:\d\d, in 2 h 5 min", ending_line(7500))
