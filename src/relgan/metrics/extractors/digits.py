"""A small classifier of handwritten digits, trained on scikit-learn's embedded ones at first use.

An image of C channels is C digits, one per channel: features are concatenated, and a class is a tuple of digits
(10^C of them), so that stacked digits have 1,000 classes, which are their modes.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relgan.cache import cache_dir, load_or_compute
from relgan.config import MetricsConfig
from relgan.data.sets.digits import digits
from relgan.files import atomic_write
from relgan.metrics.extractors import Extractor, fuse_batchnorm, hash_state
from relgan.metrics.weights import load_state
from relgan.options import ConfigError
from relgan.progress import progress_bar
from relgan.registry import DATASETS, DatasetOptions

SIZE = 32
WIDTH = 64
VERSION = 1  # of the recipe below; part of the cached file's name
MIN_ACCURACY = 0.98
_EPOCHS = 24
_BATCH = 128

log = logging.getLogger("relgan")


class DigitNet(nn.Module):
    """Three strided convolutions and two linear layers; about 0.7 million multiplications an image."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((1, 16), (16, 32), (32, 64)):
            layers += [
                nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, digits: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 64) and logits (N, 10) of float (N, 1, 32, 32) in [0, 1]."""
        features = self.body(digits)
        return features, self.head(features)


class _Stacked(nn.Module):
    """DigitNet on every channel of uint8 (N, C, H, W); log-probabilities of the 10^C digit tuples."""

    def __init__(self, network: DigitNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        n, channels = images.shape[:2]
        digits = images.flatten(0, 1).unsqueeze(1).float() / 255
        if digits.shape[-2:] != (SIZE, SIZE):
            digits = F.interpolate(digits, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        features, logits = self.network(digits)
        log_p = logits.float().log_softmax(dim=1).view(n, channels, 10)
        joint = log_p[:, 0]
        for channel in log_p.unbind(1)[1:]:
            joint = (joint[:, :, None] + channel[:, None, :]).flatten(1)
        return features.reshape(n, channels * WIDTH), joint


def _jitter(digits: Tensor, rng: torch.Generator) -> Tensor:
    """Rotate, scale, shear and shift each digit a little."""
    n = len(digits)
    shape = torch.eye(2) + (torch.rand(n, 2, 2, generator=rng) - 0.5) * 0.35
    shift = (torch.rand(n, 2, 1, generator=rng) - 0.5) * 0.2
    where = F.affine_grid(torch.cat([shape, shift], dim=2), list(digits.shape), align_corners=False)
    return F.grid_sample(digits, where, align_corners=False)


def _noise(count: int, rng: torch.Generator) -> Tensor:
    """Pictures of nothing, from fine noise to coarse blobs, (count, 1, 32, 32) in [0, 1]."""
    scales = [1, 2, 4, 8]
    parts = []
    for scale, part in zip(scales, torch.arange(count).chunk(len(scales)), strict=False):
        noise = torch.rand(len(part), 1, SIZE // scale, SIZE // scale, generator=rng)
        noise = (noise - torch.rand(len(part), 1, 1, 1, generator=rng)).clamp(min=0) * 2
        parts.append(F.interpolate(noise, size=(SIZE, SIZE), mode="bilinear").clamp(max=1))
    return torch.cat(parts)


def _epoch(network: DigitNet, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, rng: torch.Generator) -> None:
    for index in torch.randperm(len(x), generator=rng).split(_BATCH):
        digits = _jitter(x[index], rng)
        nothing = _noise(_BATCH // 4, rng)
        logits = network(torch.cat([digits, nothing]))[1]
        # Noise must not look like a digit: the target there is uniform, so that confidence means something.
        loss = F.cross_entropy(logits[: len(index)], y[index], label_smoothing=0.02)
        loss = loss - 0.25 * logits[len(index) :].log_softmax(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train(images: np.ndarray, labels: np.ndarray) -> tuple[DigitNet, float]:
    """Train on four fifths of uint8 (N, 32, 32) digits; also return the accuracy on the held-out fifth.

    The same on every call of one machine; the caller guards the global generator.
    """
    rng = torch.Generator().manual_seed(0)
    x = torch.from_numpy(images).unsqueeze(1).float() / 255
    y = torch.from_numpy(labels)
    order = torch.randperm(len(x), generator=rng)
    held_out, used = order[: len(x) // 5], order[len(x) // 5 :]
    # Not torch.manual_seed, which would also seed the GPUs' generators, and those nobody guards.
    torch.default_generator.manual_seed(0)
    network = DigitNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _EPOCHS)
    with progress_bar(_EPOCHS, "digit classifier") as bar:
        for _ in range(_EPOCHS):
            _epoch(network, optimizer, x[used], y[used], rng)
            schedule.step()
            bar.advance()
    network.eval()
    with torch.no_grad():
        accuracy = (network(x[held_out])[1].argmax(dim=1) == y[held_out]).double().mean()
    return network, float(accuracy)


def _load(path: Path) -> DigitNet:
    network = DigitNet()
    network.load_state_dict(load_state(path, "metrics.extractor"))
    return network.eval()


def _make() -> DigitNet:
    log.info("training the digit classifier (once, about 10 s)")
    source = digits(DatasetOptions(name="digits", image_size=SIZE))
    assert source.labels is not None
    network, accuracy = train(np.stack([source.read(i)[..., 0] for i in range(len(source))]), source.labels)
    if accuracy < MIN_ACCURACY:
        raise RuntimeError(f"the digit classifier reached {accuracy:.3f} of {MIN_ACCURACY} held-out accuracy")
    return network


def _save(path: Path, network: DigitNet) -> None:
    content = io.BytesIO()  # torch's own writer turns a full disk into a RuntimeError
    torch.save(network.state_dict(), content)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def build(metrics: MetricsConfig, dataset: DatasetOptions, device: torch.device) -> Extractor:
    """The classifier for images of as many digits as this data set shows; always in float32.

    Raises:
        ConfigError: it shows none.
    """
    channels = DATASETS[dataset.name].facts.digits
    if not channels:
        known = ", ".join(name for name, entry in DATASETS.items() if entry.facts.digits)
        raise ConfigError("metrics.extractor", f"digits judges only {known}, not {dataset.name}")
    path = cache_dir() / "extractors" / f"digits-v{VERSION}.pt"
    network = load_or_compute(path, _load, _make, _save)
    fingerprint = hash_state(network)
    fuse_batchnorm(network)
    return Extractor(
        network=_Stacked(network),
        device=device,
        num_features=channels * WIDTH,
        num_classes=10**channels,
        channels=channels,
        fingerprint=fingerprint,
        input_size=SIZE,
        resize="bilinear, antialiased",
    )
