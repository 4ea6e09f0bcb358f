"""Every row of the papers' tables against numpy, its gradients against finite differences."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

import processes
from relgan.config import resolve
from relgan.losses import LOSSES, TWO_TERM_FORMS, AdversarialLoss, Loss, build_loss, flat_logits, get_loss
from relgan.options import ConfigError, Options
from relgan.registry import TwoTermOptions, register_cost, register_loss

Vector = NDArray[np.float64]
Formula = Callable[[Vector, Vector], Any]

CONF = Path(__file__).parents[1] / "conf"

# Asymmetric, on both sides of the hinges' kinks and of each other, none within 0.01 of a kink.
REAL = np.array([2.3, -0.7, 0.35, 4.1, -1.9])
FAKE = np.array([-3.2, 0.45, 1.7, -0.2, 0.9])


def sp(a: Vector) -> Vector:
    return np.logaddexp(0.0, a)


def pos(a: Vector) -> Vector:
    return np.maximum(a, 0.0)


def pairs(r: Vector, f: Vector) -> Vector:
    return np.array([[ri - fj for fj in f] for ri in r])


def mid(r: Vector, f: Vector) -> float:
    return float((np.mean(r) + np.mean(f)) / 2)


# One row per line of the tables, written out: discriminator, generator.
ROWS: dict[str, tuple[Formula, Formula]] = {
    "sgan": (lambda r, f: sp(-r).mean() + sp(f).mean(), lambda r, f: sp(-f).mean()),
    "sgan_saturating": (lambda r, f: sp(-r).mean() + sp(f).mean(), lambda r, f: -sp(f).mean()),
    "lsgan": (lambda r, f: ((r - 1) ** 2).mean() + (f**2).mean(), lambda r, f: ((f - 1) ** 2).mean()),
    "hinge": (lambda r, f: pos(1 - r).mean() + pos(1 + f).mean(), lambda r, f: -f.mean()),
    "wgan": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
    "rsgan": (lambda r, f: sp(-(r - f)).mean(), lambda r, f: sp(-(f - r)).mean()),
    "rlsgan": (lambda r, f: ((r - f - 1) ** 2).mean(), lambda r, f: ((f - r - 1) ** 2).mean()),
    "rhinge": (lambda r, f: pos(1 - (r - f)).mean(), lambda r, f: pos(1 - (f - r)).mean()),
    "rasgan": (
        lambda r, f: (sp(-(r - f.mean())).mean() + sp(f - r.mean()).mean()) / 2,
        lambda r, f: (sp(r - f.mean()).mean() + sp(-(f - r.mean())).mean()) / 2,
    ),
    "ralsgan": (
        lambda r, f: (((r - f.mean() - 1) ** 2).mean() + ((f - r.mean() + 1) ** 2).mean()) / 2,
        lambda r, f: (((r - f.mean() + 1) ** 2).mean() + ((f - r.mean() - 1) ** 2).mean()) / 2,
    ),
    "rahinge": (
        lambda r, f: (pos(1 - (r - f.mean())).mean() + pos(1 + (f - r.mean())).mean()) / 2,
        lambda r, f: (pos(1 + (r - f.mean())).mean() + pos(1 - (f - r.mean())).mean()) / 2,
    ),
    "rcsgan": (
        lambda r, f: sp(-(r - mid(r, f))).mean() + sp(f - mid(r, f)).mean(),
        lambda r, f: sp(r - mid(r, f)).mean() + sp(-(f - mid(r, f))).mean(),
    ),
    "rclsgan": (
        lambda r, f: ((r - mid(r, f) - 1) ** 2).mean() + ((f - mid(r, f) + 1) ** 2).mean(),
        lambda r, f: ((r - mid(r, f) + 1) ** 2).mean() + ((f - mid(r, f) - 1) ** 2).mean(),
    ),
    "rchinge": (
        lambda r, f: pos(1 - (r - mid(r, f))).mean() + pos(1 + (f - mid(r, f))).mean(),
        lambda r, f: pos(1 + (r - mid(r, f))).mean() + pos(1 - (f - mid(r, f))).mean(),
    ),
    "rsgan_allpairs": (
        lambda r, f: 2 * sp(-pairs(r, f)).mean(),
        lambda r, f: 2 * sp(pairs(r, f)).mean(),
    ),
    "rlsgan_allpairs": (
        lambda r, f: 2 * ((pairs(r, f) - 1) ** 2).mean(),
        lambda r, f: 2 * ((-pairs(r, f) - 1) ** 2).mean(),
    ),
    "rhinge_allpairs": (
        lambda r, f: 2 * pos(1 - pairs(r, f)).mean(),
        lambda r, f: 2 * pos(1 + pairs(r, f)).mean(),
    ),
}
SAME_AS = {
    "ragan": "rasgan",
    "wgan_gp": "wgan",
    "rsgan_gp": "rsgan",
    "rasgan_gp": "rasgan",
    "rpgan_r1r2": "rsgan",
}
NAMES = tuple(LOSSES)
TWO_TERM_LOSSES = tuple(name for name, entry in LOSSES.items() if entry.facts.form in TWO_TERM_FORMS)
NOT_RELATIVISTIC = {"sgan", "sgan_saturating", "lsgan", "hinge", "wgan", "wgan_gp"}


def row(name: str) -> tuple[Formula, Formula]:
    return ROWS[SAME_AS.get(name, name)]


def slopes(formula: Formula, r: Vector, f: Vector) -> tuple[Vector, Vector]:
    """Central finite differences of a formula with respect to each logit."""

    def by(x: Vector, call: Callable[[Vector], Any]) -> Vector:
        step = 1e-6
        return np.array([(call(x + step * unit) - call(x - step * unit)) / (2 * step) for unit in np.eye(len(x))])

    return by(r, lambda x: formula(x, f)), by(f, lambda x: formula(r, x))


def leaf(values: Vector) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def value_and_gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, Vector, Vector]:
    r, f = leaf(REAL), leaf(FAKE)
    value = loss(r, f)
    assert value.shape == ()
    gradients = torch.autograd.grad(value, (r, f), allow_unused=True)
    by_r, by_f = (np.zeros(len(REAL)) if g is None else g.numpy() for g in gradients)
    return value.item(), by_r, by_f


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["discriminator", "generator"])
def test_value_and_both_gradients_equal_the_table(name: str, side: str) -> None:
    formula = row(name)[side == "generator"]
    value, by_r, by_f = value_and_gradients(getattr(get_loss(name), side))
    want_r, want_f = slopes(formula, REAL, FAKE)
    assert value == pytest.approx(float(formula(REAL, FAKE)), abs=1e-12)
    np.testing.assert_allclose(by_r, want_r, atol=1e-8)
    np.testing.assert_allclose(by_f, want_f, atol=1e-8)


@pytest.mark.parametrize("name", [n for n in NAMES if LOSSES[n].facts.form not in ("standard", "paired")])
def test_batches_of_different_length(name: str) -> None:
    r, f = REAL[:3], FAKE
    loss = get_loss(name)
    assert loss.discriminator(leaf(r), leaf(f)).item() == pytest.approx(float(row(name)[0](r, f)), abs=1e-12)
    assert loss.generator(leaf(r), leaf(f)).item() == pytest.approx(float(row(name)[1](r, f)), abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_only_relativistic_losses_ignore_a_shift_of_all_logits(name: str) -> None:
    loss = get_loss(name)
    r, f = leaf(REAL), leaf(FAKE)
    change_d = (loss.discriminator(r + 2.5, f + 2.5) - loss.discriminator(r, f)).abs().item()
    change_g = (loss.generator(r + 2.5, f + 2.5) - loss.generator(r, f)).abs().item()
    if name not in NOT_RELATIVISTIC:
        assert change_d < 1e-12
        assert change_g < 1e-12
    else:
        # The Wasserstein critic compares means, which a shift leaves alone; no standard generator does.
        assert (change_d < 1e-12) == name.startswith("wgan")
        assert change_g > 0.1


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("real", "fake", "absolute", "relative"),
    [(8.0, -5.0, sigmoid(8), sigmoid(13)), (8.0, 7.0, sigmoid(8), 0.73), (-3.0, -5.0, 0.05, 0.88)],
)
def test_bread_and_dog(real: float, fake: float, absolute: float, relative: float) -> None:
    """How real the bread looks by itself, and how real beside the dog."""
    logits = torch.tensor([real]), torch.tensor([fake])
    assert get_loss("sgan").probabilities(*logits)[0].item() == pytest.approx(absolute, abs=0.005)
    for name in ("rsgan", "rasgan", "rsgan_allpairs"):
        prob_real, prob_fake = get_loss(name).probabilities(*logits)
        assert prob_real.item() == pytest.approx(relative, abs=0.005)
        assert prob_fake.item() == pytest.approx(1 - prob_real.item(), abs=1e-6)


def test_probabilities_are_means_over_what_the_loss_compares() -> None:
    prob_real, prob_fake = get_loss("rasgan").probabilities(leaf(REAL), leaf(FAKE))
    assert prob_real.item() == pytest.approx(np.mean(1 / (1 + np.exp(-(REAL - FAKE.mean())))))
    assert prob_fake.item() == pytest.approx(np.mean(1 / (1 + np.exp(-(FAKE - REAL.mean())))))
    assert not prob_real.requires_grad


# --- published mistakes ---

MISTAKES: dict[str, tuple[str, str, Callable[[Tensor, Tensor], Tensor]]] = {
    "generator's real term dropped": (
        "rasgan",
        "generator",
        lambda r, f: torch.nn.functional.softplus(-(f - r.mean())).mean() / 2,
    ),
    "generator's fake term dropped": (
        "rasgan",
        "generator",
        lambda r, f: torch.nn.functional.softplus(r - f.mean()).mean() / 2,
    ),
    "f̄ − r for f − r̄ (RaSGAN)": (
        "rasgan",
        "discriminator",
        lambda r, f: (
            (torch.nn.functional.softplus(-(r - f.mean())).mean() + torch.nn.functional.softplus(f.mean() - r).mean())
            / 2
        ),
    ),
    "f̄ − r for f − r̄ (RaLSGAN)": (
        "ralsgan",
        "discriminator",
        lambda r, f: ((r - f.mean() - 1).square().mean() + (f.mean() - r + 1).square().mean()) / 2,
    ),
    "means detached": (
        "ralsgan",
        "generator",
        lambda r, f: ((r - f.mean().detach() + 1).square().mean() + (f - r.mean().detach() - 1).square().mean()) / 2,
    ),
    "½ missing": (
        "ralsgan",
        "discriminator",
        lambda r, f: (r - f.mean() - 1).square().mean() + (f - r.mean() + 1).square().mean(),
    ),
    "LSGAN's standard target 0 in a relativistic form": (
        "ralsgan",
        "discriminator",
        lambda r, f: ((r - f.mean() - 1).square().mean() + (f - r.mean()).square().mean()) / 2,
    ),
    "hinge in the standard generator": ("hinge", "generator", lambda r, f: torch.relu(1 - f).mean()),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_published_mistakes_are_told_apart(mistake: str) -> None:
    """The right formula passes the comparison with the table above; each wrong one is far from it."""
    name, side, wrong = MISTAKES[mistake]
    wrong_value, wrong_r, wrong_f = value_and_gradients(wrong)
    value, by_r, by_f = value_and_gradients(getattr(get_loss(name), side))
    gradient_error = np.abs(np.concatenate([wrong_r - by_r, wrong_f - by_f])).max()
    assert gradient_error > 0.03
    if mistake != "means detached":
        assert abs(wrong_value - value) > 0.03


def test_generator_terms_keep_their_weight() -> None:
    r, f = leaf(REAL), leaf(FAKE)
    for name in TWO_TERM_LOSSES:
        kept = {
            terms: get_loss(name, generator_terms=terms).generator(r, f).item() for terms in ("both", "fake", "real")
        }
        assert kept["fake"] + kept["real"] == pytest.approx(kept["both"], abs=1e-12)
    a = FAKE - REAL.mean()
    assert get_loss("rasgan", generator_terms="fake").generator(r, f).item() == pytest.approx(sp(-a).mean() / 2)
    assert get_loss("ralsgan", generator_terms="fake").generator(r, f).item() == pytest.approx(
        ((a - 1) ** 2).mean() / 2
    )


@pytest.mark.parametrize(
    ("name", "standard"),
    [
        ("rasgan", "sgan"),
        ("ralsgan", "lsgan"),
        ("rahinge", "hinge"),
        ("rcsgan", "sgan"),
        ("rchinge", "hinge"),
    ],
)
def test_standard_generator_against_a_relativistic_critic(name: str, standard: str) -> None:
    r, f = leaf(REAL), leaf(FAKE)
    mixed = get_loss(name, generator_terms="standard")
    assert mixed.generator(None, f).item() == pytest.approx(float(ROWS[standard][1](REAL, FAKE)), abs=1e-12)
    assert mixed.discriminator(r, f).item() == pytest.approx(float(ROWS[name][0](REAL, FAKE)), abs=1e-12)
    assert not mixed.needs_real_for_generator


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("terms", ["fake", "real", "standard"])
def test_generator_terms_are_refused_by_name_elsewhere(name: str, terms: str) -> None:
    values = {"loss": {"name": name, "generator_terms": terms}}
    if name in TWO_TERM_LOSSES:
        assert resolve(values).loss == TwoTermOptions(name, terms)
        assert loss_of_table(name, generator_terms=terms).generator_terms == terms
        return
    with pytest.raises(ConfigError, match=r"^loss\.generator_terms: .*with this loss; these have it: .*rasgan"):
        resolve(values)
    with pytest.raises(ConfigError, match=rf"^loss\.generator_terms: {name} "):
        get_loss(name, generator_terms=terms)
    with pytest.raises(ConfigError, match=f"loss.generator_terms: .*loss={name}"):
        dataclasses.replace(loss_of_table(name), generator_terms=terms)


def loss_of_table(name: str, **options: str) -> AdversarialLoss:
    loss = get_loss(name, **options)
    assert isinstance(loss, AdversarialLoss)
    return loss


def test_unknown_names_are_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"^loss\.name: 'rasgn' is not one of sgan, .*rpgan_r1r2; did you mean rasgan\?$"
    ):
        get_loss("rasgn")
    with pytest.raises(ConfigError, match=r"^loss\.generator_terms: 'all' is not one of both, fake"):
        get_loss("rasgan", generator_terms="all")
    with pytest.raises(ConfigError, match=r"^loss\.margin: rasgan has no such option$"):
        get_loss("rasgan", margin=2)
    with pytest.raises(ConfigError, match=r"^loss\.lecam: rasgan has no such option$"):
        get_loss("rasgan", generator_terms="fake", lecam=0.3)


# --- the registry ---


def test_the_registry_is_the_table() -> None:
    assert set(LOSSES) == ROWS.keys() | SAME_AS.keys()
    assert all(loss_of_table(name).name == name for name in NAMES)
    assert all(isinstance(LOSSES[name].options, TwoTermOptions) == (name in TWO_TERM_LOSSES) for name in NAMES)
    assert all(LOSSES[name].facts.form == loss_of_table(name).form for name in NAMES)


def test_conf_brings_penalties_and_nothing_else() -> None:
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CONF / "loss").glob("*.yaml")}
    assert files == {
        name: {"defaults": [{"override /penalty@_global_.penalty": penalty}]}
        for name, penalty in {
            "wgan": "clip",
            "wgan_gp": "gp",
            "rsgan_gp": "gp",
            "rasgan_gp": "gp",
            "rpgan_r1r2": "r1r2",
        }.items()
    }
    assert files.keys() < set(NAMES)


def test_a_cost_of_ones_own_makes_a_loss_of_each_form() -> None:
    register_cost("mine", lambda form: loss_of_table("rlsgan").cost, forms=("paired", "centered"))
    assert set(LOSSES) - set(NAMES) == {"rmine", "rcmine"}
    r, f = leaf(REAL), leaf(FAKE)
    for mine, known in (("rmine", "rlsgan"), ("rcmine", "rclsgan")):
        assert get_loss(mine).generator(r, f).item() == get_loss(known).generator(r, f).item()
    assert get_loss("rcmine", generator_terms="fake").generator(r, f).item() > 0


class Vector(Loss):
    """Forgets the mean."""

    def __init__(self, options: Options) -> None:
        """Nothing to set."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return flat_logits(fake_logits) - flat_logits(real_logits)

    def generator(self, real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
        return -flat_logits(fake_logits).mean()


class Detached(Vector):
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return super().discriminator(real_logits, fake_logits).mean().detach()


class Number(Vector):
    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Any:
        return 0.0


@pytest.mark.parametrize(
    ("builder", "problem"),
    [
        (Vector, r"mine\.discriminator must return a scalar with a graph, got shape \(4,\)"),
        (Detached, r"mine\.discriminator must return a scalar with a graph, got shape \(\)"),
        (Number, r"mine\.discriminator must return a scalar with a graph, got float"),
        (lambda options: torch.nn.Identity(), r"mine builds a Identity, not a relgan\.losses\.Loss"),
    ],
)
def test_what_is_no_loss_is_refused_when_it_is_built(builder: Callable[..., Any], problem: str) -> None:
    register_loss("mine", builder=builder)
    with pytest.raises(ConfigError, match=f"^loss\\.name: {problem}$"):
        build_loss(LOSSES["mine"].options)


# --- what the generator's step may rely on ---


@pytest.mark.parametrize("name", NAMES)
def test_needs_real_for_generator_is_true_exactly_when_it_depends_on_it(name: str) -> None:
    loss = get_loss(name)
    r, f = leaf(REAL), leaf(FAKE)
    assert loss.needs_real_for_generator == (name not in NOT_RELATIVISTIC)
    if loss.needs_real_for_generator:
        assert loss.generator(r, f).item() != loss.generator(r + 1, f).item()
        with pytest.raises(ValueError, match="needs the real logits"):
            loss.generator(None, f)
    else:
        assert loss.generator(None, f).item() == loss.generator(r, f).item()


@pytest.mark.parametrize("name", NAMES)
def test_pull_is_the_derivative_whatever_the_batch_size(name: str) -> None:
    loss = get_loss(name)
    want_r, want_f = slopes(row(name)[0], REAL, FAKE)
    pull_r, pull_f = loss.pull(leaf(REAL), leaf(FAKE))
    assert pull_r.item() == pytest.approx(np.abs(want_r).sum(), abs=1e-7)
    assert pull_f.item() == pytest.approx(np.abs(want_f).sum(), abs=1e-7)
    doubled = loss.pull(leaf(np.tile(REAL, 2)), leaf(np.tile(FAKE, 2)))
    assert [p.item() for p in doubled] == pytest.approx([pull_r.item(), pull_f.item()])


def test_pull_of_sgan_vanishes_on_real_images_it_is_sure_of() -> None:
    r, f = torch.tensor([9.0, 11.0]), torch.tensor([8.0, 10.0])
    pull_r, pull_f = get_loss("sgan").pull(r, f)
    assert pull_r.item() == pytest.approx(torch.sigmoid(-r).mean().item(), rel=1e-4)
    assert pull_f.item() == pytest.approx(torch.sigmoid(f).mean().item(), rel=1e-4)
    assert pull_r.item() < 1e-3 < get_loss("rsgan").pull(r, f)[0].item()


def test_pull_works_without_a_graph_and_leaves_the_logits_alone() -> None:
    r, f = torch.randn(4, requires_grad=True), torch.randn(4)
    with torch.no_grad():
        pull_r, _ = get_loss("rasgan").pull(r, f)
    assert not pull_r.requires_grad
    assert r.grad is None


# --- numerics and misuse ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    r, f = leaf(REAL).detach().to(dtype), leaf(FAKE).detach().to(dtype)
    loss = get_loss(name)
    for side in (loss.discriminator, loss.generator):
        assert side(r, f).dtype == torch.float32
        torch.testing.assert_close(side(r, f), side(r.float(), f.float()), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_huge_logits_stay_finite(name: str) -> None:
    r = torch.tensor([1e4, -1e4], requires_grad=True)
    f = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = get_loss(name)
    gradients = torch.autograd.grad(loss.discriminator(r, f) + loss.generator(r, f), (r, f))
    assert all(bool(torch.isfinite(g).all()) for g in gradients)


EIGHT_REAL = np.array([2.3, -0.7, 0.35, 4.1, -1.9, 0.8, -2.6, 1.2])
EIGHT_FAKE = np.array([-3.2, 0.45, 1.7, -0.2, 0.9, -1.1, 2.8, -0.5])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(8, 1), (8, 1, 1, 1), (2, 1, 2, 2)], ids=str)
def test_columns_and_maps_are_the_same_as_flat_logits(name: str, shape: tuple[int, ...]) -> None:
    loss = get_loss(name)
    r, f = leaf(EIGHT_REAL), leaf(EIGHT_FAKE)
    shaped_r, shaped_f = leaf(EIGHT_REAL.reshape(shape)), leaf(EIGHT_FAKE.reshape(shape))
    for side in (loss.discriminator, loss.generator):
        flat, shaped = side(r, f), side(shaped_r, shaped_f)
        assert shaped.shape == ()
        assert shaped.item() == flat.item()
        of_flat = torch.autograd.grad(flat, (r, f), materialize_grads=True)
        of_shaped = torch.autograd.grad(shaped, (shaped_r, shaped_f), materialize_grads=True)
        for got, want in zip(of_shaped, of_flat, strict=True):
            assert torch.equal(got, want.reshape(shape))
    assert loss.probabilities(shaped_r, shaped_f) == loss.probabilities(r, f)
    assert loss.pull(shaped_r, shaped_f) == loss.pull(r, f)


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_wrong_shape_are_refused(name: str) -> None:
    loss = get_loss(name)
    wanted = r"logits must have the shape \(N,\), \(N, 1\) or \(N, 1, H, W\) with N ≥ 1, got"
    for shape in ((4, 2), (4, 2, 3, 3), (4, 1, 3), ()):
        with pytest.raises(ValueError, match=rf"real {wanted} {re.escape(str(shape))}$"):
            loss.discriminator(torch.zeros(shape), torch.zeros(4))
    with pytest.raises(ValueError, match=rf"fake {wanted} \(0,\)$"):
        loss.generator(torch.zeros(4), torch.zeros(0))
    if loss.form == "paired":
        with pytest.raises(ValueError, match=f"{name} pairs real with fake, but got 4 and 1"):
            loss.discriminator(torch.zeros(4), torch.zeros(1))


@pytest.mark.parametrize(
    ("overrides", "penalty"),
    [
        (["loss=wgan_gp"], "gp"),
        (["loss=wgan"], "clip"),
        (["loss=rpgan_r1r2"], "r1r2"),
        (["loss=wgan_gp", "penalty=none"], "none"),
        (["penalty=r1", "loss=rasgan_gp"], "r1"),
        (["loss=ragan"], "none"),
    ],
)
def test_a_loss_brings_its_penalty_and_the_command_line_has_the_last_word(overrides: list[str], penalty: str) -> None:
    done = processes.run(processes.command("train"), *overrides, "--cfg", "job")
    assert yaml.safe_load(done.stdout)["penalty"]["name"] == penalty
