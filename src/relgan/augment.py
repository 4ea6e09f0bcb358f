"""Random changes of what the critic sees, of real and of generated images alike.

Zhao et al. 2020 (diffaugment), Karras et al. 2020 (ada, with the weights of Huang et al. 2025). Gradients flow through
every change, any number of times. Nothing here waits for the device or brings numbers to it, so that a step with
augmented images can be captured in a CUDA graph; arithmetic is float32 or wider, whatever the networks use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from relgan.builtin import AdaOptions, DiffAugmentOptions
from relgan.options import ConfigError
from relgan.registry import AUGMENTATIONS, AugmentOptions


class Augmentation:
    """A differentiable, random change of images. This one changes nothing.

    Attributes:
        numbers: how many random numbers an image takes.
    """

    numbers: int = 0

    def __call__(self, images: Tensor, u: Tensor, p: Tensor) -> Tensor:
        """The changed images.

        A pure function of its arguments: the same numbers change an image in the same way, in a batch of any size.

        Args:
            images: float (N, C, H, W), −1 black and 1 white; gradients flow to them.
            u: float32 (N, numbers), uniform in [0, 1).
            p: 0-d float32 in [0, 1], the probability of each transformation. On the device; never read back.

        Returns:
            of the shape and type of ``images``.
        """
        return images


class _Draws:
    """The random numbers of a batch, handed out one column after another: (N, 1, 1, 1) each."""

    def __init__(self, u: Tensor) -> None:
        self._columns: Iterator[Tensor] = iter(u.T[..., None, None, None])

    def chosen(self, p: Tensor) -> Tensor:
        """Which images are changed: bool, true with probability ``p``."""
        return next(self._columns) < p

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * next(self._columns)

    def integer(self, low: int, high: int) -> Tensor:
        """Whole numbers from ``low`` to ``high``, both included, as floats."""
        return low + (next(self._columns) * (high - low + 1)).floor()

    def normal(self, std: float) -> Tensor:
        # The inverse of the normal distribution function is infinite at 0; this is half of the next number.
        normal: Tensor = torch.special.ndtri(next(self._columns).clamp_min(2.0**-25))
        return std * normal


@dataclass(frozen=True)
class _Change:
    """One link of a :class:`_Pipe`.

    Attributes:
        apply: from (images, draws, p) to images; those that are not chosen stay exactly as they are.
        numbers: how many columns it draws.
    """

    apply: Callable[[Tensor, _Draws, Tensor], Tensor]
    numbers: int


class _Pipe(Augmentation):
    """Changes that follow each other."""

    def __init__(self, changes: Sequence[_Change]) -> None:
        self._changes = changes
        self.numbers = sum(change.numbers for change in changes)

    def __call__(self, images: Tensor, u: Tensor, p: Tensor) -> Tensor:
        draws = _Draws(u)
        changed = images.to(torch.promote_types(images.dtype, torch.float32))
        for change in self._changes:
            changed = change.apply(changed, draws, p)
        last = images.is_contiguous(memory_format=torch.channels_last)
        return changed.to(images.dtype, memory_format=torch.channels_last if last else torch.contiguous_format)


def _color(images: Tensor, draws: _Draws, p: Tensor) -> Tensor:
    """Brightness + U(−½, ½), then saturation × U(0, 2), then contrast × U(½, 1½) about the image's mean."""
    chosen = draws.chosen(p)
    images = images + chosen * draws.uniform(-0.5, 0.5)
    images = images + chosen * draws.uniform(-1, 1) * (images - images.mean(1, keepdim=True))
    return images + chosen * draws.uniform(-0.5, 0.5) * (images - images.mean((1, 2, 3), keepdim=True))


