"""R3GAN's networks: the published sizes, the equations written a second time, both derivatives, precisions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from relgan.builtin import R3GANOptions
from relgan.config import resolve
from relgan.networks import build_networks
from relgan.networks.r3gan import Block, Critic, Down, Generator, GroupedConv, Up
from relgan.options import ConfigError
from relgan.registry import MODELS


def options(**values: object) -> R3GANOptions:
    made = dataclasses.replace(MODELS["r3gan"].options, **values)
    assert isinstance(made, R3GANOptions)
    return made


def pair(
    image_size: int = 16, channels: int = 3, classes: int = 0, *, trained: bool = True, **values: object
) -> tuple[Generator, Critic]:
    """Small networks of fixed weights; ``trained``: with residual branches and biases that are not zero."""
    torch.manual_seed(0)
    generator, critic = build_networks(
        options(**{"latent_dim": 5, "width": 4, "group_width": 4, **values}), image_size, channels, classes
    )
    assert isinstance(generator, Generator)
    assert isinstance(critic, Critic)
    for parameter in [*generator.parameters(), *critic.parameters()] if trained else ():
        if not parameter.any():
            nn.init.normal_(parameter, 0.0, 0.3)
    return generator, critic


def labels_of(classes: int, count: int) -> tuple[Tensor, ...]:
    return (torch.arange(count) % classes,) if classes else ()


# --- sizes ---


@pytest.mark.parametrize(
    ("values", "size", "classes", "generator", "critic"),
    [
        ({}, 32, 0, "20.7", "20.7"),  # stacked MNIST
        ({}, 32, 10, "20.8", "21.3"),  # CIFAR-10
        ({}, 64, 0, "22.4", "22.4"),  # FFHQ
        ({"width": 1536, "group_width": 32}, 32, 1000, "83", "87"),  # ImageNet
        ({"widths": [1536] * 5, "group_width": 32}, 64, 1000, "104", "107"),
    ],
)
def test_the_published_presets_have_the_published_millions_of_parameters(
    values: dict[str, object], size: int, classes: int, generator: str, critic: str
) -> None:
    with torch.device("meta"):
        networks = build_networks(options(**values), size, 3, classes)
    millions = [sum(p.numel() for p in network.parameters()) / 1e6 for network in networks]
    digits = len(generator.partition(".")[2])
    assert [f"{count:.{digits}f}" for count in millions] == [generator, critic]


def test_widths_halve_above_32_pixels_and_take_as_many_groups_as_fit() -> None:
    assert MODELS["r3gan"].options == R3GANOptions("r3gan", latent_dim=64, width=768)
    assert options().stage_widths(256) == [768, 768, 768, 768, 384, 192, 96]
    generator, _ = build_networks(options(width=16, group_width=8), 256, 1)
    groups = [conv.groups for conv in generator.modules() if isinstance(conv, GroupedConv)]
    # Twice the widths 16, 8, 4, 2 in groups of 8 channels, or in one.
    assert groups == [4] * 8 + [2, 2, 1, 1, 1, 1]
    own, _ = build_networks(options(widths=[6, 4, 2], blocks=1), 16, 1)
    assert [block.branch[-1].out_channels for block in own.modules() if isinstance(block, Block)] == [6, 4, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": [8, 8]}, r"model\.widths: must have one for each of 4×4, 8×8, 16×16, 32×32, 64×64; there are 2"),
        ({"width": 1}, r"model\.width: must be ≥ 2 for 64×64 images"),
        ({"width": 20}, r"model\.group_width: must divide 40, twice the width of a stage"),
    ],
)
def test_impossible_widths_are_refused_before_any_work(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        resolve({"model": {"name": "r3gan", **values}, "dataset": {"image_size": 64}})


# --- at the start ---


def test_every_block_begins_as_the_identity() -> None:
    generator, critic = pair(trained=False)
    for network in (generator, critic):
        blocks = [module for module in network.modules() if isinstance(module, Block)]
        assert len(blocks) == 6
        for block in blocks:
            x = torch.randn(2, block.branch[0].in_channels, 8, 8)
            assert torch.equal(block(x), x)


@pytest.mark.parametrize("blocks", [1, 2])
def test_initialisation(blocks: int) -> None:
    torch.manual_seed(0)
    generator, critic = build_networks(options(latent_dim=128, width=128, blocks=blocks), 64, 3, 50)
    gain = math.sqrt(2 / 1.04) / (5 * blocks) ** 0.25
    for network in (generator, critic):
        inside = [module for block in network.modules() if isinstance(block, Block) for module in block.branch]
        for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
            if conv.in_channels <= 3 or conv.out_channels <= 3:
                continue  # too few weights to measure
            fan_in = conv.in_channels // conv.groups * conv.kernel_size[0] ** 2
            last = conv in inside[4::5]
            expected = 0 if last else (gain if conv in inside else 1) / fan_in**0.5
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert conv.bias is None if last or conv not in inside else not conv.bias.any()
    # A linear layer of a one-hot label, which the vectors stand for, has as many inputs as there are classes.
    assert generator.embedding.weight.std().item() == pytest.approx(50**-0.5, rel=0.05)
    assert critic.embedding.weight.std().item() == pytest.approx((50 * 128) ** -0.5, rel=0.05)
    assert generator.basis.std().item() == pytest.approx(1, rel=0.05)
    assert critic.basis.std().item() == pytest.approx(1 / 4, rel=0.05)


# --- the filter ---


def test_a_constant_image_stays_constant_away_from_the_border() -> None:
    x = torch.full((1, 2, 8, 8), 3.0)
    torch.testing.assert_close(Up(2, 2)(x)[..., 1:-1, 1:-1], torch.full((1, 2, 14, 14), 3.0))
    torch.testing.assert_close(Down(2, 2)(x)[..., 1:-1, 1:-1], torch.full((1, 2, 2, 2), 3.0))


def test_an_impulse_becomes_the_filter() -> None:
    x = torch.zeros(1, 2, 6, 6)
    x[0, 1, 2, 3] = 1
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    wide = torch.zeros(1, 2, 12, 12)
    wide[0, 1, 3:7, 5:9] = torch.outer(taps, taps) / 16
    torch.testing.assert_close(Up(2, 2)(x), wide)
    narrow = torch.zeros(1, 2, 3, 3)
    narrow[0, 1, :2, 1:] = torch.outer(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0])) / 64
    torch.testing.assert_close(Down(2, 2)(x), narrow)


@pytest.mark.parametrize("axes", [(2,), (3,), (2, 3)])
def test_nothing_of_the_finest_stripes_is_left_at_half_the_size(axes: tuple[int, ...]) -> None:
    stripes = torch.ones(1, 1, 8, 8)
    for axis in axes:
        stripes = stripes * torch.tensor([1.0, -1.0] * 4).reshape([-1 if d == axis else 1 for d in range(4)])
    assert stripes.abs().min() == 1
    torch.testing.assert_close(Down(1, 1)(stripes)[..., 1:-1, 1:-1], torch.zeros(1, 1, 2, 2))


# --- the equations, written a second time ---


class Weights:
    """Hands out a network's parameters one after the other."""

    def __init__(self, network: nn.Module) -> None:
        named = dict(network.named_parameters())
        self.basis = named.pop("basis")
        self.vectors = named.pop("embedding.weight", None)
        self._rest: Iterator[Tensor] = iter(named.values())

    def next(self) -> Tensor:
        return next(self._rest)

    def all_used(self) -> bool:
        return next(self._rest, None) is None


