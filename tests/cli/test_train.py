"""relgan-train as people use it: what it prints, where it writes, how it refuses and how it exits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

import processes
import tiny
from relgan.cli import train
from relgan.config import resolve
from relgan.registry import GROUPS
from relgan.training.update import Update


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hydra_undone: None) -> None:
    """An empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


Relgan = Callable[..., Result]


@pytest.fixture
def relgan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Relgan:
    """Run the command in this process; ``tiny`` options come first."""

    def call(*arguments: str, small: bool = True) -> Result:
        torch.set_num_threads(1)
        monkeypatch.setattr(sys, "argv", ["relgan-train", *(tiny.ARGUMENTS if small else ()), *arguments])
        capsys.readouterr()
        try:
            train.main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


def runs() -> list[Path]:
    return sorted(path.parent for path in Path.cwd().rglob("summary.json"))


def test_a_run_says_where_its_pictures_are_and_keeps_its_log(relgan: Relgan) -> None:
    result = relgan("train.log_every=2")
    assert (result.code, result.err) == (0, "")
    (directory,) = runs()
    assert directory.parent == Path.cwd() / "outputs" / "digits-ragan"
    assert f"writing to outputs/digits-ragan/{directory.name}; pictures are in samples/\n" in result.out
    assert result.out.count(directory.name) == 1
    assert str(Path.cwd()) not in result.out
    log = (directory / "train.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition("] ")[2] for line in log] == result.out.splitlines()
    assert tiny.summary(directory)["command"] == [*tiny.ARGUMENTS, "train.log_every=2"]
    config = resolve(OmegaConf.load(directory / "config.yaml"))
    assert (config.model.width, config.train.log_every, config.loss.name) == (2, 2, "ragan")


def test_a_name_groups_runs_and_two_in_one_second_do_not_meet(relgan: Relgan) -> None:
    for _ in range(2):
        assert relgan("name=mine", "train.iterations=0").code == 0
    directories = runs()
    assert len(directories) == 2
    assert {path.parent for path in directories} == {Path.cwd() / "outputs" / "mine"}


