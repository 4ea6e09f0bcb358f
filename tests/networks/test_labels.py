"""Conditional networks: where labels enter, what they add, and networks that have none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from relgan.networks import build_networks
from relgan.options import ConfigError
from relgan.registry import MODELS, ModelCard, ModelOptions, register_model

CLASSES = 3
LABELS = torch.tensor([0, 1, 2, 0, 1])
NAMES = ("dcgan", "cnn32", "r3gan")
ALL = pytest.mark.parametrize("name", NAMES)
PROJECTING = pytest.mark.parametrize("name", ["dcgan", "cnn32"])


def pair(name: str, classes: int = CLASSES, **values: object) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    if name != "r3gan":
        values = {"spectral_norm": False, **values}
    made = dataclasses.replace(MODELS[name].options, **{"width": 4, "latent_dim": 6, **values})
    return build_networks(made, 32, 3, classes)


@ALL
def test_each_image_follows_its_own_label(name: str) -> None:
    generator, critic = (network.eval() for network in pair(name))
    z, images = torch.randn(5, 6), torch.randn(5, 3, 32, 32)
    other = LABELS.clone()
    other[3] = 2
    for network, inputs, shape in ((generator, z, (5, 3, 32, 32)), (critic, images, (5,))):
        one, two = network(inputs, LABELS), network(inputs, other)
        assert one.shape == shape
        assert [not torch.equal(a, b) for a, b in zip(one, two, strict=True)] == [False, False, False, True, False]


@ALL
def test_the_generator_sees_z_followed_by_the_vector_of_the_label(name: str) -> None:
    generator, _ = pair(name)
    longer, _ = pair(name, classes=0, latent_dim=12)
    state = generator.state_dict()
    vectors = state.pop("embedding.weight")
    assert vectors.shape == (CLASSES, 6)
    longer.load_state_dict(state)
    z = torch.randn(5, 6)
    assert torch.equal(generator(z, LABELS), longer(torch.cat([z, vectors[LABELS]], dim=1)))


@PROJECTING
def test_the_critic_adds_the_projection_of_its_last_features(name: str) -> None:
    _, critic = pair(name)
    _, plain = pair(name, classes=0)
    state = critic.state_dict()
    vectors = state.pop("embedding.weight")
    plain.load_state_dict(state)
    features: list[Tensor] = []
    last = plain.body[-1] if name == "dcgan" else plain.last
    last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    images = torch.randn(5, 3, 32, 32)
    logits = plain(images)
    summed = features[0].reshape(5, -1, 16).sum(2)
    assert vectors.shape == (CLASSES, summed.shape[1])
    torch.testing.assert_close(critic(images, LABELS), logits + torch.einsum("nc,nc->n", vectors[LABELS], summed))


@ALL
def test_labels_add_one_vector_a_class_and_nothing_else(name: str) -> None:
    for network, plain in zip(pair(name), pair(name, classes=0), strict=True):
        assert {key for key, _ in network.named_parameters()} == {
            *(key for key, _ in plain.named_parameters()),
            "embedding.weight",
        }


@ALL
def test_vectors_at_the_start(name: str) -> None:
    generator, critic = pair(name, classes=200, width=32, latent_dim=64)
    stds = {"dcgan": (1, 0.02), "cnn32": (1, 0.02), "r3gan": (200**-0.5, (32 * 200) ** -0.5)}[name]
    for network, std in zip((generator, critic), stds, strict=True):
        assert network.embedding.weight.std().item() == pytest.approx(std, rel=0.05)


def test_the_projection_is_normalised_where_the_last_layer_is() -> None:
    _, critic = pair("dcgan", spectral_norm=True)
    for _ in range(50):
        critic(torch.randn(2, 3, 32, 32), LABELS[:2])
    assert torch.linalg.matrix_norm(critic.embedding.weight.detach(), 2).item() == pytest.approx(1, abs=1e-3)
    _, critic = pair("cnn32", spectral_norm=True)
    assert not any(parametrize.is_parametrized(layer) for layer in (critic.last, critic.embedding))


@ALL
def test_a_penalty_reaches_the_vectors(name: str) -> None:
    _, critic = pair(name)
    images = torch.randn(5, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(images, LABELS).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert critic.embedding.weight.grad.abs().min() > 0


@ALL
def test_labels_are_for_networks_with_classes(name: str) -> None:
    for conditional, plain, inputs in zip(
        pair(name), pair(name, classes=0), (torch.randn(5, 6), torch.randn(5, 3, 32, 32)), strict=True
    ):
        with pytest.raises(ValueError, match="needs labels"):
            conditional(inputs)
        with pytest.raises(ValueError, match="has no classes"):
            plain(inputs, LABELS)


# --- other people's networks ---


class Conditional(nn.Module):
    """Takes labels, of at most ``classes``, and returns a value for each image or latent."""

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.vectors, self.shape = nn.Embedding(classes, 1), shape

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        values: Tensor = (inputs.flatten(1).mean(1) + self.vectors(labels)[:, 0]).reshape(-1, *[1] * len(self.shape))
        return values.expand(-1, *self.shape)


@pytest.fixture
def register() -> Callable[[Callable[..., object]], ModelOptions]:
    def enter(build: Callable[..., object]) -> ModelOptions:
        register_model("mine", ModelOptions(latent_dim=8), build, facts=ModelCard(labels=True))
        options = MODELS["mine"].options
        assert isinstance(options, ModelOptions)
        return options

    return enter


def test_a_builder_is_told_of_classes_only_where_there_are_some(
    register: Callable[[Callable[..., object]], ModelOptions],
) -> None:
    told: list[tuple[int, ...]] = []

    def build(options: ModelOptions, size: int, channels: int, *classes: int) -> tuple[nn.Module, nn.Module]:
        told.append(classes)
        if classes:
            return Conditional(*classes, (channels, size, size)), Conditional(*classes, ())
        return tiny_pair(size, channels)

    options = register(build)
    build_networks(options, 16, 3, 7)
    build_networks(options, 16, 3)
    assert told == [(7,), ()]


def tiny_pair(size: int, channels: int) -> tuple[nn.Module, nn.Module]:
    shape = (channels, size, size)
    pixels = channels * size**2
    return (
        nn.Sequential(nn.Linear(8, pixels), nn.Unflatten(1, shape)),
        nn.Sequential(nn.Flatten(), nn.Linear(pixels, 1)),
    )


@pytest.mark.parametrize(
    ("networks", "problem"),
    [
        (tiny_pair(16, 3), r"mine's generator fails on an input of shape \(2, 8\) and labels \(2,\): .*"),
        (
            (Conditional(7, (3, 16, 16)), tiny_pair(16, 3)[1]),
            r"mine's critic fails on an input of shape \(2, 3, 16, 16\) and labels \(2,\): .*",
        ),
        # Not every class has a vector.
        ((Conditional(6, (3, 16, 16)), Conditional(7, ())), r"mine's generator fails on .*: index out of range.*"),
    ],
)
def test_other_networks_are_tried_with_labels(
    register: Callable[[Callable[..., object]], ModelOptions], networks: object, problem: str
) -> None:
    options = register(lambda options, size, channels, classes: networks)
    with pytest.raises(ConfigError, match=rf"^model\.name: {problem}$"):
        build_networks(options, 16, 3, 7)
