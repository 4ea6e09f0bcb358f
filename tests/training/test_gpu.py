"""What must hold on a CUDA device; `make gpu-check` runs these where there is one.

Without one they run on the CPU, with the stand-in for a graph, so that they stay able to run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from on_the_device import capturable_on_the_cpu, stand_in
from relgan.config import OptimizerConfig
from relgan.data.batches import Batch
from relgan.device import Precision, has_tf32_units, prepare_device
from relgan.training.engine import Eager, build_iteration, cuda_graph
from relgan.training.optimizers import build_optimizers
from relgan.training.update import Update

pytestmark = [
    pytest.mark.gpu,
    # Of torch: what is made for a graph runs eagerly, and a kernel may have no deterministic form.
    *(pytest.mark.filterwarnings(f"ignore:.*{word}") for word in ("capturable=True", "eterministic")),
]

HERE = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HERE else "cpu")
CAPTURE = cuda_graph if HERE else stand_in
SETTINGS: list[dict[str, Any]] = [
    {"loss": "sgan"},
    {"loss": "rasgan", "accumulate": 2},
    {"loss": "rsgan_allpairs", "lecam": 0.3},
    {"loss": "wgan_gp", "penalty": "gp"},
    {"loss": "rsgan", "penalty": "r1r2"},
]
# Without a GPU one of them tells whether the tests still run.
CHOSEN = [s if HERE or s["loss"] == "rasgan" else pytest.param(s, marks=pytest.mark.slow) for s in SETTINGS]


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """The same kernels in every pass, where torch has them, so that tolerances can be tight."""
    prepare_device(DEVICE.type, deterministic=True)
    torch.set_num_threads(1)
    with capturable_on_the_cpu():
        yield
    prepare_device(DEVICE.type, deterministic=False)


def made(
    device: torch.device, optimizer: str = "adam", *, captured: bool, moving_beta2: bool = False, **setting: Any
) -> Update:
    """The same weights at every call."""
    torch.manual_seed(0)
    model = tiny.model(width=2, latent_dim=16, spectral_norm=True)
    options = OptimizerConfig(name=optimizer, lr_g=1e-5, lr_d=1e-5)
    update = tiny.update(model, channels=3, device=device, **setting)
    update.optimizer_g, update.optimizer_d = build_optimizers(
        options, *update.networks, captured=captured, moving_beta2=moving_beta2
    )
    return update


def batches(number: int, count: int = 3) -> list[Batch]:
    random = torch.Generator().manual_seed(number)
    images = (2 * torch.rand(4, 3, 32, 32, generator=random) - 1 for _ in range(count))
    return [Batch(each.to(DEVICE, memory_format=torch.channels_last)) for each in images]


def latents() -> Tensor:
    return torch.randn(4, 16, device=DEVICE)


@pytest.mark.parametrize("setting", CHOSEN)
def test_an_update_is_that_of_the_cpu(setting: dict[str, Any]) -> None:
    """From the same weights, images and latents, within float32's rounding."""
    if setting.get("penalty") == "gp":
        pytest.skip("gp draws random numbers of its device")
    real, z = batches(0, 1)[0].images.cpu(), torch.randn(4, 16)
    seen = []
    for device in (torch.device("cpu"), DEVICE):
        update = made(device, captured=False, **setting)
        with update.precision.in_force():
            critic = update.update_critic(Batch(real.to(device)), z.to(device))
            generator = update.update_generator(Batch(real.to(device)), z.to(device))
        numbers = (critic.loss, critic.penalty, critic.grad_norm, generator.loss, generator.grad_norm)
        seen.append([value.item() for value in numbers])
    assert seen[1] == pytest.approx(seen[0], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adam, β₂ moves", "rmsprop"])
@pytest.mark.parametrize("setting", CHOSEN)
def test_the_graph_is_the_eager_iteration_step_for_step(setting: dict[str, Any], optimizer: str) -> None:
    """Two critic updates each; the same kernels, so the same numbers but for what torch cannot make deterministic."""
    numbers: list[list[list[float]]] = []
    weights: list[list[Tensor]] = []
    for engine in ("eager", "cudagraph"):
        name, _, moves = optimizer.partition(", ")
        update = made(DEVICE, name, captured=True, moving_beta2=bool(moves), **setting)
        eager = Eager(update, latents, redraw_fake=setting["loss"] != "rsgan")
        torch.manual_seed(2)
        _, iteration = build_iteration(engine, eager, lambda: batches(9), chosen_by_user=True, capture=CAPTURE)
        numbers.append([])
        for step in range(2):
            for each in (update.optimizer_g, update.optimizer_d) if moves else ():
                each.param_groups[0]["betas"][1].fill_((0.5, 0.9)[step])
            critic, generator = iteration(batches(step))
            values = (critic.loss, critic.penalty, critic.grad_norm, generator.loss, generator.grad_norm)
            numbers[-1].append([value.item() for value in values])
        weights.append([p.detach() for network in update.networks for p in network.parameters()])
    for plain, recorded in zip(*weights, strict=True):
        torch.testing.assert_close(recorded, plain, rtol=1e-5, atol=1e-7)
    for plain_numbers, recorded_numbers in zip(*numbers, strict=True):
        assert recorded_numbers == pytest.approx(plain_numbers, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("engine", ["eager", "cudagraph"])
def test_what_is_not_finite_is_masked_from_then_on(engine: str) -> None:
    update = made(DEVICE, captured=True, loss="sgan")
    _, iteration = build_iteration(
        engine, Eager(update, latents), lambda: batches(9), chosen_by_user=True, capture=CAPTURE
    )
    iteration(batches(0))
    before = copy.deepcopy([p.detach() for network in update.networks for p in network.parameters()])
    iteration([Batch(torch.full_like(real.images, torch.nan)) for real in batches(1)])
    iteration(batches(2))
    assert update.diverged.item() == 1
    after = [p for network in update.networks for p in network.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(after, before, strict=True))


def test_an_iteration_that_waits_for_the_device_falls_back_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    update = made(DEVICE, captured=True, loss="rasgan")
    steer = update.strength.steer
    monkeypatch.setattr(update.strength, "steer", lambda compared: steer(compared) or compared.sum().item())
    name, iteration = build_iteration(
        "cudagraph", Eager(update, latents), lambda: batches(9), chosen_by_user=False, capture=CAPTURE
    )
    assert name == ("eager" if HERE else "cudagraph")
    torch.manual_seed(4)
    first = iteration(batches(0))[0].loss.item()
    other = made(DEVICE, captured=True, loss="rasgan")
    torch.manual_seed(4)
    assert first == pytest.approx(Eager(other, latents)(batches(0))[0].loss.item(), rel=1e-5)
    if HERE:
        torch.cuda.empty_cache()
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.skipif(not has_tf32_units(DEVICE), reason="needs a GPU with TF32")
def test_tf32_is_another_arithmetic_than_fp32_and_only_inside() -> None:
    a, b = torch.randn(2, 512, 512, device=DEVICE)
    whole = (a @ b).double()
    exact = a.double() @ b.double()
    with Precision(DEVICE, "tf32").in_force():
        short = (a @ b).double()
    assert (short - exact).norm() > 50 * (whole - exact).norm()
    assert torch.equal((a @ b).double(), whole)
