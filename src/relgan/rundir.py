"""The run directory: what is where, and which earlier runs a configuration may continue. No torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relgan.config import Config, RelganError
from relgan.files import atomic_write

# A continued run may go on longer, report more or less often, elsewhere and on another device.
MAY_DIFFER = (
    "name",
    "device",
    "resume",
    "fail_fast",
    "train.iterations",
    "train.epochs",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "metrics.every",
    "tracker.",
)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (option, old, new) where two configurations differ in what a continued run must keep."""
    before, after = flatten(old), flatten(new)
    for option in sorted(before.keys() | after.keys()):
        free = any(option == name or (name.endswith(".") and option.startswith(name)) for name in MAY_DIFFER)
        if not free and before.get(option) != after.get(option):
            yield option, before.get(option), after.get(option)


class OccupiedError(RelganError):
    """Another process is training in this run directory."""


@dataclass(frozen=True)
class RunDir:
    """Paths inside one run directory and its small JSON files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.pt"

    def kept(self, step: int) -> Path:
        """One of the train.keep_checkpoints newest."""
        return self.checkpoints / f"step_{step:08d}.pt"

    def kept_best(self, step: int) -> Path:
        """One of the train.keep_best best."""
        return self.checkpoints / f"best_{step:08d}.pt"

    def prune(self, newest: int, best: Iterable[int]) -> None:
        """Delete the checkpoints of single steps but the ``newest`` newest and those of the ``best`` steps."""
        steps = sorted(self.checkpoints.glob("step_*.pt"))
        ranked = {self.kept_best(step) for step in best}
        superfluous = [path for path in self.checkpoints.glob("best_*.pt") if path not in ranked]
        if newest:
            superfluous += steps[:-newest]
        for path in superfluous:
            with contextlib.suppress(OSError):
                path.unlink()

    def write_config(self, config: Config) -> None:
        from omegaconf import OmegaConf

        with atomic_write(self.config) as file:
            file.write(OmegaConf.to_yaml(OmegaConf.structured(config)).encode())

    def read_summary(self) -> dict[str, Any]:
        """summary.json; empty where it is missing or unreadable."""
        try:
            summary = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return summary if isinstance(summary, dict) else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        with atomic_write(self.path / "summary.json") as file:
            file.write((json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())

    def has_checkpoint(self) -> bool:
        return self.last.exists() or previous(self.last).exists()

    def last_logged(self) -> dict[str, int]:
        """The last step in metrics.jsonl of each kind of record."""
        last: dict[str, int] = {}
        if self.metrics.exists():
            for line in self.metrics.read_bytes().splitlines(keepends=True):
                step, scores = _position(line)
                if step < float("inf"):
                    last["eval" if scores else "train"] = int(step)
        return last

    def truncate_metrics(self, step: int, *, with_scores: bool = True) -> None:
        """Drop the records after ``step``, unless ``with_scores`` the scores at it too: they are written again."""
        if not self.metrics.exists():
            return
        limit = (step, int(with_scores))
        kept = [line for line in self.metrics.read_bytes().splitlines(keepends=True) if _position(line) <= limit]
        with atomic_write(self.metrics) as file:
            file.writelines(kept)


def _position(line: bytes) -> tuple[float, int]:
    """Step of a metrics.jsonl line, and 1 for scores; infinite for a line cut short by a killed process."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else {}
        return float(record["step"]), int(record["kind"] == "eval")
    except (ValueError, KeyError, TypeError):
        return float("inf"), 0


def previous(checkpoint: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return checkpoint.with_suffix(".previous.pt")


def newest_unfinished(base: Path, config: Mapping[str, Any]) -> Path | None:
    """Newest run directory below ``base`` with a checkpoint, not finished, of this configuration."""
    import yaml
    from omegaconf import OmegaConf

    for path in sorted(base.glob("*/"), reverse=True):
        run = RunDir(path)
        if not run.has_checkpoint() or run.read_summary().get("status") in ("finished", "diverged"):
            continue
        try:
            old = OmegaConf.to_container(OmegaConf.load(run.config))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(old, dict) and not any(differences({str(k): v for k, v in old.items()}, config)):
            return path
    return None


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that ``resume`` means, or None when ``auto`` finds none in this job's own directory.

    Raises:
        RelganError: the path is neither a checkpoint nor a run directory that holds one.
    """
    if resume == "auto":
        return RunDir(run_dir).last if RunDir(run_dir).has_checkpoint() else None
    path = Path(resume).expanduser()
    if path.is_dir():
        if not RunDir(path).has_checkpoint():
            raise RelganError(f"resume: {resume} holds no checkpoints/last.pt")
        return RunDir(path).last
    if not path.is_file():
        raise RelganError(f"resume: {resume} is neither a run directory nor a checkpoint (or give null or auto)")
    return path
