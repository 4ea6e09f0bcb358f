"""The check for the day a GPU is at hand: nothing it meets hides what comes after, and it can be rehearsed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

STEPS = """
import os, time

def good(setting, found):
    path = setting.out / "calls"
    path.write_text(path.read_text() + "good " if path.exists() else "good ")
    found.figure("speed", 12.5)

def parts(setting, found):
    with found.part("first"):
        raise ValueError("of the first part")
    found.figure("after the first", True)
    found.expect(1 > 2, "1 is not more than 2")

def dies(setting, found):
    found.figure("before", 1)
    os._exit(7)

def hangs(setting, found):
    found.figure("before", 2)
    time.sleep(100)

def passes_by(setting, found):
    found.skip("no images")
"""
NAMES = ("good", "parts", "dies", "hangs", "missing", "passes_by", "last")


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])


def test_no_failure_hides_the_next_and_what_has_passed_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu_check

    (tmp_path / "made_steps.py").write_text(STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_check, "SECONDS", 2.0)
    setting = gpu_check.Setting(tmp_path / "out", "cpu", small=True)
    steps = {name: f"made_steps:{'good' if name == 'last' else name}" for name in NAMES}
    record = gpu_check.check(setting, steps)
    assert [record[name]["status"] for name in NAMES] == [
        *("passed", "failed", "failed", "failed", "failed", "skipped", "passed")
    ]
    assert record["good"]["figures"] == {"speed": 12.5}
    assert record["parts"]["figures"] == {"after the first": True}
    assert record["parts"]["failures"] == ["first: ValueError: of the first part", "1 is not more than 2"]
    assert (record["dies"]["figures"], record["hangs"]["figures"]) == ({"before": 1}, {"before": 2})
    assert "ended with status 7" in record["dies"]["failures"][0]
    assert "took longer than 2 s" in record["hangs"]["failures"][0]
    assert "AttributeError" in record["missing"]["failures"][0]
    assert json.loads((setting.out / "gpu-check.json").read_text()) == record
    shown = (setting.out / "gpu-check.md").read_text()
    assert all(text in shown for text in ("| good | passed |", "| speed | 12.5 |", "- parts: 1 is not more than 2"))
    cut = gpu_check.check(gpu_check.Setting(tmp_path / "cut", "cpu"), {"hangs": steps["hangs"]}, seconds=1.0)
    assert cut["hangs"]["status"] == "not run", "another call does it"
    assert cut["hangs"]["failures"] == []
    again = gpu_check.check(setting, {"good": steps["good"], "passes_by": steps["passes_by"]}, seconds=0.0)
    assert again == record
    assert (setting.out / "calls").read_text() == "good good "


@pytest.mark.slow
def test_it_can_be_rehearsed_without_a_gpu(tmp_path: Path) -> None:
    """Every step really runs, as small as it can be, on images from the package of digits."""
    from benchmarks.gpu_check import STEPS, Setting, check

    record = check(Setting(tmp_path / "out", "cpu", small=True), seconds=1500)
    assert {name: (entry["status"], entry["failures"]) for name, entry in record.items()} == {
        name: ("passed", []) for name in STEPS
    }
    runs, evaluation = record["runs"]["figures"], record["evaluation"]["figures"]
    assert {value for name, value in runs.items() if name.endswith("engine")} == {"eager"}
    assert {value for name, value in evaluation.items() if name.endswith("relgan-eval")} == {0.0}
    assert record["tests"]["figures"]["tests"] == 2
    assert record["stop"]["figures"]["exit status after SIGTERM"] == 143


@pytest.mark.slow
def test_every_training_of_its_steps_can_be_composed_for_a_gpu(tmp_path: Path) -> None:
    from benchmarks.gpu_check import Setting
    from benchmarks.gpu_steps import RUNS, _words

    from relgan.cli.command import Line
    from relgan.cli.compose import compose

    for words in RUNS.values():
        config = compose(Line(_words(Setting(tmp_path), 200, *words)))
        assert (config.device, config.train.iterations, config.train.batch_size) == ("cuda", 200, 64)
