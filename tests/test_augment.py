"""Augmentations against NumPy and closed forms; what they promise to engines and penalties."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import grid_sample
from torch.utils._python_dispatch import TorchDispatchMode

from relgan.augment import Augmentation, build_augmentation
from relgan.options import ConfigError
from relgan.registry import AUGMENTATIONS, AugmentOptions, register_augment

NAMES = ("ada", "diffaugment")
HALF = torch.tensor(0.5)
# Where the random numbers of each of ada's transformations begin: whether it is chosen, then its amounts.
GEOMETRY = {"mirror": 0, "turn": 2, "move": 4, "scale": 7, "rotate": 9, "stretch": 11, "rotate again": 13, "shift": 15}
COLORS = {"brightness": 18, "contrast": 20, "luma": 22, "hue": 24, "saturation": 26}
ADA = GEOMETRY | COLORS | {"cutout": 28}


def augmentation(name: str, channels: int = 3, **options: Any) -> Augmentation:
    return build_augmentation(dataclasses.replace(AUGMENTATIONS[name].options, **options), channels)


def images(n: int, side: int, *, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def numbers(n: int, of: Augmentation, seed: int = 1) -> Tensor:
    return torch.rand(n, of.numbers, generator=torch.Generator().manual_seed(seed))


def drawn(**amounts: float | tuple[float, ...]) -> Tensor:
    """Random numbers (1, 31) with which, at p = ½, ada makes these transformations and no others."""
    u = torch.full((1, 31), 0.999)
    for name, values in amounts.items():
        start = ADA[name.replace("_", " ")]
        made = (0.0, *(values if isinstance(values, tuple) else (values,)))
        u[0, start : start + len(made)] = torch.tensor(made)
    return u


def ada(x: Tensor, **amounts: float | tuple[float, ...]) -> Tensor:
    return augmentation("ada")(x, drawn(**amounts).expand(len(x), -1), HALF)


def close(got: Tensor, want: NDArray[Any], atol: float = 1e-5) -> None:
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=atol)


# --- ada: each transformation ---


@pytest.mark.parametrize(("u", "mirrored"), [(0.49, False), (0.5, True)])
def test_mirror(u: float, mirrored: bool) -> None:
    x = images(2, 16)
    close(ada(x, mirror=u), x.numpy()[..., ::-1] if mirrored else x.numpy())


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turn(quarters: int) -> None:
    x = images(2, 16)
    close(ada(x, turn=quarters / 4 + 0.1), np.rot90(x.numpy(), -quarters, axes=(2, 3)))


@pytest.mark.parametrize(("u", "pixels"), [((0.0, 0.99), (-2, 2)), ((0.5, 0.7), (0, 1)), ((0.3, 0.0), (-1, -2))])
def test_move_by_whole_pixels_up_to_an_eighth_with_reflected_borders(
    u: tuple[float, float], pixels: tuple[int, int]
) -> None:
    x = images(2, 16)
    right, down = pixels
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="symmetric")
    close(ada(x, move=u), padded[..., 2 - down : 18 - down, 2 - right : 18 - right])


def smooth(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Values of three channels at points of the plane, for lengths in half sides."""
    return np.stack([np.cos(2 * x + y), np.sin(1.5 * y - x), np.cos(x - 0.5) * np.sin(2 * y)])


def linear(xx: float, xy: float, yx: float, yy: float) -> NDArray[Any]:
    return np.array([[xx, xy, 0], [yx, yy, 0], [0, 0, 1]])


def rotation(u: float) -> NDArray[Any]:
    """Clockwise, where y points down."""
    angle = (2 * u - 1) * math.pi
    return linear(math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))


def shift(x: float, y: float) -> NDArray[Any]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])


def normal(u: float) -> float:
    return NormalDist().inv_cdf(u)


# At a side of 32: what u makes of the points of the image.
MATRICES: dict[str, Callable[..., NDArray[Any]]] = {
    "mirror": lambda u: linear(-1, 0, 0, 1),
    "turn": lambda u: rotation(0.75),
    "move": lambda u, v: shift((math.floor(9 * u) - 4) / 16, (math.floor(9 * v) - 4) / 16),
    "scale": lambda u: linear(2 ** (0.2 * normal(u)), 0, 0, 2 ** (0.2 * normal(u))),
    "rotate": rotation,
    "stretch": lambda u: linear(2 ** (0.2 * normal(u)), 0, 0, 2 ** (-0.2 * normal(u))),
    "rotate again": rotation,
    "shift": lambda u, v: shift(normal(u) / 4, normal(v) / 4),
}


