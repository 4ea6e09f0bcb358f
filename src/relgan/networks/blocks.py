"""What the networks are made of: convolutions with their initialisation and spectral norm, hidden layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from relgan.config import ModelConfig


def pack(images: Tensor, k: int) -> Tensor:
    """Stack each k neighbouring images on the channel axis (PacGAN, Lin et al. 2018).

    Args:
        images: (N, C, H, W), N a multiple of k.

    Returns:
        (N/k, k·C, H, W), in the memory format of ``images``.
    """
    if len(images) % k:
        raise ValueError(f"{len(images)} images cannot be packed by {k}")
    if k == 1:
        return images
    n, channels, height, width = images.shape
    packed = images.reshape(n // k, k * channels, height, width)
    if images.is_contiguous(memory_format=torch.channels_last):
        return packed.contiguous(memory_format=torch.channels_last)
    return packed


class SpectralNorm(_SpectralNorm):
    """torch's spectral norm, with the power iteration in the weight's own precision under autocast too."""

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(weight)


@dataclass(frozen=True)
class Layers:
    """How one network's convolutions and hidden layers are made."""

    batch_norm: bool
    spectral_norm: bool
    activation: Callable[[], nn.Module]
    bias: bool
    resize: bool

    @classmethod
    def of_generator(cls, model: ModelConfig, *, bias: bool) -> Layers:
        return cls(
            batch_norm=_has_batch_norm(model, model.generator_spectral_norm),
            spectral_norm=model.generator_spectral_norm,
            activation=_activation(model.activation, lambda: nn.ReLU(inplace=True)),
            bias=bias,
            resize=model.upsample == "resize",
        )

    @classmethod
    def of_critic(cls, model: ModelConfig, *, bias: bool, slope: float) -> Layers:
        """``slope``: of the default activation, LeakyReLU."""
        return cls(
            batch_norm=_has_batch_norm(model, model.spectral_norm),
            spectral_norm=model.spectral_norm,
            activation=_activation(model.activation, lambda: nn.LeakyReLU(slope, inplace=True)),
            bias=bias,
            resize=False,
        )

    def conv(self, channels_in: int, channels_out: int, kernel: int, stride: int, padding: int) -> nn.Module:
        return self._finish(nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=self.bias))

    def conv_transposed(self, channels_in: int, channels_out: int, kernel: int, stride: int, padding: int) -> nn.Module:
        return self._finish(nn.ConvTranspose2d(channels_in, channels_out, kernel, stride, padding, bias=self.bias))

    def up(self, channels_in: int, channels_out: int) -> nn.Module:
        """Double the height and width."""
        if self.resize:
            conv = self.conv(channels_in, channels_out, kernel=3, stride=1, padding=1)
            return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), conv)
        return self.conv_transposed(channels_in, channels_out, kernel=4, stride=2, padding=1)

    def hidden(self, conv: nn.Module, channels: int, *, norm: bool = True) -> nn.Sequential:
        """``conv``, then batch norm unless ``norm`` is false or it is off, then the activation."""
        layers = [conv]
        if norm and self.batch_norm:
            layers.append(_batch_norm(channels))
        return nn.Sequential(*layers, self.activation())

    def _finish(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
        nn.init.normal_(conv.weight, 0.0, 0.02)
        if self.spectral_norm:
            # The axis of the output channels, which a transposed convolution keeps second.
            dim = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
            parametrize.register_parametrization(conv, "weight", SpectralNorm(conv.weight, dim=dim))
        return conv


def _has_batch_norm(model: ModelConfig, spectral_norm: bool) -> bool:
    return model.norm == "batch" and model.activation != "selu" and not spectral_norm


def _activation(name: str, default: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return {"default": default, "selu": lambda: nn.SELU(inplace=True), "tanh": nn.Tanh}[name]


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    nn.init.zeros_(norm.bias)
    return norm
