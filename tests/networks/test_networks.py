"""Architectures: sizes, options, initialisation and parameter counts worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import tiny
from relgan.builtin import Cnn32Options, ConvOptions
from relgan.config import resolve
from relgan.networks import build_networks
from relgan.networks.blocks import FromPixel, ResizeConv, ToPixel
from relgan.options import ConfigError
from relgan.registry import MODELS, ModelOptions, register_model
from relgan.training.update import pack

CASES = [("dcgan", 16), ("dcgan", 32), ("dcgan", 64), ("dcgan", 128), ("dcgan", 256), ("cnn32", 32)]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def of_type(network: nn.Module, *types: type[nn.Module]) -> int:
    return sum(isinstance(module, types) for module in network.modules())


def is_normalised(module: nn.Module) -> bool:
    return hasattr(module, "parametrizations")


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
@pytest.mark.parametrize("classes", [0, 3])
def test_logits_keep_more_than_the_8_bits_of_bfloat16(name: str, classes: int) -> None:
    """All logits may grow together to hundreds, where bfloat16 has no fractions, and losses take differences."""
    _, critic = build_networks(tiny.model(name, width=8), 32, 3, classes)
    labels = [torch.arange(16) % classes] if classes else []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = critic(2 * torch.rand(16, 3, 32, 32) - 1, *labels)
    assert logits.dtype == torch.float32
    assert (logits != logits.to(torch.bfloat16)).sum() > 8


# --- parameter counts ---


@pytest.mark.parametrize(
    ("size", "width", "generator", "critic"),
    [
        # Added up on paper, for z = 128 and RGB; the last two: convolutions + batch norms.
        (
            32,
            128,
            # z·4h·16, BN 2·4h; 4h·2h·16, BN 2·2h; 2h·h·16, BN 2·h; h·3·16
            1_048_576 + 1_024 + 2_097_152 + 512 + 524_288 + 256 + 6_144,
            # 3·h·16; h·2h·16, BN 2·2h; 2h·4h·16, BN 2·4h; 4h·16
            6_144 + 524_288 + 512 + 2_097_152 + 1_024 + 8_192,
        ),
        (
            64,
            64,
            1_048_576 + 1_024 + 2_097_152 + 512 + 524_288 + 256 + 131_072 + 128 + 3_072,
            3_072 + 131_072 + 256 + 524_288 + 512 + 2_097_152 + 1_024 + 8_192,
        ),
        (64, 128, 13_113_344 + 3_840, 11_032_576 + 3_584),
        (256, 32, 13_272_576 + 4_032, 11_191_808 + 3_968),
    ],
)
def test_dcgan_parameters_counted_by_hand(size: int, width: int, generator: int, critic: int) -> None:
    networks = build_networks(tiny.model(width=width, upsample="transposed"), size, 3)
    assert (count(networks[0]), count(networks[1])) == (generator, critic)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("h", "z", "c"), [(4, 7, 1), (6, 128, 3)])
def test_dcgan_parameters_by_formula(size: int, h: int, z: int, c: int) -> None:
    """With m = S/8, the inner 4×4 convolutions add up to a geometric series."""
    m = size // 8
    inner = 16 * h * h * 2 * (m * m - 1) // 3
    widths = h * (2 * m - 1)
    generator, critic = build_networks(tiny.model(width=h, latent_dim=z, upsample="transposed"), size, c)
    assert count(generator) == 16 * z * h * m + inner + 2 * widths + 16 * h * c
    assert count(critic) == 16 * c * h + inner + 2 * (widths - h) + 16 * h * m
    # 3×3 instead of 4×4 in all layers but the first.
    resizing, _ = build_networks(tiny.model(width=h, latent_dim=z, upsample="resize"), size, c)
    assert count(resizing) == 16 * z * h * m + inner * 9 // 16 + 2 * widths + 9 * h * c


def test_cnn32_parameters_counted_by_hand() -> None:
    """Convolutions have k·k·in·out + out parameters, batch norms 2·out."""
    generator = (
        (128 * 8192 + 8192)
        + (16 * 512 * 256 + 256 + 512)
        + (16 * 256 * 128 + 128 + 256)
        + (16 * 128 * 64 + 64 + 128)
        + (9 * 64 * 3 + 3)
    )
    convolutions = (
        (9 * 3 * 64 + 64)
        + (16 * 64 * 64 + 64)
        + (9 * 64 * 128 + 128)
        + (16 * 128 * 128 + 128)
        + (9 * 128 * 256 + 256)
        + (16 * 256 * 256 + 256)
        + (9 * 256 * 512 + 512)
    )
    linear, norms = 8192 + 1, 2 * (64 + 64 + 128 + 128 + 256 + 256)
    assert (generator, convolutions + linear) == (3_812_355, 2_935_873)

    def counts(**options: object) -> tuple[int, int]:
        networks = build_networks(tiny.model("cnn32", width=64, **options), 32, 3)
        return count(networks[0]), count(networks[1])

    assert counts() == (generator, convolutions + linear + norms)
    assert counts(spectral_norm=True) == (generator, convolutions + linear)
    generator_norms = 2 * (256 + 128 + 64)
    assert counts(norm="none") == (generator - generator_norms, convolutions + linear)
    assert counts(generator_spectral_norm=True)[0] == generator - generator_norms
    # ×2 by nearest neighbours and 3×3 instead of 4×4: 7 weights fewer for each pair of channels.
    assert counts(upsample="resize")[0] == generator - 7 * (512 * 256 + 256 * 128 + 128 * 64)


# --- shapes ---


@pytest.mark.parametrize(("name", "size"), CASES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shapes_and_range(name: str, size: int, channels: int) -> None:
    torch.manual_seed(0)
    generator, critic = build_networks(tiny.model(name, width=4, latent_dim=16), size, channels)
    images = generator(3 * torch.randn(5, 16))
    assert images.shape == (5, channels, size, size)
    assert images.abs().max() <= 1
    assert critic(images).shape == (5,)
    assert critic(images[:2]).shape == (2,)


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_bernoulli_latent_is_the_signs_of_z(name: str, classes: int) -> None:
    options = tiny.model(name, width=4, latent_dim=6)
    torch.manual_seed(0)
    plain, _ = build_networks(options, 32, 1, classes)
    torch.manual_seed(0)
    signed, _ = build_networks(replace(options, latent="bernoulli"), 32, 1, classes)
    z, labels = torch.randn(8, 6), [torch.arange(8) % 3] if classes else []
    z[0, 0] = 0
    signs = torch.where(z < 0, -1.0, 1.0)
    torch.testing.assert_close(signed(z, *labels), plain(signs, *labels), rtol=0, atol=0)
    assert not torch.equal(plain(z, *labels), plain(signs, *labels))


@pytest.mark.parametrize(("name", "size"), CASES)
@pytest.mark.parametrize(
    "options",
    [
        {"norm": "none"},
        {"activation": "selu"},
        {"activation": "tanh"},
        {"upsample": "resize"},
        {"spectral_norm": True},
        {"generator_spectral_norm": True, "upsample": "resize"},
    ],
    ids=str,
)
def test_every_option_trains_at_every_size(name: str, size: int, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    generator, critic = build_networks(
        tiny.model(name, width=2, latent_dim=8, **options),
        size,
        3,
    )
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, 3, size, size)
    critic(images).mean().backward()
    for network in (generator, critic):
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
def test_a_critic_of_another_size_is_an_error(name: str) -> None:
    _, critic = build_networks(tiny.model(name, width=2), 32, 3)
    with pytest.raises(RuntimeError):
        critic(torch.zeros(2, 3, 64, 64))


# --- options ---


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
def test_spectral_norm_replaces_batch_norm_in_its_own_network_only(name: str) -> None:
    plain_g, plain_d = build_networks(tiny.model(name, width=4), 32, 3)
    assert of_type(plain_g, nn.BatchNorm2d) == 3
    assert of_type(plain_d, nn.BatchNorm2d) == {"dcgan": 2, "cnn32": 6}[name]

    generator, critic = build_networks(tiny.model(name, width=4, spectral_norm=True), 32, 3)
    assert of_type(critic, nn.BatchNorm2d) == 0
    assert of_type(generator, nn.BatchNorm2d) == 3
    assert not any(is_normalised(m) for m in generator.modules())
    convolutions = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == {"dcgan": 4, "cnn32": 7}[name]
    assert all(is_normalised(m) for m in convolutions)
    assert not any(is_normalised(m) for m in critic.modules() if isinstance(m, nn.Linear))

    generator, critic = build_networks(tiny.model(name, width=4, generator_spectral_norm=True), 32, 3)
    assert of_type(generator, nn.BatchNorm2d) == 0
    assert of_type(critic, nn.BatchNorm2d) == of_type(plain_d, nn.BatchNorm2d)
    convolutions = [m for m in generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 4
    assert all(is_normalised(m) for m in convolutions)


@pytest.mark.parametrize("transposed", [False, True])
def test_normalised_convolutions_have_norm_one(transposed: bool) -> None:
    """The largest singular value of the matrix whose rows are the output channels."""
    torch.manual_seed(0)
    options = tiny.model(width=4, spectral_norm=True, generator_spectral_norm=True)
    generator, critic = build_networks(options, 32, 3)
    for _ in range(50):
        critic(generator(torch.randn(2, 128)))
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    for module in (generator if transposed else critic).modules():
        if isinstance(module, kind):
            weight = module.weight.detach()
            rows = (weight.transpose(0, 1) if transposed else weight).flatten(1)
            assert torch.linalg.matrix_norm(rows, 2).item() == pytest.approx(1, abs=1e-3)


def test_spectral_norm_is_not_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some devices autocast would run its matrix-vector products in bfloat16."""
    autocast = []
    multiply = torch.mv

    def spy(matrix: Tensor, vector: Tensor) -> Tensor:
        autocast.append(torch.is_autocast_enabled("cpu"))
        return multiply(matrix, vector)

    _, critic = build_networks(tiny.model(width=4, spectral_norm=True), 32, 3)
    monkeypatch.setattr(torch, "mv", spy)
    with torch.autocast("cpu", torch.bfloat16):
        critic(torch.rand(2, 3, 32, 32))
    assert len(autocast) >= 4
    assert not any(autocast)


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
def test_activations(name: str) -> None:
    def hidden(**options: object) -> list[set[type]]:
        kinds = (nn.ReLU, nn.LeakyReLU, nn.SELU, nn.Tanh)
        networks = build_networks(tiny.model(name, width=2, **options), 32, 3)
        # The generator's last Tanh is its output.
        modules = [list(networks[0].modules())[:-1], list(networks[1].modules())]
        return [{type(m) for m in found if isinstance(m, kinds)} for found in modules]

    assert hidden() == [{nn.ReLU}, {nn.LeakyReLU}]
    assert hidden(activation="selu") == [{nn.SELU}, {nn.SELU}]
    assert hidden(activation="tanh") == [{nn.Tanh}, {nn.Tanh}]
    slope = {"dcgan": 0.2, "cnn32": 0.1}[name]
    _, critic = build_networks(tiny.model(name, width=2), 32, 3)
    assert {m.negative_slope for m in critic.modules() if isinstance(m, nn.LeakyReLU)} == {slope}


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
def test_what_each_option_does_to_batch_norm(name: str) -> None:
    def norms(**options: object) -> int:
        networks = build_networks(tiny.model(name, width=2, **options), 32, 3)
        return sum(of_type(network, nn.BatchNorm2d) for network in networks)

    assert norms(norm="none") == norms(activation="selu") == 0
    assert norms(activation="tanh") == norms(upsample="resize") == norms() > 0


