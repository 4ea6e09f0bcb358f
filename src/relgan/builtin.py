"""What relgan brings along, registered as other people's code registers theirs, and without importing torch.

Data sets are in ``relgan.data.sets``, scores in ``relgan.metrics.catalogue``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relgan.options import ConfigError, Options, option
from relgan.registry import (
    DATASETS,
    AugmentOptions,
    ModelCard,
    ModelOptions,
    PenaltyOptions,
    RandomOptions,
    TrackerOptions,
    combine,
    register_augment,
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
    interval: int = option(
        1,
        "iterations from one use of the penalty to the next, where it counts that many times "
        "(lazy regularisation; R3GAN is reported to fail with 8)",
        ge=1,
    )


@dataclass
class DistanceOptions(WeightedOptions):
    """A penalty on the distance of the gradient's norm from 1."""

    weight: float = option(10.0, "coefficient of the penalty: λ", gt=0)


@dataclass
class ZeroCenteredOptions(WeightedOptions):
    """A penalty on the squared gradient."""

    share: float = option(1.0, "share of the images that is looked at; its cost is in proportion", gt=0, le=1)


@dataclass
class ApproximateOptions(ZeroCenteredOptions):
    """A penalty on how far noise in the images moves the logits."""

    sigma: float = option(0.01, "standard deviation of the noise, where pixels reach from −1 to 1", gt=0)

    def check(self, config: Any) -> None:
        if config.precision == "tf32":
            raise ConfigError(
                "precision",
                f"must not be tf32 with penalty={self.name}, whose difference of two passes it rounds away "
                "(accepted: auto, fp32, bf16)",
            )


@dataclass
class ClipOptions(PenaltyOptions):
    """Weight clipping."""

    weight: float = option(0.01, "bound c of the critic's weights", gt=0)

    def check(self, config: Any) -> None:
        if getattr(config.model, "spectral_norm", False):
            raise ConfigError("model.spectral_norm", "must be false with penalty=clip, which it would undo")
        if config.schedule.gamma is not None:
            raise ConfigError("schedule.gamma", "penalty=clip has no coefficient that could move")


register_penalty("none", PenaltyOptions, "relgan.penalties:none", about="no regulariser")
register_penalty("gp", DistanceOptions, "relgan.penalties:gp", about="WGAN-GP's, between real and fake")
register_penalty("r1", ZeroCenteredOptions, "relgan.penalties:r1", about="squared gradient at real images")
register_penalty("r2", ZeroCenteredOptions, "relgan.penalties:r2", about="squared gradient at fake images")
register_penalty("r1r2", ZeroCenteredOptions, "relgan.penalties:r1r2", about="squared gradient at both")
register_penalty("ar1", ApproximateOptions, "relgan.penalties:ar1", about="r1 by noise, no double backward")
register_penalty("ar2", ApproximateOptions, "relgan.penalties:ar2", about="r2 by noise")
register_penalty("ar1r2", ApproximateOptions, "relgan.penalties:ar1r2", about="r1r2 by noise")
register_penalty("dragan", DistanceOptions, "relgan.penalties:dragan", about="around real images")
register_penalty("clip", ClipOptions, "relgan.penalties:clip", about="WGAN's clipping of the critic's weights")


@dataclass
class ConvOptions(ModelOptions):
    """A convolutional generator and critic (Jolicoeur-Martineau 2018, appendix; Radford et al. 2015)."""

    width: int = option(64, "channels of the widest-resolution layer (the papers' h)", ge=1)
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
        "resize",
        "transposed convolution, or nearest-neighbour ×2 followed by a 3×3 convolution",
        choices=("transposed", "resize"),
    )
    latent: str = option(
        "normal",
        "what the generator is given: z, or its signs, −1 and 1, which make at most 2^latent_dim different images; "
        "bernoulli where dcgan makes stacked_digits",
        choices=("normal", "bernoulli"),
    )
    pack: int = option(1, "PacGAN: images the critic sees at once, stacked on the channel axis", ge=1)
    sync_batch_norm: bool = option(False, "batch norm over the batches of all ranks (torchrun) instead of each its own")


@dataclass
class Cnn32Options(ConvOptions):
    """The standard CNN of the CIFAR-10 experiments."""

    def check(self, config: Any) -> None:
        if config.dataset.image_size != 32:
            raise ConfigError("dataset.image_size", f"model=cnn32 makes 32×32 images, not {config.dataset.image_size}")


