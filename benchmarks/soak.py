"""Does a long run grow? Trains and scores the default data while its memory and open files are watched from outside.

``python -m benchmarks.soak --minutes 20``; exit status 1 when a bound is exceeded. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Scoring and saving often, because that is where memory and files would be forgotten.
OPTIONS = (
    "tracker=none",
    "train.iterations=100000000",
    "train.checkpoint_every=100",
    "train.sample_every=100",
    "train.log_every=10",
    "train.keep_checkpoints=2",
    "metrics.every=100",
)
WARM_UP = 0.2
"""Share of the time in which caches fill and the allocator finds its size; at least until the first evaluation between
updates has come and gone."""
FEWEST = 30
MAX_MB_PER_1000 = 5.0
MAX_NEW_FILES = 0
MIN_SPEED_RATIO = 0.8
STOP_SECONDS = 30


@dataclass
class Samples:
    """What was seen, one row a second."""

    seconds: list[float]
    memory_mb: list[float]
    files: list[int]


def watch(process: subprocess.Popen[bytes], minutes: float, every: float = 1.0) -> Samples:
    """The process's own memory and open file descriptors until the time is over or it ends.

    Not what it has mapped from files: pages of the data set become resident as they are first looked at.
    """
    started, samples = time.time(), Samples([], [], [])
    home = Path(f"/proc/{process.pid}")
    while time.time() < started + 60 * minutes and process.poll() is None:
        status = dict(line.split(":", 1) for line in (home / "status").read_text().splitlines())
        samples.memory_mb.append(int(status["RssAnon"].split()[0]) * 1024 / 1e6)
        samples.files.append(len(list((home / "fd").iterdir())))
        samples.seconds.append(time.time())
        time.sleep(every)
    return samples


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Least-squares slope of y over x and its standard error (of independent residuals)."""
    centred = x - x.mean()
    scatter = float(centred @ centred)
    value = float(centred @ y) / scatter
    residual = y - y.mean() - value * centred
    return value, float(np.sqrt(residual @ residual / (len(x) - 2) / scatter))


def speeds(records: list[dict[str, float]]) -> list[float]:
    """Logged images per second after the warm-up; pauses for scores and grids are not in them."""
    rates = [record["train/images_per_second"] for record in records if record["kind"] == "train"]
    return rates[int(WARM_UP * len(rates)) :]


def judge(samples: Samples, records: list[dict[str, float]], started: float) -> list[str]:
    """Print what was measured; returns the bounds that were exceeded."""
    scored = [started + record["time_s"] for record in records if record["kind"] == "eval" and record["step"] > 0]
    clock = np.array([started + record["time_s"] for record in records if record["kind"] == "train"])
    steps = np.array([record["step"] for record in records if record["kind"] == "train"], dtype=float)
    seconds, memory = np.array(samples.seconds), np.array(samples.memory_mb)
    ready = max(seconds[0] + WARM_UP * (seconds[-1] - seconds[0]), min(scored, default=np.inf))
    warm = seconds > ready
    if warm.sum() < FEWEST:
        return [f"too short: {len(scored)} evaluations between updates, {warm.sum()} seconds after the warm-up"]
    growth, error = slope(np.interp(seconds[warm], clock, steps), memory[warm])
    files = np.array(samples.files)[warm]
    rates = speeds(records)
    tenth = max(1, len(rates) // 10)
    first, last = (statistics.median(part) for part in (rates[:tenth], rates[-tenth:]))
    memories = [float(np.median(part)) for part in np.array_split(memory[warm], 10)]
    tenths = np.array_split(files, 10)
    evaluations = sum(record["kind"] == "eval" for record in records)
    print(f"{steps[-1]:,.0f} updates, {evaluations} evaluations in {(seconds[-1] - seconds[0]) / 60:.1f} minutes")
    print(f"memory: {memories[0]:.0f} MB in the first tenth after warm-up, {memories[-1]:.0f} MB in the last")
    print(f"slope: {1000 * growth:+.2f} ± {1000 * error:.2f} MB per 1,000 updates (bound {MAX_MB_PER_1000:g})")
    print(f"open files: at least {tenths[0].min()} in the first tenth, {tenths[-1].min()} in the last")
    print(f"speed: {first:,.0f} images/s in the first tenth, {last:,.0f} in the last ({last / first:.2f}×)")
    exceeded = {
        "memory grows": 1000 * (growth - 2 * error) > MAX_MB_PER_1000,
        # The fewest: a checkpoint just being written is open for a moment.
        "files stay open": tenths[-1].min() - tenths[0].min() > MAX_NEW_FILES,
        "updates slow down": last / first < MIN_SPEED_RATIO,
    }
    return [name for name, bad in exceeded.items() if bad]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("options", nargs="*", help="options of relgan-train")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        run = Path(home) / "run"
        command = [sys.executable, "-m", "relgan.cli.train", *OPTIONS, *arguments.options, f"hydra.run.dir={run}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            samples = watch(process, arguments.minutes)
            told = time.time()
            process.send_signal(signal.SIGTERM)
            status = process.wait(STOP_SECONDS)
            print(f"SIGTERM: saved and gone after {time.time() - told:.1f} s, exit status {status}")
        finally:
            process.kill()
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in text.splitlines()]
    # time_s counts from the start of training.
    exceeded = judge(samples, records, told - summary["seconds"])
    if status != 128 + signal.SIGTERM:
        exceeded.append(f"exit status {status}")
    print("; ".join(exceeded) or "nothing grows")
    sys.exit(bool(exceeded))


if __name__ == "__main__":
    main()
