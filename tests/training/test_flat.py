"""A long run costs at its end what it cost at its beginning."""

from __future__ import annotations

import resource
import statistics
from pathlib import Path

import pytest

import tiny
from relgan.build import build_run
from relgan.training.loop import Loop
from relgan.training.signals import StopSignals

FIRST, LAST = (100, 1100), (9000, 10000)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_update_10000_costs_what_update_100_did(tmp_path: Path) -> None:
    run = build_run(tiny.config("train.iterations=10000", "train.log_every=20", "train.checkpoint_every=500"), tmp_path)
    loop, memory = Loop(run, StopSignals()), {}
    iterate = loop.iterate

    def watched() -> None:
        iterate()
        if run.state.step in (*FIRST, *LAST):
            memory[run.state.step] = resident()

    loop.iterate = watched  # type: ignore[method-assign]
    loop.run_until_done()
    run.close(0)
    speed = {
        window: statistics.median(
            record["train/images_per_second"]
            for record in tiny.records(tmp_path)
            if record["kind"] == "train" and window[0] <= record["step"] <= window[1]
        )
        for window in (FIRST, LAST)
    }
    growth = memory[10000] - memory[100]
    print(f"images/s {speed[FIRST]:.0f} and {speed[LAST]:.0f}")
    print(f"memory {memory[100] / 1e6:.1f} MB and {growth / 1e6:+.1f} MB")
    assert speed[LAST] > 0.75 * speed[FIRST]
    assert growth < 20e6
