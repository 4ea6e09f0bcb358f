"""Reading run directories: what was run, how it ended and what was measured. Nothing else is looked at."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from relgan.config import with_defaults
from relgan.options import RelganError
from relgan.rundir import RunDir

STATUSES = ("finished", "diverged", "failed", "interrupted", "running")
_GROUPS = ("model", "loss", "penalty", "augment", "dataset", "optimizer", "metrics", "tracker")


@dataclass(frozen=True)
class Row:
    """One line of metrics.jsonl."""

    step: int
    time_s: float
    values: dict[str, float]


@dataclass(frozen=True)
class Paired:
    """One score of a run's network and another's on the same latents and real images (``relgan-eval RUN against=RUN``).

    Attributes:
        step, against_step: of the checkpoints.
        against: the other run, as it was called.
        difference: run − against, and the ends of its interval of 95 %.
    """

    key: str
    step: int
    against: str
    against_step: int
    difference: tuple[float, float, float]
    better: Literal["run", "against"] | None


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One run directory as it is on disk."""

    path: Path
    options: dict[str, Any]
    summary: dict[str, Any]
    train: list[Row] = field(repr=False)
    evals: list[Row] = field(repr=False)

    @property
    def status(self) -> str:
        status = self.summary.get("status")
        return status if status in STATUSES else "failed"

    @property
    def seed(self) -> int:
        seed = self.options.get("seed", self.summary.get("seed"))
        return seed if isinstance(seed, int) else 0

    @property
    def step(self) -> int:
        step = self.summary.get("step")
        return step if isinstance(step, int) else max((row.step for row in self.train + self.evals), default=0)

    @property
    def command(self) -> list[str]:
        command = self.summary.get("command")
        return [str(word) for word in command] if isinstance(command, list) else []

    @property
    def protocol(self) -> dict[str, Any]:
        protocol = self.summary.get("protocol")
        return protocol if isinstance(protocol, dict) else {}

    @property
    def tracker_urls(self) -> dict[str, str]:
        """Web pages of the run, by the tracker's name."""
        urls = self.summary.get("tracker_urls")
        found = urls.items() if isinstance(urls, dict) else ()
        return {str(name): url for name, url in found if str(url).startswith(("https://", "http://"))}

    @property
    def error(self) -> str:
        """Last line of the error; empty where there is none."""
        lines = str(self.summary.get("error") or "").strip().splitlines()
        return lines[-1] if lines else ""

    @cached_property
    def score_keys(self) -> list[str]:
        """Scores in the order they were computed."""
        return list(dict.fromkeys(key for row in self.evals for key in row.values if key.startswith("eval/")))

    @cached_property
    def paired(self) -> list[Paired]:
        """Comparisons with other runs whose JSON lies in this run's directory."""
        return [each for path in sorted(self.path.glob("*.json")) for each in _read_paired(path)]

    @cached_property
    def samples(self) -> dict[int, Path]:
        """Grids of the fixed noise by step."""
        found = {}
        for path in sorted(RunDir(self.path).samples.glob("step_*.png")):
            if (digits := path.stem.removeprefix("step_")).isdecimal():
                found[int(digits)] = path
        return found


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Every run directory at or below ``paths``, each once.

    Raises:
        RelganError: a path does not exist, or holds no run.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise RelganError(f"{path} is not a directory")
        below = dict.fromkeys(_walk(path.resolve()))
        if not below:
            raise RelganError(
                f"{path} holds no run directory (one with summary.json, or metrics.jsonl and config.yaml)"
            )
        found |= below
    return list(found)


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        if "summary.json" in files or {"metrics.jsonl", "config.yaml"} <= set(files):
            folders.clear()
            yield Path(folder)
        folders.sort()


def read_run(path: Path) -> RunRecord:
    """Read one run; what is missing or damaged is left out, because a run may be going on or have failed early."""
    run = RunDir(path)
    summary = run.read_summary()
    train, evals = _read_metrics(run.metrics)
    saved = run.read_config()
    record = RunRecord(path, with_defaults(saved) if saved else {}, summary, train, evals)
    if not record.options:
        record.options.update(_guess_options(record.command))
    return record


def _read_paired(path: Path) -> list[Paired]:
    """Empty where the file is no comparison of two runs, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        protocol, comparison = content["protocol"], content["comparison"]
        against = protocol["against"]
        return [
            Paired(
                key,
                int(protocol["step"]),
                str(against["run"]),
                int(against["step"]),
                _three(each["difference"]),
                each["better"] if each["better"] in ("run", "against") else None,
            )
            for key, each in comparison.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _three(numbers: Sequence[Any]) -> tuple[float, float, float]:
    value, low, high = map(float, numbers)
    return value, low, high


def overrides(command: Sequence[str]) -> list[tuple[str, str]]:
    """Options of a command with their values; a choice in a group (loss=ragan) is its name (loss.name)."""
    pairs = (word.lstrip("+").partition("=") for word in command if "=" in word)
    return [(f"{key}.name" if key in _GROUPS else key, value) for key, _, value in pairs]


def _guess_options(command: Sequence[str]) -> dict[str, Any]:
    """A job that failed before its config.yaml was written is known by its overrides alone."""
    options: dict[str, Any] = dict(overrides(command))
    if str(options.get("seed", "")).isdecimal():
        options["seed"] = int(options["seed"])
    return options


def _read_metrics(path: Path) -> tuple[list[Row], list[Row]]:
    rows: dict[str, list[Row]] = {"train": [], "eval": []}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    for line in lines:
        try:
            record = json.loads(line)
            row = Row(int(record.pop("step")), float(record.pop("time_s", 0)), _finite(record))
            rows[record["kind"]].append(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # cut short by a killed process
    return rows["train"], rows["eval"]


def _finite(record: dict[str, Any]) -> dict[str, float]:
    numbers = {key: float(value) for key, value in record.items() if isinstance(value, (int, float))}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}
