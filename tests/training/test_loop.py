"""When things happen, what a run leaves behind, and how it ends when something goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics import MeanMetric

import tiny
from relgan.build import build_run
from relgan.data.batches import Batches
from relgan.losses import AdversarialLoss
from relgan.metrics.catalogue import Key, ScoreCard
from relgan.metrics.scores import Batch, Score
from relgan.registry import register_score
from relgan.rundir import OccupiedError
from relgan.training import checkpoint, loop
from relgan.training.loop import Loop, Outcome, Speed, train
from relgan.training.run import Run
from relgan.training.signals import StopSignals
from relgan.training.state import History
from relgan.training.update import CriticResult, GeneratorResult, Update

TRAIN_KEYS = {
    "kind", "step", "time_s", "train/loss_d", "train/loss_g", "train/penalty", "train/logit_real", "train/logit_fake",
    "train/prob_real", "train/prob_fake", "train/pull_real", "train/pull_fake", "train/grad_norm_d",
    "train/grad_norm_g", "train/images_per_second",
}  # fmt: skip
SUMMARY_KEYS = {
    "status", "step", "seconds", "images_per_second", "peak_memory_bytes", "seed", "final", "best", "protocol",
    "peak_reserved_bytes", "versions", "hardware", "error", "data_fingerprint", "resumed_from",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.time, "sleep", lambda _: None)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Any) -> None:
    """Call ``action()`` in the middle of the ``number``-th generator update (from 1)."""
    original, done = Update.update_generator, [0]

    def update(self: Update, real: Tensor, z: Tensor, **given: Any) -> GeneratorResult:
        done[0] += 1
        if done[0] == number:
            action()
        return original(self, real, z, **given)

    monkeypatch.setattr(Update, "update_generator", update)


def test_the_run_directory_is_the_contract(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run = build_run(tiny.config("dataset.name=stacked_digits", "train.iterations=8", "train.log_every=3"), directory)
    assert tiny.summary(directory)["status"] == "running"
    assert train(run) == Outcome("finished", 0)
    steps = (0, 2, 4, 6, 8)
    pictures = {f"{kind}_{step:08d}.png" for step in steps for kind in ("step", "train")}
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert files == {
        ".lock",
        ".logged.json",
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "checkpoints/last.pt",
        "samples/real.png",
        *(f"samples/{name}" for name in pictures),
    }
    lines = tiny.records(directory)
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 3), ("train", 6), ("train", 8)]
    for line in lines:
        assert line.keys() == TRAIN_KEYS
        assert all(isinstance(value, int | float) for key, value in line.items() if key != "kind")
        assert 0 < line["train/prob_real"] < 1
        assert 0 < line["train/prob_fake"] < 1
    times = [line["time_s"] for line in lines]
    assert times == sorted(times)
    summary = tiny.summary(directory)
    assert summary.keys() >= SUMMARY_KEYS
    expected = {
        "status": "finished",
        "step": 8,
        "seed": 1,
        "error": None,
        "final": {},
        "best": {},
        "resumed_from": None,
    }
    assert {key: summary[key] for key in expected} == expected
    assert summary["images_per_second"] > 0
    assert summary["seconds"] >= times[-1]
    assert summary["peak_memory_bytes"] > 1e7
    assert summary["versions"]["torch"] == version("torch")
    assert summary["hardware"]["device"] == "cpu"
    # Four images of four panels each (the picture and its three channels), two in a row at most.
    with Image.open(directory / "samples" / "real.png") as picture:
        assert picture.width % 130 == 2 + 0
        assert picture.mode == "RGB"


def test_the_fixed_noise_is_the_same_in_every_run_of_a_seed(tmp_path: Path) -> None:
    for name, option in (("a", "loss.name=ragan"), ("b", "loss.name=sgan")):
        tiny.run(tmp_path / name, option, "train.iterations=0")
    tiny.run(tmp_path / "c", "seed=2", "train.iterations=0")
    first, same, other = ((tmp_path / name / "samples" / "step_00000000.png").read_bytes() for name in "abc")
    assert first == same
    assert first != other


def test_no_updates_is_a_run_too(tmp_path: Path) -> None:
    assert tiny.run(tmp_path, "train.iterations=0") == Outcome("finished", 0)
    assert tiny.last(tmp_path)["step"] == 0
    assert tiny.records(tmp_path) == []


def test_cadences(tmp_path: Path) -> None:
    tiny.run(tmp_path, "train.iterations=5", "train.sample_every=2", "train.log_every=2", "train.checkpoint_every=4")
    grids = sorted(int(path.stem[5:]) for path in (tmp_path / "samples").glob("step_*.png"))
    assert grids == [0, 1, 2, 4, 5]
    assert [line["step"] for line in tiny.records(tmp_path)] == [2, 4, 5]
    assert tiny.last(tmp_path, "last.previous")["step"] == 4
    assert tiny.last(tmp_path)["step"] == 5


def test_epochs_decide_the_length_and_the_decay(tmp_path: Path) -> None:
    options = ("train.iterations=null", "train.epochs=2", "dataset.num_images=20", "optimizer.n_critic=2")
    run = build_run(tiny.config(*options, "optimizer.decay=0.5", "optimizer.lr_d=1e-3"), tmp_path)
    train(run)
    assert tiny.summary(tmp_path)["step"] == 5  # 2 · 20 / (4 · 2)
    # The last update came after 32 of 40 images, in the second epoch.
    assert [o.param_groups[0]["lr"] for o in run.state.optimizers] == pytest.approx([2e-4 / 2, 1e-3 / 2])


@pytest.mark.parametrize(
    ("options", "per_update"),
    [
        (["loss.name=sgan"], 1),
        (["loss.name=ragan"], 2),
        (["loss.name=ragan", "train.redraw_real=false"], 1),
        (["loss.name=ragan", "loss.generator_terms=standard"], 1),
        (["loss.name=sgan", "optimizer.n_critic=3"], 3),
        (["loss.name=rsgan", "optimizer.n_critic=3"], 4),
    ],
)
def test_how_many_real_batches_an_update_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], per_update: int
) -> None:
    drawn: list[Tensor] = []
    seen: list[Tensor] = []
    draw, update = Batches.next, Update.update_generator

    def counted(self: Batches) -> Tensor:
        drawn.append(draw(self))
        return drawn[-1]

    def watched(self: Update, real: Tensor, z: Tensor, **given: Any) -> GeneratorResult:
        seen.append(real)
        return update(self, real, z, **given)

    monkeypatch.setattr(Batches, "next", counted)
    monkeypatch.setattr(Update, "update_generator", watched)
    tiny.run(tmp_path, *options, "train.iterations=3")
    assert len(drawn) == 3 * per_update
    assert [batch is drawn[(n + 1) * per_update - 1] for n, batch in enumerate(seen)] == [True] * 3


@dataclasses.dataclass(frozen=True)
class NotANumber(AdversarialLoss):
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return super().discriminator(real_logits, fake_logits) * float("nan")


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_divergence_is_a_result_with_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, optimizer: str
) -> None:
    options = (f"optimizer.name={optimizer}", "optimizer.betas=[0.0,0.9]", "train.log_every=1")
    run = build_run(tiny.config(*options, "train.iterations=20"), tmp_path)
    good, update = run.update.loss, Update.update_critic
    kept: dict[str, Any] = {}

    def update_critic(self: Update, real: Any, z: Tensor, **how: Any) -> CriticResult:
        if run.state.step == 3:
            self.loss = NotANumber(good.name, good.form, good.cost)
            for part in ("generator", "critic"):
                kept[part] = {name: value.clone() for name, value in getattr(self, part).named_parameters()}
        return update(self, real, z, **how)

    monkeypatch.setattr(Update, "update_critic", update_critic)
    with caplog.at_level(logging.INFO, "relgan"):
        assert train(run) == Outcome("diverged", 0)
    summary = tiny.summary(tmp_path)
    assert (summary["status"], summary["step"], summary["error"]) == ("diverged", 4, None)
    lines = tiny.records(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    saved = tiny.last(tmp_path)
    for part in ("generator", "critic"):
        assert all(torch.equal(saved[part][name], value) for name, value in kept[part].items())
        assert all(value.isfinite().all() for value in saved[part].values())
    assert "a loss or gradient became infinite or NaN, at the latest at update 4" in caplog.text
    assert "Traceback" not in caplog.text


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_in_the_middle_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsync = os.fsync
    at_step(monkeypatch, 4, lambda: monkeypatch.setattr(os, "fsync", no_space))
    save = loop.Loop.save
    steps: list[tuple[int, bool]] = []

    def saved(self: loop.Loop) -> bool:
        if self.state.step == 6:
            monkeypatch.setattr(os, "fsync", fsync)
        steps.append((self.state.step, save(self)))
        return steps[-1][1]

    monkeypatch.setattr(loop.Loop, "save", saved)
    with caplog.at_level(logging.WARNING, "relgan"):
        assert tiny.run(tmp_path, "train.iterations=7", "train.checkpoint_every=2").exit_code == 0
    assert steps == [(2, True), (4, False), (6, True), (7, True)]
    assert any("last.pt could not be written" in message and "\n" not in message for message in caplog.messages)
    assert tiny.last(tmp_path)["step"] == 7
    assert tiny.last(tmp_path, "last.previous")["step"] == 6


def test_a_full_disk_to_the_end_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    def full(_: int) -> None:
        attempts.append(1)
        no_space()

    at_step(monkeypatch, 3, lambda: monkeypatch.setattr(os, "fsync", full))
    checkpoint_saves: list[Path] = []
    original = loop.checkpoint.save

    def save(content: Any, path: Path, **keywords: Any) -> None:
        checkpoint_saves.append(path)
        original(content, path, **keywords)

    monkeypatch.setattr(loop.checkpoint, "save", save)
    with caplog.at_level(logging.WARNING, "relgan"):
        outcome = tiny.run(tmp_path, "train.iterations=5", "train.checkpoint_every=2")
        assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert len(checkpoint_saves) == 1 + 1 + 5  # at 2, at 4, and five attempts at the end
    last = tmp_path / "checkpoints" / "last.pt"
    assert str(last) in caplog.messages[-1] or any(str(last) in m and "last good" in m for m in caplog.messages)
    assert all("\n" not in message for message in caplog.messages)
    assert tiny.last(tmp_path)["step"] == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_grids_that_cannot_be_written_do_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("relgan.training.run.save_png", lambda *_: no_space())
    with caplog.at_level(logging.WARNING, "relgan"):
        assert tiny.run(tmp_path) == Outcome("finished", 0)
    assert any("No space left" in message for message in caplog.messages)
    assert tiny.last(tmp_path)["step"] == 4


def test_grids_that_have_no_memory_do_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def draw(self: Run, training: Tensor | None) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Run, "save_grids", draw)
    with caplog.at_level(logging.WARNING, "relgan"):
        assert tiny.run(tmp_path) == Outcome("finished", 0)
    assert "no pictures at update 4 (CUDA out of memory); training goes on" in caplog.messages


@pytest.mark.parametrize(
    ("words", "hours", "advice"),
    [
        ((), 3, "; scale=minutes or scale=hour trains a smaller network"),
        (("model.name=r3gan", "model.width=8", "model.group_width=4"), 3, "; scale=cpu trains a smaller network"),
        ((), 1, ""),
        (("scale=hour",), 3, ""),
    ],
)
def test_a_long_run_on_a_cpu_hears_of_a_shorter_one(
    words: tuple[str, ...], hours: int, advice: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = [word for word in words if not word.startswith("scale=")]
    run = build_run(tiny.config("train.iterations=4", *options), tmp_path, words)
    with caplog.at_level(logging.INFO, "relgan"):
        Loop(run, StopSignals()).estimate_end(hours * 3600 / 4)
    run.close(0)
    assert re.fullmatch(rf"ends at about .*, in {hours} h 0 min, not counting scoring{advice}", caplog.messages[-1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_update_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    at_step(monkeypatch, 3, lambda: signal.raise_signal(number))
    assert tiny.run(tmp_path, "train.iterations=100", "train.log_every=1") == Outcome("interrupted", code)
    assert (tiny.summary(tmp_path)["status"], tiny.last(tmp_path)["step"]) == ("interrupted", 3)
    tiny.run(tmp_path, "train.iterations=5", "train.log_every=1", "resume=auto")
    assert [line["step"] for line in tiny.records(tmp_path)] == [1, 2, 3, 4, 5]
    assert tiny.summary(tmp_path)["status"] == "finished"


def test_a_second_interrupt_is_immediate_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, "train.iterations=100", "train.checkpoint_every=2")
    summary = tiny.summary(tmp_path)
    assert (summary["status"], summary["step"]) == ("interrupted", 2)
    assert tiny.last(tmp_path)["step"] == 2


def test_a_bug_is_recorded_with_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 2, lambda: 1 / 0)
    run = build_run(tiny.config(), tmp_path)
    closed: list[int] = []
    close = run.trackers.close

    def closing(exit_code: int) -> None:
        closed.append(exit_code)
        close(exit_code)

    monkeypatch.setattr(run.trackers, "close", closing)
    with pytest.raises(ZeroDivisionError):
        train(run)
    summary = tiny.summary(tmp_path)
    assert summary["status"] == "failed"
    assert "ZeroDivisionError" in summary["error"]
    assert closed == [1]


def test_a_generator_that_cannot_be_scored_is_reported_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def evaluate(self: Run) -> dict[str, float]:
        raise ValueError("the generator returned values that are not finite")

    monkeypatch.setattr(Run, "evaluate", evaluate)
    with caplog.at_level(logging.WARNING, "relgan"):
        assert tiny.run(tmp_path, "metrics.every=2") == Outcome("finished", 0)
    assert "no scores at update 2" in caplog.text
    assert tiny.summary(tmp_path)["best"] == {}


class Undefined(Score):
    """The mean brightness of the first generator; of any other, not a number."""

    def accumulator(self) -> MeanMetric:
        return MeanMetric()

    def update(self, accumulator: MeanMetric, batch: Batch) -> None:
        accumulator.update(batch.images.float())

    def compute(self, accumulated: Tensor) -> dict[str, float]:
        first, self.first = getattr(self, "first", True), False
        return {"undefined": float(accumulated) if first else float("nan")}


def test_a_score_that_is_not_finite_is_reported_and_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register_score("undefined", builder=Undefined, facts=ScoreCard((Key("undefined", "Undefined", "max"),)))
    with caplog.at_level(logging.WARNING, "relgan"):
        outcome = tiny.run(tmp_path, "metrics.scores=[undefined]", "metrics.num_images=8", "metrics.every=2")
    assert outcome == Outcome("finished", 0)
    assert caplog.messages.count("undefined is left out: eval/undefined not finite") == 1
    # Strict JSON: what a browser or jq would refuse is not written.
    for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert [line["step"] for line in tiny.records(tmp_path) if line["kind"] == "eval"] == [0]
    summary = tiny.summary(tmp_path)
    assert summary["final"]["eval/undefined"] == pytest.approx(127.5, abs=20)
    assert summary["best"] == {}


def test_speed_is_the_median_interval_after_warm_up() -> None:
    speed = Speed(images_per_iteration=10)
    assert speed.images_per_second is None
    assert speed.add(10.0, 10) == pytest.approx(10)
    assert speed.images_per_second == pytest.approx(10)
    for seconds in (1.0, 2.0, 100.0):
        speed.add(seconds, 10)
    assert speed.images_per_second == pytest.approx(10 / 0.2)


def test_the_best_knows_which_way_is_better_and_is_never_untrained() -> None:
    history = History()
    assert not history.remember({"eval/fid": 1.0, "eval/modes": 99}, 0, keep=1)
    assert (history.best, history.ranking) == ({}, {})
    assert history.remember({"eval/fid": 5.0, "eval/modes": 10, "eval/is_std": 1}, 1, keep=1)
    assert not history.remember({"eval/fid": 6.0, "eval/modes": 11, "eval/is_std": 1}, 2, keep=1)
    assert history.best == {"eval/fid": {"value": 5.0, "step": 1}, "eval/modes": {"value": 11, "step": 2}}
    assert not history.remember({"eval/fid": 5.0, "eval/modes": 11, "eval/is_std": 1}, 3, keep=1)
    assert history.best == {"eval/fid": {"value": 5.0, "step": 1}, "eval/modes": {"value": 11, "step": 2}}
    assert history.final == {"eval/fid": 5.0, "eval/modes": 11, "eval/is_std": 1}
    assert not History().remember({"eval/is_std": 1.0}, 1, keep=1)  # has no best


def test_a_directory_in_use_is_refused_and_untouched(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    run = build_run(tiny.config("train.iterations=4"), directory)
    before = (directory / "metrics.jsonl").read_bytes()
    with pytest.raises(OccupiedError, match="another process"):
        build_run(tiny.config("train.iterations=4", "resume=auto"), directory)
    assert (directory / "metrics.jsonl").read_bytes() == before
    assert train(run).status == "finished"


@pytest.mark.parametrize(("every", "step"), [(0, 3), (2, 2)])
def test_scores_that_fail_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, step: int) -> None:
    """The last checkpoint is written before the last scores are computed, and after others that break."""
    options = ("train.iterations=3", "train.checkpoint_every=0", f"metrics.every={every}")
    run = build_run(tiny.config(*options), tmp_path / "run")

    class Failing:
        protocol: ClassVar[dict[str, object]] = {}

        def evaluate(self, generator: object) -> dict[str, float]:
            if run.state.step:
                raise RuntimeError("broken")
            return {}

        def neighbours(self, generator: object) -> None:
            return None

    monkeypatch.setattr(run, "evaluator", Failing())
    with pytest.raises(RuntimeError, match="broken"):
        train(run)
    assert checkpoint.load(run.dir.last)["step"] == step


def test_a_picture_of_a_diverged_generator_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the flag is only read at logging points, as on a GPU, a grid may come first."""
    monkeypatch.setattr(Loop, "log_is_due", lambda self: self.state.step == self.run.total)
    outcome = tiny.run(tmp_path, "train.iterations=8", "optimizer.lr_g=1e30", "optimizer.lr_d=1e30", "loss.name=lsgan")
    assert (outcome.status, outcome.exit_code) == ("diverged", 0)
