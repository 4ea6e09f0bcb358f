"""What training adds to the critic's loss: formulas against numpy, averages, resume, ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import processes
from relgan.config import resolve
from relgan.options import ConfigError
from relgan.registry import LOSSES
from relgan.side_terms import SideTerms, build_side_terms

Vector = NDArray[np.float64]

WORLD = 2
CPU = torch.device("cpu")
# On both sides of the averages below, none within 0.01 of a kink.
REAL = np.array([2.3, -0.7, 0.35, 4.1, -1.9, 0.8])
FAKE = np.array([-3.2, 0.45, 1.7, -0.2, 0.9, -1.1])
OF_REAL, OF_FAKE = 0.6, -0.4


def centring(r: Vector, f: Vector) -> Any:
    return 0.01 * ((r + f) ** 2).mean()


def lecam(r: Vector, f: Vector) -> Any:
    return 0.3 * ((np.maximum(r - OF_FAKE, 0) ** 2).mean() + (np.maximum(OF_REAL - f, 0) ** 2).mean())


ROWS: dict[str, tuple[dict[str, float], Callable[[Vector, Vector], Any]]] = {
    "centring": ({"centring": 0.01}, centring),
    "lecam": ({"lecam": 0.3}, lecam),
    "both": ({"centring": 0.01, "lecam": 0.3}, lambda r, f: centring(r, f) + lecam(r, f)),
}


def slopes(formula: Callable[[Vector], Any], x: Vector) -> Vector:
    step = 1e-6
    return np.array([(formula(x + step * unit) - formula(x - step * unit)) / (2 * step) for unit in np.eye(len(x))])


def at_averages(centring: float = 0.0, lecam: float = 0.0) -> SideTerms:
    terms = SideTerms(centring, lecam)
    terms.load_state_dict({"real": torch.tensor(OF_REAL), "fake": torch.tensor(OF_FAKE), "observed": torch.tensor(7.0)})
    return terms


def averages(terms: SideTerms) -> list[float]:
    return [terms.real.item(), terms.fake.item()]


@pytest.mark.parametrize("name", ROWS)
def test_value_and_both_gradients_equal_the_formula(name: str) -> None:
    coefficients, formula = ROWS[name]
    r, f = (torch.tensor(x, requires_grad=True) for x in (REAL, FAKE))
    value = at_averages(**coefficients)(r, f)
    assert value.shape == ()
    assert value.item() == pytest.approx(formula(REAL, FAKE), rel=1e-6)
    by_r, by_f = torch.autograd.grad(value, (r, f))
    assert by_r.numpy() == pytest.approx(slopes(lambda x: formula(x, FAKE), REAL), abs=1e-6)
    assert by_f.numpy() == pytest.approx(slopes(lambda x: formula(REAL, x), FAKE), abs=1e-6)


def test_without_coefficients_nothing_is_added_or_followed() -> None:
    terms = build_side_terms(LOSSES["ragan"].options, CPU)
    r, f = torch.tensor(REAL), torch.tensor(FAKE)
    terms.observe(r, f)
    assert terms(r, f).item() == 0
    assert averages(terms) == [0, 0]


@pytest.mark.parametrize("loss", ["sgan", "rpgan_r1r2", "rahinge"])
def test_they_are_options_of_any_loss(loss: str) -> None:
    options = resolve({"loss": {"name": loss, "centring": 0.01, "lecam": 0.3}}).loss
    terms = build_side_terms(options, CPU)
    assert (terms.centring, terms.lecam) == (0.01, 0.3)
    with pytest.raises(ConfigError, match=r"^loss\.lecam: must be ≥ 0, got -1$"):
        resolve({"loss": {"name": loss, "lecam": -1.0}})


def test_the_averages_start_at_the_first_means_and_forget_slowly() -> None:
    terms, updates = SideTerms(lecam=0.3), np.random.default_rng(0).normal(3, 1, (150, 2, 4))
    for count, (r, f) in enumerate(updates, start=1):
        terms.observe(torch.tensor(r), torch.tensor(f))
        weights = 0.99 ** np.arange(count)[::-1]
        want = (weights[:, None] * updates[:count].mean(axis=2)).sum(axis=0) / weights.sum()
        assert averages(terms) == pytest.approx(want.tolist(), rel=1e-5)


def test_the_averages_are_constants_of_the_term() -> None:
    terms = SideTerms(lecam=0.3)
    r, f = (torch.tensor(x, requires_grad=True) for x in (REAL, FAKE))
    terms.observe(r, f)
    terms(r, f).backward()
    assert r.grad is not None
    assert r.grad.numpy() == pytest.approx(0.3 * 2 * np.maximum(REAL - FAKE.mean(), 0) / 6, abs=1e-6)
    assert not terms.real.requires_grad


@pytest.mark.parametrize("shape", [(6, 1), (6, 1, 1, 1), (1, 1, 2, 3)], ids=str)
def test_columns_and_maps_are_the_same_as_flat_logits(shape: tuple[int, ...]) -> None:
    flat, shaped = SideTerms(0.01, 0.3), SideTerms(0.01, 0.3)
    r, f = torch.tensor(REAL), torch.tensor(FAKE)
    flat.observe(r, f)
    shaped.observe(r.reshape(shape), f.reshape(shape))
    assert averages(shaped) == averages(flat)
    assert torch.equal(shaped(r.reshape(shape), f.reshape(shape)), flat(r, f))


def test_low_precision_logits_are_computed_in_float32() -> None:
    r, f = (torch.tensor(x, dtype=torch.bfloat16) for x in (REAL, FAKE))
    low, full = SideTerms(0.01, 0.3), SideTerms(0.01, 0.3)
    low.observe(r, f)
    full.observe(r.float(), f.float())
    assert averages(low) == averages(full)
    assert low(r, f).dtype == torch.float32
    assert torch.equal(low(r, f), full(r.float(), f.float()))


def test_its_state_continues_it_in_the_same_memory(tmp_path: Path) -> None:
    """A CUDA graph goes on reading the tensors that it has recorded."""
    first, second = SideTerms(lecam=0.3), SideTerms(lecam=0.3)
    memory = [value.data_ptr() for value in second.state_dict().values()]
    updates = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0))
    for r, f in updates[:3]:
        first.observe(r, f)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for r, f in updates[3:]:
        first.observe(r, f)
        second.observe(r, f)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert [value.data_ptr() for value in second.state_dict().values()] == memory


def test_nothing_is_read_back_from_the_device() -> None:
    """Tensors without values stand in for those of a device: to ask for one is an error."""
    with FakeTensorMode():
        terms = SideTerms(0.01, 0.3)
        r, f = torch.randn(2, 4, requires_grad=True)
        terms.observe(r, f)
        terms(r, f).backward()


def value_gradients_and_averages(r: Tensor, f: Tensor) -> list[list[float]]:
    terms = SideTerms(0.01, 0.3)
    r, f = r.clone().requires_grad_(), f.clone().requires_grad_()
    terms.observe(r, f)
    value = terms(r, f)
    by_r, by_f = torch.autograd.grad(value, (r, f))
    return [[value.item()], by_r.tolist(), by_f.tolist(), averages(terms)]


def rank_main(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    part = slice(rank * 3, rank * 3 + 3)
    torch.save(value_gradients_and_averages(torch.tensor(REAL[part]), torch.tensor(FAKE[part])), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    processes.ranks(WORLD, rank_main, str(tmp_path))
    (value,), by_r, by_f, means = value_gradients_and_averages(torch.tensor(REAL), torch.tensor(FAKE))
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    assert sum(half[0][0] for half in halves) / WORLD == pytest.approx(value, rel=1e-6)
    for got, want in ((1, by_r), (2, by_f)):
        assert [g / WORLD for half in halves for g in half[got]] == pytest.approx(want, abs=1e-6)
    assert all(half[3] == pytest.approx(means, rel=1e-6) for half in halves)
