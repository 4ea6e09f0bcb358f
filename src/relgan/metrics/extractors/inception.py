"""The 2015 TensorFlow Inception network as ported by torch-fidelity: what the literature calls FID and IS."""

from __future__ import annotations

import torch

from relgan.config import MetricsConfig
from relgan.metrics.extractors import TENSORFLOW_1, Extractor, arithmetic, fuse_batchnorm, hash_file
from relgan.metrics.weights import WeightFile, load_state
from relgan.options import ConfigError
from relgan.registry import DatasetOptions

WEIGHTS = WeightFile(
    option="metrics.weights",
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)


def build(metrics: MetricsConfig, dataset: DatasetOptions, device: torch.device) -> Extractor:
    """The network with weights from metrics.weights, the torch hub cache, or a download.

    Raises:
        ConfigError: no usable weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = WEIGHTS.find(metrics.weights)
    load_state(path, WEIGHTS.option)  # the constructor below would execute whatever a pickle says
    try:
        # TensorFlow's own resize to 299 is inside.
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except RuntimeError as error:
        raise ConfigError(WEIGHTS.option, f"{path} does not hold the Inception network of torch-fidelity") from error
    fingerprint = hash_file(path)
    fuse_batchnorm(network)
    return Extractor(
        network=network,
        device=device,
        num_features=2048,
        num_classes=1008,
        fingerprint=fingerprint,
        weights_known=WEIGHTS.is_published(fingerprint),
        input_size=299,
        resize=TENSORFLOW_1,
        precision=arithmetic(metrics, device),
    )
