"""Signals ask and training stops at a safe place; only a second Ctrl-C acts; Slurm is asked to start the job again."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from relgan.training.signals import StopRequested, StopSignals, requeue


@pytest.mark.parametrize("number", StopSignals.SIGNALS)
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
