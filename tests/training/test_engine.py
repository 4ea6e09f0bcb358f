"""An iteration that is recorded once and replayed makes the updates of the eager one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from relgan.config import Config, OptimizerConfig
from relgan.data.batches import Batch
from relgan.networks import build_networks
from relgan.options import ConfigError
from relgan.penalties import Penalty
from relgan.training.engine import Captured, Eager, Results, Snapshot, agree, build_iteration, choose_engine
from relgan.training.optimizers import build_optimizers
from relgan.training.state import load_optimizer_state, optimizer_state
from relgan.training.update import Update

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
SETTINGS = [
    ("sgan", "none", "adam"),
    ("ragan", "none", "adam"),
    ("wgan_gp", "gp", "rmsprop"),
    ("rsgan", "r1r2", "adam"),
]


def eager(loss: str, penalty: str, optimizer: str) -> Eager:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = tiny.model(width=2, latent_dim=4, spectral_norm=loss == "ragan")
    options = OptimizerConfig(name=optimizer, lr_g=2e-4, lr_d=2e-4)
    update = tiny.update(model, loss, penalty=penalty, optimizer=options)
    return Eager(update, lambda: torch.randn(6, 4))


def batches(seed: int, count: int = 3) -> list[Batch]:
    random = torch.Generator().manual_seed(seed)
    return [Batch(torch.rand(6, 1, 32, 32, generator=random) * 2 - 1) for _ in range(count)]


def stand_in(work: Callable[[], Results], undo: Callable[[], None]) -> tuple[Callable[[], None], Results]:
    """What a graph does, without a GPU: the same work on the same memory, results into the same tensors."""
    for _ in range(3):
        work()
    undo()
    results = work()
    undo()

    def replay() -> None:
        for old, new in zip(results, work(), strict=True):
            for f in fields(old):
                getattr(old, f.name).copy_(getattr(new, f.name))

    return replay, results


def everything(update: Update) -> list[Tensor]:
    return [*update.generator.state_dict().values(), *update.critic.state_dict().values(), update.diverged]


@pytest.mark.parametrize(("loss", "penalty", "optimizer"), SETTINGS)
def test_replays_are_bitwise_the_eager_updates(loss: str, penalty: str, optimizer: str) -> None:
    plain, recorded = eager(loss, penalty, optimizer), eager(loss, penalty, optimizer)
    captured = Captured(recorded, batches(0), capture=stand_in)
    last = []
    for iteration in (captured, plain):
        torch.manual_seed(3)
        for seed in range(4):
            critic, generator = iteration(batches(seed))
        last.append((critic.loss, critic.grad_norm, generator.loss, generator.images.sum()))
    assert last[0] == last[1]
    assert all(torch.equal(a, b) for a, b in zip(everything(plain.update), everything(recorded.update), strict=True))


def test_recording_changes_neither_the_update_nor_the_random_numbers() -> None:
    made = eager("ragan", "gp", "adam")
    made(batches(1))
    torch.manual_seed(5)
    before, moments = [t.clone() for t in everything(made.update)], made.update.optimizer_d.state_dict()["state"]
    kept = {k: {name: v.clone() for name, v in state.items()} for k, state in moments.items()}
    Captured(made, batches(0), capture=stand_in)
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))
    assert all(torch.equal(a, b) for a, b in zip(everything(made.update), before, strict=True))
    for k, state in made.update.optimizer_d.state_dict()["state"].items():
        assert all(torch.equal(v, kept[k][name]) for name, v in state.items())


def test_a_snapshot_puts_back_into_the_same_memory() -> None:
    update = eager("sgan", "none", "adam").update
    addresses = [p.data_ptr() for p in update.critic.parameters()]
    before = [p.detach().clone() for p in update.critic.parameters()]
    snapshot = Snapshot(update)
    update.update_critic(batches(0)[0], torch.randn(6, 4))
    assert not all(torch.equal(a, b) for a, b in zip(before, update.critic.parameters(), strict=True))
    snapshot.restore()
    assert all(torch.equal(a, b) for a, b in zip(before, update.critic.parameters(), strict=True))
    assert addresses == [p.data_ptr() for p in update.critic.parameters()]
    assert all(not v.any() for state in update.optimizer_d.state.values() for v in state.values())


def test_a_recording_that_computes_something_else_is_noticed() -> None:
    made = eager("ragan", "none", "adam")

    def wrong(reals: Any, **how: Any) -> Results:
        return eager("ralsgan", "none", "adam")(reals)

    reals = batches(0)
    assert agree(made, made, made.update, reals)
    assert not agree(made, wrong, made.update, reals)


def config(accumulate: int, beta2: float | None = None) -> Config:
    made = Config()
    made.train.accumulate, made.schedule.beta2 = accumulate, beta2
    return made


@pytest.mark.parametrize(
    ("name", "device", "config", "ranks", "want"),
    [
        ("auto", CPU, config(1), 1, "eager"),
        ("auto", CUDA, config(1), 1, "cudagraph"),
        ("auto", CUDA, config(2), 1, "eager"),
        ("auto", CUDA, config(1), 4, "eager"),
        ("auto", CUDA, config(1, beta2=0.99), 1, "eager"),
        ("eager", CUDA, config(1), 1, "eager"),
        ("compiled", CPU, config(1), 1, "compiled"),
        ("cudagraph", CUDA, config(1), 1, "cudagraph"),
    ],
)
def test_the_choice_of_engine(name: str, device: torch.device, config: Config, ranks: int, want: str) -> None:
    assert choose_engine(name, device, config, ranks=ranks) == want


@pytest.mark.parametrize(("device", "accumulate", "ranks"), [(CPU, 1, 1), (CUDA, 2, 1), (CUDA, 1, 2)])
def test_a_graph_that_cannot_be_is_refused(device: torch.device, accumulate: int, ranks: int) -> None:
    with pytest.raises(ConfigError, match=r"^engine: cudagraph .* \(accepted here: auto, eager, compiled\)$"):
        choose_engine("cudagraph", device, config(accumulate), ranks=ranks)


def test_a_failing_capture_falls_back_only_where_the_engine_was_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr("relgan.training.engine.Captured", fail)
    made = eager("sgan", "none", "adam")
    found = build_iteration("cudagraph", made, lambda: batches(0), chosen_by_user=False)
    assert found == ("eager", made)
    assert "operation not permitted" in caplog.text
    with pytest.raises(ConfigError, match="engine: cudagraph cannot be used here: operation not permitted"):
        build_iteration("cudagraph", made, lambda: batches(0), chosen_by_user=True)


def test_a_failing_capture_leaves_everything_as_it_was() -> None:
    made = eager("ragan", "gp", "adam")
    torch.manual_seed(5)
    before = [t.clone() for t in everything(made.update)]

    def fail(work: Callable[[], Results], undo: Callable[[], None]) -> tuple[Callable[[], None], Results]:
        work()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        Captured(made, batches(0), capture=fail)
    assert all(torch.equal(a, b) for a, b in zip(everything(made.update), before, strict=True))
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
@pytest.mark.parametrize(("loss", "penalty"), [("ragan", Penalty()), ("wgan_gp", tiny.penalty("gp", 1.0))])
def test_compiled_networks_make_the_eager_updates(loss: str, penalty: Penalty) -> None:
    """Plain descent, because Adam's first updates are signs, which rounding flips."""
    last = []
    for name in ("eager", "compiled"):
        made = eager(loss, "none", "adam")
        made.update.penalty = penalty
        for network, attribute in ((made.update.generator, "optimizer_g"), (made.update.critic, "optimizer_d")):
            setattr(made.update, attribute, torch.optim.SGD(network.parameters(), lr=0.1))
        torch.manual_seed(3)
        _, iteration = build_iteration(name, made, lambda: batches(0), chosen_by_user=True)
        for seed in range(3):
            iteration(batches(seed))
        last.append(everything(made.update))
    for got, want in zip(last[1], last[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


def test_moments_cross_between_engines_and_rates_stay_each_ones_own() -> None:
    """A graph reads the rate from a tensor, so it must stay that tensor."""
    config = OptimizerConfig(lr_d=0.25, betas=[0.5, 0.999])
    networks = build_networks(tiny.model(width=2, latent_dim=4), 32, 1)
    plain = build_optimizers(config, *networks)[1]
    captured = build_optimizers(config, *networks, captured=True)[1]
    tensor = captured.param_groups[0]["lr"]
    for parameter in networks[1].parameters():
        parameter.grad = torch.ones_like(parameter)
    plain.step()
    for source, target in ((plain, captured), (captured, plain)):
        load_optimizer_state(target, optimizer_state(source))
        assert tiny.differing(optimizer_state(source), optimizer_state(target)) == []
    assert captured.param_groups[0]["lr"] is tensor
    assert captured.param_groups[0]["capturable"] is True
    assert plain.param_groups[0]["lr"] == 0.25
    assert plain.param_groups[0]["betas"] == (0.5, 0.999)
    assert plain.param_groups[0]["capturable"] is False
