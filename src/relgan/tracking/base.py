"""What the training loop tells the world, whoever listens."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Literal

from relgan.files import atomic_write
from relgan.options import RelganError, first_line
from relgan.progress import streams_untouched
from relgan.registry import TRACKERS, TrackerOptions

log = logging.getLogger("relgan")

Kind = Literal["train", "eval"]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What a tracker may want to know of a run before its first number.

    Attributes:
        run_dir: where the tracker's own files may go.
        group: runs that belong together.
        job_type: what kind of run among them this is.
        tags: loss, form and dataset.
        options: the resolved configuration.
        run_id: of the tracker's run that is continued.
        logged: the last step of each kind that the run to continue has recorded; see :class:`Copy`.
        alone: whether it is no job of a sweep: what the environment says of one run may be said of this one.
    """

    run_dir: Path
    group: str
    job_type: str
    tags: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    logged: Mapping[str, int] = field(default_factory=dict)
    alone: bool = True

    @property
    def title(self) -> str:
        """What people call the run: loss, penalty if there is one, data set and seed."""
        if "loss" not in self.options:  # a sweep's own
            return self.run_dir.name
        names = [self.options[group]["name"] for group in ("loss", "penalty", "dataset")]
        return " · ".join([*(name for name in names if name != "none"), f"seed {self.options['seed']}"])


class Tracker:
    """Receives numbers and pictures; steps never go back.

    Attributes:
        run_id: identifies the run to the tracker's service; None where there is none.
        url: where people look at the run; None where that is nowhere on the web.
    """

    run_id: str | None = None
    url: str | None = None

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        """Record values under their full keys (``train/loss_d``, ``eval/fid``), scores with how they were made."""

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        """Record one picture that is already in the run directory."""

    def send(self, kind: str, files: Sequence[Path]) -> None:
        """Record files: a checkpoint, a comparison page."""

    def close(self, exit_code: int) -> None:
        """Finish; called exactly once, with 1 when another call has raised."""


class Copy(Tracker):
    """A tracker of a service that may have the first steps of a run already; they are not sent again.

    Args:
        logged: the last step of each kind that it has.
    """

    def __init__(self, logged: Mapping[str, int]) -> None:
        self._logged = logged

    def is_new(self, step: int, kind: Kind | None = None) -> bool:
        """Whether a record of this kind, or a picture, is still to be sent."""
        if kind is None:
            return step >= max(self._logged.values(), default=0)
        return step > self._logged.get(kind, -1)


def nowhere(options: TrackerOptions, context: Context) -> None:
    """No tracker at all."""


def start(options: TrackerOptions, context: Context) -> Tracker | None:
    """The tracker that ``options.name`` names; None where it has nothing to record or cannot start.

    Raises:
        ConfigError: an unknown name, or one that builds something else.
    """
    try:
        with streams_untouched():
            tracker: Tracker | None = TRACKERS.build(options.name, options, context, of=(Tracker, NoneType))
    except Exception as error:
        broken = error.__cause__ if isinstance(error, RelganError) else error
        if broken is None:  # bad input, which is for the user to mend
            raise
        # Whatever breaks in a service, the experiment goes on.
        log.warning("tracker=%s: %s; the run is recorded only in its directory", options.name, first_line(broken))
        return None
    return tracker


def open_trackers(options: TrackerOptions, context: Context, run_ids: Mapping[str, str], metrics: Path) -> Trackers:
    """metrics.jsonl and, beside it, the trackers that ``options`` choose.

    Args:
        context: without ``run_id``.
        run_ids: of the trackers' runs that are continued, by the tracker's name.
    """
    chosen = {each.name: each for each in (options, *(TRACKERS[name].options for name in options.also))}
    started = {name: start(each, replace(context, run_id=run_ids.get(name))) for name, each in chosen.items()}
    others = {name: each for name, each in started.items() if each is not None}
    return Trackers([JsonLines(metrics)], others, run_ids)


class JsonLines(Tracker):
    """metrics.jsonl: one JSON object a line, on disk as soon as it is logged.

    What cannot be written waits and comes first the next time; a file that was deleted comes back whole.
    """

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

    def close(self, exit_code: int) -> None:
        if self._waiting:
            self._write(warn=True)
        self._file.close()


class Trackers(Tracker):
    """The local records and whoever else listens, by name; what breaks in one of those ends that one, not the training.

    Attributes:
        run_ids, urls: of those that have one.

    Args:
        run_ids: of trackers that have taken part earlier, to be kept for when they come back.
    """

    def __init__(
        self,
        local: Sequence[Tracker] = (),
        others: Mapping[str, Tracker] = MappingProxyType({}),
        run_ids: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._local, self._others = local, dict(others)
        own = {name: tracker.run_id for name, tracker in others.items() if tracker.run_id}
        self.run_ids = {**run_ids, **own}
        self.urls = {name: tracker.url for name, tracker in others.items() if tracker.url}

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        self._each(lambda tracker: tracker.log(kind, step, time_s, values, protocol))

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        self._each(lambda tracker: tracker.log_image(key, step, path, caption))

    def send(self, kind: str, files: Sequence[Path]) -> None:
        self._each(lambda tracker: tracker.send(kind, files))

    def close(self, exit_code: int) -> None:
        self._each(lambda tracker: tracker.close(exit_code), last=True)

    def _each(self, action: Callable[[Tracker], None], *, last: bool = False) -> None:
        for tracker in self._local:
            action(tracker)
        for name, tracker in list(self._others.items()):
            try:
                action(tracker)
            except Exception as error:  # whatever breaks in another's service, the experiment goes on
                del self._others[name]
                if not last:
                    with contextlib.suppress(Exception):
                        tracker.close(1)
                cause = first_line(error)
                log.warning("%s failed (%s) and receives nothing more; metrics.jsonl has everything", name, cause)
