"""What asks a program to stop: Ctrl-C, SIGTERM, a terminal that is closed, and how Slurm announces the end of a job."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

log = logging.getLogger("relgan")


def _existing(*names: str) -> tuple[signal.Signals, ...]:
    """Those of the signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


# sbatch --signal=USR1@90, and what submitit sends.
REQUEUING = _existing("SIGUSR1", "SIGUSR2")
# Windows says SIGBREAK where others say SIGHUP.
SIGNALS = (*_existing("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"), *REQUEUING)
SCONTROL_SECONDS = 30


class StopRequested(Exception):
    """Raised at a place where training can stop; not an error."""


def is_answered(number: signal.Signals) -> bool:
    """Whether the signal asks this process to stop: SIGHUP does not under nohup, which has it ignored.

    The others do: a shell script starts what it leaves in the background with SIGINT ignored, and yet may send it.
    """
    return number.name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN


@contextlib.contextmanager
def answered_by(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """While entered, ``handler`` is called when one of the signals comes."""
    # Only the main thread may install handlers; a launcher's worker thread trains without.
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if mine and is_answered(number)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """While entered, a signal that asks to stop raises SystemExit, so that nothing half-written is left behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        # Machines repeat signals, which would cut short what is cleaned up on the way out.
        for each in repeated:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    # On Ctrl-C, Python raises KeyboardInterrupt by itself.
    repeated = [number for number in SIGNALS if number != signal.SIGINT]
    with answered_by(leave, *repeated):
        yield


class StopSignals:
    """While entered, ``received`` is the number of the first signal that asked to stop, else None.

    Args:
        earlier: the signal that came before, if any.
    """

    def __init__(self, earlier: Callable[[], int | None] = lambda: None) -> None:
        self.received: int | None = None
        self._earlier = earlier
        self._answering = answered_by(self._handle, *SIGNALS)

    def __enter__(self) -> StopSignals:
        self._answering.__enter__()
        # Only now: one that comes in between must not be missed.
        self.received = self.received or self._earlier()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answering.__exit__(kind, value, trace)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        # A second Ctrl-C is a person who will not wait. Machines repeat the others, and have SIGKILL.
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def check(self) -> None:
        """Raise StopRequested once a signal has come."""
        if self.received is not None:
            raise StopRequested

    @contextlib.contextmanager
    def inside_networks(self) -> Iterator[None]:
        """Check before every layer of every network, so that an evaluation of minutes does not outlast a deadline."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        handle = register_module_forward_pre_hook(lambda *_: self.check())
        try:
            yield
        finally:
            handle.remove()


def requeue() -> None:
    """Ask Slurm to start this job again; outside of Slurm, nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, timeout=SCONTROL_SECONDS)
        log.info("job %s is requeued", job)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error).encode()
        log.warning("job %s is not requeued: %s", job, " ".join(reason.decode().split()))
