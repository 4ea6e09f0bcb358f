"""What lies where in a run directory, and its small files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import tiny
from relgan.config import as_values
from relgan.rundir import RunDir, previous


def test_the_summary_is_strict_json_and_never_half_written(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.read_summary() == {}
    run.write_summary({"status": "running"})
    with pytest.raises(ValueError, match="nan"):
        run.write_summary({"status": float("nan")})
    assert run.read_summary() == {"status": "running"}
    (tmp_path / "summary.json").write_text("[]", encoding="utf-8")
    assert run.read_summary() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_configuration_is_plain_yaml_and_a_broken_one_is_none_at_all(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.read_config() == {}
    run.write_config(as_values(tiny.config("dataset.path=café.zip", "optimizer.lr_g=1e-5")))
    text = run.config.read_text(encoding="utf-8")
    assert "café.zip" in text
    assert run.read_config() == yaml.safe_load(text)
    assert run.read_config()["optimizer"]["lr_g"] == 1e-5
    for broken in ("a: [", "[1, 2]", ""):
        run.config.write_text(broken, encoding="utf-8")
        assert run.read_config() == {}


def test_half_a_save_still_counts_as_a_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert not run.has_checkpoint()
    run.checkpoints.mkdir()
    previous(run.last).write_bytes(b"")
    assert run.has_checkpoint()
