"""What asks training to stop: Ctrl-C, SIGTERM, and the signals by which Slurm announces the end of a job."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

log = logging.getLogger("relgan")

# sbatch --signal=USR1@90, and what submitit sends.
REQUEUING = (signal.SIGUSR1, signal.SIGUSR2)
SCONTROL_SECONDS = 30


class StopRequested(Exception):
    """Raised at a place where training can stop; not an error."""


class StopSignals:
    """While entered, ``received`` is the number of the first signal that asked to stop, else None."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, *REQUEUING)

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        # Only the main thread may install handlers; a launcher's worker thread trains without.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
