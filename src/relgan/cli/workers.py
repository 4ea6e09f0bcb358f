"""Processes of a sweep on one machine: which GPU each one has, and how Ctrl-C reaches joblib's."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from relgan.training.signals import SIGNALS, is_answered

log = logging.getLogger("relgan")

# What a job of submitit on this machine may see, which finds CUDA_VISIBLE_DEVICES empty: that variable's value before.
GPUS = "RELGAN_GPUS"
ALL = "all"
MOST = 8  # jobs of a machine without a GPU; each takes about 1 GB

_asked: int | None = None
_slot: FileLock | None = None


def at_once() -> int:
    """Jobs that run best side by side: one for each GPU, else for each core (docs/performance.md), up to ``MOST``."""
    import torch

    return torch.cuda.device_count() or min(torch.get_num_threads(), MOST)


def asked_to_stop() -> int | None:
    """Number of the signal after which this process starts no more jobs; None before it."""
    return _asked


def is_worker() -> bool:
    """Whether joblib started this process, which nobody's terminal speaks to."""
    return multiprocessing.current_process().name.startswith("LokyProcess")


def is_local_job() -> bool:
    """Whether submitit started this process on the sweep's own machine."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "local" and GPUS in os.environ


def stop(number: int, frame: FrameType | None = None) -> None:
    """Start no more jobs, and have the workers save and stop; before there are any, or at a second Ctrl-C, at once."""
    global _asked
    if _asked is not None and number == signal.SIGINT and not is_worker():
        raise KeyboardInterrupt
    _asked = _asked or number
    workers = multiprocessing.active_children()
    if not workers and not is_worker():
        raise SystemExit(128 + number)
    for worker in workers:
        worker.terminate()


def lead() -> None:
    """In the process that starts the workers: pass on to them what asks to stop."""
    global _asked
    _asked = None
    for number in filter(is_answered, SIGNALS):
        signal.signal(number, stop)


def enter(sweep_dir: Path) -> None:
    """Before a process's first job: take a slot among those of the sweep and, where there are GPUs, one of them."""
    global _slot
    if _slot is not None or not (is_worker() or is_local_job()):
        return
    if is_worker():
        _listen()
    # The lock lasts as long as the process, so that a new worker takes the slot of one that has gone.
    for number in itertools.count():
        lock = FileLock(sweep_dir / f".worker-{number}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        break
    _slot = lock
    if gpu := _gpu(number):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        log.info("worker %d of the sweep has GPU %s", number, gpu)


def _listen() -> None:
    """Hear of what asks to stop from the process that started this one."""
    # A terminal tells everyone; workers hear of it from the process that started them, once.
    for asking in SIGNALS:
        signal.signal(asking, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, stop)


def _gpu(number: int) -> str | None:
    """The GPU of the worker of this number; it must be asked for before anything has used CUDA."""
    visible = os.environ.get(GPUS, os.environ.get("CUDA_VISIBLE_DEVICES", ALL))
    if visible == ALL:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        import torch

        gpus = [str(index) for index in range(torch.cuda.device_count())]
    else:
        gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return gpus[number % len(gpus)] if gpus else None
