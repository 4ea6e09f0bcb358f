"""Terminals that go away, readers that leave, disks that fill up, letters an encoding lacks: training goes on."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from relgan.cli import data, evaluate, train, workers
from relgan.cli.command import again
from relgan.streams import lossy
from relgan.tracking.console import FileHandler
from relgan.training.update import Update

RUN = (*tiny.ARGUMENTS, "hydra.run.dir=run")


@pytest.fixture(autouse=True)
def _aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hydra_undone: None) -> None:
    """A working directory of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    torch.set_num_threads(1)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command in this process, by its ``main``; returns its exit status.

    Args:
        output: descriptor that standard output and standard error write to; None: what the test has there.
        encoding: of ``output``.
    """

    def call(main: Callable[[], None], *words: str, output: int | None = None, encoding: str = "utf-8") -> int:
        program = f"relgan-{main.__module__.rpartition('.')[2]}"
        monkeypatch.setattr(sys, "argv", [program, *words])
        with monkeypatch.context() as patched:
            for name in ("stdout", "stderr") if output is not None else ():
                file = io.FileIO(output, "w", closefd=False)
                patched.setattr(sys, name, io.TextIOWrapper(file, encoding=encoding, write_through=True))
            try:
                main()
            except SystemExit as leaving:
                return int(leaving.code or 0)
        return 0

    return call


Command = Callable[..., int]


def left_pipe() -> Iterator[int]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def full_disk() -> Iterator[int]:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


def lost_terminal() -> Iterator[int]:
    """A terminal that was closed."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    mine, descriptor = pty.openpty()
    os.close(mine)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(params=[left_pipe, full_disk, lost_terminal])
def broken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A descriptor that refuses to be written to."""
    opened = request.param()
    descriptor = next(opened)
    with pytest.raises(OSError, match=r"\[Errno"):
        os.write(descriptor, b"?")
    yield descriptor
    next(opened, None)


def log_lines() -> list[str]:
    """The messages in train.log."""
    return [line.partition("] ")[2] for line in Path("run/train.log").read_text(encoding="utf-8").splitlines()]


def test_a_run_that_nobody_can_watch_ends_as_it_would(command: Command, broken: int) -> None:
    assert command(train.main, *RUN, "train.log_every=1", output=broken) == 0
    assert tiny.summary(Path("run"))["status"] == "finished"
    assert tiny.last(Path("run"))["step"] == 4
    assert log_lines()[-1].startswith("finished after 4 updates")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_is_lost_while_its_progress_bar_is_drawn(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    mine, descriptor = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    shown = b""

    def leave() -> None:
        nonlocal shown
        while b"training" not in shown:  # drawn by a thread, ten times a second
            shown += os.read(mine, 65536)
        os.close(mine)
        signal.raise_signal(signal.SIGHUP)

    during_update(3, leave, monkeypatch)
    words = (*RUN, "train.iterations=1000")
    assert command(train.main, *words, output=descriptor, encoding="ascii") == 128 + signal.SIGHUP
    os.close(descriptor)
    assert b"---" in shown  # the bar, where the encoding has no line
    assert tiny.summary(Path("run"))["status"] == "interrupted"
    assert tiny.last(Path("run"))["step"] == 3
    assert log_lines()[-1].startswith("continue with: relgan-train ")


def during_update(number: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Act in the generator update of this number."""
    original, calls = Update.update_generator, [0]

    def updating(self: Update, *arguments: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            action()
        return original(self, *arguments, **given)

    monkeypatch.setattr(Update, "update_generator", updating)


def test_what_nobody_reads_is_no_error_and_changes_no_status(command: Command, broken: int) -> None:
    for words in (["--help"], ["-m", "--version"], ["--info", "defaults"], ["--cfg", "job", "--resolve"]):
        assert command(train.main, *words, output=broken) == 0
    assert command(data.main, "list", output=broken) == 0
    assert command(train.main, "loss=nope", output=broken) == 2


@pytest.fixture
def _scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """relgan-eval that need not score."""
    protocol = {"num_images": 2, "reference_images": 3, "reference": {"name": "größer"}}
    monkeypatch.setattr(evaluate, "_score_pictures", lambda *_: evaluate.Result({"eval/fid": 1.5}, protocol))


@pytest.mark.usefixtures("_scored")
def test_scores_that_nobody_reads_are_written_all_the_same(command: Command, broken: int) -> None:
    assert command(evaluate.main, "images=a", "reference=b", "out=scores.json", output=broken) == 0
    assert json.loads(Path("scores.json").read_text(encoding="utf-8"))["scores"] == {"eval/fid": 1.5}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.usefixtures("_scored")
def test_a_file_that_has_no_room_is_one_line(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(evaluate.main, "images=a", "reference=b", "out=/dev/full") == 2
    assert capsys.readouterr().err == "relgan-evaluate: out: /dev/full cannot be written: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_the_encoding_lacks_are_escaped(
    command: Command, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    assert command(train.main, "--help") == 0
    assert command(data.main, "list") == 0
    assert command(train.main, *RUN, "hydra.run.dir=λ") == 0
    text = written.getvalue().decode(encoding)
    assert "\\u2265 0" in text  # ≥ 0, of a number's range
    assert "+-----" in text  # a table without the lines that it has elsewhere
    assert "\\u03bb" in text
    assert "λ" in Path("λ/train.log").read_text(encoding="utf-8")


def test_without_standard_streams_commands_run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program without a console on Windows has them."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert command(train.main, *RUN) == 0
    assert log_lines()[-1].startswith("finished after 4 updates")
    assert command(train.main, "loss=nope") == 2
    assert (sys.stdin, sys.stdout, sys.stderr) == (None, None, None)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes descriptors")
def test_no_file_gets_the_descriptor_of_a_closed_stream() -> None:
    """What libraries print would end up in it."""
    code = "from relgan.streams import lossy\nwith lossy(), open('opened', 'w') as file: file.write(str(file.fileno()))"
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=True)
    assert int(Path("opened").read_text()) > 2


def test_what_was_printed_before_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(written), encoding="utf-8"))
    print("before")
    with lossy():
        print("within", end="")
    print(" and after", flush=True)
    assert written.getvalue().split() == [b"before", b"within", b"and", b"after"]


