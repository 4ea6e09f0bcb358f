"""One update against the textbook, network by network."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from relgan.augment import Augmentation
from relgan.builtin import AdaOptions
from relgan.config import OptimizerConfig
from relgan.data.batches import Batch
from relgan.losses import AdversarialLoss, get_loss
from relgan.networks import build_networks
from relgan.networks.blocks import advance, one_power_iteration, spectral_norms
from relgan.penalties import Penalty
from relgan.training.strength import Strength
from relgan.training.update import Update

CPU = torch.device("cpu")


def make(
    loss: str = "ragan",
    *,
    optimizer: str = "adam",
    penalty: Penalty | None = None,
    pack: int = 1,
    lr: float = 1e-2,
    precision: str = "fp32",
    spectral_norm: bool = False,
) -> Update:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return tiny.update(
        tiny.model(width=2, latent_dim=4, pack=pack, spectral_norm=spectral_norm),
        loss,
        penalty=penalty or Penalty(),
        optimizer=OptimizerConfig(name=optimizer, lr_g=lr, lr_d=lr, betas=[0.5, 0.999]),
        precision=precision,
        pack=pack,
    )


def batch(seed: int, count: int = 6) -> tuple[Batch, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 32, 32, generator=generator) * 2 - 1
    return Batch(images), torch.randn(count, 4, generator=generator)


def weights(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("loss", ["sgan", "ragan", "rsgan"])
def test_each_update_changes_its_own_network_alone(loss: str) -> None:
    update = make(loss)
    real, z = batch(1)
    generator, critic = weights(update.generator), weights(update.critic)
    update.update_critic(real, z)
    assert equal(weights(update.generator), generator)
    assert not equal(weights(update.critic), critic)
    assert all(p.grad is None for p in update.generator.parameters())
    critic = weights(update.critic)
    update.optimizer_d.zero_grad(set_to_none=True)
    update.update_generator(real, z)
    assert equal(weights(update.critic), critic)
    assert not equal(weights(update.generator), generator)
    assert all(p.grad is None for p in update.critic.parameters())
    assert all(p.requires_grad for p in update.critic.parameters())


def test_the_critic_is_thawed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    update = make()
    real, z = batch(1)
    with pytest.raises(ValueError, match="cannot be packed"):
        dataclasses.replace(update, pack=4).update_generator(real, z)
    assert all(p.requires_grad for p in update.critic.parameters())


@pytest.mark.parametrize("loss", ["sgan", "ragan"])
def test_losses_and_updates_are_the_textbook_ones(loss: str) -> None:
    update = make(loss)
    generator, critic = copy.deepcopy(update.generator), copy.deepcopy(update.critic)
    by_generator = torch.optim.Adam(generator.parameters(), lr=1e-2, betas=(0.5, 0.999))
    by_critic = torch.optim.Adam(critic.parameters(), lr=1e-2, betas=(0.5, 0.999))
    for seed in range(3):
        real, z = batch(seed)
        got_d = update.update_critic(real, z)
        got_g = update.update_generator(real, z)

        r, f = critic(real.images), critic(generator(z).detach())
        if loss == "ragan":
            r, f = r - f.mean(), f - r.mean()
        loss_d = nn.functional.softplus(-r).mean() + nn.functional.softplus(f).mean()
        loss_d = loss_d / 2 if loss == "ragan" else loss_d
        by_critic.zero_grad()
        loss_d.backward()
        norm_d = sum(p.grad.square().sum() for p in critic.parameters() if p.grad is not None) ** 0.5
        by_critic.step()
        images = generator(z)
        f = critic(images)
        if loss == "ragan":
            r = critic(real.images)
            r, f = r - f.mean(), f - r.mean()
            loss_g = (nn.functional.softplus(r).mean() + nn.functional.softplus(-f).mean()) / 2
        else:
            loss_g = nn.functional.softplus(-f).mean()
        by_generator.zero_grad()
        loss_g.backward()
        by_generator.step()

        torch.testing.assert_close(got_d.loss, loss_d.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got_d.grad_norm, torch.as_tensor(norm_d), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(got_g.loss, loss_g.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got_g.images, images.detach(), rtol=1e-4, atol=1e-5)
        assert not got_g.images.requires_grad
    mine = weights(update.critic) + weights(update.generator)
    for got, want in zip(mine, weights(critic) + weights(generator), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_penalty_is_added_to_the_critics_loss_and_reported() -> None:
    plain, penalised = make("sgan"), make("sgan", penalty=tiny.penalty("r1", 5.0))
    real, z = batch(1)
    without, with_it = plain.update_critic(real, z), penalised.update_critic(real, z)
    assert without.penalty.item() == 0
    assert with_it.penalty.item() > 0
    assert with_it.loss.item() == pytest.approx(without.loss.item())
    assert with_it.grad_norm.item() != pytest.approx(without.grad_norm.item())


@pytest.mark.parametrize(("interval", "scale", "times"), [(4, 1.0, 4.0), (1, 0.5, 0.5), (4, 0.5, 2.0)])
def test_a_lazy_penalty_counts_its_interval_and_follows_its_scale(interval: int, scale: float, times: float) -> None:
    """Value and gradient, to which the loss adds what it does without a penalty."""
    changes, values = [], []
    for each in ({}, {"interval": interval}):
        update = make("sgan", penalty=dataclasses.replace(tiny.penalty("r1", 5.0), **each))
        if each:
            update.penalty_scale.fill_(scale)
        real, z = batch(1)
        alone = copy.deepcopy(update)
        alone.update_critic(real, z, penalised=False)
        values.append(update.update_critic(real, z).penalty)
        pairs = zip(gradients(update.critic), gradients(alone.critic), strict=True)
        changes.append([penalised - plain for penalised, plain in pairs])
    torch.testing.assert_close(values[1], times * values[0])
    for scaled, plain in zip(changes[1], changes[0], strict=True):
        torch.testing.assert_close(scaled, times * plain, rtol=1e-3, atol=1e-5)


def test_clipping_bounds_every_weight_of_the_critic_and_no_other() -> None:
    update = make("wgan", penalty=tiny.penalty("clip", 0.01))
    for seed in range(3):
        real, z = batch(seed)
        update.update_critic(real, z)
        assert max(p.abs().max().item() for p in update.critic.parameters()) <= 0.01
        update.update_generator(real, z)
    assert max(p.abs().max().item() for p in update.generator.parameters()) > 0.01


def test_packing_gives_the_critic_k_images_at_once() -> None:
    update = make(pack=3)
    real, z = batch(1)
    result = update.update_critic(real, z)
    assert result.real_logits.shape == result.fake_logits.shape == (2,)
    assert update.update_generator(real, z).images.shape == (6, 1, 32, 32)


def test_bf16_keeps_parameters_losses_and_logits_in_float32() -> None:
    update = make(precision="bf16", penalty=tiny.penalty("gp", 10.0))
    real, z = batch(1)
    critic = update.update_critic(real, z)
    generator = update.update_generator(real, z)
    values = [critic.loss, critic.penalty, critic.grad_norm, critic.real_logits, generator.loss, generator.grad_norm]
    assert {value.dtype for value in values} == {torch.float32}
    assert {p.dtype for p in [*update.generator.parameters(), *update.critic.parameters()]} == {torch.float32}
    assert update.diverged.item() == 0


@dataclasses.dataclass(frozen=True)
class Broken(AdversarialLoss):
    """A loss whose chosen sides are not finite."""

    sides: tuple[str, ...] = ("discriminator",)
    value: float = float("nan")

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        loss = super().discriminator(real_logits, fake_logits)
        return loss * self.value if "discriminator" in self.sides else loss

    def generator(self, real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
        loss = super().generator(real_logits, fake_logits)
        return loss * self.value if "generator" in self.sides else loss


def broken(sides: tuple[str, ...], value: float) -> AdversarialLoss:
    good = get_loss("ragan")
    return Broken(good.name, good.form, good.cost, sides=sides, value=value)


def snapshot(update: Update) -> dict[str, Any]:
    return copy.deepcopy({"g": weights(update.generator), "d": weights(update.critic)})


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("side", ["discriminator", "generator"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_after_a_loss_that_is_not_finite_no_weight_changes_any_more(optimizer: str, side: str, value: float) -> None:
    update = make(optimizer=optimizer)
    good = update.loss
    for seed in range(2):
        update.update_critic(*batch(seed))
        update.update_generator(*batch(seed))
    assert update.diverged.item() == 0
    before = snapshot(update)
    update.loss = broken((side,), value)
    if side == "discriminator":
        update.update_critic(*batch(3))
    else:
        update.update_generator(*batch(3))
    assert update.diverged.item() == 1
    update.loss = good
    for seed in range(4, 6):
        update.update_critic(*batch(seed))
        update.update_generator(*batch(seed))
    after = snapshot(update)
    assert update.diverged.item() == 1
    assert equal(before["g"], after["g"])
    assert equal(before["d"], after["d"])


def test_an_update_is_not_masked_by_what_is_finite() -> None:
    """The mask must not be the reason that a healthy run stands still."""
    for optimizer in ("adam", "rmsprop"):
        update = make(optimizer=optimizer)
        before = snapshot(update)
        update.update_critic(*batch(1))
        update.update_generator(*batch(1))
        assert not equal(before["g"], weights(update.generator))
        assert not equal(before["d"], weights(update.critic))


@pytest.mark.parametrize("penalty", ["none", "gp", "r1r2", "dragan"])
@pytest.mark.parametrize(
    "loss", [*sorted({"sgan", "wgan", "rsgan", "rlsgan", "ragan", "rahinge", "rchinge", "rsgan_allpairs"})]
)
def test_a_batch_in_parts_gives_the_update_of_the_whole(loss: str, penalty: str) -> None:
    """Without batch norm, whose statistics are those of a part: losses, gradients and every buffer agree."""
    updates = [in_parts(loss, penalty, count) for count in (1, 2, 3)]
    real, z = batch(5)
    real, z = Batch(real.images.double()), z.double()
    seen = []
    for update in updates:
        torch.manual_seed(7)
        critic = update.update_critic(real, z)
        by_critic = gradients(update.critic)
        generator = update.update_generator(real, z)
        seen.append(
            [*dataclasses.astuple(critic), *dataclasses.astuple(generator), *by_critic, *gradients(update.generator)]
            + [buffer.clone() for network in (update.critic, update.generator) for buffer in network.buffers()]
        )
    for parts in seen[1:]:
        for got, want in zip(parts, seen[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{"augment": "diffaugment"}, {"pack": 2}])
def test_a_critic_that_judges_each_image_alone_sees_real_and_fake_together(options: dict[str, Any]) -> None:
    """In one pass, and the update is that of two."""
    seen, passes = [], []
    for together in (True, False):
        torch.manual_seed(0)
        model = tiny.model(width=2, latent_dim=4, norm="none", spectral_norm=True, pack=options.get("pack", 1))
        update = tiny.update(model, "ragan", dtype=torch.float64, **options)
        assert update.critic.judges_each_image_alone
        update.critic.judges_each_image_alone = together
        calls: list[int] = []
        update.critic.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        real, z = batch(5)
        torch.manual_seed(7)
        update.update_critic(Batch(real.images.double()), z.double())
        seen.append(gradients(update.critic))
        passes.append(len(calls))
    assert passes == [1, 2]
    for got, want in zip(*seen, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
def test_batch_norm_never_sees_real_and_fake_images_together(name: str) -> None:
    _, critic = build_networks(tiny.model(name, width=2, norm="batch", spectral_norm=False), 32, 1)
    assert not critic.judges_each_image_alone


def test_an_update_takes_one_step_of_each_power_iteration() -> None:
    """Whatever it looks at: an update meets the same weights in every pass."""
    torch.manual_seed(0)
    model = tiny.model(width=2, latent_dim=4, spectral_norm=True, generator_spectral_norm=True)
    update = tiny.update(model, "ragan", penalty="r1r2")
    alone = copy.deepcopy(update.networks)
    update.update_critic(*batch(5))
    for network in alone:
        for norm, weight in spectral_norms([network]):
            advance(norm, weight)
    for stepped, once in zip(update.networks, alone, strict=True):
        pairs = zip(spectral_norms([stepped]), spectral_norms([once]), strict=True)
        assert all(torch.equal(a._u, b._u) and torch.equal(a._v, b._v) and a.training for (a, _), (b, _) in pairs)


def test_a_users_spectral_norm_of_a_vector_is_none_of_our_business() -> None:
    """torch divides it by its length, without a power iteration."""
    layer = torch.nn.utils.parametrizations.spectral_norm(nn.LayerNorm(4))
    with one_power_iteration([layer]):
        assert layer.weight.norm().item() == pytest.approx(1.0)


def in_parts(loss: str, penalty: str, count: int) -> Update:
    torch.manual_seed(0)
    model = tiny.model(width=2, latent_dim=4, norm="none", spectral_norm=True, generator_spectral_norm=True)
    return tiny.update(model, loss, penalty=penalty, dtype=torch.float64, accumulate=count)


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


class Grey(Augmentation):
    """Takes no random numbers."""

    def __call__(self, images: Tensor, u: Tensor, p: Tensor) -> Tensor:
        return torch.zeros_like(images)


def test_an_augmentation_without_random_numbers_is_applied() -> None:
    update = dataclasses.replace(make("sgan"), augmentation=Grey())
    real, z = batch(1)
    result = update.update_critic(real, z)
    assert torch.equal(result.real_logits, result.fake_logits)


class Doubled(Augmentation):
    """x ↦ 2x."""

    def __call__(self, images: Tensor, u: Tensor, p: Tensor) -> Tensor:
        return 2 * images


class Slope(nn.Module):
    """C(x) = ⟨w, x⟩, with w = 1 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, 32, 32))

    def forward(self, images: Tensor) -> Tensor:
        return (self.w * images).sum((1, 2, 3))