@pytest.mark.parametrize(
    "amounts",
    [
        {"mirror": 0.9},
        {"turn": 0.3},
        {"move": (0.2, 0.9)},
        {"scale": 0.9},
        {"scale": 0.1},
        {"rotate": 0.6},
        {"stretch": 0.8},
        {"rotate again": 0.3},
        {"shift": (0.3, 0.8)},
        {"rotate": 0.9, "stretch": 0.2, "rotate again": 0.7},
        {
            **{"mirror": 0.9, "turn": 0.3, "move": (0.2, 0.9), "scale": 0.7, "rotate": 0.6, "stretch": 0.8},
            **{"rotate again": 0.2, "shift": (0.6, 0.3)},
        },
    ],
    ids=lambda amounts: "-".join(amounts),
)
def test_geometry_follows_the_product_of_its_matrices(amounts: dict[str, Any]) -> None:
    middles = (np.arange(32) + 0.5) / 16 - 1
    x, y = np.meshgrid(middles, middles)
    product = np.eye(3)
    for name in GEOMETRY:
        if name in amounts:
            values = amounts[name]
            product = MATRICES[name](*(values if isinstance(values, tuple) else (values,))) @ product
    source = np.einsum("ij,jhw->ihw", np.linalg.inv(product), np.stack([x, y, np.ones_like(x)]))
    inside = (np.abs(source[:2]) < 0.9).all(0)
    assert inside.mean() > 0.3
    got = ada(torch.tensor(smooth(x, y), dtype=torch.float32)[None], **amounts)[0].numpy()
    want = smooth(source[0], source[1])
    np.testing.assert_allclose(got[:, inside], want[:, inside], rtol=0, atol=0.01)


def test_what_is_finer_than_the_pixels_of_a_smaller_image_fades() -> None:
    """Without a filter stripes of .48 cycles per pixel come back as .27 after scaling by .66."""
    x = torch.cos(2 * math.pi * 0.48 * torch.arange(64)).expand(1, 3, 64, 64)
    factor = 2**-0.6
    along = ((torch.arange(64) + 0.5) / 32 - 1) / factor
    grid = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1)[None]
    aliased = grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    smaller = ada(x, scale=NormalDist().cdf(-3))
    middle = (..., slice(16, 48), slice(16, 48))
    assert smaller[middle].std() < 0.6 * aliased[middle].std()


def luminance_first() -> NDArray[Any]:
    """Columns: the grey axis and two across it, orthonormal, hue turning the second towards the third."""
    grey = np.ones(3) / math.sqrt(3)
    first = np.array([2.0, -1, -1]) / math.sqrt(6)
    return np.stack([grey, first, np.cross(grey, first)], axis=1)


def recolored(x: NDArray[Any], amounts: dict[str, float]) -> NDArray[Any]:
    """The paper's order, one 4×4 matrix a transformation, in the coordinates of :func:`luminance_first`."""
    basis = np.eye(4)
    basis[:3, :3] = luminance_first()
    product = np.eye(4)
    for name in COLORS:
        if name not in amounts:
            continue
        u = amounts[name]
        step = np.eye(4)
        match name:
            case "brightness":
                step[0, 3] = math.sqrt(3) * 0.2 * normal(u)
            case "contrast":
                step[:3, :3] *= 2 ** (0.5 * normal(u))
            case "luma":
                step[0, 0] = -1 if u >= 0.5 else 1
            case "hue":
                step[1:, 1:] = rotation(u)
            case "saturation":
                step[1, 1] = step[2, 2] = 2 ** normal(u)
        product = step @ product
    product = basis @ product @ np.linalg.inv(basis)
    return np.einsum("ij,njhw->nihw", product[:3, :3], x) + product[:3, 3, None, None]


