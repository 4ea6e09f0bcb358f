"""The first signal asks, the second acts, and the handlers that were there come back."""

from __future__ import annotations

import signal
import threading

import pytest

from relgan.training.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks_and_the_second_is_immediate(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
        immediate = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        assert signal.getsignal(number) == immediate
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    assert signal.getsignal(number) == before


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
