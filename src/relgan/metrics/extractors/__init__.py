"""Feature networks: published ones, one trained here on digits, and the base of one's own."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from relgan.config import MetricsConfig
from relgan.device import Precision, checked_precision
from relgan.options import ConfigError, Options
from relgan.registry import DATASETS, EXTRACTORS, DatasetOptions

TENSORFLOW_1 = "bilinear as in TensorFlow 1, no antialiasing"  # torch-fidelity's way to resize

log = logging.getLogger("relgan")


@dataclass(eq=False)
class Extractor:
    """A frozen network from uint8 images to features and class logits.

    Attributes:
        network: uint8 (N, channels, H, W) -> (features (N, F), logits (N, K)); moved to the device and frozen here.
        num_classes: K; 0 where it is no classifier.
        fingerprint: hash of the weights; by default of the network's state.
        weights_known: whether the weights are the published ones.
        input_size: side in pixels to which ``network`` resizes; 0: it takes images as they are.
        resize: how images get to that size.
        precision: arithmetic, a name of ``relgan.device.Precision``.
        name: the key suffix of its scores, the registered one; only "inception" is called fid and is.
        options: its own, ``metrics.NAME``.
    """

    network: nn.Module
    device: torch.device
    num_features: int
    num_classes: int = 0
    channels: int = 3
    fingerprint: str = ""
    weights_known: bool = True
    input_size: int = 0
    resize: str = ""
    precision: str = "fp32"
    name: str = field(default="", init=False)
    options: dict[str, object] = field(default_factory=dict, init=False)
    _layout: torch.memory_format | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.fingerprint = self.fingerprint or hash_state(self.network)
        # channels_last: 1.2× faster convolutions on CPUs. On a GPU it depends on the arithmetic.
        self.network = self.network.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)

    @property
    def home(self) -> torch.device:
        """Where features and their float64 sums live."""
        return home(self.device)

    @property
    def identity(self) -> dict[str, object]:
        """What the protocol of a score says about its network."""
        own = {"extractor_options": self.options} if self.options else {}
        return {
            "extractor": self.name,
            "weights": self.fingerprint,
            "weights_known": self.weights_known,
            "input_size": self.input_size,
            "resize": self.resize,
            "precision": self.precision,
            **own,
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features float32 (N, F) and logits float32 (N, K) of uint8 images (N, C, H, W).

        Grey images are replicated to RGB where the network sees colour.

        Raises:
            ValueError: other than uint8 images of one or ``channels`` channels, or features that are not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"scores take uint8 images (N, C, H, W), not {images.dtype} {tuple(images.shape)}; "
                "relgan.images.to_uint8 converts from [−1, 1]"
            )
        if images.shape[1] == 1:
            images = images.expand(-1, self.channels, -1, -1)
        if images.shape[1] != self.channels:
            raise ValueError(f"{self.name} takes images of 1 or {self.channels} channels, not {images.shape[1]}")
        images, arithmetic = images.to(self.device), Precision(self.device, self.precision)
        with arithmetic.in_force(), arithmetic.autocast():
            if self.device.type == "cuda":
                self._layout = self._layout or faster_layout(self.network, images, torch.cuda.synchronize)
                images = images.contiguous(memory_format=self._layout)
            features, logits = self.network(images)
        if not bool(features.isfinite().all()):
            raise ValueError(f"{self.name} computes features that are not finite")
        return features.float().to(self.home), logits.float().to(self.home)


def faster_layout(network: nn.Module, images: Tensor, wait: Callable[[], None]) -> torch.memory_format:
    """In which memory layout this device computes ``network`` faster; the network is left in it.

    The numbers are the same but for rounding. Float32 without tensor cores is often faster in NCHW, bfloat16 in NHWC.

    Args:
        images: a batch as those to come.
        wait: until the device has done all its work.
    """
    seconds = {torch.channels_last: math.inf, torch.contiguous_format: math.inf}
    # In turns, because a clock that has yet to rise would count against the first, and the best of several.
    for layout in [*seconds] * 3:
        network.to(memory_format=layout)
        laid_out = images.contiguous(memory_format=layout)
        network(laid_out)  # finds the fastest kernels
        wait()
        started = time.perf_counter()
        network(laid_out)
        wait()
        seconds[layout] = min(seconds[layout], time.perf_counter() - started)
    faster = min(seconds, key=lambda layout: seconds[layout])
    network.to(memory_format=faster)
    return faster


class Unlabelled(nn.Module):
    """A network of torch-fidelity's that gives one kind of features, (N, F), and no logits: (N, 0)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        (features,) = self.network(images)
        return features, features[:, :0]


