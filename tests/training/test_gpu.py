"""What must hold on a CUDA device; `make gpu-check` runs these where there is one."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny
from relgan.config import OptimizerConfig
from relgan.device import Precision
from relgan.losses import get_loss
from relgan.networks import build_networks
from relgan.penalties import Penalty
from relgan.training.engine import Eager, build_iteration
from relgan.training.optimizers import build_optimizers
from relgan.training.update import Update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


UPDATES = [("sgan", Penalty()), ("ragan", Penalty()), ("rsgan", tiny.penalty("r1r2"))]


def _update(device: str, networks: tuple[torch.nn.Module, torch.nn.Module], loss: str, penalty: Penalty) -> Update:
    generator, critic = (copy.deepcopy(n).to(device, memory_format=torch.channels_last) for n in networks)
    optimizer_g, optimizer_d = build_optimizers(OptimizerConfig(lr_g=2e-4, lr_d=2e-4), generator, critic)
    return Update(
        generator=generator,
        critic=critic,
        loss=get_loss(loss),
        penalty=penalty,
        optimizer_g=optimizer_g,
        optimizer_d=optimizer_d,
        precision=Precision(torch.device(device), "fp32"),
    )


@pytest.mark.parametrize(
    ("loss", "penalty"), [("sgan", Penalty()), ("ragan", Penalty()), ("rsgan", tiny.penalty("r1r2"))]
)
def test_cuda_equals_cpu_in_fp32(loss: str, penalty: Penalty) -> None:
    """The same updates from the same weights, images and latents, within float32's rounding."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    networks = build_networks(tiny.model(width=8, latent_dim=16), 32, 3)
    updates = {device: _update(device, networks, loss, penalty) for device in ("cpu", "cuda")}
    real, z = torch.rand(8, 3, 32, 32) * 2 - 1, torch.randn(8, 16)
    losses = {
        device: [
            update.update_critic(real.to(device), z.to(device)).loss.item(),
            update.update_generator(real.to(device), z.to(device)).loss.item(),
        ]
        for device, update in updates.items()
    }
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3, abs=1e-4)


def test_divergence_on_cuda_keeps_the_last_good_weights() -> None:
    networks = build_networks(tiny.model(width=8, latent_dim=16), 32, 3)
    update = _update("cuda", networks, "sgan", Penalty())
    before = copy.deepcopy(update.critic.state_dict())
    real = torch.full((8, 3, 32, 32), torch.nan, device="cuda")
    update.update_critic(real, torch.randn(8, 16, device="cuda"))
    assert update.diverged.item() == 1
    weights = dict(update.critic.named_parameters())
    assert all(torch.equal(weights[name], before[name]) for name in weights)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize(
    ("loss", "penalty"),
    [
        *((loss, Penalty()) for loss in ("sgan", "rasgan", "rsgan_allpairs")),
        ("wgan_gp", tiny.penalty("gp", 1.0)),
        ("rsgan", tiny.penalty("r1r2")),
    ],
)
def test_the_graph_is_the_eager_iteration_step_for_step(loss: str, penalty: Penalty, optimizer: str) -> None:
    """In fp32, two critic updates per iteration, spectral norm; Adam would blow rounding up to whole steps of lr."""
    numbers: dict[str, list[list[float]]] = {}
    weights: dict[str, list[torch.Tensor]] = {}
    torch.backends.cudnn.allow_tf32 = False
    for engine in ("eager", "cudagraph"):
        torch.manual_seed(0)
        networks = build_networks(tiny.model(width=8, latent_dim=16, spectral_norm=True), 32, 3)
        for network in networks:
            network.to("cuda", memory_format=torch.channels_last)
        options = OptimizerConfig(name=optimizer, lr_g=1e-5, lr_d=1e-5)
        optimizer_g, optimizer_d = build_optimizers(options, *networks, captured=engine == "cudagraph")
        update = Update(
            generator=networks[0],
            critic=networks[1],
            loss=get_loss(loss),
            penalty=penalty,
            optimizer_g=optimizer_g,
            optimizer_d=optimizer_d,
            precision=Precision(torch.device("cuda"), "fp32"),
        )
        eager = Eager(update, lambda: torch.randn(8, 16, device="cuda"))
        random = torch.Generator("cuda").manual_seed(1)

        def reals(random: torch.Generator = random) -> list[torch.Tensor]:
            return [2 * torch.rand(8, 3, 32, 32, device="cuda", generator=random) - 1 for _ in range(3)]

        torch.manual_seed(2)
        black = torch.full((8, 3, 32, 32), -1.0, device="cuda")
        _, iteration = build_iteration(engine, eager, lambda black=black: [black] * 3, chosen_by_user=True)
        numbers[engine] = []
        for _ in range(6):
            critic, generator = iteration(reals())
            values = (critic.loss, critic.penalty, critic.grad_norm, generator.loss, generator.grad_norm)
            numbers[engine].append([value.item() for value in values])
        weights[engine] = [p.detach() for network in networks for p in network.parameters()]
    for graph, plain in zip(weights["cudagraph"], weights["eager"], strict=True):
        torch.testing.assert_close(graph, plain, rtol=1e-3, atol=1e-5)
    for got, want in zip(numbers["cudagraph"], numbers["eager"], strict=True):
        assert got == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_a_graph_masks_what_is_not_finite() -> None:
    networks = [n.to("cuda") for n in build_networks(tiny.model(width=8, latent_dim=16), 32, 3)]
    optimizer_g, optimizer_d = build_optimizers(OptimizerConfig(lr_g=2e-4, lr_d=2e-4), *networks, captured=True)
    update = Update(
        generator=networks[0],
        critic=networks[1],
        loss=get_loss("sgan"),
        penalty=Penalty(),
        optimizer_g=optimizer_g,
        optimizer_d=optimizer_d,
        precision=Precision(torch.device("cuda"), "fp32"),
    )
    eager = Eager(update, lambda: torch.randn(8, 16, device="cuda"))
    real = torch.zeros(8, 3, 32, 32, device="cuda")
    _, iteration = build_iteration("cudagraph", eager, lambda: [real, real], chosen_by_user=True)
    iteration([real, real])
    before = [p.detach().clone() for p in update.critic.parameters()]
    iteration([real * torch.nan, real])
    iteration([real, real])
    assert update.diverged.item() == 1
    assert all(torch.equal(p, q) for p, q in zip(update.critic.parameters(), before, strict=True))