def refused(result: Result, *needed: str) -> None:
    assert result.code == 2
    assert result.err.startswith("relgan-train: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err + result.out
    for text in needed:
        assert text in result.err
    # Nothing of a run is left behind.
    assert not runs()
    assert not list(Path.cwd().rglob("metrics.jsonl"))
    assert not list(Path.cwd().rglob("*.pt"))


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["trian.batch_size=3"], ["trian.batch_size: no such option", "did you mean train.batch_size?"]),
        (["model.widht=3"], ["model.widht: no such option", "did you mean model.width?"]),
        (["+model.foo=1"], ["model.foo: no such option"]),
        (["optimiser=adam"], ["optimiser: no such option", "did you mean optimizer?"]),
        (["xyzzy=1"], ["xyzzy: no such option", "--help"]),
        (["loss=ragn"], ["loss=ragn: not one of", "ragan", "wgan_gp"]),
        (["dataset=imagenet"], ["dataset=imagenet: not one of", "stacked_digits"]),
        (["loss=null"], ["loss", "null"]),
        (["train.batch_size=-4"], ["train.batch_size: must be ≥ 2, got -4"]),
        (["train.batch_size=many"], ["train.batch_size: ", "'many'", "Integer"]),
        (["train.batch_size=null"], ["train.batch_size: null is not accepted"]),
        (["train.batch_size=65"], ["train.batch_size: 65 is more than the 64 images"]),
        (["train.batch_size"], ["train.batch_size: options are KEY=VALUE"]),
        (["metrics.scores=null"], ["metrics.scores: null is not accepted"]),
        (["seed=1,2"], ["seed: several values need -m"]),
        (["metrics.scores=fidd"], ["metrics.scores: 'fidd' is not one of", "did you mean fid?"]),
        (["dataset.image_size=48"], ["dataset.image_size: 48 is not one of 16, 32, 64, 128, 256"]),
        (["dataset=folder"], ["dataset.path: "]),
        (["dataset=folder", "dataset.path=/does/not/exist"], ["dataset.path: /does/not/exist does not exist"]),
        (["resume=nowhere"], ["resume: ", "nowhere is neither"]),
        (["resume=."], ["resume: ", "holds no checkpoint"]),
        (["engine=fast"], ["engine: 'fast' is not one of auto, eager"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else "",
)
def test_what_the_user_can_mend_is_one_line(relgan: Relgan, arguments: list[str], needed: list[str]) -> None:
    result = relgan(*arguments)
    refused(result, *needed)
    if "65 is more" not in result.err:  # the data was prepared, and the log says so
        assert not list(Path.cwd().glob("outputs/*/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_choice_of_ones_own_may_be_called_like_a_folder(relgan: Relgan, tmp_path: Path) -> None:
    Path("mine").mkdir()
    assert "mine is a path; for a folder" in relgan("dataset=mine").err
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "mine.yaml").write_text("name: digits\nnum_images: 64\n")
    done = relgan("--config-dir", str(tmp_path / "conf"), "dataset=mine", "train.iterations=1", "plugins=")
    assert (done.code, done.err) == (0, "")


def test_a_working_directory_that_was_deleted_is_one_line(
    relgan: Relgan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = relgan()
    assert result.code == 2
    assert result.err == "relgan-train: the working directory cannot be read: No such file or directory\n"


def test_a_device_that_is_not_there(relgan: Relgan) -> None:
    refused(relgan("device=cuda"), "device: cuda is not available", "accepted here: auto, cpu")


def test_an_archive_without_images(relgan: Relgan) -> None:
    with zipfile.ZipFile("empty.zip", "w"):
        pass
    refused(relgan("dataset=folder", "dataset.path=empty.zip"), "dataset.path: ", "empty.zip")


@pytest.fixture
def interrupted(relgan: Relgan, monkeypatch: pytest.MonkeyPatch) -> Path:
    update, calls = Update.update_generator, [0]

    def stopping(self: Update, *arguments: Any, **given: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            signal.raise_signal(signal.SIGTERM)
        return update(self, *arguments, **given)

    with monkeypatch.context() as patched:
        patched.setattr(Update, "update_generator", stopping)
        result = relgan("train.log_every=1")
    assert result.code == 143
    assert "Traceback" not in result.err
    (directory,) = runs()
    assert tiny.summary(directory)["status"] == "interrupted"
    return directory


def test_auto_goes_on_with_the_newest_unfinished_run_of_this_configuration(relgan: Relgan, interrupted: Path) -> None:
    relgan("train.iterations=0", "seed=2")
    assert relgan("train.log_every=1", "resume=auto").code == 0
    assert tiny.summary(interrupted)["status"] == "finished"
    assert [line["step"] for line in tiny.records(interrupted)] == [1, 2, 3, 4]
    assert len(runs()) == 2
    # Finished runs are left alone.
    assert relgan("resume=auto").code == 0
    assert len(runs()) == 3


def test_auto_does_not_take_a_run_of_another_configuration(relgan: Relgan, interrupted: Path) -> None:
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    assert relgan("resume=auto", "optimizer.lr_g=7e-3").code == 0
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before
    assert len(runs()) == 2


def test_a_changed_option_is_named_and_nothing_lost(relgan: Relgan, interrupted: Path) -> None:
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}
    result = relgan(f"resume={interrupted}", "model.width=4")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "model.width was 2" in result.err
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before
    assert len(runs()) == 1


def test_an_existing_run_is_not_overwritten(relgan: Relgan, interrupted: Path) -> None:
    metrics = (interrupted / "metrics.jsonl").read_bytes()
    result = relgan(f"hydra.run.dir={interrupted}")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "already holds a run" in result.err
    assert (interrupted / "metrics.jsonl").read_bytes() == metrics
    assert relgan(f"hydra.run.dir={interrupted}", "resume=auto").code == 0
    assert tiny.summary(interrupted)["status"] == "finished"


def test_half_a_checkpoint_is_one_line(relgan: Relgan, interrupted: Path) -> None:
    last = interrupted / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    result = relgan(f"resume={last}")
    assert result.code == 2
    assert result.err == f"relgan-train: {last}: damaged or not a checkpoint\n"


def test_a_failed_last_checkpoint_exits_with_1(relgan: Relgan, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("relgan.training.checkpoint.save", full)
    monkeypatch.setattr("relgan.training.loop.time.sleep", lambda _: None)
    result = relgan()
    assert result.code == 1
    assert "last.pt could not be written in 5 attempts; last good checkpoint: none" in result.out
    assert "Traceback" not in result.out + result.err


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def test_help_is_quick_complete_and_without_torch() -> None:
    code = "import sys; sys.argv = ['relgan-train', '--help']\nfrom relgan.cli import train\ntry:\n train.main()\n"
    code += "finally:\n print('LOADED', sorted({'torch', 'torchvision', 'wandb', 'sklearn'} & set(sys.modules)))\n"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    after = os.times()
    # The processor's time, because other tests may run beside this one; it should be under 1.5 s, and slack.
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
    assert seconds < 3.0
    text = done.stdout
    for registry in GROUPS.values():
        for name in registry:
            assert name in text
    assert "train.iterations=" in text
    assert "relgan_schema" not in text
    assert list(Path.cwd().iterdir()) == []


def test_the_composed_configuration_can_be_printed(relgan: Relgan) -> None:
    result = relgan("--cfg", "job", "loss=wgan_gp", small=False)
    assert result.code == 0
    printed = OmegaConf.create(result.out)
    assert (printed.loss.name, printed.penalty.name, printed.train.batch_size) == ("wgan_gp", "gp", 64)
    assert "hydra" not in printed
    assert list(Path.cwd().iterdir()) == []


def test_signals_from_outside() -> None:
    options = [*tiny.ARGUMENTS, "train.iterations=1000000", "train.log_every=1"]
    numbers = (signal.SIGINT, signal.SIGTERM)
    command = processes.command("train")
    with contextlib.ExitStack() as running:
        started = [
            running.enter_context(processes.started(command, *options, f"hydra.run.dir={number.name}"))
            for number in numbers
        ]
        for number, process in zip(numbers, started, strict=True):
            metrics = Path(number.name) / "metrics.jsonl"
            deadline = time.monotonic() + 90
            while not (metrics.exists() and metrics.stat().st_size):
                assert process.returncode is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(process.pid, number)
        for number, process in zip(numbers, started, strict=True):
            assert process.wait() == 128 + number
            assert "interrupted after" in process.printed[0]
            run = Path(number.name)
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            assert summary["status"] == "interrupted"
            assert summary["step"] == tiny.last(run)["step"] == tiny.records(run)[-1]["step"]
