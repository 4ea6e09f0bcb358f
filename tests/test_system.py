"""No system is needed that a user may not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import relgan
import tiny

PROBE = Path(__file__).parent / "without_unix.py"
SOURCE = Path(relgan.__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, str]:
    """The run directory and the output of a training in which relgan sees no name that exists on Unix only."""
    here = tmp_path_factory.mktemp("system")
    scores = ("metrics=default", "metrics.num_images=16", "metrics.reference_images=16")
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", PROBE, "train", *tiny.ARGUMENTS, *scores, "hydra.run.dir=run"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RELGAN_CACHE": str(shared_cache)},
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return here / "run", done.stdout


def test_relgan_is_imported_and_trains_without_what_only_unix_has(trained: tuple[Path, str]) -> None:
    directory, _ = trained
    summary = tiny.summary(directory)
    assert (summary["status"], summary["step"]) == ("finished", 4)
    assert summary["peak_memory_bytes"] is None
    assert summary["final"]["eval/fd_digits"] > 0


def test_the_encoding_of_files_does_not_hang_on_the_system(trained: tuple[Path, str]) -> None:
    _, shown = trained
    assert not [line for line in shown.splitlines() if line.startswith(str(SOURCE)) and "EncodingWarning" in line]
