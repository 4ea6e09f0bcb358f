"""The slurm launcher with a stand-in for Slurm: what is submitted, and that it runs as submitted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny

# sbatch runs every task of the array at once, from a copy because submitit moves its file, beside the submitting
# process; sacct says which have ended.
SLURM = {
    "sbatch": """
cp "$1" "$QUEUE/script"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for task in $(seq 0 "${last:-0}"); do
    (
        export SLURM_JOB_ID=$((100 + task)) SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task SLURM_JOB_NODELIST=here
        export SLURM_NTASKS=1 SLURM_NNODES=1 SLURM_NODEID=0 SLURM_LOCALID=0 SLURM_PROCID=0
        sh "$QUEUE/script"
        echo "77_$task|COMPLETED|here" >> "$QUEUE/ended"
    ) > "$QUEUE/output$task" 2>&1 < /dev/null &
done
echo Submitted batch job 77
""",
    "srun": """
while [ "$1" != "${1#--}" ]; do
    case "$1" in --output | --error) shift 2 ;; *) shift ;; esac
done
exec "$@"
""",
    "sacct": """
echo 'JobID|State|NodeList'
cat "$QUEUE/ended" 2>/dev/null || true
""",
}


@pytest.mark.slow
def test_a_sweep_is_one_array_of_slurm_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launchers extra is not installed")
    monkeypatch.chdir(tmp_path)
    for name, script in SLURM.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "QUEUE": str(tmp_path)}
    options = ["name=s", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "seed=-1,1,2"]
    command = [sys.executable, "-m", "relgan.cli.train", "-m", *tiny.ARGUMENTS, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    found = sorted(tiny.summary(path.parent)["status"] for path in Path("multirun/s").glob("*/summary.json"))
    assert found == ["failed", "finished", "finished"]
    for seed in (-1, 1, 2):
        assert f" seed={seed} " in done.stdout
    submitted = {
        line.removeprefix("#SBATCH --") for line in Path("script").read_text().splitlines() if "SBATCH" in line
    }
    wanted = {"array=0-2%3", "partition=gpu", "gpus-per-node=1", "cpus-per-task=4", "mem=32GB", "time=1440"}
    # The signal at which training saves and asks to be queued again.
    assert wanted | {"signal=USR2@120"} <= submitted