@pytest.mark.parametrize(("name", "left"), [("dcgan", 1), ("cnn32", 0)])
def test_resize_leaves_only_the_layer_that_spreads_z(name: str, left: int) -> None:
    generator, _ = build_networks(tiny.model(name, width=2, upsample="resize"), 32, 3)
    assert of_type(generator, nn.ConvTranspose2d) == left
    assert of_type(generator, ResizeConv) == 3


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("activation", ["default", "selu"])
def test_initialisation(name: str, spectral: bool, activation: str) -> None:
    torch.manual_seed(0)
    options = tiny.model(
        name, width=32, activation=activation, spectral_norm=spectral, generator_spectral_norm=spectral
    )
    for network in build_networks(options, 32, 3):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                weight = module.parametrizations.weight.original if spectral else module.weight  # type: ignore[union-attr]
                assert isinstance(weight, Tensor)
                assert weight.std().item() == pytest.approx(0.02, rel=0.1)
                assert abs(weight.mean().item()) < 5 * 0.02 / weight.numel() ** 0.5
                assert (module.bias is not None) == (name == "cnn32")
            elif isinstance(module, nn.BatchNorm2d):
                assert abs(module.weight.mean().item() - 1) < 0.02
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.5)
                assert not module.bias.any()
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                assert 0.9 * bound < module.weight.abs().max().item() <= bound


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
def test_state_dict_holds_plain_tensors_and_restores(name: str) -> None:
    options = tiny.model(name, width=4, spectral_norm=True, generator_spectral_norm=True)
    for network, twin in zip(build_networks(options, 32, 3), build_networks(options, 32, 3), strict=True):
        state = network.state_dict()
        assert all(type(value) is Tensor for value in state.values())
        twin.load_state_dict(state)
        inputs = torch.randn(2, 128) if network is not twin and _takes_latents(network) else None
        inputs = torch.randn(2, 3, 32, 32) if inputs is None else inputs
        assert torch.equal(network.eval()(inputs), twin.eval()(inputs))
        assert torch.equal(copy.deepcopy(network)(inputs), twin(inputs))


