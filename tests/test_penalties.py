"""Penalties against the analytic gradients of linear and quadratic critics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import tiny
from relgan.networks import build_networks
from relgan.options import ConfigError
from relgan.penalties import build_penalty
from relgan.registry import PENALTIES, PenaltyOptions, register_penalty

SHAPE = (3, 4, 4)
GRADIENT_PENALTIES = ("gp", "r1", "r2", "r1r2", "dragan")


class Quadratic(nn.Module):
    """C(x) = ½ k‖x‖² + ⟨w, x⟩, so that ∇C(x) = k·x + w."""

    def __init__(self, curvature: float, slope: Tensor) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(curvature))
        self.slope = nn.Parameter(slope.clone())
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return (0.5 * self.curvature * x.square() + self.slope * x).flatten(1).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        return (self.curvature * x + self.slope).flatten(1)


@pytest.fixture
def critic() -> Quadratic:
    torch.manual_seed(0)
    return Quadratic(0.7, torch.randn(SHAPE))


def images(n: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def expected(name: str, weight: float, critic: Quadratic, real: Tensor, fake: Tensor) -> Tensor:
    """Each row of the table, from the closed form of the gradient and the points the critic was shown."""

    def squares(x: Tensor) -> Tensor:
        return torch.stack([row.dot(row) for row in critic.gradient(x)])

    if name in ("gp", "dragan"):
        (point,) = critic.seen
        return weight * ((squares(point).sqrt() - 1) ** 2).mean()
    at_real, at_fake = weight / 2 * squares(real).mean(), weight / 2 * squares(fake).mean()
    return {"r1": at_real, "r2": at_fake, "r1r2": at_real + at_fake}[name]


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_value_and_gradient_equal_the_closed_form(name: str, critic: Quadratic) -> None:
    real, fake = images(6, 1), images(6, 2, scale=2.0)
    penalty = tiny.penalty(name, 3.0)(critic, real, fake)
    want = expected(name, 3.0, critic, real, fake)
    assert penalty.shape == ()
    torch.testing.assert_close(penalty, want)
    parameters = list(critic.parameters())
    for got, reference in zip(
        torch.autograd.grad(penalty, parameters), torch.autograd.grad(want, parameters), strict=True
    ):
        torch.testing.assert_close(got, reference)


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("name", ["gp", "dragan"])
def test_a_1_lipschitz_critic_pays_nothing_at_any_batch_size(name: str, batch: int) -> None:
    """One norm over the whole batch would be √batch instead of 1."""
    slope = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    critic = Quadratic(0.0, slope / slope.norm())
    assert tiny.penalty(name, 10.0)(critic, images(batch, 1), images(batch, 2)).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize(("name", "want"), [("r1", 0.5), ("r2", 0.5), ("r1r2", 1.0), ("gp", 0.0)])
def test_zero_centered_penalties_have_the_half(name: str, want: float, batch: int) -> None:
    """γ = 1 and a gradient of norm 1 everywhere: ½ at each place."""
    critic = Quadratic(0.0, torch.full(SHAPE, 1 / 48**0.5))
    value = tiny.penalty(name, 1.0)(critic, images(batch, 1), images(batch, 2))
    assert value.item() == pytest.approx(want, abs=1e-6)


def test_gp_draws_one_u_per_sample_on_the_segment(critic: Quadratic) -> None:
    real, fake = images(64, 1), images(64, 2)
    tiny.penalty("gp", 10.0)(critic, real, fake)
    shares = ((critic.seen[0] - fake) / (real - fake)).flatten(1)
    u = shares.median(dim=1).values
    torch.testing.assert_close(critic.seen[0], torch.lerp(fake, real, u[:, None, None, None]))
    assert ((u >= 0) & (u <= 1)).all()
    assert 0.2 < u.std().item() < 0.4
    assert len(u.unique()) == 64


def test_dragan_stays_near_the_real_images(critic: Quadratic) -> None:
    real = images(64, 1, scale=3.0)
    tiny.penalty("dragan", 10.0)(critic, real, images(64, 2))
    shift = (critic.seen[0] - real).flatten(1) / (0.5 * real.std())
    assert shift.min() >= -1e-5
    assert shift.max() <= 1
    # α per sample times u per value: the samples' means are α/2, and values differ within a sample.
    alpha = 2 * shift.mean(dim=1)
    assert 0.2 < alpha.std().item() < 0.4
    assert (shift.std(dim=1) > 0.1 * alpha).all()


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_nothing_flows_to_the_images(name: str, critic: Quadratic) -> None:
    real, fake = images(4, 1).requires_grad_(), images(4, 2).requires_grad_()
    tiny.penalty(name, 1.0)(critic, real, fake).backward()
    assert real.grad is None
    assert fake.grad is None
    assert critic.slope.grad is not None


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_a_constant_critic_gives_finite_gradients(name: str) -> None:
    critic = Quadratic(0.0, torch.zeros(SHAPE))
    tiny.penalty(name, 1.0)(critic, images(4, 1), images(4, 2)).backward()
    assert critic.slope.grad is not None
    assert torch.isfinite(critic.slope.grad).all()


@pytest.mark.parametrize(("name", "want"), [("gp", "gp"), ("dragan", "gp"), ("r1", "r1"), ("r1r2", "r1r2")])
def test_the_norm_is_taken_in_float32(name: str, want: str) -> None:
    """The gradient is known to bfloat16's 8 bits, but nothing is lost after it."""
    slope = images(1, 3)[0].bfloat16()
    critic = Quadratic(0.0, slope).bfloat16()
    value = tiny.penalty(name, 1.0)(critic, images(4, 1).bfloat16(), images(4, 2).bfloat16())
    norm = slope.double().norm()
    exact = {"gp": (norm - 1) ** 2, "r1": norm**2 / 2, "r1r2": norm**2}[want]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_autocast(name: str) -> None:
    torch.manual_seed(0)
    _, critic = build_networks(tiny.model(width=8), 32, 3)
    critic.eval()
    real, fake = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)

    def value(enabled: bool) -> Tensor:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return tiny.penalty(name, 1.0)(critic, real, fake)

    low, full = value(True), value(False)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full, rtol=0.05, atol=1e-5)
    low.backward()


