"""metrics.jsonl, several trackers as one, and what the console shows."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path

import pytest

from relgan.tracking.base import JsonLines, Trackers
from relgan.tracking.console import ConsoleHandler, ProgressBar

VALUES = {"train/loss_d": 0.5, "train/loss_g": 0.25, "train/images_per_second": 1234.5}


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


class Listener:
    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id
        self.heard: list[object] = []

    def log(self, *arguments: object) -> None:
        self.heard.append(arguments)

    def log_image(self, *arguments: object) -> None:
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


def test_every_tracker_hears_everything_and_the_first_id_is_the_runs(tmp_path: Path) -> None:
    first, second = Listener(), Listener("abc")
    together = Trackers([first, second])
    assert together.run_id == "abc"
    together.log("train", 1, 1.0, VALUES)
    together.log_image("samples/fixed_noise", 1, tmp_path, "caption")
    together.close(130)
    assert first.heard == second.heard
    assert len(first.heard) == 3
    assert first.heard[-1] == 130
    assert Trackers([]).run_id is None


def test_the_console_writes_where_stdout_is_now(capsys: pytest.CaptureFixture[str]) -> None:
    handler = ConsoleHandler()
    handler.emit(logging.LogRecord("relgan", logging.INFO, "", 0, "%d images", (3,), None))
    assert capsys.readouterr().out == "3 images\n"


def test_nobody_watching_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(10, 0) as bar:
        bar.advance()
        bar.show(VALUES)
    assert not bar.live
    assert capsys.readouterr().out.strip() == ""
