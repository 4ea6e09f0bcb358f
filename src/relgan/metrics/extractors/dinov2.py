"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): what a network sees that learned from pictures without any labels.

torch-fidelity resizes and normalises. Its own way to the network runs code that it downloads; here torchvision has the
network, and a file only the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relgan.config import MetricsConfig
from relgan.metrics.extractors import TENSORFLOW_1, Extractor, Unlabelled, arithmetic, hash_file
from relgan.metrics.weights import WeightFile, load_state
from relgan.options import ConfigError
from relgan.registry import DatasetOptions

INPUT_SIZE = 224  # torch-fidelity's
PATCH = 14
SIDE = INPUT_SIZE // PATCH  # patches along the side of what the network sees
LEARNED_SIDE = 37  # and of what it learned from
OFFSET = 0.1  # the authors' guard against rounding, which also moves the positions a little

_NAMES = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.": "conv_proj.",
    "norm.": "encoder.ln.",
    "blocks.": "encoder.layers.encoder_layer_",
    "norm1.": "ln_1.",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj.": "self_attention.out_proj.",
    "norm2.": "ln_2.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
}


@dataclass(frozen=True)
class Size:
    """One of the published networks, "s", "b" or "l"; ``sha256`` is the start of its file's hash."""

    letter: str
    width: int
    depth: int
    heads: int
    sha256: str

    @property
    def name(self) -> str:
        return f"dinov2_vit{self.letter}14"

    @property
    def weights(self) -> WeightFile:
        url = f"https://dl.fbaipublicfiles.com/dinov2/{self.name}/{self.name}_pretrain.pth"
        return WeightFile(option="metrics.weights", url=url, sha256=self.sha256)


def _around(network: nn.Module, name: str) -> nn.Module:
    """torch-fidelity's extractor around a network that is already here."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    class Around(FeatureExtractorDinoV2):  # type: ignore[misc]
        def __init__(self) -> None:
            FeatureExtractorBase.__init__(self, name, ["dinov2"])
            self.model, self.feature_extractor_internal_dtype = network, torch.float32

    return Around()


def _positions(learned: Tensor) -> Tensor:
    """Position embeddings (1, 1 + 37², D) as (1, 1 + 16², D), interpolated as the authors do."""
    token, patches = learned[:, :1], learned[:, 1:]
    square = patches.unflatten(1, (LEARNED_SIDE, LEARNED_SIDE)).permute(0, 3, 1, 2)
    scale = (SIDE + OFFSET) / LEARNED_SIDE
    resized = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, resized.flatten(2).mT], dim=1)


def _folded(published: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The state dict with the scale of each residual branch folded into the branch's last layer."""
    state = dict(published)
    for block in range(depth):
        for layer, scale in (("attn.proj", "ls1"), ("mlp.fc2", "ls2")):
            gamma = state.pop(f"blocks.{block}.{scale}.gamma")
            for kind in ("weight", "bias"):
                name = f"blocks.{block}.{layer}.{kind}"
                state[name] = torch.einsum("o,o...->o...", gamma, state[name])
    return state


def _renamed(name: str) -> str:
    """What torchvision calls a parameter of the authors' network."""
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _network(published: Mapping[str, Tensor], size: Size) -> nn.Module:
    from torchvision.models import VisionTransformer

    with torch.device("meta"):  # weights to start from would cost seconds
        network: nn.Module = VisionTransformer(
            image_size=INPUT_SIZE,
            patch_size=PATCH,
            num_layers=size.depth,
            num_heads=size.heads,
            hidden_dim=size.width,
            mlp_dim=4 * size.width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
    network.heads = nn.Identity()
    state = _folded(published, size.depth)
    state.pop("mask_token", None)  # of training only
    state["pos_embed"] = _positions(state["pos_embed"])
    network.load_state_dict({_renamed(name): value for name, value in state.items()}, assign=True)
    return network


def build(size: Size, metrics: MetricsConfig, dataset: DatasetOptions, device: torch.device) -> Extractor:
    """A network with weights from metrics.weights, the torch hub cache, or a download.

    Raises:
        ConfigError: no usable weights.
    """
    weights = size.weights
    path = weights.find(metrics.weights)
    published = load_state(path, weights.option)
    try:
        network = _network(published, size)
    except (KeyError, RuntimeError) as error:
        raise ConfigError(weights.option, f"{path} does not hold {weights.name}") from error
    fingerprint = hash_file(path)
    return Extractor(
        network=Unlabelled(_around(network, size.name)),
        device=device,
        num_features=size.width,
        fingerprint=fingerprint,
        weights_known=weights.is_published(fingerprint),
        input_size=INPUT_SIZE,
        resize=TENSORFLOW_1,
        precision=arithmetic(metrics, device),
    )


small = partial(build, Size("s", width=384, depth=12, heads=6, sha256="b938bf1bc15cd2ec"))
base = partial(build, Size("b", width=768, depth=12, heads=12, sha256="0b8b82f85de91b42"))
large = partial(build, Size("l", width=1024, depth=24, heads=16, sha256="d5383ea8f4877b24"))
