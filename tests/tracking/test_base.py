"""metrics.jsonl, several trackers as one, and what the console shows."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from relgan.options import ConfigError
from relgan.registry import TRACKERS, TrackerOptions, register_tracker
from relgan.tracking.base import Context, JsonLines, Tracker, Trackers, start
from relgan.tracking.console import ConsoleHandler

VALUES = {"train/loss_d": 0.5, "train/loss_g": 0.25, "train/images_per_second": 1234.5}


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


class Listener(Tracker):
    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id
        self.heard: list[object] = []

    def log(self, *arguments: object) -> None:
        self.heard.append(arguments)

    def log_image(self, *arguments: object) -> None:
        self.heard.append(arguments)

    def send(self, *arguments: object) -> None:
        self.heard.append(arguments)

    def close(self, exit_code: int) -> None:
        self.heard.append(exit_code)


def test_a_line_is_on_disk_as_soon_as_it_is_logged_and_old_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        lines = JsonLines(path)
        lines.log("train", step, 1.23456, VALUES)
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert found[-1] == {"kind": "train", "step": step, "time_s": 1.235, **VALUES}
        assert len(found) == step
        lines.close(0)


def test_a_full_disk_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    lines = JsonLines(full)
    with caplog.at_level(logging.WARNING, "relgan"):
        for step in range(3):
            lines.log("train", step, 1.0, VALUES)
        lines.close(0)
    assert len(caplog.messages) == 2  # when it begins, and at the end, when it is for good
    assert all("metrics.jsonl" in m or "/dev/full" in m for m in caplog.messages)


def test_what_a_full_disk_held_back_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)

    class Full:
        """Takes ten bytes more, and then nothing."""

        room = 10

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = good.write(data[: self.room])
            self.room -= written
            return written

    good = lines._file
    monkeypatch.setattr(lines, "_file", Full())
    for step in range(100):  # more than a buffer would hold
        lines.log("train", step, 1.0, VALUES)
    monkeypatch.setattr(lines, "_file", good)
    lines.log("train", 100, 2.0, VALUES)
    lines.log("train", 101, 2.0, VALUES)
    assert steps(path) == list(range(102))
    lines.close(0)
    assert steps(path) == list(range(102))


def test_a_deleted_file_comes_back_with_all_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    lines = JsonLines(path)
    lines.log("train", 1, 1.0, VALUES)
    shutil.rmtree(path.parent)
    lines.log("train", 2, 2.0, VALUES)
    lines.log("train", 3, 3.0, VALUES)
    lines.close(0)
    assert steps(path) == [1, 2, 3]


def tell(tracker: Tracker, place: Path) -> None:
    """Everything a run tells a tracker."""
    tracker.log("train", 1, 1.0, VALUES)
    tracker.log("eval", 1, 1.0, {"eval/fid": 1.0}, {"extractor": "inception"})
    tracker.log_image("samples/fixed_noise", 1, place, "caption")
    tracker.send("report", [place])
    tracker.close(130)


def test_every_tracker_hears_everything_and_keeps_its_id(tmp_path: Path) -> None:
    local, first, second = Listener(), Listener(), Listener("abc")
    together = Trackers([local], {"first": first, "second": second})
    assert together.run_ids == {"second": "abc"}
    tell(together, tmp_path)
    assert local.heard == first.heard == second.heard
    assert len(first.heard) == 5
    assert first.heard[-1] == 130
    assert Trackers().run_ids == {}


def test_a_tracker_need_not_care_for_anything(tmp_path: Path) -> None:
    tell(Tracker(), tmp_path)
    assert Tracker().run_id is None


@pytest.mark.parametrize("method", ["log", "log_image", "send", "close"])
def test_what_breaks_in_anothers_tracker_is_one_warning_and_ends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    class Broken(Listener):
        """Its service has gone away."""

    def broken(self: Broken, *arguments: object) -> None:
        self.heard.append(method)
        raise ConnectionError("gone\nfor good")

    setattr(Broken, method, broken)
    local, first, second = Listener(), Broken(), Listener()
    with caplog.at_level(logging.WARNING, "relgan"):
        tell(Trackers([local], {"gone": first, "there": second}), tmp_path)
    assert caplog.messages == ["gone failed (gone) and receives nothing more; metrics.jsonl has everything"]
    assert first.heard.count(method) == 1
    assert first.heard[-1] == (method if method == "close" else 1)  # closed as failed, once
    assert local.heard == second.heard
    assert len(local.heard) == 5


def test_what_breaks_in_the_local_records_is_an_error() -> None:
    class Broken(Tracker):
        def close(self, exit_code: int) -> None:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        Trackers([Broken()]).close(0)


# --- other people's trackers ---


@pytest.fixture
def mine() -> Callable[[object], TrackerOptions]:
    """Registers a tracker, or what claims to be one; returns its options."""

    def register(built: object) -> TrackerOptions:
        register_tracker("mine", builder=lambda options, context: built)
        options = TRACKERS["mine"].options
        assert isinstance(options, TrackerOptions)
        return options

    return register


def test_the_registry_builds_a_tracker_or_none(tmp_path: Path, mine: Callable[[object], TrackerOptions]) -> None:
    context = Context(run_dir=tmp_path, group="g", job_type="train")
    none = TRACKERS["none"].options
    assert isinstance(none, TrackerOptions)
    assert start(none, context) is None
    listener = Listener()
    options = mine(listener)
    assert start(options, context) is listener
    with pytest.raises(
        ConfigError,
        match=r"^tracker\.name: 'mime' is not one of wandb, tensorboard, mlflow, none, mine; did you mean mine\?$",
    ):
        start(TrackerOptions("mime"), context)


def test_what_is_no_tracker_is_refused(tmp_path: Path, mine: Callable[[object], TrackerOptions]) -> None:
    with pytest.raises(
        ConfigError, match=r"^tracker\.name: mine builds a list, not a relgan\.tracking\.base\.Tracker$"
    ):
        start(mine([]), Context(run_dir=tmp_path, group="g", job_type="train"))


def test_a_run_tells_it_what_it_writes_down(tmp_path: Path, mine: Callable[[object], TrackerOptions]) -> None:
    listener = Listener("abc")
    listener.url = "https://somewhere/abc"
    mine(listener)
    tiny.run(tmp_path, "tracker.name=mine", "train.log_every=1")
    logged: list[Any] = [heard for heard in listener.heard if isinstance(heard, tuple) and heard[0] == "train"]
    assert [(step, values) for _, step, _, values, _ in logged] == [
        (record["step"], {key: value for key, value in record.items() if key.startswith("train/")})
        for record in tiny.records(tmp_path)
    ]
    assert listener.heard[-1] == 0
    assert tiny.summary(tmp_path)["tracker_runs"] == {"mine": "abc"} == tiny.last(tmp_path)["tracker_runs"]
    assert tiny.summary(tmp_path)["tracker_urls"] == {"mine": "https://somewhere/abc"}


def test_the_console_writes_where_stdout_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    handler = ConsoleHandler()
    handler.emit(logging.LogRecord("relgan", logging.INFO, "", 0, "%d images", (3,), None))
    assert capsys.readouterr().out == "3 images\n"
