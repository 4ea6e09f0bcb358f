"""A job that is told to go saves at once, and its successor ends where an undisturbed run does."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import tiny
from relgan.metrics.extractors import Extractor
from relgan.training.loop import Outcome
from relgan.training.update import GeneratorResult, Update
from torture import compare

# Scored in train mode by the raw generator: an evaluation moves the buffers that are trained.
OPTIONS = (
    "dataset.name=stacked_digits",
    "train.iterations=8",
    "train.log_every=1",
    "train.checkpoint_every=3",
    "metrics.scores=[fid]",
    "metrics.extractor=efficientnet_lite0",
    "metrics.input_size=32",
    "metrics.num_images=12",
    "metrics.reference_images=8",
    "metrics.batch_size=4",
    "metrics.every=2",
    "metrics.generator=raw",
    "metrics.generator_mode=train",
)
BATCHES = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    pytest.importorskip("efficientnet_lite_pytorch")
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RELGAN_CACHE", str(shared_cache))
        tiny.run(directory, *OPTIONS)
    return directory


def continued(directory: Path, whole: Path) -> None:
    assert tiny.run(directory, *OPTIONS, "resume=auto") == Outcome("finished", 0)
    compare(directory, whole)
    assert [line["step"] for line in tiny.records(directory) if line["kind"] == "eval"] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("step", [0, 4, 8])
def test_an_evaluation_is_broken_off_and_done_again(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    call, calls, after = Extractor.__call__, [0], [0]

    def calling(self: Extractor, images: Tensor) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        after[0] += calls[0] > BATCHES * step // 2 + 2
        features = call(self, images)
        if calls[0] == BATCHES * step // 2 + 2:
            signal.raise_signal(signal.SIGTERM)
        return features

    with monkeypatch.context() as patched:
        patched.setattr(Extractor, "__call__", calling)
        assert tiny.run(tmp_path, *OPTIONS) == Outcome("interrupted", 143)
    assert after == [0]
    assert tiny.last(tmp_path)["step"] == step
    assert step not in [line["step"] for line in tiny.records(tmp_path) if line["kind"] == "eval"]
    continued(tmp_path, whole)


def test_what_was_due_after_the_running_update_waits_for_the_successor(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Update.update_generator
    scored: list[int] = []

    def updating(self: Update, real: Tensor, z: Tensor, **given: Any) -> GeneratorResult:
        scored.append(1)
        if len(scored) == 4:
            signal.raise_signal(signal.SIGUSR1)
        return update(self, real, z, **given)

    with monkeypatch.context() as patched:
        patched.setattr(Update, "update_generator", updating)
        assert tiny.run(tmp_path, *OPTIONS) == Outcome("interrupted", 128 + signal.SIGUSR1)
    assert tiny.last(tmp_path)["step"] == 4
    assert [line["step"] for line in tiny.records(tmp_path) if line["kind"] == "eval"] == [0, 2]
    continued(tmp_path, whole)


def test_slurm_is_asked_after_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, asked = tmp_path / "run", tmp_path / "asked"
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n/bin/ls {directory}/checkpoints >> {asked}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    update = Update.update_generator
    for number, expected in ((signal.SIGTERM, None), (signal.SIGUSR1, "requeue 42\nlast.previous.pt\nlast.pt\n")):

        def updating(self: Update, real: Tensor, z: Tensor, number: int = number, **given: Any) -> GeneratorResult:
            signal.raise_signal(number)
            return update(self, real, z, **given)

        monkeypatch.setattr(Update, "update_generator", updating)
        assert tiny.run(directory, "train.iterations=5", "resume=auto").exit_code == 128 + number
        assert (asked.read_text() if asked.exists() else None) == expected
    monkeypatch.setattr(Update, "update_generator", update)
    assert tiny.run(directory, "train.iterations=5", "resume=auto") == Outcome("finished", 0)