@pytest.mark.parametrize(
    "amounts",
    [
        *({name: u} for name in COLORS for u in (0.2, 0.7)),
        {"brightness": 0.7, "contrast": 0.2, "luma": 0.9, "hue": 0.4, "saturation": 0.6},
    ],
    ids=lambda amounts: "-".join(amounts),
)
def test_colors_follow_the_product_of_their_matrices(amounts: dict[str, float]) -> None:
    x = images(2, 8)
    close(ada(x, **amounts), recolored(x.numpy(), amounts))


def test_a_third_of_the_hue_circle_exchanges_the_channels() -> None:
    x = images(2, 8)
    close(ada(x, hue=0.5 + 1 / 3), x.numpy()[:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("u", "rows", "columns"),
    [
        ((0.0, 0.999), slice(0, 4), slice(12, 16)),
        ((0.5, 0.5), slice(4, 12), slice(4, 12)),
        ((0.999, 0.25), slice(12, 16), slice(0, 8)),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_cutout(name: str, u: tuple[float, float], rows: slice, columns: slice) -> None:
    x = images(2, 16)
    if name == "ada":
        got = ada(x, cutout=u)
    else:
        got = augmentation(name, policy=["cutout"])(x, torch.tensor([[0.0, *u]]).expand(2, -1), HALF)
    want = x.numpy().copy()
    want[:, :, rows, columns] = 0
    np.testing.assert_array_equal(got.numpy(), want)


# --- diffaugment ---


def test_color_is_brightness_then_saturation_then_contrast() -> None:
    x = images(3, 8)
    u = torch.tensor([[0.0, 0.9, 0.1, 0.8], [0.4, 0.0, 0.99, 0.0], [0.6, 0.9, 0.1, 0.8]])
    got = augmentation("diffaugment", policy=["color"])(x, u, HALF)
    want = x.double().numpy()
    for i in (0, 1):  # the third is not chosen
        want[i] += u[i, 1].item() - 0.5
        grey = want[i].mean(0)
        want[i] = grey + 2 * u[i, 2].item() * (want[i] - grey)
        want[i] = want[i].mean() + (u[i, 3].item() + 0.5) * (want[i] - want[i].mean())
    close(got, want)
    assert torch.equal(got[2], x[2])


@pytest.mark.parametrize(("u", "pixels"), [((0.0, 0.99), (-2, 2)), ((0.5, 0.7), (0, 1)), ((0.3, 0.0), (-1, -2))])
def test_translation_fills_with_grey(u: tuple[float, float], pixels: tuple[int, int]) -> None:
    x = images(2, 16)
    got = augmentation("diffaugment", policy=["translation"])(x, torch.tensor([[0.0, *u]]).expand(2, -1), HALF)
    down, right = pixels
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    np.testing.assert_array_equal(got.numpy(), padded[..., 2 - down : 18 - down, 2 - right : 18 - right])


def test_the_policy_is_followed_in_its_order() -> None:
    """A square cut out first is coloured like the rest."""
    x = images(4, 8)
    first, last = (augmentation("diffaugment", policy=policy) for policy in (["cutout", "color"], ["color", "cutout"]))
    assert first.numbers == last.numbers == 7
    assert ((first(x, torch.zeros(4, 7), HALF) == 0).sum(), (last(x, torch.zeros(4, 7), HALF) == 0).sum()) == (0, 48)
    assert augmentation("diffaugment", policy=[]).numbers == 0


def test_color_leaves_the_mean_image_alone() -> None:
    x = images(1, 4)
    change = augmentation("diffaugment", policy=["color"])
    seen = change(x.expand(5000, -1, -1, -1), numbers(5000, change), torch.tensor(0.8))
    torch.testing.assert_close(seen.mean(0), x[0], rtol=0, atol=0.04)


def test_one_channel_keeps_its_greys_apart() -> None:
    x = images(2, 8, channels=1)
    change = augmentation("diffaugment", channels=1, policy=["color"])
    by_saturation = [change(x, torch.tensor([[0.0, 0.5, u, 0.5]]).expand(2, -1), HALF) for u in (0.0, 0.9)]
    for seen in by_saturation:
        torch.testing.assert_close(seen, x)


# --- how often ---


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ADA)
def test_each_of_adas_transformations_has_its_probability(name: str, p: float) -> None:
    """Half of p for colours, and two rotations that together make p."""
    amounts = {"move": (0.0, 0.0), "shift": (0.2, 0.2), "cutout": (0.5, 0.5)}.get(name, (0.8,))
    n = 4000
    u = torch.full((n, 31), 1 - 2**-24)
    start = ADA[name]
    u[:, start] = torch.rand(n, generator=torch.Generator().manual_seed(0))
    u[:, start + 1 : start + 1 + len(amounts)] = torch.tensor(amounts)
    # At p = 1 all others are chosen too; numbers that change nothing keep them out.
    for other in ADA.keys() - {name}:
        u[:, ADA[other]] = 1.0
    x = images(1, 8).expand(n, -1, -1, -1)
    changed = (augmentation("ada")(x, u, torch.tensor(p)) != x).flatten(1).any(1)
    want = p / 2 if name in COLORS else 1 - math.sqrt(1 - p) if name.startswith("rotate") else p
    assert changed.float().mean().item() == pytest.approx(want, abs=0.03 if 0 < want < 1 else 0)


@pytest.mark.parametrize(("name", "share"), [("color", 1), ("translation", 8 / 9), ("cutout", 1)])
def test_each_of_diffaugments_transformations_has_probability_p(name: str, share: float) -> None:
    change = augmentation("diffaugment", policy=[name])
    x = images(1, 8).expand(4000, -1, -1, -1)
    changed = (change(x, numbers(4000, change), torch.tensor(0.3)) != x).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.3 * share, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NAMES)
def test_without_probability_nothing_changes(name: str, layout: torch.memory_format, dtype: torch.dtype) -> None:
    change = augmentation(name)
    x = images(64, 16).to(dtype, memory_format=layout)
    assert torch.equal(change(x, numbers(64, change), torch.tensor(0.0)), x)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_matters(name: str) -> None:
    change = augmentation(name)
    x, u, p = images(64, 16), numbers(64, change), torch.tensor(0.8)
    before = change(x, u, p)
    for column in range(change.numbers):
        other = u.clone()
        other[:, column] = (other[:, column] + 0.5) % 1
        assert not torch.equal(change(x, other, p), before), column


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("name", NAMES)
def test_the_ends_of_the_range_are_finite(name: str, u: float) -> None:
    change = augmentation(name)
    assert change(images(2, 16), torch.full((2, change.numbers), u), torch.tensor(1.0)).isfinite().all()


# --- what engines and penalties need ---


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_the_batch_is_changed_like_the_whole(name: str, layout: torch.memory_format) -> None:
    change = augmentation(name)
    x, u = images(12, 16).to(memory_format=layout), numbers(12, change)
    whole = change(x, u, HALF)
    assert whole.is_contiguous(memory_format=layout)
    for size in (1, 4):
        parts = [change(a, b, HALF) for a, b in zip(x.split(size), u.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)
    close(change(x.contiguous(), u, HALF), whole.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_twice(name: str) -> None:
    change = augmentation(name)
    x, u = images(2, 4).double().requires_grad_(), numbers(2, change)
    p = torch.tensor(0.9)
    assert torch.autograd.gradcheck(lambda x: change(x, u, p), (x,))
    assert torch.autograd.gradgradcheck(lambda x: change(x, u, p), (x,))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_no_arithmetic(name: str) -> None:
    change = augmentation(name)
    x, u = images(8, 16).requires_grad_(), numbers(8, change)
    plain = change(x, u, HALF)
    with torch.autocast("cpu", torch.bfloat16):
        cast = change(x, u, HALF)
        low = change(x.bfloat16(), u, HALF)
    assert (cast.dtype, low.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(cast, plain)
    torch.testing.assert_close(low.float(), plain, rtol=0, atol=0.1)
    low.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


class Asked(TorchDispatchMode):
    """Notes the operations that bring numbers to the device or back from it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("lift_fresh", "_local_scalar_dense", "nonzero"):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def passes_on_another_device(change: Callable[[Tensor, Tensor, Tensor], Tensor], count: int) -> bool:
    with FakeTensorMode(), Asked() as asked:
        x, u, p = (torch.zeros(shape, device="meta") for shape in ((4, 3, 8, 8), (4, count), ()))
        x.requires_grad_()
        try:
            seen = change(x, u, p)
            (gradient,) = torch.autograd.grad(seen.sum(), x, create_graph=True)
        except Exception:  # of several kinds, as there are values that a tensor without any cannot give
            return False
    return {seen.device.type, gradient.device.type} == {"meta"} and not asked.found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device_or_is_made_elsewhere(name: str) -> None:
    change = augmentation(name)
    assert passes_on_another_device(change, change.numbers)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, u, p: x * p.item(),
        lambda x, u, p: x if p > 0 else -x,
        lambda x, u, p: x[u[:, 0] < p],
        lambda x, u, p: x * torch.arange(8.0),
        lambda x, u, p: x * torch.tensor([1.0] * 8, device=x.device),
        lambda x, u, p: x * torch.tensor([1.0] * 8).to(x),
        lambda x, u, p: x[[0, 1, 2, 3]],
    ],
    ids=["item", "if", "mask", "cpu", "constant", "sent", "list"],
)
def test_what_would_wait_is_noticed(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    assert not passes_on_another_device(change, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_replays_it_with_its_second_derivative(name: str) -> None:
    change = augmentation(name)
    x, u = images(8, 16).cuda().requires_grad_(), numbers(8, change).cuda()
    p, weight = HALF.cuda(), images(8, 16, seed=2).cuda().requires_grad_()

    def twice() -> tuple[Tensor, Tensor]:
        seen = change(x, u, p)
        (gradient,) = torch.autograd.grad((weight * seen).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), weight)
        return seen.detach(), second

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        twice()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = twice()
    u.copy_(numbers(8, change, seed=3))
    graph.replay()
    for got, want in zip(captured, twice(), strict=True):
        torch.testing.assert_close(got, want)
    close(captured[0].cpu(), change(x.detach().cpu(), u.cpu(), HALF).numpy(), atol=1e-4)


# --- chosen by name ---


def test_without_an_augmentation_the_images_are_the_same_object() -> None:
    change = augmentation("none", channels=1)
    x = images(2, 8, channels=1)
    assert change.numbers == 0
    assert change(x, torch.rand(2, 0), HALF) is x


def test_what_cannot_be_built_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^augment\.name: 'adda' is not one of none, diffaugment, ada; did you mean"):
        build_augmentation(AugmentOptions("adda"), 3)
    one = r"^augment: ada changes colours of RGB images, these have 1 channel; diffaugment takes them$"
    with pytest.raises(ConfigError, match=one):
        augmentation("ada", channels=1)


class Mine(Augmentation):
    numbers = 1

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        self.change = change

    def __call__(self, images: Tensor, u: Tensor, p: Tensor) -> Any:
        return self.change(images)


def infinite(x: Tensor) -> Tensor:
    return 1 / (x - x.detach())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: x, r"augment\.name: mine builds a function, not a relgan\.augment\.Augmentation$"),
        (Mine(lambda x: None), r"augment\.name: mine must return images .* got a NoneType$"),
        (Mine(lambda x: x[:, :1]), r"augment\.name: mine must return images .* \(2, 1, 32, 32\) with one$"),
        (Mine(lambda x: x.double()), r"augment\.name: mine must return images .* torch\.float64 .* with one$"),
        (Mine(lambda x: x.detach()), r"augment\.name: mine must return images .* without one$"),
        (Mine(infinite), r"augment\.name: mine returns values that are not finite$"),
        (Mine(lambda x: x.nothing), r"plugins: mine of test_augment fails \(AttributeError: "),
    ],
)
def test_others_are_tried_when_they_are_built(made: object, said: str) -> None:
    @register_augment("mine")
    def mine(options: AugmentOptions, channels: int) -> object:
        return made

    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        augmentation("mine")
    assert "\n" not in str(caught.value)


def test_one_that_keeps_the_contract_is_built() -> None:
    @register_augment("mine")
    def mine(options: AugmentOptions, channels: int) -> Augmentation:
        return Mine(torch.neg)

    x = images(2, 16, channels=1)
    assert torch.equal(augmentation("mine", channels=1)(x, torch.rand(2, 1), HALF), -x)
