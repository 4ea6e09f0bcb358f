"""The slurm launcher and sbatch on a real Slurm of one node (make slurm), started and stopped here."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import slurm
import tiny

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "devices.md"
LAUNCHER = ("gpus_per_node=null", "cpus_per_task=1", "mem_gb=1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"not installed: {', '.join(slurm.missing())}"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="Slurm's daemons want to be root"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        running.environment["OMP_NUM_THREADS"] = "1"
        running.environment["PATH"] = f"{Path(sys.executable).parent}:{running.environment['PATH']}"
        yield running


@pytest.fixture(autouse=True)
def _aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of its own."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launchers extra is not installed")
    monkeypatch.chdir(tmp_path)


def start(cluster: slurm.Cluster, *options: str) -> subprocess.Popen[str]:
    """A sweep called ``s`` by way of Slurm."""
    launcher = ["hydra/launcher=slurm", *(f"hydra.launcher.{option}" for option in LAUNCHER)]
    command = ["relgan-train", "-m", "name=s", *tiny.ARGUMENTS, *launcher, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=cluster.environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


class Result(NamedTuple):
    code: int
    out: str
    err: str


def end(sweep: subprocess.Popen[str]) -> Result:
    out, err = sweep.communicate(timeout=900)
    return Result(sweep.returncode, out, err)


def jobs() -> dict[str, Path]:
    """Directories of the sweep's jobs by the number of their seed."""
    found = {path: re.search(r"seed=(-?\d+)", path.name) for path in Path("multirun/s").iterdir()}
    return {match[1]: path for path, match in found.items() if match}


def statuses() -> dict[str, str]:
    return {seed: tiny.summary(path)["status"] for seed, path in jobs().items()}


def log_of(path: Path) -> str:
    return (path / "train.log").read_text(encoding="utf-8") if (path / "train.log").exists() else ""


def test_a_sweep_is_one_array_and_a_job_that_fails_stops_no_other(cluster: slurm.Cluster) -> None:
    done = end(start(cluster, "hydra.launcher.partition=main", "seed=-1,1,2"))
    assert done.code == 1, done.out + done.err
    assert statuses() == {"-1": "failed", "1": "finished", "2": "finished"}
    for seed in (-1, 1, 2):
        assert re.search(rf"^ *seed={seed} ", done.out, re.MULTILINE)
    (script,) = Path("multirun/s/.submitit").glob("*/*submission.sh")
    submitted = set(re.findall(r"^#SBATCH --(.*)$", script.read_text(), re.MULTILINE))
    # The signal at which training saves and asks to be queued again.
    assert {"array=0-2%3", "partition=main", "cpus-per-task=1", "mem=1GB", "time=1440", "signal=USR2@120"} <= submitted


def test_a_job_past_its_time_limit_goes_on_bit_for_bit(cluster: slurm.Cluster) -> None:
    """Of two minutes; Slurm gives notice up to a minute earlier than it is asked to."""
    long = ["train.iterations=15000", "train.log_every=500", "train.checkpoint_every=100000"]
    limit = ["hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30"]
    done = end(start(cluster, *long, *limit, "seed=1"))
    assert done.code == 0, done.out + done.err
    log = log_of(jobs()["1"])
    assert "stopped by SIGUSR2" in log
    assert "is requeued" in log
    assert "continuing from" in log
    straight = ["relgan-train", *tiny.ARGUMENTS, *long, "seed=1", "hydra.run.dir=straight"]
    subprocess.run(straight, env=cluster.environment, check=True, capture_output=True)
    differing = set(tiny.differing(tiny.last(jobs()["1"]), tiny.last(Path("straight"))))
    assert not {name for name in differing if not name.startswith((".config", ".seconds"))}


def test_a_cancelled_job_is_one_line_and_the_same_line_again_finishes_it(cluster: slurm.Cluster) -> None:
    """And a controller that is killed and comes back in the meantime loses nothing."""
    options = ["train.iterations=6000", "seed=1,2"]
    sweep = start(cluster, *options)
    slurm.until(lambda: Path("multirun/s").exists() and len(jobs()) == 2, "two jobs")
    slurm.until(lambda: all("ends at" in log_of(path) for path in jobs().values()), "two trainings")
    (array,) = {line.partition("_")[0] for line in cluster.call("squeue", "-h", "-r", "-o", "%i").split()}
    cluster.call("scancel", f"{array}_0")
    cluster.restart_controller()
    done = end(sweep)
    assert done.code == 1, done.out + done.err
    assert "Traceback" not in done.out + done.err
    # Its state is FAILED where the controller learns of its exit status only after it has come back.
    assert re.search(rf"job {array}_0 left no result \((CANCELLED|FAILED)", done.out), done.out + done.err
    assert "continue with: relgan-train name=s" in done.out
    slurm.until(lambda: not cluster.call("squeue", "-h"), "an empty queue", 300)
    assert statuses() == {"1": "interrupted", "2": "finished"}
    assert end(start(cluster, *options)).code == 0
    assert statuses() == {"1": "finished", "2": "finished"}


def test_the_lines_of_the_documents_run_word_for_word(cluster: slurm.Cluster) -> None:
    (lines,) = re.findall(r"^```bash\n(#SBATCH.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    Path("job.sh").write_text(f"#!/bin/bash\n{lines}")
    number = cluster.call("sbatch", "--parsable", "--time=2", "job.sh").strip()
    run = Path("outputs/long")
    slurm.until(lambda: "is requeued" in log_of(run), "the first time limit", 200)
    slurm.until(lambda: "continuing from" in log_of(run), "the second start", 200)
    steps = tiny.summary(run)["step"]
    cluster.call("scancel", f"--signal={signal.SIGTERM.name.removeprefix('SIG')}", number)
    slurm.until(lambda: tiny.summary(run)["status"] == "interrupted", "its end")
    assert tiny.summary(run)["step"] >= steps
