"""Training never waits for its device and keeps its memory: what a CUDA graph needs, held without a GPU."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from on_the_device import MadeElsewhere, ReadsValues, capturable_on_the_cpu, on_the_device, stand_in
from relgan.build import build_run
from relgan.config import MetricsConfig, OptimizerConfig
from relgan.data import prepare
from relgan.data.batches import Batch
from relgan.metrics.evaluator import Evaluator
from relgan.registry import LOSSES, PENALTIES, DatasetOptions
from relgan.training.engine import Captured, Eager
from relgan.training.loop import Loop
from relgan.training.optimizers import build_optimizers
from relgan.training.signals import StopSignals
from relgan.training.state import TrainState
from relgan.training.update import Update

NORMS: dict[str, dict[str, Any]] = {
    "batch": {},
    "none": {"norm": "none"},
    "synchronised": {"sync_batch_norm": True},
    "spectral": {"spectral_norm": True},
    "spectral in both": {"spectral_norm": True, "generator_spectral_norm": True},
}
COUNT, QUICK = len(LOSSES.names()) * len(PENALTIES.names()), 66
"""Settings in all, and how many of them are no slow tests."""


@dataclass(frozen=True)
class Setting:
    """One of ``COUNT`` ways to make a step: together every loss with every penalty, optimizer, norm …"""

    loss: str
    penalty: str
    optimizer: str
    norm: str
    augment: str
    precision: str
    classes: int
    parts: int
    side_terms: float
    redraw_fake: bool

    @classmethod
    def number(cls, n: int) -> Setting:
        losses, penalties, norms = LOSSES.names(), PENALTIES.names(), list(NORMS)
        return cls(
            # Moved on by one each time that all pairs of these two come again.
            loss=losses[(n + n // math.lcm(len(losses), len(penalties))) % len(losses)],
            penalty=penalties[n % len(penalties)],
            optimizer=("adam", "rmsprop")[(n + n // 13) % 2],
            norm=norms[n // 10 % len(norms)],
            augment=("none", "diffaugment", "ada")[n % 3],
            precision=("fp32", "bf16")[n // 7 % 2],
            classes=(0, 3)[n // 3 % 2],
            parts=(1, 2)[(n // 5 + n // 10) % 2],
            side_terms=(0.0, 0.3)[n // 4 % 2],
            redraw_fake=n // 2 % 2 == 0,
        )

    def eager(self, latents: Callable[[], Tensor]) -> Eager:
        return Eager(self.update(), latents, redraw_fake=self.redraw_fake)

    def update(self) -> Update:
        options = OptimizerConfig(name=self.optimizer, lr_g=2e-4, lr_d=2e-4)
        update = tiny.update(
            tiny.model(width=2, latent_dim=4, **NORMS[self.norm]),
            self.loss,
            penalty=self.penalty,
            augment=self.augment,
            classes=self.classes,
            precision=self.precision,
            accumulate=self.parts,
            channels=3,
            size=16,
            lecam=self.side_terms,
            centring=self.side_terms,
        )
        update.optimizer_g, update.optimizer_d = build_optimizers(
            options, update.generator, update.critic, captured=True
        )
        return update


@pytest.fixture(autouse=True)
def _as_for_a_graph() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with capturable_on_the_cpu(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*capturable=True")
        yield


def batch(classes: int) -> tuple[Batch, Tensor]:
    return Batch(2 * torch.rand(4, 3, 16, 16) - 1, torch.arange(4) % 3 if classes else None), torch.randn(4, 4)


def lasting_tensors(update: Update, state: TrainState | None = None) -> dict[str, Tensor]:
    """Everything that lasts from one step to the next, by a name."""
    lasting: dict[str, Any] = {
        "mask": {"diverged": update.diverged, "penalty_scale": update.penalty_scale},
        "side_terms": update.side_terms.state_dict(),
        "strength": update.strength.state_dict(),
        "average": {} if state is None else dict(state.ema.module.named_parameters()),
        "average's buffers": {} if state is None else dict(state.ema.module.named_buffers()),
    }
    for name, network in (("generator", update.generator), ("critic", update.critic)):
        lasting[name] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    for name, optimizer in (("of generator", update.optimizer_g), ("of critic", update.optimizer_d)):
        lasting[name] = [*optimizer.state.values()], [group["lr"] for group in optimizer.param_groups]
    return {name: value for name, value in tiny.leaves(lasting) if isinstance(value, Tensor)}


def memory(update: Update, state: TrainState | None = None) -> dict[str, tuple[int, int]]:
    """Of all that lasts: which tensor it is, and where its values lie."""
    return {name: (id(value), value.data_ptr()) for name, value in lasting_tensors(update, state).items()}


@pytest.mark.parametrize("number", [n if n < QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(COUNT)])
def test_a_step_reads_nothing_back_and_stays_in_its_memory(number: int) -> None:
    setting = Setting.number(number)
    real, z = batch(setting.classes)
    eager = setting.eager(lambda: z)
    update = eager.update
    before: dict[str, tuple[int, int]] = {}
    for _ in range(2 if number % 10 == 0 else 1):
        with on_the_device():
            eager([real, real])
        assert before.items() <= memory(update).items()
        before = memory(update)
    assert not update.diverged


@pytest.mark.parametrize(
    "number", [n if n % 6 == 0 and n < QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(COUNT)]
)
def test_a_recorded_step_is_the_eager_one(number: int) -> None:
    """With the stand-in for a graph: the same work on the same memory."""
    setting, ends = Setting.number(number), []
    for capture in (None, stand_in):
        torch.manual_seed(0)
        eager = setting.eager(lambda: torch.randn(4, 4))
        reals = [batch(setting.classes)[0]] * 2
        iteration = eager if capture is None else Captured(eager, reals, capture)
        torch.manual_seed(1)
        for _ in range(2):
            iteration(reals)
        ends.append([value.detach().clone() for value in lasting_tensors(eager.update).values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(("count", "apart"), [(QUICK, "loss"), (COUNT, "")])
def test_the_settings_hold_every_pair(count: int, apart: str) -> None:
    """The quick ones every pair but those with a loss, and every loss."""
    settings = [vars(Setting.number(n)) for n in range(count)]
    values = {name: {setting[name] for setting in settings} for name in settings[0]}
    assert (len(values["loss"]), len(values["penalty"])) == (len(LOSSES.names()), len(PENALTIES.names()))
    for a, b in combinations([name for name in values if name != apart], 2):
        assert len({(setting[a], setting[b]) for setting in settings}) == len(values[a]) * len(values[b]), (a, b)


def reads(update: Update) -> None:
    update.strength.p.item()


def branches(update: Update) -> None:
    if update.diverged > 0:
        raise AssertionError


def copies(update: Update) -> None:
    update.strength.p.cpu()


def brings(update: Update) -> None:
    torch.tensor([1.0], device=update.precision.device)


def selects(update: Update) -> None:
    for parameter in update.critic.parameters():
        parameter.detach()[parameter > 0]


def forgets_the_device(update: Update) -> None:
    update.strength.p.add_(torch.zeros(()))


@pytest.mark.parametrize("fault", [reads, branches, copies, brings, selects, forgets_the_device])
def test_a_step_with_a_fault_is_noticed(fault: Callable[[Update], None], monkeypatch: pytest.MonkeyPatch) -> None:
    update = Setting.number(0).update()
    real, z = batch(0)
    steer = update.strength.steer

    def faulty(compared: Tensor) -> None:
        steer(compared)
        fault(update)

    update.update_critic(real, z)
    monkeypatch.setattr(update.strength, "steer", faulty)
    expected = MadeElsewhere if fault is forgets_the_device else ReadsValues
    with on_the_device(), pytest.raises(expected):
        update.update_critic(real, z)


def test_state_that_moves_to_other_memory_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Setting.number(0).update()
    update.update_critic(*batch(0))
    before = memory(update)
    update.strength.p = update.strength.p + 1
    assert set(before.items()) ^ set(memory(update).items())


SCHEDULES = [f"schedule.{name}" for name in ("lr_g=1e-5", "lr_d=1e-5", "beta2=0.99", "gamma=0.1", "ema_half_life=9.0")]
WHOLE = {
    "schedules, labels": [
        *("model.name=r3gan", "model.width=8", "model.group_width=4", "loss.name=rpgan_r1r2", "penalty.name=r1r2"),
        *("dataset.labels=true", "augment.name=diffaugment", "schedule.augment_p=0.3", "schedule.burn_in=40"),
        *SCHEDULES,
    ],
    "steered, on the device": [
        *("dataset.name=stacked_digits", "augment.name=ada", "augment.target=0.6", "dataset.residence=device"),
        *("dataset.hflip=true", "train.ema_decay=0.9"),
    ],
    "lazy, packed, decaying": [
        *("model.pack=2", "penalty.name=gp", "penalty.interval=2", "optimizer.n_critic=2", "optimizer.name=rmsprop"),
        *("optimizer.decay=0.1", "train.accumulate=2", "loss.name=rasgan", "train.redraw_real=true"),
    ],
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_iteration_from_images_to_the_average(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is between the updates: batches, schedules, augmentation, labels, the moving average."""
    made = build_optimizers

    def captured(*networks: Any, **_: Any) -> Any:
        return made(*networks, captured=True, moving_beta2="beta2" in " ".join(WHOLE[name]))

    monkeypatch.setattr("relgan.build.build_optimizers", captured)
    run = build_run(tiny.config(*WHOLE[name], "penalty.weight=1.0" if "penalty" in name else "seed=1"), tmp_path)
    loop = Loop(run, StopSignals())
    loop.iterate()
    before = memory(run.update, run.state)
    with on_the_device():
        loop.iterate()
    assert memory(run.update, run.state) == before
    assert run.state.step == 2
    if (beta2 := run.schedules.values(2).get("train/beta2")) is not None:
        moved = run.update.optimizer_d.param_groups[0]["betas"][1]
        assert isinstance(moved, Tensor)
        assert moved.item() == pytest.approx(beta2)
    run.close(0)


def test_an_evaluation_stays_on_its_device_and_its_sums_read_nothing_back() -> None:
    """Networks may be asked once a batch whether their output is finite."""
    dataset = DatasetOptions(name="stacked_digits", num_images=64, labels=True)
    store = prepare(dataset, progress=False)
    scores = ["fid", "is", "kid", "precision", "recall", "density", "coverage", "vendi", "modes"]
    scores += ["authenticity", "label_agreement", "fid_infinity", "is_infinity"]
    config = MetricsConfig(scores=scores, num_images=40, modes_images=40, batch_size=20, splits=2)
    counts, cpu = store.class_counts, torch.device("cpu")
    judge = Evaluator(config, dataset, store, latent_dim=4, seed=0, device=cpu, class_counts=counts)
    assert len(judge.scores) == len(scores)
    generator = tiny.update(tiny.model(width=2, latent_dim=4), "sgan", channels=3, classes=len(counts)).generator
    first = judge.evaluate(generator)
    seen = judge.see(generator, latent_dim=4, seed=0)
    judge._start()
    with torch.no_grad(), on_the_device():
        for part in seen:
            judge._feed(part)
    with torch.device("meta"):
        again = judge.evaluate(generator)
    assert again == first
