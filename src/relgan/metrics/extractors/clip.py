"""CLIP ViT-B/32 (Radford et al. 2021, arXiv 2103.00020): what a network sees that learned from captions."""

from __future__ import annotations

import warnings

import torch

from relgan.config import MetricsConfig
from relgan.metrics.extractors import TENSORFLOW_1, Extractor, Unlabelled, arithmetic, hash_file
from relgan.metrics.weights import WeightFile
from relgan.options import ConfigError
from relgan.registry import DatasetOptions

NAME = "clip-vit-b-32"  # torch-fidelity's
PATCH = 32
SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
WEIGHTS = WeightFile(
    option="metrics.weights",
    url=f"https://openaipublic.azureedge.net/clip/models/{SHA256}/ViT-B-32.pt",
    sha256=SHA256,
    cached=f"{NAME}-{SHA256}.pt",  # as torch-fidelity calls it
)


def build(metrics: MetricsConfig, dataset: DatasetOptions, device: torch.device) -> Extractor:
    """The image half of the network, with weights from metrics.weights, the torch hub cache, or a download.

    Raises:
        ConfigError: no usable weights.
    """
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

    path = WEIGHTS.find(metrics.weights)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)  # the published file is TorchScript
            network = FeatureExtractorCLIP(NAME, ["clip"], feature_extractor_weights_path=str(path))
    except (KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            WEIGHTS.option, f"{path} is damaged or not the TorchScript file of CLIP that OpenAI published"
        ) from error
    visual = network.model.visual
    if visual.conv1.kernel_size != (PATCH, PATCH):
        raise ConfigError(WEIGHTS.option, f"{path} holds another CLIP network than ViT-B/32")
    fingerprint = hash_file(path)
    return Extractor(
        network=Unlabelled(network),
        device=device,
        num_features=visual.output_dim,
        fingerprint=fingerprint,
        weights_known=WEIGHTS.is_published(fingerprint),
        input_size=visual.input_resolution,
        resize=TENSORFLOW_1,
        precision=arithmetic(metrics, device),
    )
