"""Disks that fill up, directories that cannot be written or are gone: training goes on, and what can be saved is."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import tiny
from relgan.training import loop
from relgan.training.loop import Outcome
from relgan.training.update import GeneratorResult, Update

OPTIONS = ("train.iterations=7", "train.checkpoint_every=2", "train.log_every=1")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.time, "sleep", lambda _: None)


def during(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], object]]) -> None:
    """Call each action in the middle of the generator update of its number, from 1."""
    original, done = Update.update_generator, [0]

    def updating(self: Update, real: Tensor, z: Tensor, **given: Any) -> GeneratorResult:
        done[0] += 1
        actions.get(done[0], lambda: None)()
        return original(self, real, z, **given)

    monkeypatch.setattr(Update, "update_generator", updating)


def steps(directory: Path) -> list[int]:
    return [line["step"] for line in tiny.records(directory)]


def one_line_each(caplog: pytest.LogCaptureFixture, needed: str) -> None:
    assert any(needed in message for message in caplog.messages)
    assert all("\n" not in message for message in caplog.messages)


def test_the_system_refuses_large_files_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A real write that comes up short, half-way through the checkpoint of update 4."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> Callable[[], object]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    during(monkeypatch, {3: limit(30_000), 5: limit(before[0])})
    try:
        with caplog.at_level(logging.WARNING, "relgan"):
            assert tiny.run(tmp_path, *OPTIONS) == Outcome("finished", 0)
    finally:
        limit(before[0])()
    failures = [message for message in caplog.messages if "last.pt could not be written" in message]
    assert len(failures) == 1
    one_line_each(caplog, "training goes on and tries again")
    assert tiny.last(tmp_path)["step"] == 7
    assert tiny.last(tmp_path, "last.previous")["step"] == 6
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    assert not list(tmp_path.rglob("*.tmp"))


def read_only(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Root may write anywhere, so for root the system's answer is played."""
    if os.geteuid() != 0:
        directory.chmod(0o555)
        return
    opened = Path.open

    def refuse(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
        if "w" in mode and directory in self.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return opened(self, mode, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", refuse)


def test_a_directory_that_became_read_only_ends_with_1_and_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = tmp_path / "checkpoints"
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "relgan"):
        during(patched, {3: lambda: read_only(patched, checkpoints)})
        outcome = tiny.run(tmp_path, *OPTIONS)
    checkpoints.chmod(0o755)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert str(checkpoints / "last.pt") in str(outcome.error)
    one_line_each(caplog, "could not be written in 5 attempts")
    assert tiny.summary(tmp_path)["status"] == "failed"
    assert tiny.run(tmp_path, *OPTIONS, "resume=auto") == Outcome("finished", 0)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


def test_a_deleted_run_directory_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    during(monkeypatch, {5: lambda: shutil.rmtree(directory)})
    assert tiny.run(directory, *OPTIONS) == Outcome("finished", 0)
    assert steps(directory) == [1, 2, 3, 4, 5, 6, 7]
    assert tiny.last(directory)["step"] == 7
    assert tiny.summary(directory)["status"] == "finished"
    assert (directory / "config.yaml").is_file()
    assert tiny.run(directory, *OPTIONS, "train.iterations=9", "resume=auto") == Outcome("finished", 0)
    assert steps(directory) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_directory_that_cannot_come_back_says_that_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"

    def replace() -> None:
        shutil.rmtree(directory)
        directory.write_text("something else", encoding="utf-8")

    during(monkeypatch, {5: replace})
    with caplog.at_level(logging.WARNING, "relgan"):
        outcome = tiny.run(directory, *OPTIONS)
    assert outcome.exit_code == 1
    one_line_each(caplog, "last good checkpoint: none")
