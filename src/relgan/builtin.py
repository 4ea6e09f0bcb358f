"""What relgan brings along, registered as other people's code registers theirs, and without importing torch.

Data sets are in ``relgan.data.sets``, scores in ``relgan.metrics.catalogue``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relgan.options import ConfigError, Options, option
from relgan.registry import (
    ModelOptions,
    PenaltyOptions,
    TrackerOptions,
    combine,
    register_cost,
    register_extractor,
    register_model,
    register_penalty,
    register_tracker,
)

# Losses: the table of the papers. Each cost makes one loss of each form.
register_cost("sgan", "relgan.losses:log_cost", about="cross entropy (Goodfellow et al. 2014, non-saturating)")
register_cost("lsgan", "relgan.losses:square_cost", about="least squares (Mao et al. 2017)")
register_cost("hinge", "relgan.losses:hinge_cost", about="hinge (Lim & Ye 2017)")
register_cost(
    "sgan_saturating", "relgan.losses:saturating_cost", forms=("standard",), about="the original minimax game"
)
register_cost("wgan", "relgan.losses:linear_cost", forms=("standard",), about="Wasserstein; brings penalty=clip")
combine("wgan_gp", "wgan", "standard", about="brings penalty=gp")
combine("ragan", "sgan", "average", about="rasgan by its usual name")
combine("rsgan_gp", "sgan", "paired", about="brings penalty=gp")
combine("rasgan_gp", "sgan", "average", about="brings penalty=gp")
combine("rpgan_r1r2", "sgan", "paired", about="R3GAN's loss: brings penalty=r1r2")


@dataclass
class WeightedOptions(PenaltyOptions):
    """A penalty with one coefficient."""

    weight: float = option(1.0, "coefficient of the penalty: γ", gt=0)


@dataclass
class DistanceOptions(WeightedOptions):
    """A penalty on the distance of the gradient's norm from 1."""

    weight: float = option(10.0, "coefficient of the penalty: λ", gt=0)


@dataclass
class ClipOptions(WeightedOptions):
    """Weight clipping."""

    weight: float = option(0.01, "bound c of the critic's weights", gt=0)

    def check(self, config: Any) -> None:
        if getattr(config.model, "spectral_norm", False):
            raise ConfigError("model.spectral_norm", "must be false with penalty=clip, which it would undo")


register_penalty("none", PenaltyOptions, "relgan.penalties:none", about="no regulariser")
register_penalty("gp", DistanceOptions, "relgan.penalties:gp", about="WGAN-GP's, between real and fake")
register_penalty("r1", WeightedOptions, "relgan.penalties:r1", about="squared gradient at real images")
register_penalty("r2", WeightedOptions, "relgan.penalties:r2", about="squared gradient at fake images")
register_penalty("r1r2", WeightedOptions, "relgan.penalties:r1r2", about="squared gradient at both")
register_penalty("dragan", DistanceOptions, "relgan.penalties:dragan", about="around real images")
register_penalty("clip", ClipOptions, "relgan.penalties:clip", about="WGAN's clipping of the critic's weights")


@dataclass
class ConvOptions(ModelOptions):
    """A convolutional generator and critic (Jolicoeur-Martineau 2018, appendix; Radford et al. 2015)."""

    width: int = option(24, "channels of the widest-resolution layer (the papers' h)", ge=1)
    spectral_norm: bool = option(True, "spectral norm on the critic's convolutions; removes its batch norm")
    generator_spectral_norm: bool = option(
        False, "spectral norm on the generator's convolutions; removes its batch norm"
    )
    norm: str = option("batch", "normalisation in both networks", choices=("batch", "none"))
    activation: str = option(
        "default",
        "default: ReLU in G, LeakyReLU in the critic; selu also replaces batch norm; tanh everywhere",
        choices=("default", "selu", "tanh"),
    )
    upsample: str = option(
        "transposed",
        "transposed convolution, or nearest-neighbour ×2 followed by a 3×3 convolution",
        choices=("transposed", "resize"),
    )
    pack: int = option(1, "PacGAN: images the critic sees at once, stacked on the channel axis", ge=1)
    sync_batch_norm: bool = option(False, "batch norm over the batches of all ranks (torchrun) instead of each its own")


@dataclass
class Cnn32Options(ConvOptions):
    """The standard CNN of the CIFAR-10 experiments."""

    width: int = option(64, "channels of the widest-resolution layer (the papers' h)", ge=1)

    def check(self, config: Any) -> None:
        if config.dataset.image_size != 32:
            raise ConfigError("dataset.image_size", f"model=cnn32 makes 32×32 images, not {config.dataset.image_size}")


register_model("dcgan", ConvOptions, "relgan.networks.dcgan:build", about="DCGAN at 32, 64, 128 or 256 pixels")
register_model("cnn32", Cnn32Options, "relgan.networks.cnn32:build", about="the standard CNN of CIFAR-10, 32 pixels")

register_extractor(
    "inception", Options, "relgan.metrics.extractors.inception:build", about="the 2015 Inception of the literature"
)
register_extractor(
    "efficientnet_lite0", Options, "relgan.metrics.extractors.efficientnet:build", about="weights from a package"
)
register_extractor("digits", Options, "relgan.metrics.extractors.digits:build", about="a classifier of digits")


@dataclass
class WandbOptions(TrackerOptions):
    """Weights & Biases."""

    project: str = option("relgan", "W&B project")
    entity: str | None = option(None, "W&B user or team; null: your default")
    mode: str = option(
        "auto",
        "auto: online when a key is configured and W&B answers, else offline",
        choices=("auto", "online", "offline"),
    )
    tags: list[str] = option([], "tags besides loss, form and dataset")
    artifacts: bool = option(False, "also send the best checkpoint, and a sweep's comparison page")


register_tracker("wandb", WandbOptions, "relgan.tracking.wandb:start", about="a copy to Weights & Biases")
register_tracker("none", TrackerOptions, "relgan.tracking.base:nowhere", about="the run directory only")
