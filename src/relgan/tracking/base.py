"""What the training loop tells the world, whoever listens."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from relgan.files import atomic_write

log = logging.getLogger("relgan")

Kind = Literal["train", "eval"]
Facts = Mapping[str, Any]


class Tracker(Protocol):
    """Receives numbers and pictures; steps never go back."""

    @property
    def run_id(self) -> str | None:
        """Identifies the run to the tracker's service; None where there is none."""

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        """Record values under their full keys (``train/loss_d``, ``eval/fid``), scores with how they were made."""

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        """Record one picture that is already in the run directory."""

    def close(self, exit_code: int) -> None:
        """Finish; called exactly once."""


class JsonLines:
    """metrics.jsonl: one JSON object a line, on disk as soon as it is logged.

    What cannot be written waits and comes first the next time; a file that was deleted comes back whole.
    """

    run_id: str | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+b", buffering=0)
        self._waiting = b""

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        record: dict[str, Any] = {"kind": kind, "step": step, "time_s": round(time_s, 3), **values}
        if protocol is not None:
            record["protocol"] = protocol
        behind = bool(self._waiting)
        self._waiting += (json.dumps(record) + "\n").encode()
        self._write(warn=not behind)

    def _write(self, *, warn: bool) -> None:
        try:
            if not self._path.exists():
                self._restore()
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if warn:
                log.warning("%s could not be written (%s); training goes on, the lines wait", self._path, error)

    def _restore(self) -> None:
        """Write the deleted file, which stays readable while it is open, anew."""
        self._file.seek(0)
        content = self._file.read()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._path) as file:
            file.write(content)
        self._file.close()
        self._file = self._path.open("a+b", buffering=0)

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        """Pictures are files beside metrics.jsonl; nothing to record."""

    def close(self, exit_code: int) -> None:
        if self._waiting:
            self._write(warn=True)
        self._file.close()


class Trackers:
    """Several trackers as one; ``run_id`` is that of the first which has one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers
        self.run_id = next((tracker.run_id for tracker in trackers if tracker.run_id), None)

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        for tracker in self._trackers:
            tracker.log(kind, step, time_s, values, protocol)

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        for tracker in self._trackers:
            tracker.log_image(key, step, path, caption)

    def close(self, exit_code: int) -> None:
        for tracker in self._trackers:
            tracker.close(exit_code)