def test_what_is_said_after_the_stream_was_closed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    target = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", target)
    with lossy():
        kept = sys.stdout  # as a library's log handler keeps it
        target.close()
    assert kept.write("late") == 4
    kept.close()


@pytest.mark.parametrize("place", ["gone/train.log", "/dev/full"])
def test_a_log_that_cannot_be_written_loses_lines(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    handler = FileHandler(place, encoding="utf-8", delay=True)
    handler.emit(logging.makeLogRecord({"msg": "lost"}))
    handler.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_prints_the_line_that_continues_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    words = [*tiny.ARGUMENTS, "hydra.run.dir=it's run=1, (again)"]
    with monkeypatch.context() as patched:
        during_update(2, lambda: signal.raise_signal(number), patched)
        assert command(train.main, *words) == 128 + number
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("continue with: ")
    assert str(Path.cwd()) not in line
    program, *words = shlex.split(line)
    assert program == "relgan-train"
    assert command(train.main, *words) == 0
    (directory,) = (path.parent for path in Path.cwd().rglob("summary.json"))
    assert directory.name == "it's run=1, (again)"
    assert tiny.summary(directory)["status"] == "finished"


def test_a_run_that_came_from_another_is_continued_with_its_own_configuration(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(train.main, *RUN, "optimizer.lr_g=0.007") == 0
    with monkeypatch.context() as patched:
        during_update(2, lambda: signal.raise_signal(signal.SIGINT), patched)
        assert command(train.main, "resume=run", "train.iterations=8", "name=next") == 130
    _, *words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("continue with: "))
    assert command(train.main, *words) == 0
    (directory,) = Path("outputs/next").iterdir()
    assert (tiny.summary(directory)["status"], tiny.last(directory)["step"]) == ("finished", 8)
    assert tiny.last(directory)["config"]["optimizer"]["lr_g"] == 0.007


def test_a_second_ctrl_c_also_says_how_to_go_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    during_update(3, twice, monkeypatch)
    assert command(train.main, *RUN, "train.checkpoint_every=1") == 130
    captured = capsys.readouterr()
    assert "continue with: relgan-train " in captured.out
    assert "Traceback" not in captured.err


def test_ranks_are_continued_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "loss=ragan", "+resume=x"])
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    expected = "torchrun --standalone --nproc-per-node=2 -m relgan.cli.train loss=ragan resume=auto"
    assert again(resume="auto") == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_training_leaves_nothing_half_written(
    command: Command, monkeypatch: pytest.MonkeyPatch, cache: Path, number: int
) -> None:
    monkeypatch.setattr("relgan.data.pack._read", lambda *_: signal.raise_signal(number))
    assert command(data.main, "prepare", "dataset=digits") == 128 + number
    assert command(train.main, *RUN) == 128 + number
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not list(Path.cwd().rglob("summary.json"))


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the one worker process of a sweep is asked."""
    asked: list[str] = []
    process = type("Worker", (), {"terminate": lambda _: asked.append("terminate")})()
    monkeypatch.setattr(workers.multiprocessing, "active_children", lambda: [process])
    monkeypatch.setattr(workers, "_asked", None)
    return asked


def test_workers_are_told_to_stop_and_only_a_second_ctrl_c_does_not_wait_for_them(worker: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGTERM):  # machines repeat it
        workers.stop(number)
    assert workers.asked_to_stop() == signal.SIGTERM
    assert worker == ["terminate"] * 2
    with pytest.raises(KeyboardInterrupt):
        workers.stop(signal.SIGINT)


def test_before_a_sweep_has_workers_a_signal_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_asked", None)
    with pytest.raises(SystemExit, match="143"):
        workers.stop(signal.SIGTERM)