@dataclass
class R3GANOptions(ModelOptions):
    """R3GAN's residual networks (Huang et al. 2025)."""

    latent_dim: int = option(64, "dimensions of z ~ N(0, I)", ge=1)
    width: int = option(768, "channels from 4×4 to 32×32, halved with each doubling of the size after that", ge=1)
    widths: list[int] = option([], "instead of width: channels of every stage, from 4×4 to the image's size", ge=1)
    group_width: int = option(16, "channels of one group of the 3×3 convolutions", ge=1)
    blocks: int = option(2, "residual blocks of a stage", ge=1)

    def check(self, config: Any) -> None:
        self.stage_widths(config.dataset.image_size)

    def stage_widths(self, image_size: int) -> list[int]:
        """Channels of the stages from 4×4 to ``image_size``; ConfigError if such networks cannot be built."""
        sizes = [4 << stage for stage in range(image_size.bit_length() - 2)]
        if self.widths and len(self.widths) != len(sizes):
            stages = ", ".join(f"{size}×{size}" for size in sizes)
            raise ConfigError("model.widths", f"must have one for each of {stages}; there are {len(self.widths)}")
        widths = list(self.widths) or [self.width // max(1, size // 32) for size in sizes]
        if not widths[-1]:
            raise ConfigError("model.width", f"must be ≥ {sizes[-1] // 32} for {image_size}×{image_size} images")
        for width in widths:
            if 2 * width % self.group_channels(width):
                raise ConfigError("model.group_width", f"must divide {2 * width}, twice the width of a stage")
        return widths

    def group_channels(self, width: int) -> int:
        """Channels of one group of the 3×3 convolutions, which see twice the ``width`` of their stage."""
        return min(self.group_width, 2 * width)


_CONDITIONAL = ModelCard(labels=True)
register_model(
    "dcgan", ConvOptions, "relgan.networks.dcgan:build", about="DCGAN at 16 to 256 pixels", facts=_CONDITIONAL
)
register_model(
    "cnn32",
    Cnn32Options(upsample="transposed"),
    "relgan.networks.cnn32:build",
    about="the standard CNN of CIFAR-10",
    facts=_CONDITIONAL,
)
register_model(
    "r3gan",
    R3GANOptions,
    "relgan.networks.r3gan:build",
    about="R3GAN's residual networks; bring loss=rpgan_r1r2",
    facts=_CONDITIONAL,
)


@dataclass
class DiffAugmentOptions(RandomOptions):
    """DiffAugment (Zhao et al. 2020)."""

    policy: list[str] = option(
        ["color", "translation", "cutout"], "its transformations", choices=("color", "translation", "cutout")
    )

    def check(self, config: Any) -> None:
        super().check(config)
        if not self.policy:
            raise ConfigError("augment.policy", "name at least one transformation; augment=none changes nothing")


@dataclass
class AdaOptions(RandomOptions):
    """The augmentations of ADA (Karras et al. 2020) as R3GAN weights them."""

    def check(self, config: Any) -> None:
        super().check(config)
        if DATASETS[config.dataset.name].facts.grey:
            raise ConfigError(
                "augment",
                f"ada changes colours of RGB images, those of {config.dataset.name} have one channel; "
                "diffaugment takes them",
            )


register_augment("none", AugmentOptions, "relgan.augment:none", about="the critic sees the images as they are")
register_augment("diffaugment", DiffAugmentOptions, "relgan.augment:diffaugment", about="colour, translation, cutout")
register_augment(
    "ada",
    AdaOptions(p=0.0, target=0.6),
    "relgan.augment:ada",
    about="geometry and colour with a steered probability",
)

register_extractor(
    "inception", Options, "relgan.metrics.extractors.inception:build", about="the 2015 Inception of the literature"
)
register_extractor(
    "efficientnet_lite0", Options, "relgan.metrics.extractors.efficientnet:build", about="weights from a package"
)
register_extractor("digits", Options, "relgan.metrics.extractors.digits:build", about="a classifier of digits")
for _letter, _size in {"s": "small", "b": "base", "l": "large"}.items():
    register_extractor(
        f"dinov2_{_letter}",
        Options,
        f"relgan.metrics.extractors.dinov2:{_size}",
        about=f"DINOv2 ViT-{_letter.upper()}/14, which learned without labels",
    )
register_extractor("clip_b32", Options, "relgan.metrics.extractors.clip:build", about="CLIP ViT-B/32's image half")


@dataclass
class WandbOptions(TrackerOptions):
    """Weights & Biases."""

    project: str | None = option(None, "W&B project; null: WANDB_PROJECT, else relgan")
    entity: str | None = option(None, "W&B user or team; null: WANDB_ENTITY, else your default")
    mode: str = option(
        "auto",
        "auto: WANDB_MODE, else online when a key is configured and W&B answers, else offline",
        choices=("auto", "online", "offline"),
    )
    tags: list[str] = option([], "tags besides loss, form and dataset; []: WANDB_TAGS")
    artifacts: bool = option(False, "also send the best checkpoint, and a sweep's comparison page")
    system_metrics: bool = option(True, "record the load and memory of processors and GPUs")
    git: bool = option(True, "record the commit of the directory's repository, and what has changed since")
    console: bool = option(True, "record what the console shows")
    code: bool = option(False, "send the program's code")


@dataclass
class MlflowOptions(TrackerOptions):
    """MLflow."""

    uri: str | None = option(None, "its server or database; null: MLFLOW_TRACKING_URI, else mlflow.db in the folder")
    folder: str = option(".", "where mlflow.db lies", path=True)
    artifacts: bool = option(False, "also send the best checkpoint, and a sweep's comparison page")


register_tracker("wandb", WandbOptions, "relgan.tracking.wandb:start", about="a copy to Weights & Biases")
register_tracker(
    "tensorboard", TrackerOptions, "relgan.tracking.tensorboard:start", about="event files in the run directory"
)
register_tracker("mlflow", MlflowOptions, "relgan.tracking.mlflow:start", about="a copy to MLflow")
register_tracker("none", TrackerOptions, "relgan.tracking.base:nowhere", about="the run directory only")
