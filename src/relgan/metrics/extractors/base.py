"""What every feature network offers to the scores."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@dataclass(frozen=True)
class Extractor:
    """A frozen network from uint8 images to features and class logits.

    Attributes:
        name: the key suffix of its scores; only "inception" is called fid and is.
        fingerprint: hash of the weights.
        input_size: side in pixels to which ``network`` resizes; part of the identity of a score.
        resize: how images get to that size.
        weights_known: whether the weights are the published ones.
        precision: "fp32" or "bf16" arithmetic.
        network: uint8 (N, channels, H, W) -> (features (N, F), logits (N, K)).
    """

    name: str
    channels: int
    num_features: int
    num_classes: int
    fingerprint: str
    input_size: int
    resize: str
    weights_known: bool
    precision: str
    device: torch.device
    network: nn.Module

    @property
    def home(self) -> torch.device:
        """Where features and their float64 sums live; Apple's GPUs have no float64."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @property
    def identity(self) -> dict[str, object]:
        """What the protocol of a score says about its network."""
        return {
            "extractor": self.name,
            "weights": self.fingerprint,
            "weights_known": self.weights_known,
            "input_size": self.input_size,
            "resize": self.resize,
            "precision": self.precision,
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features float32 (N, F) and logits float32 (N, K) of uint8 images (N, C, H, W).

        Grey images are replicated to RGB where the network sees colour.

        Raises:
            ValueError: other than uint8 images of one or ``channels`` channels.
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
        low = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext():
            features, logits = self.network(images.to(self.device))
        return features.float().to(self.home), logits.float().to(self.home)


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


def freeze(network: nn.Module, device: torch.device) -> nn.Module:
    """Evaluation mode, no gradients, channels_last (1.2× faster convolutions on CPUs, more with tensor cores)."""
    return network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


def hash_file(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_state(network: nn.Module) -> str:
    """sha256 of a network's parameters and buffers, hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()