@pytest.mark.parametrize("model", ["dcgan", "cnn32"])
@pytest.mark.parametrize("activation", ["default", "selu", "tanh"])
@pytest.mark.parametrize("spectral", [False, True])
def test_networks_can_be_differentiated_twice(model: str, activation: str, spectral: bool) -> None:
    torch.manual_seed(0)
    options = tiny.model(model, width=4, activation=activation, spectral_norm=spectral)
    _, critic = build_networks(options, 32, 1)
    real, fake = torch.rand(3, 1, 32, 32), torch.rand(3, 1, 32, 32)
    tiny.penalty("r1r2", 1.0)(critic, real, fake).backward()
    gradients = [p.grad for name, p in critic.named_parameters() if name.endswith(("weight", "original"))]
    assert all(g is not None and bool(torch.isfinite(g).all()) and bool(g.any()) for g in gradients)


def test_clip_clamps_after_the_step_and_adds_nothing() -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Flatten(0))
    penalty = tiny.penalty("clip", 0.03)
    before = {name: p.detach().clone() for name, p in critic.named_parameters()}
    term = penalty(critic, images(2, 1), images(2, 2))
    assert term.item() == 0
    for name, p in critic.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=0)
    penalty.after_step(critic)
    for name, p in critic.named_parameters():
        torch.testing.assert_close(p.detach(), before[name].clamp(-0.03, 0.03), rtol=0, atol=0)


@pytest.mark.parametrize("name", GRADIENT_PENALTIES)
def test_other_penalties_leave_parameters_alone(name: str, critic: Quadratic) -> None:
    before = critic.slope.detach().clone()
    tiny.penalty(name, 1.0).after_step(critic)
    torch.testing.assert_close(critic.slope.detach(), before, rtol=0, atol=0)


def test_gp_refuses_batches_it_cannot_mix(critic: Quadratic) -> None:
    with pytest.raises(ValueError, match="gp mixes real with fake"):
        tiny.penalty("gp", 1.0)(critic, images(4, 1), images(1, 2))


def test_without_a_penalty_nothing_is_regularised(critic: Quadratic) -> None:
    none = tiny.penalty("none")
    before = critic.slope.detach().clone()
    assert none.points(images(2, 1), images(2, 2)) == ()
    assert none(critic, images(2, 1), images(2, 2)).item() == 0
    none.after_step(critic)
    assert not critic.seen
    assert torch.equal(critic.slope, before)


def test_every_penalty_has_the_published_weight() -> None:
    weights = {name: getattr(entry.options, "weight", None) for name, entry in PENALTIES.items()}
    assert weights == {
        "none": None,
        "gp": 10,
        "r1": 1,
        "r2": 1,
        "r1r2": 1,
        "dragan": 10,
        "clip": 0.01,
    }
    built = {name: build_penalty(entry.options) for name, entry in PENALTIES.items()}
    for name in ("gp", "r1", "r2", "r1r2", "dragan"):
        assert vars(built[name])["weight"] == weights[name]
    assert vars(built["clip"])["bound"] == weights["clip"]


def test_clipping_alone_asks_something_of_the_networks() -> None:
    conf = Path(__file__).parents[1] / "conf"
    assert not (conf / "penalty").exists()
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (conf / "base" / "penalty_model").glob("*.yaml")}
    assert files == {f"clip_{model}": {"model": {"spectral_norm": False}} for model in ("dcgan", "cnn32")}


def test_an_unknown_penalty_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^penalty\.name: 'r3' is not one of none, gp, .*clip"):
        build_penalty(PenaltyOptions("r3"))


@pytest.mark.usefixtures("_registries")
def test_what_is_no_penalty_is_refused_when_it_is_built() -> None:
    def mine(options: PenaltyOptions) -> Any:
        return lambda critic, real, fake: 0.0

    register_penalty("mine", builder=mine)
    with pytest.raises(ConfigError, match=r"^penalty\.name: mine builds a function, not a relgan\.penalties\.Penalty$"):
        build_penalty(PENALTIES["mine"].options)