def halving(size: int) -> Tensor:
    """The matrix (size/2, size) of the filter along one axis, zero beyond the border."""
    matrix = torch.zeros(size // 2, size + 2, dtype=torch.float64)
    for row in range(size // 2):
        matrix[row, 2 * row : 2 * row + 4] = torch.tensor([1, 3, 3, 1]) / 8
    return matrix[:, 1:-1]


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x)


def block(x: Tensor, weights: Weights) -> Tensor:
    inner = F.leaky_relu(mixed(x, weights.next()) + weights.next()[:, None, None], 0.2)
    of_groups = weights.next()
    parts = zip(inner.split(of_groups.shape[1], 1), of_groups.split(of_groups.shape[1]), strict=True)
    inner = torch.cat([F.conv2d(F.pad(part, (1, 1, 1, 1)), weight) for part, weight in parts], 1)
    return x + mixed(F.leaky_relu(inner + weights.next()[:, None, None], 0.2), weights.next())


def generated(network: nn.Module, z: Tensor, labels: Tensor | None, widths: list[int], blocks: int) -> Tensor:
    weights = Weights(network)
    if labels is not None:
        z = torch.cat([z, F.one_hot(labels, len(weights.vectors)).double() @ weights.vectors], 1)
    x = (z @ weights.next()[:, :, 0, 0].T)[:, :, None, None] * weights.basis
    for stage, width in enumerate(widths):
        if stage:
            x = x if width == widths[stage - 1] else mixed(x, weights.next())
            matrix = 2 * halving(2 * x.shape[3]).T
            x = matrix @ x @ matrix.T
        for _ in range(blocks):
            x = block(x, weights)
    x = mixed(x, weights.next())
    assert weights.all_used()
    return x


def judged(network: nn.Module, x: Tensor, labels: Tensor | None, widths: list[int], blocks: int) -> Tensor:
    weights = Weights(network)
    x = mixed(x, weights.next())
    for stage, width in enumerate(widths):
        if stage:
            matrix = halving(x.shape[3])
            x = matrix @ x @ matrix.T
            x = x if width == widths[stage - 1] else mixed(x, weights.next())
        for _ in range(blocks):
            x = block(x, weights)
    features = torch.einsum("nchw,chw->nc", x, weights.basis[0]) @ weights.next()[:, :, 0, 0].T
    assert weights.all_used()
    if labels is None:
        return features.squeeze(1)
    return (features * (F.one_hot(labels, len(weights.vectors)).double() @ weights.vectors)).sum(1)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("widths", "blocks"), [([4, 4, 4], 2), ([6, 4, 4], 1), ([4, 2, 6], 2)])