def _takes_latents(network: nn.Module) -> bool:
    return of_type(network, nn.ConvTranspose2d) > 0


# --- packing ---


def test_pack_stacks_neighbours_on_the_channel_axis() -> None:
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 4, 4) * 10
    images = images + torch.arange(2.0).reshape(1, 2, 1, 1)
    packed = pack(images, 3)
    assert packed.shape == (2, 6, 4, 4)
    assert packed[:, :, 0, 0].tolist() == [[0, 1, 10, 11, 20, 21], [30, 31, 40, 41, 50, 51]]
    assert pack(images, 1) is images
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert pack(channels_last, 3).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pack(channels_last, 3), packed)
    with pytest.raises(ValueError, match="6 images cannot be packed by 4"):
        pack(images, 4)


@pytest.mark.parametrize(("name", "size"), [("dcgan", 64), ("cnn32", 32)])
def test_a_packed_critic_judges_k_images_at_once(name: str, size: int) -> None:
    torch.manual_seed(0)
    generator, critic = build_networks(tiny.model(name, width=4, pack=2, spectral_norm=True), size, 3)
    images = generator(torch.randn(6, 128)).detach()
    critic.eval()
    logits = critic(pack(images, 2))
    assert logits.shape == (3,)
    changed = images.clone()
    changed[3] += 1
    moved = critic(pack(changed, 2)) != logits
    assert moved.tolist() == [False, True, False]


