"""Penalties against the analytic gradients of linear and quadratic critics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tiny
from relgan import distributed, penalties
from relgan.networks import build_networks
from relgan.options import ConfigError
from relgan.penalties import ApproximatePenalty, ZeroCenteredPenalty, build_penalty
from relgan.registry import PENALTIES, PenaltyOptions, register_penalty

SHAPE = (3, 4, 4)
GRADIENT_PENALTIES = ("gp", "r1", "r2", "r1r2", "dragan")
APPROXIMATIONS = ("ar1", "ar2", "ar1r2")
WITH_TERMS = (*GRADIENT_PENALTIES, *APPROXIMATIONS)


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


@pytest.mark.parametrize("name", WITH_TERMS)
def test_nothing_flows_to_the_images(name: str, critic: Quadratic) -> None:
    real, fake = images(4, 1).requires_grad_(), images(4, 2).requires_grad_()
    tiny.penalty(name, 1.0)(critic, real, fake).backward()
    assert real.grad is None
    assert fake.grad is None
    assert critic.slope.grad is not None


@pytest.mark.parametrize("name", WITH_TERMS)
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


# --- approximations ---


def many(x: Tensor) -> Tensor:
    """One image often enough for the mean over the noise to be known to about one percent."""
    return x.expand(20_000, *x.shape[1:])


@pytest.mark.parametrize("sigma", [0.01, 1.0])
@pytest.mark.parametrize(("name", "want"), [("ar1", 0.5), ("ar2", 0.5), ("ar1r2", 1.0)])
def test_of_a_linear_critic_they_are_exact_whatever_the_noise(name: str, want: float, sigma: float) -> None:
    critic = Quadratic(0.0, torch.full(SHAPE, 1 / 48**0.5))
    torch.manual_seed(0)
    options = dataclasses.replace(PENALTIES[name].options, sigma=sigma)  # type: ignore[call-arg]
    value = build_penalty(options)(critic, many(images(1, 1)), many(images(1, 2)))
    assert value.item() == pytest.approx(want, rel=0.05)


def test_curvature_adds_what_it_must(critic: Quadratic) -> None:
    """E[(σ⟨n, ∇C⟩ + ½kσ²‖n‖²)²]/σ² = ‖∇C‖² + (kσ/2)²·d(d + 2) in d dimensions."""
    torch.manual_seed(0)
    x, sigma = images(1, 1), 0.5
    options = dataclasses.replace(PENALTIES["ar1"].options, weight=2.0, sigma=sigma)  # type: ignore[call-arg]
    value = build_penalty(options)(critic, many(x), many(x))
    exact = critic.gradient(x).square().sum() + (critic.curvature * sigma / 2) ** 2 * 48 * 50
    assert value.item() == pytest.approx(exact.item(), rel=0.05)


def test_of_a_network_value_and_gradient_are_those_of_r1_and_r2() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).double()
    real, fake = torch.randn(2, 5, *SHAPE, dtype=torch.float64).unbind()
    exact = ZeroCenteredPenalty(3.0)(critic, real, fake)
    close = ApproximatePenalty(3.0, sigma=1e-3)(critic, real.repeat(4000, 1, 1, 1), fake.repeat(4000, 1, 1, 1))
    assert close.item() == pytest.approx(exact.item(), rel=0.05)
    # The logit's own bias has no part in either.
    parameters = list(critic.parameters())[:-1]
    for got, want in zip(torch.autograd.grad(close, parameters), torch.autograd.grad(exact, parameters), strict=True):
        assert (got - want).norm() < 0.05 * want.norm()


def test_each_image_has_noise_of_its_own(critic: Quadratic) -> None:
    real, fake = images(64, 1), images(64, 2)
    ApproximatePenalty(sigma=0.1)(critic, real, fake)
    noise = torch.cat([critic.seen[1] - real, critic.seen[3] - fake]) / 0.1
    assert torch.equal(critic.seen[0], real)
    assert torch.equal(critic.seen[2], fake)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert len(noise.flatten(1).unique(dim=0)) == 128


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_the_mean_of_parts_is_the_whole(name: str, critic: Quadratic) -> None:
    penalty = tiny.penalty(name)
    for points in penalty.points(images(6, 1), images(6, 2)):
        parts = torch.stack([penalty.term(critic, part) for part in points.chunk(3)])
        torch.testing.assert_close(parts.mean(), penalty.term(critic, points))


@pytest.mark.parametrize("name", ["gp", *APPROXIMATIONS])
def test_two_ranks_draw_the_numbers_of_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    penalty, real, fake = tiny.penalty(name), images(6, 1), images(6, 2)

    def points(part: slice) -> list[Tensor]:
        torch.manual_seed(1)
        return list(penalty.points(real[part], fake[part]))

    whole = points(slice(6))
    for module in (distributed, penalties):
        monkeypatch.setattr(module, "world_size", lambda: 2)
    for rank, part in enumerate((slice(3), slice(3, 6))):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert all(torch.equal(got, group[part]) for got, group in zip(points(part), whole, strict=True))


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_both_passes_are_in_float32_under_autocast(name: str) -> None:
    """In bfloat16 their difference would be rounding."""
    torch.manual_seed(0)
    _, critic = build_networks(tiny.model(width=4), 32, 3)
    critic.eval()
    real, fake = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)

    values = []
    for enabled in (True, False):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values.append(tiny.penalty(name)(critic, real, fake))
    assert torch.equal(*values)


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_both_passes_have_the_same_spectral_norms(name: str) -> None:
    torch.manual_seed(0)
    _, critic = build_networks(tiny.model(width=4, spectral_norm=True), 32, 3)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    real, fake = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)
    torch.manual_seed(1)
    value = tiny.penalty(name).term(critic, tiny.penalty(name).points(real, fake)[0])
    critic.eval()  # as the first pass has left them
    torch.manual_seed(1)
    assert torch.equal(value, tiny.penalty(name).term(critic, tiny.penalty(name).points(real, fake)[0]))


class Cube(torch.autograd.Function):
    """x³ as custom kernels often are: with a first derivative only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative")
        return gradient * 3 * ctx.saved_tensors[0] ** 2