def _translation(images: Tensor, draws: _Draws, p: Tensor) -> Tensor:
    """Moved by whole pixels, up to an eighth of the side each way; grey (0) comes in."""
    height, width = images.shape[2:]
    chosen = draws.chosen(p)
    down, right = ((chosen * draws.integer(-(side // 8), side // 8)).long() for side in (height, width))
    y = torch.arange(height, device=images.device)[:, None] - down
    x = torch.arange(width, device=images.device) - right
    source = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(2).expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, source).view(images.shape)
    return moved.masked_fill((y < 0) | (y >= height) | (x < 0) | (x >= width), 0)


def _cutout(images: Tensor, draws: _Draws, p: Tensor) -> Tensor:
    """A square of half the side, its middle anywhere in the image, becomes grey (0)."""
    height, width = images.shape[2:]
    chosen = draws.chosen(p)
    top, left = (draws.integer(-(side // 4), side - side // 4) for side in (height, width))
    y = torch.arange(height, device=images.device)[:, None] - top
    x = torch.arange(width, device=images.device) - left
    return images.masked_fill(chosen & (y >= 0) & (y < height // 2) & (x >= 0) & (x < width // 2), 0)


class _Frame:
    """Where changed images take their pixels from: the point (x, y) of one shows ``origin + x·right + y·down``.

    Lengths are in half sides of the square image, from its middle. Vectors are (N, 2, 1, 1), amounts (N, 1, 1, 1); each
    method is a change that follows the earlier ones.
    """

    def __init__(self, device: torch.device) -> None:
        self._still = torch.eye(3, 2, device=device)[:, None, :, None, None]
        self._right, self._down, self._origin = self._still.unbind()

    def mirror(self, whether: Tensor) -> None:
        """Left and right change places where ``whether`` is 1 and not 0."""
        self._right = self._right * (1 - 2 * whether)

    def scale(self, x: Tensor, y: Tensor) -> None:
        """Larger by these factors."""
        self._right, self._down = self._right / x, self._down / y

    def rotate(self, angle: Tensor) -> None:
        """Clockwise, radians."""
        cos, sin = angle.cos(), angle.sin()
        self._right, self._down = cos * self._right - sin * self._down, sin * self._right + cos * self._down

    def translate(self, x: Tensor, y: Tensor) -> None:
        """To the right by ``x`` and down by ``y``."""
        self._origin = self._origin - x * self._right - y * self._down

    def moved(self) -> Tensor:
        """Which images have changed: bool (N, 1, 1, 1)."""
        now = torch.stack((self._right, self._down, self._origin))
        moved: Tensor = (now != self._still).any(0).any(1, keepdim=True)
        return moved

    def places(self, along: Tensor) -> Tensor:
        """Where the points of a lattice come from.

        Args:
            along: (M,), the x and likewise the y of its points.

        Returns:
            (N, M, M, 2): x and y, for one row of points after another.
        """
        return (self._origin + along * self._right + along[:, None] * self._down).movedim(1, 3)


def _geometry(images: Tensor, draws: _Draws, p: Tensor) -> Tensor:
    """Mirrored, turned, moved, scaled and rotated square images: all of it one change of coordinates."""
    side = images.shape[-1]
    p_rotation = 1 - (1 - p).sqrt()  # so that at least one of two rotations is drawn with probability p
    frame = _Frame(images.device)
    frame.mirror(draws.chosen(p) * draws.integer(0, 1))
    frame.rotate(draws.chosen(p) * draws.integer(0, 3) * (math.pi / 2))
    chosen = draws.chosen(p)
    frame.translate(*(chosen * draws.integer(-(side // 8), side // 8) * (2 / side) for _ in "xy"))
    factor = (draws.chosen(p) * draws.normal(0.2)).exp2()
    frame.scale(factor, factor)
    frame.rotate(draws.chosen(p_rotation) * draws.uniform(-math.pi, math.pi))
    factor = (draws.chosen(p) * draws.normal(0.2)).exp2()
    frame.scale(factor, 1 / factor)
    frame.rotate(draws.chosen(p_rotation) * draws.uniform(-math.pi, math.pi))
    chosen = draws.chosen(p)
    frame.translate(*(chosen * draws.normal(2 / 8) for _ in "xy"))
    # At the middles and edges of the pixels, and half a pixel beyond the border.
    along = torch.arange(-1, 2 * side + 2, device=images.device) / side - 1
    changed: Tensor = _Resample.apply(images, frame.places(along).to(images.dtype))
    return torch.where(frame.moved(), changed, images)


class _Resample(torch.autograd.Function):
    """Square images (N, C, S, S) with their pixels taken from other places, reflected beyond their borders.

    Linear interpolation at twice the density, then the low-pass filter that undoes it (the biorthogonal 5/3 pair of
    Le Gall and Tabatabai 1988): what only mirrors, turns or moves by whole pixels loses nothing, and a smaller image
    is smoothed before its pixels are taken.

    All of it is linear in the images, so that its derivative is its adjoint however often it is taken.
    ``grid_sample`` itself cannot be differentiated twice in every release of torch.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        dense = grid_sample(images, places, mode="bilinear", padding_mode="reflection", align_corners=False)
        return _halved(_halved(dense.mT).mT)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        adjoint: Tensor = _Adjoint.apply(gradient, *ctx.saved_tensors)
        return adjoint, None


class _Adjoint(torch.autograd.Function):
    """The adjoint of :class:`_Resample`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        dense = _doubled(_doubled(values.mT).mT)
        bilinear, reflection = 0, 2
        adjoint: Tensor
        adjoint, _ = torch.ops.aten.grid_sampler_2d_backward(
            dense,
            torch.empty_like(values),
            places,
            bilinear,
            reflection,
            align_corners=False,
            output_mask=[True, False],
        )
        return adjoint

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values: Tensor = _Resample.apply(gradient, *ctx.saved_tensors)
        return values, None


def _halved(dense: Tensor) -> Tensor:
    """The filter (−1, 2, 6, 2, −1)/8 at every other place of the last dimension: 2n + 3 values become n."""
    even, odd = dense[..., ::2], dense[..., 1::2]
    near, far = odd[..., 1:] + odd[..., :-1], even[..., 2:] + even[..., :-2]
    return 0.75 * even[..., 1:-1] + 0.25 * near - 0.125 * far


def _doubled(values: Tensor) -> Tensor:
    """The adjoint of :func:`_halved`: n values become 2n + 3."""
    padded = pad(values, (2, 2))
    dense = values.new_empty(*values.shape[:-1], 2 * values.shape[-1] + 3)
    dense[..., ::2] = 0.75 * padded[..., 1:-1] - 0.125 * (padded[..., 2:] + padded[..., :-2])
    dense[..., 1::2] = 0.25 * (padded[..., 2:-1] + padded[..., 1:-2])
    return dense


def _rgb(images: Tensor, draws: _Draws, p: Tensor) -> Tensor:
    """Brightness, contrast, luma flip, hue and saturation of RGB images: together one affine map of the colours.

    Each keeps the grey axis (1, 1, 1) and the plane across it: with ȳ the mean of a colour c, brightness b, contrast k,
    flip ±1, hue θ and saturation s, the new colour is ±k·(ȳ + b) along the axis and c − ȳ, turned by θ and times k·s,
    in the plane.
    """
    brightness = draws.chosen(0.5 * p) * draws.normal(0.2)
    contrast = (draws.chosen(0.5 * p) * draws.normal(0.5)).exp2()
    along = contrast * (1 - 2 * draws.chosen(0.5 * p) * draws.integer(0, 1))
    hue = draws.chosen(0.5 * p) * draws.uniform(-math.pi, math.pi)
    across = contrast * (draws.chosen(0.5 * p) * draws.normal(1.0)).exp2()
    grey = images.mean(1, keepdim=True)
    quarter_turn = (images.roll(1, 1) - images.roll(-1, 1)) / math.sqrt(3)
    kept = across * hue.cos()
    return kept * images + across * hue.sin() * quarter_turn + (along - kept) * grey + along * brightness


_POLICY = {"color": _Change(_color, 4), "translation": _Change(_translation, 3), "cutout": _Change(_cutout, 3)}
_ADA = (_Change(_geometry, 18), _Change(_rgb, 10), _Change(_cutout, 3))


def none(options: AugmentOptions, channels: int) -> Augmentation:
    return Augmentation()


def diffaugment(options: DiffAugmentOptions, channels: int) -> Augmentation:
    return _Pipe([_POLICY[name] for name in options.policy])


def ada(options: AdaOptions, channels: int) -> Augmentation:
    if channels != 3:
        raise ConfigError(
            "augment", f"ada changes colours of RGB images, these have {channels} channel; diffaugment takes them"
        )
    return _Pipe(_ADA)


def build_augmentation(options: AugmentOptions, channels: int) -> Augmentation:
    """The augmentation that ``options.name`` names, for images of that many channels.

    Raises:
        ConfigError: an unknown name, or one that does not take such images; or other people's that fails, is no
            :class:`Augmentation` or does not return such images with a graph.
    """
    augmentation: Augmentation = AUGMENTATIONS.build(
        options.name, options, channels, of=Augmentation, trial=partial(_try, channels)
    )
    return augmentation


@torch.enable_grad()
def _try(channels: int, name: str, augmentation: Augmentation) -> None:
    images = torch.linspace(-1, 1, 2 * channels * 32 * 32).view(2, channels, 32, 32).requires_grad_()
    u = torch.linspace(0, 0.9, 2 * augmentation.numbers).view(2, augmentation.numbers)
    changed = augmentation(images, u, torch.tensor(0.5))
    wanted = f"{name} must return images like those it is given, with a graph:"
    if not isinstance(changed, Tensor):
        raise ConfigError("augment.name", f"{wanted} got a {type(changed).__name__}")
    if (changed.shape, changed.dtype) != (images.shape, images.dtype) or not changed.requires_grad:
        graph = "with" if changed.requires_grad else "without"
        raise ConfigError("augment.name", f"{wanted} got {changed.dtype} {tuple(changed.shape)} {graph} one")
    if not changed.isfinite().all():
        raise ConfigError("augment.name", f"{name} returns values that are not finite")
