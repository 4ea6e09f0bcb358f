"""R3GAN's residual networks (Huang et al. 2025, arXiv 2501.05441).

Each is a row of stages, one for each size from 4×4 to S×S, of a few residual blocks. There is no normalisation: of L
blocks each begins as the identity, and the convolutions inside as N(0, g²/fan_in) with g = √(2/1.04)·L^(−1/4).
Under autocast the 4×4 stage computes in the precision of its parameters: in float16 it is reported to fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from relgan.builtin import R3GANOptions
from relgan.networks.blocks import class_embedding, embedded, joined

SLOPE = 0.2


class _Convolution(torch.autograd.Function):
    """A grouped convolution with padding 1 whose gradient is made of grouped convolutions.

    PyTorch differentiates the gradient of its own group by group: for a penalty, hundreds of small kernels a layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.groups = stride, groups
        return F.conv2d(x, weight, bias, stride, padding=1, groups=groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_weight = of_bias = None
        # A penalty gets here inside autocast, which the 4×4 stage and the filters are kept out of.
        with torch.autocast(x.device.type, enabled=False):
            of_x = _transposed(gradient, weight, ctx.stride, ctx.groups)
            if ctx.needs_input_grad[1]:
                of_weight = conv2d_weight(x, weight.shape, gradient, ctx.stride, padding=1, groups=ctx.groups)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _convolved(x: Tensor, weight: Tensor, stride: int, groups: int, bias: Tensor | None = None) -> Tensor:
    convolved: Tensor = _Convolution.apply(x, weight, bias, stride, groups)
    return convolved


def _transposed(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    return F.conv_transpose2d(x, weight, None, stride, padding=1, groups=groups)


def _precision(x: Tensor) -> torch.dtype:
    """In which autocast computes PyTorch's own convolutions of ``x``."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class GroupedConv(nn.Conv2d):
    """A 3×3 convolution in groups."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        dtype = _precision(x)
        return _convolved(x.to(dtype), self.weight.to(dtype), 1, self.groups, self.bias.to(dtype))


class Block(nn.Module):
    """x + conv1 ∘ act ∘ conv3 ∘ act ∘ conv1: twice the channels between, the 3×3 convolution in groups.

    act = LeakyReLU after a bias for each channel, which is the one of the convolution before it.
    """

    def __init__(self, width: int, group_channels: int, gain: float) -> None:
        super().__init__()
        inner = 2 * width
        self.branch = nn.Sequential(
            _initialised(nn.Conv2d(width, inner, 1), gain),
            nn.LeakyReLU(SLOPE, inplace=True),
            _initialised(GroupedConv(inner, inner // group_channels), gain),
            nn.LeakyReLU(SLOPE, inplace=True),
            _initialised(nn.Conv2d(inner, width, 1, bias=False), 0.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = x + self.branch(x)
        return summed


class _Filtered(nn.Module):
    """A 1×1 convolution where the width changes, and the filter [1, 3, 3, 1]/8 of each axis, times ``gain``."""

    gain: float
    kernel: Tensor

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = _conv1(channels_in, channels_out) if channels_in != channels_out else nn.Identity()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", self.gain * torch.outer(taps, taps).reshape(1, 1, 4, 4), persistent=False)

    def _filtered(self, x: Tensor, way: Callable[[Tensor, Tensor, int, int], Tensor]) -> Tensor:
        """Channel by channel; in the kernel's precision, because CPUs have no fast way to do it in bfloat16."""
        channels, dtype = x.shape[1], _precision(x)
        with torch.autocast(x.device.type, enabled=False):
            filtered = way(x.to(self.kernel.dtype), self.kernel.expand(channels, -1, -1, -1), 2, channels)
        return filtered.to(dtype)


class Up(_Filtered):
    """Double the height and width: the convolution, then the filter."""

    gain = 4.0

    def forward(self, x: Tensor) -> Tensor:
        return self._filtered(self.conv(x), _transposed)


class Down(_Filtered):
    """Halve the height and width: the filter, then the convolution."""

    gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        narrowed: Tensor = self.conv(self._filtered(x, _convolved))
        return narrowed


class Generator(nn.Module):
    """(N, latent_dim) and labels int64 (N,), if there are classes, to images (N, channels, S, S), not bounded.

    The label becomes as many numbers as z has, which follow it. Together they weigh a learned basis of 4×4 pixels.
    """

    def __init__(self, options: R3GANOptions, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = options.stage_widths(image_size)
        dims = options.latent_dim
        self.embedding = class_embedding(classes, dims, std=classes**-0.5) if classes else None
        self.first = _conv1(2 * dims if classes else dims, widths[0])
        self.basis = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.smallest = _blocks(options, widths[0], len(widths))
        larger = [
            nn.Sequential(Up(narrow, wide), _blocks(options, wide, len(widths))) for narrow, wide in pairwise(widths)
        ]
        self.larger = nn.Sequential(*larger, _conv1(widths[-1], channels))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            weights = self.first(joined(z, self.embedding, labels)[:, :, None, None])
            smallest = self.smallest(weights * self.basis)
        images: Tensor = self.larger(smallest)
        return images


class Critic(nn.Module):
    """Images (N, channels, S, S) and labels int64 (N,), if there are classes, to logits (N,).

    With classes the logit is the inner product of ``width`` features and the vector of the label.
    """

    judges_each_image_alone = True

    def __init__(self, options: R3GANOptions, image_size: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = options.stage_widths(image_size)[::-1]
        larger = [
            nn.Sequential(_blocks(options, wide, len(widths)), Down(wide, narrow)) for wide, narrow in pairwise(widths)
        ]
        self.larger = nn.Sequential(_conv1(channels, widths[0]), *larger)
        width = widths[-1]
        self.smallest = _blocks(options, width, len(widths))
        # A 4×4 convolution of each channel by itself.
        self.basis = nn.Parameter(torch.randn(1, width, 4, 4) / 4)
        self.last = _conv1(width, width if classes else 1)
        self.embedding = class_embedding(classes, width, std=(width * classes) ** -0.5) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        larger = self.larger(images)
        with torch.autocast(images.device.type, enabled=False):
            smallest = self.smallest(larger.to(self.basis.dtype))
            features: Tensor = self.last((smallest * self.basis).sum((2, 3), keepdim=True)).flatten(1)
            vectors = embedded(self.embedding, labels)
            return features[:, 0] if vectors is None else (features * vectors).sum(1)


def _conv1(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 1×1 convolution; of one pixel, a linear layer."""
    return _initialised(nn.Conv2d(channels_in, channels_out, 1, bias=False))


def _blocks(options: R3GANOptions, width: int, stages: int) -> nn.Sequential:
    """Those of one of ``stages`` stages."""
    gain = math.sqrt(2 / (1 + SLOPE**2)) * (stages * options.blocks) ** -0.25
    return nn.Sequential(*(Block(width, options.group_channels(width), gain) for _ in range(options.blocks)))


def _initialised(conv: nn.Conv2d, gain: float = 1.0) -> nn.Conv2d:
    """Weights from N(0, gain²/fan_in), biases 0."""
    nn.init.normal_(conv.weight, 0.0, gain * conv.weight[0].numel() ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def build(options: R3GANOptions, image_size: int, channels: int, classes: int = 0) -> tuple[nn.Module, nn.Module]:
    return Generator(options, image_size, channels, classes), Critic(options, image_size, channels, classes)