def test_a_penalty_is_taken_at_the_image_before_its_augmentation() -> None:
    """∇ₓC(2x) = 2w, so R1 is γ/2·4‖w‖²; at the augmented image, or without augmentation, it would be γ/2·‖w‖²."""
    update = make("sgan", penalty=tiny.penalty("r1", 1.0))
    critic = Slope()
    update = dataclasses.replace(
        update,
        critic=critic,
        optimizer_d=torch.optim.Adam(critic.parameters(), lr=0.1),
        augmentation=Doubled(),
    )
    real, z = batch(1)
    assert update.update_critic(real, z).penalty.item() == pytest.approx(4 * 32 * 32 / 2)


class Heard(nn.Module):
    """A network that notes the labels it is called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.labels = network, list[Tensor]()

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.labels.append(labels)
        made: Tensor = self.network(x, labels)
        return made


def test_a_fake_has_the_label_of_its_real_image() -> None:
    torch.manual_seed(0)
    update = tiny.update(tiny.model(width=2, latent_dim=4), "rsgan", penalty=tiny.penalty("r1r2"), classes=10)
    generator, critic = Heard(update.generator), Heard(update.critic)
    update = dataclasses.replace(update, generator=generator, critic=critic)
    real, z = batch(1)
    labelled = Batch(real.images, torch.tensor([3, 1, 4, 1, 5, 9]))
    update.update_critic(labelled, z)
    update.update_generator(labelled, z)
    assert (len(generator.labels), len(critic.labels)) == (2, 6)  # the critic: real, fake; R1, R2; real, fake
    assert all(torch.equal(labels, labelled.labels) for labels in generator.labels + critic.labels)


@pytest.mark.parametrize(("loss", "p"), [("rsgan", 0.56), ("sgan", 0.44)])
def test_what_steers_the_augmentation_is_what_the_loss_compares(loss: str, p: float) -> None:
    """Every logit is negative, those of real images less so: a paired critic is sure of them, a standard one is not."""

    class Brightness(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.tensor(-9.0))

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3)) + self.offset

    critic = Brightness()
    update = dataclasses.replace(
        tiny.update(tiny.model(width=2, latent_dim=4), loss),
        critic=critic,
        optimizer_d=torch.optim.SGD(critic.parameters(), lr=0.1),
        strength=Strength(AdaOptions(p=0.5, target=0.0, ramp=100), 6, CPU),
    )
    _, z = batch(1)
    update.update_critic(Batch(torch.ones(6, 1, 32, 32)), z)
    assert update.strength.p.item() == pytest.approx(p)


@pytest.mark.parametrize("share", [0.4, 0.5])
def test_parts_of_a_penalty_on_some_packed_images_meet_their_own_random_numbers(share: float) -> None:
    """Each part of the points goes with its part of the numbers, however many there are."""
    penalty = dataclasses.replace(tiny.penalty("r1r2"), share=share)
    values = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = tiny.model(width=2, latent_dim=4, pack=2, norm="none", spectral_norm=True)
        update = tiny.update(
            model, "rsgan", penalty=penalty, augment="diffaugment", pack=2, dtype=torch.float64, accumulate=parts
        )
        real, z = batch(5, 16)
        torch.manual_seed(7)
        values.append(update.update_critic(Batch(real.images.double()), z.double()).penalty)
    torch.testing.assert_close(values[1], values[0], rtol=1e-6, atol=1e-9)
