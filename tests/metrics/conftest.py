"""Networks with seeded random weights, which stand in for the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of torch-fidelity's Inception whose features and logits vary from image to image."""
    from benchmarks.scores import random_inception

    return random_inception(tmp_path_factory.mktemp("weights") / "inception-random.pth")


@pytest.fixture(scope="session")
def alexnet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of torchvision's AlexNet features."""
    path = tmp_path_factory.mktemp("weights") / "alexnet-random.pth"
    generator = torch.Generator().manual_seed(0)
    shapes = {"0": (64, 3, 11, 11), "3": (192, 64, 5, 5), "6": (384, 192, 3, 3), "8": (256, 384, 3, 3)}
    state = {}
    for layer, shape in {**shapes, "10": (256, 256, 3, 3)}.items():
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"features.{layer}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        state[f"features.{layer}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    torch.save(state, path)
    return path
