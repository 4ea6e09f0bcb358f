"""Comparing speeds fairly on a machine whose speed drifts."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

from rich.console import Console
from rich.table import Table

PLAIN = ("tracker=none", "metrics=none", "seed=1", "train.sample_every=0", "train.checkpoint_every=0")
"""Options of a run that does nothing but train."""

Prepare = Callable[[], Callable[[], object]]
"""Builds a contestant; what it returns is timed and must not return before its work is done."""


@dataclass
class Measured:
    """Seconds of each call that counted, and a contestant's fact at the end."""

    seconds: list[float]
    fact: float = 0.0


def peak_memory() -> float:
    """Bytes that this process held at most: on the GPU where it used one, else in host memory."""
    import torch

    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated())
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def nothing() -> float:
    return 0.0


def interleave(
    contestants: Mapping[str, Prepare],
    *,
    rounds: int = 15,
    warmup: int = 3,
    facts: Callable[[], float] = nothing,
) -> dict[str, Measured]:
    """Seconds of one call of each contestant in each round.

    Each contestant lives in a process of its own, so that none inherits another's allocator, threads or
    settings, and in every round they take turns, so that a drift of the machine meets them all.

    Args:
        contestants: picklable functions by name.
        rounds: calls of each that count.
        warmup: calls of each before them.
        facts: asked in each contestant's process after every call; the last answer is kept.

    Returns:
        what was measured, without contestants that raised an error, which their processes have printed.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    try:
        for name, prepare in contestants.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(prepare, facts, theirs), daemon=True)
            process.start()
            theirs.close()
            workers[name] = (process, ours)
        measured = {name: Measured([]) for name in contestants}
        for turn in range(warmup + rounds):
            for name in list(measured):
                _, connection = workers[name]
                try:
                    connection.send(True)
                    elapsed, measured[name].fact = connection.recv()
                except (EOFError, ConnectionError):
                    del measured[name]
                    continue
                if turn >= warmup:
                    measured[name].seconds.append(elapsed)
        return measured
    finally:
        for process, connection in workers.values():
            connection.close()
            process.join()


def _serve(prepare: Prepare, facts: Callable[[], float], connection: Connection) -> None:
    call = prepare()
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        started = time.perf_counter()
        call()
        elapsed = time.perf_counter() - started
        connection.send((elapsed, facts()))


def speedup(reference: list[float], contestant: list[float]) -> float:
    """Median over the rounds of how many times faster the contestant was in that round."""
    return statistics.median(a / b for a, b in zip(reference, contestant, strict=True))


def show(title: str, measured: Mapping[str, Measured], reference: str) -> None:
    """Print medians, quartiles and each contestant's speed relative to ``reference``."""
    table = Table(title=title)
    for column in ("", "median", "quartiles", f"times faster than {reference}"):
        table.add_column(column, justify="right" if column else "left")
    for name, one in measured.items():
        low, middle, high = statistics.quantiles(one.seconds, n=4) if len(one.seconds) > 1 else 3 * one.seconds
        table.add_row(
            name,
            f"{1000 * middle:.1f} ms",
            f"{1000 * low:.1f} … {1000 * high:.1f} ms",
            f"{speedup(measured[reference].seconds, one.seconds):.2f}×",
        )
    Console().print(table)
