"""Networks with seeded random weights, which stand in for the published ones."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of torch-fidelity's Inception whose features and logits vary from image to image."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "inception-random.pth"
    module = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    with (
        torch.random.fork_rng(devices=[]),
        patch(module, return_value={}),
        patch.object(FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        for part in network.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)
            elif isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.8, 1.2)
        # Classes must differ between images: features share a large mean, which the weights leave out.
        noise = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        mean = network(noise)[0].mean(0)
        network.fc.weight.normal_(std=3.0)
        network.fc.weight -= torch.outer(network.fc.weight @ mean, mean) / mean.square().sum()
    torch.save(network.state_dict(), path)
    return path


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