def test_the_critic_need_not_be_differentiable_twice() -> None:
    slope = nn.Parameter(images(1, 3)[0])

    def critic(x: Tensor) -> Tensor:
        logits: Tensor = Cube.apply(slope * x).flatten(1).sum(dim=1)
        return logits

    with pytest.raises(RuntimeError, match="no second derivative"):
        tiny.penalty("r1r2")(critic, images(2, 1), images(2, 2)).backward()
    tiny.penalty("ar1r2")(critic, images(2, 1), images(2, 2)).backward()
    assert slope.grad is not None
    assert slope.grad.isfinite().all()
    assert slope.grad.any()


@pytest.mark.parametrize("name", WITH_TERMS)
def test_the_logits_of_an_images_patches_count_together(name: str, critic: Quadratic) -> None:
    def column(x: Tensor) -> Tensor:
        return critic(x)[:, None]

    def patches(x: Tensor) -> Tensor:
        return (0.5 * critic.curvature * x.square() + critic.slope * x).sum(dim=1, keepdim=True)

    values = []
    for each in (critic, column, patches):
        torch.manual_seed(1)
        values.append(tiny.penalty(name)(each, images(4, 1), images(4, 2)))
    torch.testing.assert_close(values[1:], 2 * values[:1], rtol=1e-3, atol=1e-6)


# --- all of them ---


@pytest.mark.parametrize(("share", "batch", "looked_at"), [(0.25, 8, 2), (0.29, 100, 29), (0.1, 3, 1)])
@pytest.mark.parametrize("name", ["r1r2", "ar1r2"])
def test_a_share_of_the_images_is_the_first_of_them(name: str, share: float, batch: int, looked_at: int) -> None:
    critic = Quadratic(0.7, images(1, 3)[0])
    real, fake = images(batch, 1), images(batch, 2)
    torch.manual_seed(1)
    options = dataclasses.replace(PENALTIES[name].options, share=share)  # type: ignore[call-arg]
    value = build_penalty(options)(critic, real, fake)
    assert {len(x) for x in critic.seen} == {looked_at}
    torch.manual_seed(1)
    assert torch.equal(value, tiny.penalty(name)(critic, real[:looked_at], fake[:looked_at]))


@pytest.mark.parametrize("name", WITH_TERMS)
def test_nothing_is_read_back_from_the_device(name: str) -> None:
    """Tensors without values stand in for those of a device: to ask for one is an error."""
    with FakeTensorMode():
        critic = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
        tiny.penalty(name)(critic, torch.rand(4, *SHAPE), torch.rand(4, *SHAPE)).backward()


@pytest.mark.parametrize("name", PENALTIES)
def test_the_interval_is_an_option_of_what_has_a_term(name: str) -> None:
    options = PENALTIES[name].options
    assert build_penalty(options).interval == 1
    if name in WITH_TERMS:
        assert build_penalty(dataclasses.replace(options, interval=4)).interval == 4  # type: ignore[call-arg]
    else:
        assert not hasattr(options, "interval")


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


@pytest.mark.parametrize("name", WITH_TERMS)
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
        "ar1": 1,
        "ar2": 1,
        "ar1r2": 1,
        "dragan": 10,
        "clip": 0.01,
    }
    built = {name: build_penalty(entry.options) for name, entry in PENALTIES.items()}
    for name in WITH_TERMS:
        assert vars(built[name])["weight"] == weights[name]
    assert vars(built["clip"])["bound"] == weights["clip"]


def test_clipping_alone_asks_something_of_the_networks() -> None:
    conf = Path(__file__).parents[1] / "conf"
    assert not (conf / "penalty").exists()
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (conf / "base" / "penalty_model").glob("*.yaml")}
    # The second is the first, included.
    asked = {"model": {"spectral_norm": False}}
    assert files == {"clip_dcgan": asked, "clip_cnn32": {"defaults": ["clip_dcgan"]}}


def test_an_unknown_penalty_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^penalty\.name: 'r3' is not one of none, gp, .*clip"):
        build_penalty(PenaltyOptions("r3"))


def test_what_is_no_penalty_is_refused_when_it_is_built() -> None:
    def mine(options: PenaltyOptions) -> Any:
        return lambda critic, real, fake: 0.0

    register_penalty("mine", builder=mine)
    with pytest.raises(ConfigError, match=r"^penalty\.name: mine builds a function, not a relgan\.penalties\.Penalty$"):
        build_penalty(PENALTIES["mine"].options)
