"""What moves during training: its values, where they go, and that a resumed run has the same."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny
from relgan.build import build_run
from relgan.options import ConfigError
from relgan.registry import AugmentOptions
from relgan.training.run import Run
from relgan.training.schedules import Cosine, ExponentialDecay
from relgan.training.strength import Strength

# Four images an update; everything that can move does.
MOVING = (
    "loss.name=rsgan",
    "penalty.name=r1",
    "penalty.weight=2.0",
    "augment.name=diffaugment",
    "augment.p=0.2",
    "schedule.burn_in=24",
    "schedule.lr_g=1e-5",
    "schedule.lr_d=2e-5",
    "schedule.beta2=0.9",
    "schedule.gamma=0.5",
    "schedule.augment_p=0.6",
    "schedule.ema_half_life=40",
)


def test_a_cosine_goes_from_first_to_last_and_stays() -> None:
    course = Cosine(2.0, 0.5, 100)
    assert [course(images) for images in (0, 100, 1000)] == [2.0, 0.5, 0.5]
    assert course(50) == pytest.approx(1.25)
    # v₁ + ½(1 + cos πt/T)(v₀ − v₁), the R3GAN paper's.
    assert course(25) == pytest.approx(0.5 + 0.5 * (1 + math.cos(math.pi / 4)) * 1.5)


def test_exponential_decay_multiplies_after_each_epoch() -> None:
    course = ExponentialDecay(1.0, 0.1, epoch=100)
    assert [course(images) for images in (0, 99, 100, 350)] == pytest.approx([1, 1, 0.9, 0.9**3])


@contextlib.contextmanager
def built(directory: Path, *options: str) -> Iterator[Run]:
    run = build_run(tiny.config(*options), directory)
    try:
        yield run
    finally:
        run.close(0)


def test_every_value_reaches_its_place(tmp_path: Path) -> None:
    with built(tmp_path, *MOVING) as run:
        check_moved(run)


def check_moved(run: Run) -> None:
    update, state = run.update, run.state
    for step, done in ((0, 0.0), (3, 0.5), (6, 1.0), (9, 1.0)):
        run.schedules.apply(step)

        def between(first: float, last: float, done: float = done) -> float:
            return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

        (group_g,), (group_d,) = (optimizer.param_groups for optimizer in state.optimizers)
        assert group_g["lr"] == pytest.approx(between(2e-4, 1e-5))
        assert group_d["lr"] == pytest.approx(between(2e-4, 2e-5))
        assert group_g["betas"] == group_d["betas"] == (0.5, pytest.approx(between(0.999, 0.9)))
        assert float(update.penalty_scale) == pytest.approx(between(2.0, 0.5) / 2.0)
        assert float(state.strength.p) == pytest.approx(between(0.2, 0.6))
        half_life = between(0.0, 40.0)
        assert state.ema.decay == pytest.approx(0.5 ** (4 / half_life) if half_life else 0.0)


def test_rmsprop_has_its_alpha_moved(tmp_path: Path) -> None:
    with built(tmp_path, "optimizer.name=rmsprop", "schedule.beta2=0.5", "schedule.burn_in=4") as run:
        run.schedules.apply(1)
        assert [optimizer.param_groups[0]["alpha"] for optimizer in run.state.optimizers] == [0.5, 0.5]


def test_what_moves_is_logged_and_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    options = (*MOVING, "train.log_every=1", "loss.lecam=0.3", "loss.centring=0.01")
    tiny.run(tmp_path / "whole", *options, "train.iterations=6")
    tiny.run(tmp_path / "parts", *options, "train.iterations=3")
    tiny.run(tmp_path / "parts", *options, "train.iterations=6", "resume=auto")
    whole, parts = (tiny.last(tmp_path / name) for name in ("whole", "parts"))
    for content in (whole, parts):
        del content["seconds"], content["config"], content["tracker_runs"]
    assert tiny.differing(whole, parts) == []
    logged = [record for record in tiny.records(tmp_path / "whole") if record["kind"] == "train"]
    assert [record["train/gamma"] for record in logged][:3] == pytest.approx(
        [2.0, *(0.5 + 1.5 * (1 + math.cos(math.pi * part / 6)) / 2 for part in (1, 2))]
    )
    keys = {"train/lr_g", "train/lr_d", "train/beta2", "train/augment_p", "train/ema_half_life"}
    assert all(keys <= record.keys() for record in logged)


def test_a_resumed_run_looks_at_its_average_at_once(tmp_path: Path) -> None:
    options = ("train.ema_decay=0", "schedule.burn_in=8", "schedule.ema_half_life=400", "train.iterations=8")
    tiny.run(tmp_path, *options)
    picture = tmp_path / "samples" / "step_00000008.png"
    before = picture.read_bytes()
    picture.unlink()
    tiny.run(tmp_path, *options, "resume=auto")
    assert picture.read_bytes() == before


def test_a_half_life_counts_the_images_that_the_critic_sees(tmp_path: Path) -> None:
    options = ("optimizer.n_critic=5", "schedule.burn_in=1", "schedule.ema_half_life=200")
    with built(tmp_path, *options) as run:
        run.schedules.apply(1)
        # 20 images an update: half of the weight is gone after ten.
        assert run.state.ema.decay**10 == pytest.approx(0.5)


def test_a_course_counts_the_images_that_the_critic_sees(tmp_path: Path) -> None:
    options = ("optimizer.n_critic=5", "schedule.burn_in=40", "optimizer.lr_g=1", "schedule.lr_g=0.5")
    with built(tmp_path, *options) as run:
        run.schedules.apply(1)  # 20 images of 40
        assert run.state.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.75)


def test_a_penalty_that_skips_updates_is_in_the_log(tmp_path: Path) -> None:
    tiny.run(tmp_path, "penalty.name=r1", "penalty.interval=2", "train.log_every=2")
    assert all(record["train/penalty"] > 0 for record in tiny.records(tmp_path))


def test_nothing_moves_unless_asked(tmp_path: Path) -> None:
    tiny.run(tmp_path)
    (record,) = [record for record in tiny.records(tmp_path) if record["kind"] == "train"]
    assert not {"train/lr_g", "train/gamma", "train/augment_p"} & record.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["schedule.gamma=0.1", "penalty.name=r1"], "schedule.gamma: needs schedule.burn_in"),
        (["schedule.augment_p=0.1"], "schedule.augment_p: needs schedule.burn_in"),
        (["schedule.burn_in=10"], "schedule.burn_in: give what it ends at"),
        (["schedule.burn_in=10", "schedule.gamma=1"], "schedule.gamma: penalty=none has no coefficient"),
        (["schedule.burn_in=10", "schedule.gamma=1", "penalty.name=clip"], "schedule.gamma: penalty=clip has no"),
        (["schedule.burn_in=10", "schedule.augment_p=1"], "schedule.augment_p: augment=none has no probability"),
        (["schedule.burn_in=10", "schedule.lr_g=1e-4", "optimizer.decay=0.1"], "optimizer.decay: must be 0"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny.config(*options)
    assert str(error.value).startswith(message)


def steered(target: float, p: float = 0.5) -> Strength:
    from relgan.builtin import AdaOptions

    return Strength(AdaOptions(p=p, target=target, ramp=1000), 10, torch.device("cpu"))


def test_a_steered_probability_rises_while_the_critic_is_sure_and_falls_while_it_is_not() -> None:
    strength = steered(0.6)
    for _ in range(20):
        strength.steer(torch.ones(8))
    # 20 batches of 10 images at a thousand images from 0 to 1; the mean sign starts at its target.
    assert float(strength.p) == pytest.approx(0.7)
    for _ in range(200):
        strength.steer(torch.tensor([1.0, -1.0]))
    assert float(strength.p) == 0
    for _ in range(400):
        strength.steer(torch.ones(8))
    assert float(strength.p) == 1


def test_a_probability_that_is_not_steered_stays() -> None:
    from relgan.builtin import DiffAugmentOptions

    for options in (DiffAugmentOptions(p=0.3), AugmentOptions()):
        strength = Strength(options, 10, torch.device("cpu"))
        before = float(strength.p)
        strength.steer(torch.ones(8))
        assert float(strength.p) == before
