"""What the networks are made of: convolutions with their initialisation and spectral norm, hidden layers, labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from relgan.builtin import ConvOptions
from relgan.distributed import global_mean, is_distributed, world_size

STD = 0.02  # of the weights at the start

LayerT = TypeVar("LayerT", bound=nn.Conv2d | nn.ConvTranspose2d | nn.Embedding)


class SpectralNorm(_SpectralNorm):
    """torch's spectral norm, with the power iteration in the weight's own precision under autocast too."""

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(weight)


def spectral_norms(networks: Iterable[nn.Module]) -> Iterator[tuple[_SpectralNorm, Tensor]]:
    """Those in training mode, each with the weight that it normalises; a vector's has no power iteration."""
    for network in networks:
        for module in network.modules():
            if isinstance(module, parametrize.ParametrizationList):
                first: nn.Module = next(module.children())
                if isinstance(first, _SpectralNorm) and first.training and module.original.ndim > 1:
                    yield first, module.original


def advance(norm: _SpectralNorm, weight: Tensor) -> None:
    """One step of the power iteration, in the weight's own precision."""
    with torch.autocast(weight.device.type, enabled=False):
        norm._power_method(norm._reshape_weight_to_matrix(weight), norm.n_power_iterations)


@contextlib.contextmanager
def one_power_iteration(networks: Iterable[nn.Module], *, still: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Spectral norms take one step of their power iteration now and none inside: all passes see the same weights.

    Those of networks that are ``still`` take no step either now or inside.
    """
    norms = list(spectral_norms(networks))
    for norm, weight in norms:
        advance(norm, weight)
    norms += spectral_norms(still)
    for norm, _ in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm, _ in norms:
            norm.train()


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the equal parts of a batch that all ranks hold; differentiable twice, on any device.

    ``synchronised`` false makes it local: for passes that not all ranks do together.
    """

    synchronised = True

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.synchronised and is_distributed()):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(self.weight.dtype)
            dims = (0, 2, 3)
            mean = global_mean(wide, dims)
            centred = wide - mean[:, None, None]
            variance = global_mean(centred.square(), dims)
            self._follow(mean, variance, count=world_size() * x.numel() // x.shape[1])
            scale = self.weight * (variance + self.eps).rsqrt()
            return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


@contextlib.contextmanager
def local_batch_norm(network: nn.Module) -> Iterator[None]:
    """While entered, no pass of ``network`` waits for other ranks."""
    norms = [module for module in network.modules() if isinstance(module, SyncBatchNorm2d)]
    for norm in norms:
        norm.synchronised = False
    try:
        yield
    finally:
        for norm in norms:
            norm.synchronised = True


class ResizeConv(nn.Conv2d):
    """Nearest-neighbour enlargement by 2, then a 3×3 convolution with padding 1, at 4/9 of their multiplications.

    Of the nine pixels under the kernel only four differ. So it is a transposed convolution, of a 4×4 kernel that sums
    the weights which meet the same pixel.
    """

    sums: Tensor

    def __init__(self, channels_in: int, channels_out: int, *, bias: bool) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=bias)
        # Row i: which of the three weights in a row of the 3×3 kernel add up to the i-th of four.
        row = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        self.register_buffer("sums", torch.kron(row, row), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weights = self.weight.permute(2, 3, 1, 0).flatten(2).flatten(0, 1)
            kernel = (self.sums @ weights).view(4, 4, self.in_channels, -1).permute(2, 3, 0, 1)
        return nn.functional.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


def _as_it_lies(values: Tensor) -> Tensor:
    """(N, C, H, W) in the memory format channels_last, as the matrix (N, H·W·C) that it is."""
    return values.permute(0, 2, 3, 1).flatten(1)


class FromPixel(nn.ConvTranspose2d):
    """A transposed convolution of a single pixel. As a product of matrices it is two to four times as fast."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        height, width = self.kernel_size
        pixels = x.flatten(1) @ _as_it_lies(self.weight)
        made: Tensor = pixels.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2)
        return made if self.bias is None else made + self.bias[:, None, None]


class ToPixel(nn.Conv2d):
    """A convolution whose kernel covers the whole image; likewise."""

    def forward(self, x: Tensor) -> Tensor:
        logits = nn.functional.linear(_as_it_lies(x), _as_it_lies(self.weight), self.bias)
        return logits[:, :, None, None]


@dataclass(frozen=True)
class Layers:
    """How one network's convolutions and hidden layers are made."""

    batch_norm: type[nn.BatchNorm2d] | None
    spectral_norm: bool
    activation: Callable[[], nn.Module]
    bias: bool
    resize: bool

    @classmethod
    def of_generator(cls, model: ConvOptions, *, bias: bool) -> Layers:
        return cls(
            batch_norm=_batch_norm(model, model.generator_spectral_norm),
            spectral_norm=model.generator_spectral_norm,
            activation=_activation(model.activation, lambda: nn.ReLU(inplace=True)),
            bias=bias,
            resize=model.upsample == "resize",
        )

    @classmethod
    def of_critic(cls, model: ConvOptions, *, bias: bool, slope: float) -> Layers:
        """``slope``: of the default activation, LeakyReLU."""
        return cls(
            batch_norm=_batch_norm(model, model.spectral_norm),
            spectral_norm=model.spectral_norm,
            activation=_activation(model.activation, lambda: nn.LeakyReLU(slope, inplace=True)),
            bias=bias,
            resize=False,
        )

    def conv(self, channels_in: int, channels_out: int, kernel: int, stride: int, padding: int) -> nn.Module:
        return self._finish(nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=self.bias))

    def from_pixel(self, channels_in: int, channels_out: int, size: int) -> nn.Module:
        """From 1×1 pixels to size×size."""
        return self._finish(FromPixel(channels_in, channels_out, size, bias=self.bias))

    def to_pixel(self, channels_in: int, channels_out: int, size: int) -> nn.Module:
        """From size×size pixels to 1×1."""
        return self._finish(ToPixel(channels_in, channels_out, size, bias=self.bias))

    def up(self, channels_in: int, channels_out: int) -> nn.Module:
        """Double the height and width."""
        if self.resize:
            return self._finish(ResizeConv(channels_in, channels_out, bias=self.bias))
        return self._finish(nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1, bias=self.bias))

    def hidden(self, conv: nn.Module, channels: int, *, norm: bool = True) -> nn.Sequential:
        """``conv``, then batch norm unless ``norm`` is false or it is off, then the activation."""
        layers = [conv]
        if norm and self.batch_norm is not None:
            layers.append(self._initialised(self.batch_norm(channels)))
        return nn.Sequential(*layers, self.activation())

    @staticmethod
    def _initialised(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
        nn.init.normal_(norm.weight, 1.0, 0.02)
        nn.init.zeros_(norm.bias)
        return norm

    def _finish(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
        nn.init.normal_(conv.weight, 0.0, STD)
        # The axis of the output channels, which a transposed convolution keeps second.
        return self._normalised(conv, dim=1 if isinstance(conv, nn.ConvTranspose2d) else 0)

    def _normalised(self, layer: LayerT, dim: int) -> LayerT:
        if self.spectral_norm:
            parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, dim=dim))
        return layer

    def embedding(self, classes: int, channels: int) -> nn.Embedding:
        """The vectors of the classes for :func:`projected`."""
        return self._normalised(class_embedding(classes, channels, STD), dim=0)