def test_images_logits_and_penalties_are_those_of_the_equations(
    classes: int, channels: int, widths: list[int], blocks: int
) -> None:
    """R1's derivative by the critic's parameters, too: PyTorch finds it in the plain equations by its own rules."""
    generator, critic = pair(16, channels, classes, widths=widths, blocks=blocks)
    generator, critic = generator.double(), critic.double()
    z, labels = torch.randn(4, 5, dtype=torch.float64), labels_of(classes, 4)
    images = generator(z, *labels)
    expected = generated(generator, z, *labels or (None,), widths=widths, blocks=blocks)
    torch.testing.assert_close(images, expected, rtol=1e-10, atol=1e-10)
    assert images.shape == (4, channels, 16, 16)

    def penalised(judge: Callable[[Tensor], Tensor]) -> list[Tensor]:
        points = images.detach().requires_grad_()
        logits = judge(points)
        (gradient,) = torch.autograd.grad(logits.sum(), points, create_graph=True)
        return [logits, gradient, *torch.autograd.grad(gradient.square().sum(), list(critic.parameters()))]

    def equations(points: Tensor) -> Tensor:
        return judged(critic, points, *labels or (None,), widths=widths[::-1], blocks=blocks)

    for found, wanted in zip(penalised(lambda points: critic(points, *labels)), penalised(equations), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# --- derivatives ---


@pytest.mark.parametrize("classes", [0, 2])
def test_both_networks_are_differentiable_twice(classes: int) -> None:
    """By their inputs and by every parameter, in float64, against differences."""
    generator, critic = pair(8, 1, classes, width=2, group_width=2, blocks=1, latent_dim=2)
    labels = labels_of(classes, 2)
    for network, inputs in ((generator, torch.randn(2, 2)), (critic, torch.randn(2, 1, 8, 8))):
        network.double()
        names, parameters = zip(*network.named_parameters(), strict=True)

        def of_all(x: Tensor, *values: Tensor, network: nn.Module = network, names: tuple[str, ...] = names) -> Tensor:
            found: Tensor = torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x, *labels))
            return found

        arguments = (inputs.double().requires_grad_(), *parameters)
        assert gradcheck(of_all, arguments, fast_mode=True)
        assert gradgradcheck(of_all, arguments, fast_mode=True)


