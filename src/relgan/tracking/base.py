"""What the training loop tells the world, whoever listens."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

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
    """metrics.jsonl: one JSON object a line, on disk as soon as it is logged."""

    run_id: str | None = None

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        record: dict[str, Any] = {"kind": kind, "step": step, "time_s": round(time_s, 3), **values}
        if protocol is not None:
            record["protocol"] = protocol
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:  # what did not fit stays in the buffer, and is written when there is room
            log.warning("%s could not be written (%s); training goes on", self._file.name, error)

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        """Pictures are files beside metrics.jsonl; nothing to record."""

    def close(self, exit_code: int) -> None:
        try:
            self._file.close()
        except OSError as error:
            log.warning("%s could not be written (%s)", self._file.name, error)


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