def _batch_norm(model: ConvOptions, spectral_norm: bool) -> type[nn.BatchNorm2d] | None:
    if model.norm != "batch" or model.activation == "selu" or spectral_norm:
        return None
    return SyncBatchNorm2d if model.sync_batch_norm else nn.BatchNorm2d


def _activation(name: str, default: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return {"default": default, "selu": lambda: nn.SELU(inplace=True), "tanh": nn.Tanh}[name]


def class_embedding(classes: int, size: int, std: float) -> nn.Embedding:
    """A vector for each class, from N(0, std²·I)."""
    embedding = nn.Embedding(classes, size)
    nn.init.normal_(embedding.weight, 0.0, std)
    return embedding


def embedded(embedding: nn.Embedding | None, labels: Tensor | None) -> Tensor | None:
    """The vectors (N, D) of labels int64 (N,); None in a network without classes.

    Raises:
        ValueError: a network with classes got no labels, or one without them did.
    """
    if (embedding is None) != (labels is None):
        raise ValueError("the network has no classes" if embedding is None else "the network needs labels")
    vectors: Tensor | None = None if embedding is None else embedding(labels)
    return vectors


def prior(name: str) -> Callable[[Tensor], Tensor]:
    """What ``model.latent`` makes of z ~ N(0, I), (N, D): z itself, or its signs, −1 and 1."""
    return {"normal": torch.positive, "bernoulli": _signs}[name]


def _signs(z: Tensor) -> Tensor:
    """Never 0, as torch's are of a zero."""
    return 1 - 2 * (z < 0).to(z.dtype)


def joined(z: Tensor, embedding: nn.Embedding | None, labels: Tensor | None) -> Tensor:
    """Latents (N, D), followed by the vectors of their labels where there are classes."""
    vectors = embedded(embedding, labels)
    return z if vectors is None else torch.cat([z, vectors], dim=1)


def last_logits(layer: nn.Module, features: Tensor) -> Tensor:
    """Logits (N,) of a critic's last layer, in the precision of its parameters under autocast too.

    A relativistic loss is the same when all logits grow together, and they do, to hundreds. Among those bfloat16 has no
    fractions, and the loss takes differences.
    """
    with torch.autocast(features.device.type, enabled=False):
        logits: Tensor = layer(features.to(next(layer.parameters()).dtype))
        return logits.reshape(len(features))


def projected(logits: Tensor, features: Tensor, embedding: nn.Embedding | None, labels: Tensor | None) -> Tensor:
    """Logits (N,) plus ⟨e_y, Σ φ⟩, the projection of Miyato & Koyama 2018, where there are classes.

    Args:
        features: φ(x), (N, C, H, W), what the last layer saw; summed over the pixels.
    """
    vectors = embedded(embedding, labels)
    return logits if vectors is None else logits + (features.sum((2, 3), dtype=vectors.dtype) * vectors).sum(1)