# --- speed formats and the configuration ---


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("upsample", ["transposed", "resize"])
def test_channels_last_gives_the_same_numbers(name: str, spectral: bool, upsample: str) -> None:
    torch.manual_seed(0)
    options = tiny.model(name, width=4, spectral_norm=spectral, upsample=upsample)
    generator, critic = build_networks(options, 32, 3)
    z = torch.randn(4, 128)
    fast_g = copy.deepcopy(generator).to(memory_format=torch.channels_last)
    fast_d = copy.deepcopy(critic).to(memory_format=torch.channels_last)
    images = fast_g(z)
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images, generator(z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast_d(images), critic(generator(z)), rtol=1e-3, atol=1e-4)


def test_the_registered_defaults() -> None:
    assert MODELS["dcgan"].options == ConvOptions("dcgan", width=64, spectral_norm=True, upsample="resize")
    assert MODELS["cnn32"].options == Cnn32Options("cnn32", width=64, spectral_norm=True, upsample="transposed")
    for name in ("dcgan", "cnn32"):
        build_networks(MODELS[name].options, 32, 3)


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^dataset\.image_size: model=cnn32 makes 32×32 images, not 64$"):
        resolve({"model": {"name": "cnn32"}, "dataset": {"image_size": 64}})
    with pytest.raises(ConfigError, match=r"^dataset\.image_size: 48 is not one of 16, 32, 64, 128, 256$"):
        resolve({"dataset": {"image_size": 48}})
    with pytest.raises(ConfigError, match=r"^model\.name: 'vgg' is not one of dcgan, cnn32, r3gan"):
        build_networks(ModelOptions("vgg"), 32, 3)


# --- other people's networks ---


def linear(size: int, to: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(size, to))


def pictures(size: int) -> nn.Module:
    return nn.Sequential(linear(8, 3 * size * size), nn.Unflatten(1, (3, size, size)), nn.Tanh())


