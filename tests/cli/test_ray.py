"""The cluster launcher on a Ray of this machine, which the sweep starts."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny

pytestmark = pytest.mark.slow


def trained(seed: int) -> Path | None:
    """The directory of a job that has a checkpoint and has not finished."""
    for path in Path("multirun/s").glob(f"*seed={seed}_*/checkpoints/last.pt"):
        with contextlib.suppress(OSError, ValueError):
            if tiny.summary(path.parents[1])["status"] == "running":
                return path.parents[1]
    return None


def trains_in(directory: Path) -> int:
    """The process that has a file of the directory open."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(file.readlink().is_relative_to(directory) for file in (process / "fd").iterdir()):
                return int(process.name)
    raise AssertionError(f"nobody trains in {directory}")


def test_the_job_of_a_worker_that_is_killed_goes_on_in_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="the ray extra is not installed")
    monkeypatch.chdir(tmp_path)
    options = ["train.iterations=2000", "train.checkpoint_every=100", "train.log_every=500", "seed=-1,1,2"]
    cluster = ["hydra/launcher=cluster", *(f"hydra.launcher.ray.remote.{use}" for use in ("num_cpus=1", "num_gpus=0"))]
    command = [sys.executable, "-m", "relgan.cli.train", "-m", "name=s", *tiny.ARGUMENTS, *cluster, *options]
    with subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as sweep:
        killed = None
        while killed is None:
            assert sweep.poll() is None
            time.sleep(0.1)
            killed = trained(1)
        os.kill(trains_in(killed.absolute()), signal.SIGKILL)
        out = sweep.communicate(timeout=300)[0]
    assert sweep.returncode == 1, out  # because of the seed that is refused
    for seed, status in {-1: "failed", 1: "finished", 2: "finished"}.items():
        assert re.search(rf"^ *seed={seed} +{status} ", out, re.MULTILINE), out
    logs = {path.parent: path.read_text() for path in Path("multirun/s").glob("*/train.log")}
    assert [path for path, log in logs.items() if "continuing from" in log] == [killed]
