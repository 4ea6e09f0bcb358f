"""Where the time of an iteration goes, by torch's profiler: ``python -m benchmarks.shares [options of relgan-train]``.

Prints the milliseconds of an iteration without the profiler, and what share of it each kind of work has with it. The
profiler makes each of the many small operations look longer, so the small ones' share is an upper bound.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

from rich.console import Console
from rich.table import Table
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.timing import PLAIN
from relgan.build import build_run
from relgan.cli.command import Line
from relgan.cli.compose import compose
from relgan.networks import blocks
from relgan.training.loop import Loop
from relgan.training.signals import StopSignals

WARM_UPS, TIMED, PROFILED = 10, 40, 20

OPTIMIZER, SPECTRAL_NORM = "optimizer", "spectral norm"
KINDS = {
    "convolutions and products": ("conv", "addmm", "aten::mm", "aten::bmm", "linear"),
    "batch norm": ("batch_norm",),
    "copies, casts and zeros": ("copy_", "zero_", "fill_", "clone", "cat"),
}
BETWEEN = "between operations"


def kind(event: FunctionEvent) -> str:
    """What an operation belongs to: the optimizer or spectral norm where they called it, else by its own name."""
    caller = event
    while caller is not None:
        if caller.name.startswith("Optimizer.step"):
            return OPTIMIZER
        if caller.name == SPECTRAL_NORM:
            return SPECTRAL_NORM
        caller = caller.cpu_parent
    return next((kind for kind, parts in KINDS.items() if any(part in event.name for part in parts)), "all else")


P, R = ParamSpec("P"), TypeVar("R")


def _recorded(call: Callable[P, R]) -> Callable[P, R]:
    def recorded(*args: P.args, **kwargs: P.kwargs) -> R:
        with record_function(SPECTRAL_NORM):
            return call(*args, **kwargs)

    return recorded


def shares(loop: Loop) -> tuple[float, float, dict[str, float]]:
    """Milliseconds of an iteration, its number of operations, and each kind's share of the profiled time."""
    for _ in range(WARM_UPS):
        loop.iterate()
    seconds = []
    for _ in range(TIMED):
        started = time.perf_counter()
        loop.iterate()
        seconds.append(time.perf_counter() - started)
    with (
        patch.object(blocks.SpectralNorm, "forward", _recorded(blocks.SpectralNorm.forward)),
        patch.object(blocks, "advance", _recorded(blocks.advance)),
        profile(activities=[ProfilerActivity.CPU]) as profiler,
    ):
        started = time.perf_counter()
        for _ in range(PROFILED):
            loop.iterate()
        whole = 1e6 * (time.perf_counter() - started)
    taken: Counter[str] = Counter()
    events = profiler.events()
    assert events is not None
    for event in events:
        taken[kind(event)] += event.self_cpu_time_total
    taken[BETWEEN] = max(0, whole - sum(taken.values()))
    count = sum(event.name.startswith("aten::") for event in events) / PROFILED
    return 1000 * statistics.median(seconds), count, {name: part / whole for name, part in taken.most_common()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = [*PLAIN, "device=cpu", *sys.argv[1:]]
        run = build_run(compose(Line.of(words)), Path(folder) / "run", words)
        milliseconds, count, found = shares(Loop(run, StopSignals(), show=False))
        run.close(0)
    title = f"{run.describe()}: {milliseconds:.1f} ms and {count:,.0f} operations an iteration"
    table = Table("", "share", title=title)
    for name, share in found.items():
        table.add_row(name, f"{share:.0%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
