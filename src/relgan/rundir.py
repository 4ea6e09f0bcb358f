"""The run directory: what is where, and its small files. No torch."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relgan.files import atomic_write
from relgan.options import RelganError

LOG = "train.log"


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
    def logged(self) -> Path:
        """The last step of each kind that a start before this one has recorded."""
        return self.path / ".logged.json"

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

    def best_or_last(self) -> list[Path]:
        """The one checkpoint to hand on: best.pt, else last.pt; none where neither is there."""
        return [path for path in (self.best, self.last) if path.exists()][:1]

    def set_best_aside(self) -> None:
        """Give the best checkpoints names that nothing writes to or deletes."""
        for path in self.checkpoints.glob("best*.pt"):
            path.replace(path.with_name(f"earlier_{path.name}"))

    def write_config(self, values: Mapping[str, Any]) -> None:
        import yaml

        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
        with atomic_write(self.config) as file:
            file.write(text.encode())

    def read_config(self) -> dict[str, Any]:
        """config.yaml as nested values; empty where it is missing or unreadable."""
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            content = yaml.load(self.config.read_text(encoding="utf-8"), Loader=loader)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return content if isinstance(content, dict) else {}

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

    def discard_unused(self) -> None:
        """Remove the directory where nothing but log lines was written."""
        with contextlib.suppress(OSError):
            if {path.name for path in self.path.iterdir()} <= {LOG}:
                shutil.rmtree(self.path)

    def has_checkpoint(self) -> bool:
        return self.last.exists() or previous(self.last).exists()


def previous(checkpoint: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return checkpoint.with_suffix(".previous.pt")
