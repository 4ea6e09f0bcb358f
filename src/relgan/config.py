"""Every option of relgan: its type, default, unit, meaning and the values it accepts.

The dataclasses below are the schema; ``conf/*.yaml`` only gives values. Programs receive plain dataclass
objects, checked by :func:`validate`. This module imports neither torch nor Hydra.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


class RelganError(Exception):
    """Something the user can mend: shown as one line, exit status 2, never with a stack trace."""


class ConfigError(RelganError):
    """An option has a value it does not accept."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(f"{option}: {message}")
        self.option = option


def _opt(
    default: Any,
    doc: str,
    *,
    choices: Sequence[Any] | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    metadata = {"doc": doc, "choices": choices, "ge": ge, "gt": gt, "le": le, "lt": lt}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


IMAGE_SIZES = (32, 64, 128, 256)
LOSS_NAMES = (
    *("sgan", "sgan_saturating", "lsgan", "hinge", "wgan", "wgan_gp"),
    *("rsgan", "rlsgan", "rhinge", "rasgan", "ragan", "ralsgan", "rahinge", "rsgan_gp", "rasgan_gp"),
    *("rcsgan", "rclsgan", "rchinge", "rsgan_allpairs", "rlsgan_allpairs", "rhinge_allpairs", "rpgan_r1r2"),
)
# Relativistic losses whose generator has two different terms: the only ones with a choice of terms.
TWO_TERM_LOSSES = ("rasgan", "ragan", "ralsgan", "rahinge", "rasgan_gp", "rcsgan", "rclsgan", "rchinge")
GENERATOR_TERMS = ("both", "fake", "real", "standard")
PENALTY_NAMES = ("none", "gp", "r1", "r2", "r1r2", "dragan", "clip")
DATASET_NAMES = (
    "stacked_digits",
    "digits",
    "folder",
    "cifar10",
    "celeba",
    "cat",
    "mnist",
    "fashion_mnist",
    "stacked_mnist",
)
EXTRACTORS = ("auto", "inception", "efficientnet_lite0", "digits")
SCORES = ("fid", "is", "kid", "precision", "recall", "lpips_diversity", "modes", "neighbours")


@dataclass
class ModelConfig:
    """Generator and critic (facts: Jolicoeur-Martineau 2018, appendix; Radford et al. 2015)."""

    name: str = _opt("dcgan", "network family", choices=("dcgan", "cnn32"))
    width: int = _opt(24, "channels of the widest-resolution layer (the papers' h)", ge=1)
    latent_dim: int = _opt(128, "dimensions of z ~ N(0, I)", ge=1)
    spectral_norm: bool = _opt(False, "spectral norm on the critic's convolutions; removes its batch norm")
    generator_spectral_norm: bool = _opt(False, "spectral norm on the generator's convolutions; removes its batch norm")
    norm: str = _opt("batch", "normalisation in both networks", choices=("batch", "none"))
    activation: str = _opt(
        "default",
        "default: ReLU in G, LeakyReLU in the critic; selu also replaces batch norm; tanh everywhere",
        choices=("default", "selu", "tanh"),
    )
    upsample: str = _opt(
        "transposed",
        "transposed convolution, or nearest-neighbour ×2 followed by a 3×3 convolution",
        choices=("transposed", "resize"),
    )
    pack: int = _opt(1, "PacGAN: images the critic sees at once, stacked on the channel axis", ge=1)
    sync_batch_norm: bool = _opt(False, "batch norm over the batches of all ranks (torchrun) instead of each its own")


@dataclass
class LossConfig:
    name: str = _opt("ragan", "adversarial loss", choices=LOSS_NAMES)
    generator_terms: str = _opt(
        "both",
        "which terms of a two-term relativistic generator loss to keep (an ablation)",
        choices=GENERATOR_TERMS,
    )


@dataclass
class PenaltyConfig:
    name: str = _opt("none", "regulariser of the critic", choices=PENALTY_NAMES)
    weight: float = _opt(0.0, "λ of gp and dragan, γ of r1, r2 and r1r2, bound c of clip", ge=0)


@dataclass
class DatasetConfig:
    name: str = _opt("stacked_digits", "where images come from", choices=DATASET_NAMES)
    path: str | None = _opt(None, "archive or directory that is already on this machine")
    image_size: int = _opt(32, "side of the square training images, pixels", choices=IMAGE_SIZES)
    sampling: str = _opt(
        "epoch",
        "epoch: each image once per epoch; independent: batches drawn anew, without repeats inside a batch",
        choices=("epoch", "independent"),
    )
    hflip: bool = _opt(False, "mirror each image with probability one half")
    num_images: int | None = _opt(None, "images to make (stacked sets) or at most to use; null: all", ge=1)
    min_images: int = _opt(1, "fewest images to accept after preparing", ge=1)
    split: str = _opt("train", "part of the data to use", choices=("train", "valid", "test", "all"))
    crop: int | None = _opt(None, "side of the centred square cut out before resizing, pixels; null: the largest", ge=1)
    url: list[str] = _opt([], "mirrors to try in this order instead of the built-in ones")
    residence: str = _opt("auto", "where the training images live", choices=("auto", "device", "host"))


@dataclass
class OptimizerConfig:
    name: str = _opt("adam", "optimizer of both networks", choices=("adam", "rmsprop"))
    lr_g: float = _opt(2e-4, "learning rate of the generator", gt=0)
    lr_d: float = _opt(2e-4, "learning rate of the critic", gt=0)
    betas: list[float] = _opt([0.5, 0.999], "Adam's β₁, β₂; RMSprop uses the second as its smoothing α")
    eps: float = _opt(1e-8, "added to the denominator", gt=0)
    n_critic: int = _opt(1, "critic updates per generator update", ge=1)
    decay: float = _opt(
        0.0, "exponential decay: after each epoch both learning rates are multiplied by 1 − decay", ge=0, lt=1
    )


@dataclass
class TrainConfig:
    iterations: int | None = _opt(1200, "generator updates", ge=0)
    epochs: float | None = _opt(None, "instead of iterations: passes of the critic over the data", gt=0)
    batch_size: int = _opt(64, "real images per critic update, over all devices", ge=2)
    accumulate: int = _opt(1, "parts a batch is split into to save memory; the gradient stays that of the whole", ge=1)
    redraw_real: bool = _opt(True, "relativistic losses draw new real images for the generator's update")
    ema_decay: float = _opt(0.999, "decay of the generator's moving average per update; 0: no average", ge=0, lt=1)
    log_every: int = _opt(25, "generator updates between logged losses", ge=1)
    sample_every: int = _opt(0, "generator updates between grids; 0: only at 0, ¼, ½, ¾ and the end", ge=0)
    checkpoint_every: int = _opt(500, "generator updates between checkpoints; 0: only at the end", ge=0)
    keep_checkpoints: int = _opt(0, "newest of those checkpoints to keep as step_*.pt besides last.pt", ge=0)
    keep_best: int = _opt(1, "best scored checkpoints to keep; above 1, as best_*.pt besides best.pt", ge=1)
    sample_count: int = _opt(64, "images in a grid", ge=1)


@dataclass
class MetricsConfig:
    name: str = _opt("default", "which protocol these values are (recorded beside the scores)")
    scores: list[str] = _opt(["fid", "is", "modes"], "scores to compute: " + ", ".join(SCORES))
    every: int = _opt(0, "generator updates between evaluations; 0: only at step 0 and the end", ge=0)
    num_images: int = _opt(2000, "generated images per evaluation (real ones: at most as many, or all)", ge=2)
    reference_images: int | None = _opt(None, "real images to compare with; null: the whole training set", ge=2)
    modes_images: int = _opt(10000, "generated images for mode coverage", ge=1)
    extractor: str = _opt("auto", "feature network of the scores", choices=EXTRACTORS)
    input_size: int = _opt(96, "side in pixels of what efficientnet_lite0 sees, a multiple of 32", ge=32)
    weights: str | None = _opt(None, "file with the Inception weights")
    lpips_weights: str | None = _opt(None, "file with the AlexNet weights of LPIPS")
    generator: str = _opt("ema", "which weights are scored", choices=("ema", "raw"))
    generator_mode: str = _opt(
        "eval",
        "batch norm while sampling for scores: running (eval) or batch (train) statistics",
        choices=("eval", "train"),
    )
    batch_size: int = _opt(100, "images per forward pass of the generator and extractor", ge=1)
    precision: str = _opt(
        "auto",
        "arithmetic of the extractor; auto is fp32 everywhere, because bf16 moves scores by more than 0.5 %",
        choices=("auto", "fp32", "bf16"),
    )
    splits: int = _opt(10, "splits of the inception score", ge=1)
    kid_subsets: int = _opt(100, "subsets of KID", ge=1)
    kid_subset_size: int = _opt(1000, "images in each KID subset", ge=2)
    neighbourhood: int = _opt(3, "k of precision and recall", ge=1)
    lpips_pairs: int = _opt(1000, "pairs of generated images for lpips_diversity", ge=2)
    objective: str | None = _opt(
        None, "score that a hyper-parameter search sees, such as eval/fid; null: the first one"
    )


@dataclass
class TrackerConfig:
    name: str = _opt("wandb", "where the local records are also sent", choices=("wandb", "none"))
    project: str = _opt("relgan", "W&B project")
    entity: str | None = _opt(None, "W&B user or team; null: your default")
    mode: str = _opt(
        "auto",
        "auto: online when a key is configured and W&B answers, else offline",
        choices=("auto", "online", "offline"),
    )
    tags: list[str] = _opt([], "tags besides loss, form and dataset")
    artifacts: bool = _opt(False, "also send the best checkpoint, and a sweep's comparison page")


@dataclass
class Config:
    """The resolved configuration of one training run."""

    name: str | None = _opt(None, "groups runs: outputs/NAME/…, multirun/NAME/JOB, the W&B group")
    seed: int = _opt(1, "seed of weights, noise and data order", ge=0)
    device: str = _opt("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = _opt("auto", "arithmetic of the networks", choices=("auto", "fp32", "bf16"))
    engine: str = _opt(
        "auto",
        "auto: cudagraph on CUDA, else eager",
        choices=("auto", "eager", "compiled", "cudagraph"),
    )
    resume: str | None = _opt(None, "null, auto, or the path of a run directory or checkpoint")
    fail_fast: bool = _opt(False, "stop a sweep at the first job that fails")
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


def run_name(config: Any) -> str:
    """What groups a run: its name, else dataset and loss. Takes a Config or its OmegaConf twin."""
    return str(config.name or f"{config.dataset.name}-{config.loss.name}")


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yield (dotted name, value, metadata) of every option below ``config``."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, dict(f.metadata)


def _range_text(meta: dict[str, Any]) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return " and ".join(f"{sign} {meta[key]:g}" for key, sign in signs.items() if meta.get(key) is not None)


_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
}


def _check_one(option: str, value: Any, meta: dict[str, Any]) -> None:
    if value is None:
        return
    if meta.get("choices") is not None and value not in meta["choices"]:
        raise ConfigError(option, f"{value!r} is not one of {', '.join(map(str, meta['choices']))}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    inside = all(meta.get(key) is None or holds(value, meta[key]) for key, holds in _BOUNDS.items())
    if not (inside and math.isfinite(value)):
        raise ConfigError(option, f"must be {_range_text(meta) or 'finite'}, got {value:g}")


def check_ranges(config: Any) -> None:
    """Raise ConfigError for the first option outside its choices or range."""
    for option, value, meta in walk(config):
        _check_one(option, value, meta)


def check_batch_size(config: Config, ranks: int) -> None:
    """Raise ConfigError unless the batch splits evenly over ``ranks`` processes, parts and packs."""
    factors = {"ranks": ranks, "train.accumulate": config.train.accumulate, "model.pack": config.model.pack}
    if config.train.batch_size % math.prod(factors.values()):
        product = " × ".join(f"{name} {factor}" for name, factor in factors.items() if factor > 1)
        raise ConfigError("train.batch_size", f"{config.train.batch_size} is not a multiple of {product}")


def validate(config: Config) -> None:
    """Raise :class:`ConfigError` naming the first option, or combination, that cannot be run."""
    check_ranges(config)
    for score in config.metrics.scores:
        if score not in SCORES:
            raise ConfigError("metrics.scores", f"{score!r} is not one of {', '.join(SCORES)}")
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise ConfigError("optimizer.betas", f"must be two numbers in [0, 1), got {list(betas)}")
    if (config.train.iterations is None) == (config.train.epochs is None):
        raise ConfigError("train.iterations", "give either train.iterations or train.epochs (the other null)")
    if config.loss.generator_terms != "both" and config.loss.name not in TWO_TERM_LOSSES:
        raise ConfigError(
            "loss.generator_terms",
            f"only both is accepted with loss={config.loss.name}; "
            f"{config.loss.generator_terms} needs one of {', '.join(TWO_TERM_LOSSES)}",
        )
    if config.model.name == "cnn32" and config.dataset.image_size != 32:
        raise ConfigError("dataset.image_size", f"model=cnn32 makes 32×32 images, not {config.dataset.image_size}")
    check_batch_size(config, ranks=1)
    if config.penalty.name == "clip" and config.model.spectral_norm:
        raise ConfigError("model.spectral_norm", "must be false with penalty=clip, which it would undo")
    if config.penalty.name != "none" and config.penalty.weight == 0:
        raise ConfigError("penalty.weight", f"must be > 0 with penalty={config.penalty.name}")
