"""What lies where in a run directory, and which earlier run a configuration continues."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from relgan.config import Config, RelganError
from relgan.rundir import RunDir, differences, find_checkpoint, newest_unfinished, previous


def options(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(asdict(Config())))
    for name, value in changes.items():
        *groups, option = name.split("__")
        target = config
        for group in groups:
            target = target[group]
        target[option] = value
    return config


@pytest.mark.parametrize(
    "change",
    [
        {"train__iterations": 9},
        {"train__epochs": 9.0},
        {"train__log_every": 9},
        {"train__sample_every": 9},
        {"train__checkpoint_every": 9},
        {"metrics__every": 9},
        {"tracker__name": "none"},
        {"tracker__tags": ["a"]},
        {"device": "cuda"},
        {"resume": "auto"},
        {"name": "other"},
    ],
)
def test_what_a_continued_run_may_change(change: dict[str, Any]) -> None:
    assert list(differences(options(), options(**change))) == []


def test_anything_else_is_named() -> None:
    changed = options(seed=2, model__width=3, optimizer__betas=[0.0, 0.9], train__batch_size=8)
    assert [(option, new) for option, _, new in differences(options(), changed)] == [
        ("model.width", 3),
        ("optimizer.betas", [0.0, 0.9]),
        ("seed", 2),
        ("train.batch_size", 8),
    ]
    older = options()
    del older["model"]["pack"]
    assert [option for option, _, _ in differences(older, options())] == ["model.pack"]


def make(base: Path, name: str, status: str, config: dict[str, Any], *, checkpoint: bool = True) -> Path:
    run = RunDir(base / name)
    run.checkpoints.mkdir(parents=True)
    run.config.write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
    run.write_summary({"status": status})
    if checkpoint:
        run.last.write_bytes(b"")
    return run.path


def test_the_newest_unfinished_run_of_the_same_configuration(tmp_path: Path) -> None:
    assert newest_unfinished(tmp_path / "nothing", options()) is None
    make(tmp_path, "2026-01-01", "interrupted", options())
    newest = make(tmp_path, "2026-01-02", "failed", options(train__iterations=7))
    make(tmp_path, "2026-01-03", "finished", options())
    make(tmp_path, "2026-01-04", "diverged", options())
    make(tmp_path, "2026-01-05", "interrupted", options(seed=2))
    make(tmp_path, "2026-01-06", "interrupted", options(), checkpoint=False)
    (tmp_path / "2026-01-07").mkdir()
    broken = make(tmp_path, "2026-01-08", "interrupted", options())
    (broken / "config.yaml").write_text("a: [", encoding="utf-8")
    assert newest_unfinished(tmp_path, options()) == newest


def test_a_run_that_was_killed_while_running_is_unfinished(tmp_path: Path) -> None:
    path = make(tmp_path, "2026-01-01", "running", options())
    assert newest_unfinished(tmp_path, options()) == path


def test_what_resume_means(tmp_path: Path) -> None:
    run = RunDir(make(tmp_path, "run", "interrupted", options()))
    empty = RunDir(make(tmp_path, "empty", "interrupted", options(), checkpoint=False))
    assert find_checkpoint("auto", run.path) == run.last
    assert find_checkpoint("auto", empty.path) is None
    assert find_checkpoint(str(run.path), empty.path) == run.last
    assert find_checkpoint(str(run.last), empty.path) == run.last
    run.last.rename(previous(run.last))
    assert find_checkpoint("auto", run.path) == run.last  # whose reader falls back to the one before
    for missing in (str(tmp_path / "nothing"), str(empty.path)):
        with pytest.raises(RelganError, match=r"^resume: ") as caught:
            find_checkpoint(missing, run.path)
        assert missing in str(caught.value)
        assert "\n" not in str(caught.value)


def line(step: int, kind: str = "train") -> str:
    return json.dumps({"kind": kind, "step": step}) + "\n"


def test_records_after_a_checkpoint_are_dropped(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.truncate_metrics(3)  # nothing there, nothing to do
    assert not run.metrics.exists()
    text = line(0, "eval") + line(2) + line(4) + line(4, "eval") + line(6)
    run.metrics.write_text(text + '{"kind": "train", "st', encoding="utf-8")
    run.truncate_metrics(4)
    assert run.metrics.read_text(encoding="utf-8") == line(0, "eval") + line(2) + line(4) + line(4, "eval")
    run.truncate_metrics(4, with_scores=False)
    assert run.metrics.read_text(encoding="utf-8") == line(0, "eval") + line(2) + line(4)
    run.truncate_metrics(-1)
    assert run.metrics.read_text(encoding="utf-8") == ""


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
