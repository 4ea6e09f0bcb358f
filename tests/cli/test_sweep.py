"""Names of a sweep's jobs, and what a failed job leaves behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import tiny
from relgan.cli import train
from relgan.cli.sweep import job_name


def test_a_job_is_named_after_its_own_options_in_any_order() -> None:
    name = job_name(["seed=1", "loss=ragan", "train.iterations=5"])
    assert name == job_name(["train.iterations=5", "loss=ragan", "seed=1"])
    assert name.startswith("loss=ragan_seed=1_train.iterations=5-")


@pytest.mark.parametrize("other", ["name=elsewhere", "fail_fast=true", "tracker=none", "device=cpu"])
def test_where_and_how_a_sweep_runs_is_not_in_the_name(other: str) -> None:
    assert job_name(["loss=ragan", other]) == job_name(["loss=ragan"])


@pytest.mark.parametrize("value", ["a/b/../c", "[0.5,0.999]", "x" * 500, "é ü", ""])
def test_any_value_gives_a_safe_name_of_its_own(value: str) -> None:
    name = job_name([f"dataset.path={value}"])
    assert "/" not in name
    assert len(name.encode()) < 200
    assert name != job_name([f"dataset.path={value}1"])


def test_a_failing_job_stops_no_other_and_finished_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["relgan-train", "-m", "name=t", "seed=-3,1", *tiny.ARGUMENTS]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        train.main()
    assert caught.value.code == 1
    jobs = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "multirun/t").glob("*/summary.json")}
    assert sorted(summary["status"] for summary in jobs.values()) == ["failed", "finished"]
    failed = next(summary for summary in jobs.values() if summary["status"] == "failed")
    assert "seed: must be ≥ 0, got -3" in failed["error"]
    assert (tmp_path / "multirun/t/report.html").exists()
    capsys.readouterr()

    monkeypatch.setattr(sys, "argv", [argument.replace("seed=-3,1", "seed=1,2") for argument in arguments])
    with pytest.raises(SystemExit):
        train.main()
    assert "already finished" in capsys.readouterr().out
    assert len(list((tmp_path / "multirun/t").glob("*/summary.json"))) == 3
