"""relgan-train as an agent of W&B starts it: its words and environment, by W&B's own code, without its server."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from wandb import wandb_agent
from wandb.wandb_agent import Agent

import tiny
from relgan.cli import train
from wandb_file import records

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "trackers.md"


@pytest.fixture(autouse=True)
def _aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hydra_undone: None) -> Iterator[None]:
    """A working directory of its own, and the environment, which W&B reads once in a process, as it was in the end."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    before = os.environ.copy()
    wandb.teardown()
    yield
    wandb.teardown()
    os.environ.clear()
    os.environ.update(before)


def started(sweep: dict[str, Any], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of the command that an agent of the sweep starts for these values; its environment is set."""
    commands: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str], forward_signals: bool) -> None:
            commands.append(command)
            os.environ.update(env)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    os.environ |= {"WANDB_SWEEP_ID": "s1", "WANDB_PROJECT": "gans", "WANDB_MODE": "offline"}
    agent = Agent(None, multiprocessing.Queue(), sweep_id="s1")
    agent._sweep_command = sweep["command"]
    arguments = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"run_id": "r1", "program": sweep["program"], "args": arguments})
    return commands[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # W&B leaves its file open
@pytest.mark.parametrize("form", ["${args}", "${args_no_hyphens}"])
def test_the_sweep_of_the_document_is_runs_of_that_sweep(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"^```yaml[^\n]*\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    sweep = yaml.safe_load(text.replace("${args}", form))
    values = {name: given["values"][-1] for name, given in sweep["parameters"].items()}
    own = {"optimizer.lr_g": 1e-05, "optimizer.betas": [0.5, 0.9], "model.spectral_norm": False}
    program, *words = started(sweep, values | own, monkeypatch)
    assert program == "relgan-train"
    size = [word for word in tiny.ARGUMENTS if word != "tracker=none"]
    monkeypatch.setattr(sys, "argv", [program, *words, *size])
    train.main()
    (path,) = Path.cwd().rglob("*.wandb")
    (run,) = (record.run for record in records(path) if record.WhichOneof("record_type") == "run")
    assert (run.sweep_id, run.run_id, run.project) == ("s1", "r1", "gans")
    assert run.display_name == "ragan · digits · seed 3"
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    # What was swept stands there as W&B chose it, and what it means beside it.
    assert {name: config[name] for name in values} == values
    assert config["choices"].items() >= {"loss": "ragan", "dataset": "digits", "model": "dcgan"}.items()
    (made,) = Path("outputs").glob("*/*/config.yaml")
    trained = yaml.safe_load(made.read_text(encoding="utf-8"))
    assert (trained["loss"]["name"], trained["seed"]) == ("ragan", 3)
    assert (trained["optimizer"]["lr_g"], trained["optimizer"]["betas"]) == (1e-05, [0.5, 0.9])
    assert trained["model"]["spectral_norm"] is False