class Extractors:
    """The feature networks of one evaluation, each built when a score first asks for it.

    ``extractors["digits"]`` is the registered one of that name. Training's random numbers are not touched.

    Args:
        metrics: its options.
        dataset: of the real images.
        device: of the networks.

    Raises:
        ConfigError: (when asked) the network cannot be had, or cannot judge this data set.
    """

    def __init__(self, metrics: MetricsConfig, dataset: DatasetOptions, device: torch.device) -> None:
        self.metrics, self.dataset, self.device = metrics, dataset, device
        self._built: dict[str, Extractor] = {}

    def __getitem__(self, name: str) -> Extractor:
        if name not in self._built:
            entry = EXTRACTORS[name]
            with torch.random.fork_rng(devices=[]):
                made = EXTRACTORS.build(name, self.metrics, self.dataset, self.device, of=Extractor)
            made.name, made.options = name, own_values(own_options(self.metrics, name, entry.options))
            # Another forward pass makes other features of the same weights.
            made.fingerprint += entry.code
            self._built[name] = made
        return self._built[name]

    @cached_property
    def chosen(self) -> Extractor:
        """That of ``metrics.extractor``; ``auto`` is the best one that is at hand, and says so."""
        if self.metrics.extractor != "auto":
            return self[self.metrics.extractor]
        if DATASETS[self.dataset.name].facts.digits:
            return self["digits"]
        try:
            extractor = self["inception"]
        except ConfigError as error:
            if self.metrics.weights is not None:
                raise
            return self._instead_of_inception(error)
        log.info("scoring with inception")
        return extractor

    def _instead_of_inception(self, reason: ConfigError) -> Extractor:
        try:
            extractor = self["efficientnet_lite0"]
        except ConfigError as error:
            raise ConfigError(
                "metrics.extractor", f"no feature network: {reason}; {error}; or choose metrics=none"
            ) from reason
        log.info("scoring with efficientnet_lite0: the Inception weights are not at hand (metrics.weights)")
        return extractor


def own_options(metrics: MetricsConfig, name: str, default: Options) -> Options:
    """``metrics.NAME``, the options of a score or an extractor; the default where it has none of its own."""
    found = getattr(metrics, name, None)
    return found if isinstance(found, Options) else default


def own_values(options: Options) -> dict[str, Any]:
    """Options as plain values, for the protocol; empty where a part has none."""
    return {name: value for name, value in vars(options).items() if name != "name"}


def arithmetic(metrics: MetricsConfig, device: torch.device) -> str:
    """An extractor's precision by ``metrics.precision``.

    Raises:
        ConfigError: the device does not compute in it.
    """
    name = "fp32" if metrics.precision == "auto" else metrics.precision
    return checked_precision("metrics.precision", name, device).name


def home(device: torch.device) -> torch.device:
    """Where the float64 sums of what a device computes live; Apple's GPUs have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def fuse_batchnorm(network: nn.Module) -> None:
    """Fold each batch norm into the convolution defined right before it; same values up to rounding.

    The separate pass over every feature map costs more than half the time of Inception on a CPU.
    """
    network.eval()
    for module in network.modules():
        previous: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and previous and isinstance(previous[1], nn.Conv2d):
                setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
                setattr(module, name, nn.Identity())
            previous = (name, child)


def hash_file(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_state(network: nn.Module) -> str:
    """sha256 of a network's parameters and buffers, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