def test_a_penalty_takes_no_more_kernels_for_more_groups() -> None:
    def kernels(group_width: int) -> int:
        _, critic = pair(16, width=16, group_width=group_width)
        points = torch.randn(2, 3, 16, 16, requires_grad=True)
        with Counter() as counter:
            (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
            gradient.square().sum().backward()
        return counter.total

    assert kernels(32) == kernels(1)


class Counter(TorchDispatchMode):
    """Counts the operations that PyTorch carries out."""

    total = 0

    def __torch_dispatch__(
        self, operation: Callable[..., object], types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        self.total += 1
        return operation(*args, **(kwargs or {}))


# --- precision and memory ---


def test_the_4x4_stage_keeps_its_precision_under_autocast() -> None:
    seen: dict[str, torch.dtype] = {}
    networks = pair(classes=2)
    inputs = torch.randn(2, 5)
    for network in networks:
        names = {module: name for name, module in network.named_modules()}
        for layer in names:
            if isinstance(layer, nn.Conv2d | Block):
                layer.register_forward_hook(
                    lambda module, _, output, names=names: seen.update({names[module]: output.dtype})
                )
        with torch.autocast("cpu", torch.bfloat16):
            inputs = network(inputs, *labels_of(2, 2))
        assert len(seen) == 3 * 2 * (3 + 1) + 2
        for name, dtype in seen.items():
            assert dtype == (torch.bfloat16 if name.startswith("larger.") else torch.float32), name
        seen.clear()
    assert inputs.dtype == torch.float32  # the logits


@pytest.mark.parametrize("classes", [0, 2])
def test_a_penalty_inside_autocast_leaves_the_4x4_stage_its_precision(classes: int) -> None:
    _, critic = pair(classes=classes)
    found: list[Tensor] = []
    critic.smallest.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        logits = critic(torch.randn(2, 3, 16, 16), *labels_of(classes, 2))
        (inside,) = torch.autograd.grad(logits.sum(), found, create_graph=True)
    (outside,) = torch.autograd.grad(logits.sum(), found)
    assert torch.equal(inside, outside)


def test_bfloat16_is_close_to_float32() -> None:
    generator, critic = pair(32)
    z = torch.randn(8, 5)
    images = generator(z)
    logits = critic(images)
    with torch.autocast("cpu", torch.bfloat16):
        for low, full in ((generator(z), images), (critic(images), logits)):
            assert not torch.equal(low.float(), full)
            torch.testing.assert_close(low.float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_gives_the_same_numbers(channels: int) -> None:
    generator, critic = pair(32, channels, widths=[8, 8, 4, 4])
    z = torch.randn(3, 5)
    images = generator(z)
    logits = critic(images)
    for network in (generator, critic):
        network.to(memory_format=torch.channels_last)
    fast = generator(z)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    assert fast.shape == (3, channels, 32, 32)
    torch.testing.assert_close(fast, images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(critic(fast), logits, rtol=1e-4, atol=1e-5)


def test_the_state_holds_parameters_only() -> None:
    for network in pair():
        assert list(network.state_dict()) == [name for name, _ in network.named_parameters()]


def test_a_critic_of_another_size_is_an_error() -> None:
    _, critic = pair(16)
    with pytest.raises(RuntimeError):
        critic(torch.zeros(2, 3, 32, 32))