PATCHES = nn.Conv2d(3, 1, 8, stride=8)


@pytest.fixture
def mine() -> Callable[[object], ModelOptions]:
    """Registers a network pair, or what claims to be one; returns its options."""

    def register(networks: object) -> ModelOptions:
        register_model("mine", ModelOptions(latent_dim=8), lambda options, image_size, channels: networks)
        options = MODELS["mine"].options
        assert isinstance(options, ModelOptions)
        return options

    return register


@pytest.mark.parametrize("critic", [nn.Sequential(linear(768, 1), nn.Flatten(0)), linear(768, 1), PATCHES])
def test_a_critic_may_return_flat_logits_a_column_or_a_map(
    mine: Callable[[object], ModelOptions], critic: nn.Module
) -> None:
    assert build_networks(mine((pictures(16), critic)), 16, 3)[1] is critic


@pytest.mark.parametrize(
    ("networks", "problem"),
    [
        ((pictures(16), linear(768, 2)), r"mine: the critic's logits must have the shape .*, got \(2, 2\)"),
        (
            (pictures(16), nn.Sequential(linear(768, 1), nn.Flatten(0), nn.Unflatten(0, (1, 2)))),
            r"mine: the critic's .*",
        ),
        ((pictures(16), nn.AdaptiveAvgPool2d(1)), r"mine: the critic's .*, got \(2, 3, 1, 1\)"),
        ((pictures(8), PATCHES), r"mine's generator returns \(2, 3, 8, 8\), not \(2, 3, 16, 16\)"),
        ((linear(8, 1), PATCHES), r"mine's generator returns \(2, 1\), not \(2, 3, 16, 16\)"),
        ((linear(9, 1), PATCHES), r"mine's generator fails on an input of shape \(2, 8\): .*"),
        ((pictures(16), linear(9, 1)), r"mine's critic fails on an input of shape \(2, 3, 16, 16\): .*"),
        (
            (pictures(16), nn.Sequential(nn.Flatten(0, 2), linear(16, 1))),
            r"mine's critic returns 96 logits for 2 images",
        ),
        ((pictures(16), nn.LSTM(16, 1)), r"mine's critic .*"),
        (pictures(16), r"mine must build a tuple of two torch modules, got \(Sequential\)"),
        ((pictures(16),), r"mine must build a tuple of two torch modules, got \(Sequential\)"),
        ((pictures(16), "critic"), r"mine must build a tuple of two torch modules, got \(Sequential, str\)"),
    ],
)
def test_networks_of_other_shapes_are_refused_in_one_line(
    mine: Callable[[object], ModelOptions], networks: object, problem: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.name: {problem}$") as caught:
        build_networks(mine(networks), 16, 3)
    assert "\n" not in str(caught.value)


def test_looking_at_networks_changes_neither_them_nor_the_random_numbers(
    mine: Callable[[object], ModelOptions],
) -> None:
    critic = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), PATCHES).eval()
    generator = nn.Sequential(pictures(16), nn.BatchNorm2d(3))
    before = [value.clone() for network in (generator, critic) for value in network.state_dict().values()]
    options = mine((generator, critic))
    torch.manual_seed(5)
    build_networks(options, 16, 3)
    assert torch.equal(torch.randn(3), torch.randn(3, generator=torch.Generator().manual_seed(5)))
    after = [value for network in (generator, critic) for value in network.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert generator.training
    assert not critic.training


@pytest.mark.parametrize("bias", [False, True])
def test_a_resize_convolution_is_an_enlargement_and_a_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    layer = ResizeConv(3, 5, bias=bias).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    larger = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    want = nn.functional.conv2d(larger, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_products_of_matrices_are_the_convolutions_of_one_pixel(bias: bool, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    wide, narrow = FromPixel(6, 5, 4, bias=bias), ToPixel(5, 3, 4, bias=bias)
    for layer in (wide, narrow):
        layer.to(torch.float64, memory_format=memory_format)
    z = torch.randn(2, 6, 1, 1, dtype=torch.float64)
    made = wide(z)
    torch.testing.assert_close(made, nn.functional.conv_transpose2d(z, wide.weight, wide.bias))
    torch.testing.assert_close(narrow(made), nn.functional.conv2d(made, narrow.weight, narrow.bias))
    assert made.is_contiguous(memory_format=torch.channels_last)
