"""Signals ask and training stops at a safe place; only a second Ctrl-C acts; Slurm is asked to start the job again."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from relgan.files import atomic_write
from relgan.training.signals import SIGNALS, StopRequested, StopSignals, leaving, requeue

needs_hangup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_only_asks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        signals.check()
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
        with pytest.raises(StopRequested):
            signals.check()
    assert signal.getsignal(number) == before


def test_a_second_interrupt_is_immediate() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT


def test_what_machines_repeat_does_not_cut_the_saving_short() -> None:
    """srun and torchrun pass a signal on that the process has had already; Slurm sends SIGTERM after SIGUSR1."""
    with StopSignals() as signals:
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert signals.received == signal.SIGUSR1


def test_a_repeated_signal_does_not_cut_the_cleaning_short() -> None:
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(SystemExit, match="143"), leaving():
        work()
    assert cleaned


@pytest.fixture
def _nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@needs_hangup
@pytest.mark.usefixtures("_nohup")
def test_under_nohup_a_closed_terminal_asks_for_nothing() -> None:
    with leaving(), StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        signals.check()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_what_a_script_leaves_in_the_background_is_still_interrupted() -> None:
    """A shell without job control starts it with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received == signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)


@needs_hangup
def test_the_terminal_is_among_what_asks() -> None:
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2} == set(SIGNALS)


def test_a_signal_that_came_before_counts() -> None:
    with StopSignals(lambda: signal.SIGTERM) as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGTERM


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [number for number in SIGNALS if number != signal.SIGINT])
def test_outside_training_a_signal_leaves_and_what_is_half_written_goes(number: signal.Signals, tmp_path: Path) -> None:
    def write() -> None:
        with leaving(), atomic_write(tmp_path / "file") as file:
            file.write(b"half")
            signal.raise_signal(number)

    with pytest.raises(SystemExit, match=str(128 + number)):
        write()
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) == signal.SIG_DFL


def test_networks_stop_between_layers_while_asked_to() -> None:
    seen: list[int] = []

    class Layer(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.number)
            if self.number == 1:
                signal.raise_signal(signal.SIGTERM)
            return x

    network = nn.Sequential(*map(Layer, range(4)))
    with StopSignals() as signals:
        with pytest.raises(StopRequested), signals.inside_networks():
            network(torch.zeros(1))
        assert seen == [0, 1]
        network(torch.zeros(1))  # outside, a step is never torn
        assert seen == [0, 1, 0, 1, 2, 3]


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopSignals():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_worker_thread_trains_without_handlers() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with StopSignals() as signals:
                assert signals.received is None
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol that writes down what it is asked, first on PATH."""
    program, asked = tmp_path / "scontrol", tmp_path / "asked"
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n[ "$2" != 13 ] || {{ echo "no such job" >&2; exit 1; }}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return asked


def test_requeueing(scontrol: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    requeue()
    assert not scontrol.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    requeue()
    assert scontrol.read_text() == "requeue 42\n"
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    # What an earlier test has set the logger to decides whether success was logged.
    caplog.clear()
    with caplog.at_level(logging.WARNING, "relgan"):
        requeue()
    assert caplog.messages == ["job 13 is not requeued: no such job"]
    monkeypatch.setenv("PATH", "/nowhere")
    requeue()
    assert len(caplog.messages) == 2
    assert "\n" not in caplog.messages[1]
