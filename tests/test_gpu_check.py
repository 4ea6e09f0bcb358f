"""The check for the day a GPU is at hand: nothing it meets hides what comes after, and it can be rehearsed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from unittest.mock import MagicMock, patch

import pytest
import torch

STEPS = """
import atexit, os, time

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

def hangs_at_its_exit(setting, found):
    found.figure("before", 3)
    atexit.register(time.sleep, 100)

def passes_by(setting, found):
    found.skip("no images")
"""
NAMES = ("good", "parts", "dies", "hangs", "hangs_at_its_exit", "missing", "passes_by", "last")


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
        *("passed", "failed", "failed", "failed", "failed", "failed", "skipped", "passed")
    ]
    assert record["good"]["figures"] == {"speed": 12.5}
    assert record["parts"]["figures"] == {"after the first": True}
    assert record["parts"]["failures"] == ["first: ValueError: of the first part", "1 is not more than 2"]
    assert (record["dies"]["figures"], record["hangs"]["figures"]) == ({"before": 1}, {"before": 2})
    assert "ended with status 7" in record["dies"]["failures"][0]
    assert record["hangs"]["failures"] == ["the step took longer than 2 s; see made_steps.hangs.log"]
    assert "took longer than 2 s" in record["hangs_at_its_exit"]["failures"][0]
    assert "AttributeError" in record["missing"]["failures"][0]
    assert json.loads((setting.out / "gpu-check.json").read_text()) == record
    shown = (setting.out / "gpu-check.md").read_text()
    assert all(text in shown for text in ("| good | passed |", "| speed | 12.5 |", "- parts: 1 is not more than 2"))
    cut = gpu_check.check(gpu_check.Setting(tmp_path / "cut", "cpu"), {"hangs": steps["hangs"]}, seconds=1.0)
    assert cut["hangs"]["status"] == "not run", "another call does it"
    assert cut["hangs"]["failures"] == []
    cut_again = gpu_check.check(setting, {"hangs": steps["hangs"]}, seconds=1.0)
    assert cut_again["hangs"] == record["hangs"]
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
    """What the steps would train is written down in its place."""
    from benchmarks import gpu_steps
    from benchmarks.gpu_check import Setting

    from relgan.cli.command import Line
    from relgan.cli.compose import compose

    trained = gpu_steps.Trained(MagicMock(), 64.0, {"train/loss_d": {5: 1.0}})
    counts = {"runs": 11, "waiting": 2, "evaluation": 1, "memory": 4, "stop": 1, "ranks": 1, "cifar10": 2, "sharing": 1}
    for step, count in counts.items():
        with (
            patch.object(gpu_steps, "_words", side_effect=gpu_steps._words) as asked,
            patch.object(gpu_steps, "_train", return_value=trained),
            patch.object(gpu_steps, "_forget"),
            patch.object(gpu_steps, "subprocess"),
            patch.object(torch.multiprocessing, "get_context"),
            contextlib.suppress(FileNotFoundError),  # of runs that have not been
        ):
            getattr(gpu_steps, step)(Setting(tmp_path, images="cifar10.zip"), MagicMock())
        assert asked.call_count == count, step
        for call in asked.call_args_list:
            config = compose(Line(gpu_steps._words(*call.args)))
            assert (config.device, config.train.iterations) == ("cuda", call.args[1])
            assert config.train.batch_size == (32 if step == "memory" else 64)
