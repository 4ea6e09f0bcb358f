"""The configuration of one training run: every option with its type, default, unit and meaning.

The dataclasses are the schema and hold the defaults; ``conf/*.yaml`` gives only values that differ. The
groups ``model``, ``loss``, ``penalty``, ``augment``, ``dataset`` and ``tracker`` hold the options of the part that
their ``name`` names (:mod:`relgan.registry`). This module imports neither torch nor Hydra.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

from relgan.options import ConfigError, Option, Options, check, flatten, option, suggest, user_path, walk
from relgan.registry import (
    EXTRACTORS,
    GROUPS,
    MODELS,
    SCORES,
    AugmentOptions,
    DatasetOptions,
    LossOptions,
    ModelOptions,
    PenaltyOptions,
    RandomOptions,
    Registry,
    TrackerOptions,
)

LONGEST_NAME = 255  # bytes, of one folder

T = TypeVar("T")


@dataclass
class OptimizerConfig:
    name: str = option("adam", "optimizer of both networks", choices=("adam", "rmsprop"))
    lr_g: float = option(1e-3, "learning rate of the generator", gt=0)
    lr_d: float = option(1e-3, "learning rate of the critic", gt=0)
    betas: list[float] = option([0.0, 0.99], "Adam's β₁, β₂; RMSprop uses the second as its smoothing α", ge=0, lt=1)
    eps: float = option(1e-8, "added to the denominator", gt=0)
    n_critic: int = option(1, "critic updates per generator update", ge=1)
    decay: float = option(
        0.0, "exponential decay: after each epoch both learning rates are multiplied by 1 − decay", ge=0, lt=1
    )


@dataclass
class TrainConfig:
    iterations: int | None = option(2400, "generator updates", ge=0)
    epochs: float | None = option(None, "instead of iterations: passes of the critic over the data", gt=0)
    batch_size: int = option(64, "real images per critic update, over all devices", ge=2)
    accumulate: int = option(
        1, "parts a batch is split into to save memory; the gradient stays that of the whole", ge=1
    )
    redraw_real: bool = option(True, "relativistic losses draw new real images for the generator's update")
    redraw_fake: bool = option(
        True,
        "the generator's update draws new latents; false: it uses the fakes of the last critic update again, "
        "which saves time and takes memory",
    )
    ema_decay: float = option(0.999, "decay of the generator's moving average per update; 0: no average", ge=0, lt=1)
    log_every: int = option(25, "generator updates between logged losses", ge=1)
    sample_every: int = option(0, "generator updates between grids; 0: only at 0, ¼, ½, ¾ and the end", ge=0)
    checkpoint_every: int = option(500, "generator updates between checkpoints; 0: only at the end", ge=0)
    keep_checkpoints: int = option(0, "newest of those checkpoints to keep as step_*.pt besides last.pt", ge=0)
    keep_best: int = option(1, "best scored checkpoints to keep; above 1, as best_*.pt besides best.pt", ge=1)
    sample_count: int = option(64, "images in a grid", ge=1)


@dataclass
class ScheduleConfig:
    """Last values of what moves: a cosine from each option's own value, while the critic sees ``burn_in`` images."""

    burn_in: float | None = option(None, "real images the critic sees until the last values are reached", gt=0)
    lr_g: float | None = option(
        None, "last learning rate of the generator (first: optimizer.lr_g); null: it stays", gt=0
    )
    lr_d: float | None = option(None, "last learning rate of the critic (first: optimizer.lr_d); null: it stays", gt=0)
    beta2: float | None = option(None, "last β₂ (first: the second of optimizer.betas); null: it stays", ge=0, lt=1)
    gamma: float | None = option(None, "last coefficient of the penalty (first: penalty.weight); null: it stays", gt=0)
    augment_p: float | None = option(
        None,
        "last augmentation probability (first: augment.p), which is then not steered; null: it stays, or is steered",
        ge=0,
        le=1,
    )
    ema_half_life: float | None = option(
        None, "last half-life of the generator's moving average, images (first: 0); null: train.ema_decay rules", gt=0
    )


@dataclass
class MetricsConfig:
    name: str = option("default", "which protocol these values are (recorded beside the scores)")
    scores: list[str] = option(
        ["fid", "is", "modes", "label_agreement"], "scores to compute, where they suit", choices=SCORES.names
    )
    every: int | None = option(
        None, "generator updates between evaluations; null: a tenth of the run; 0: only at step 0 and the end", ge=0
    )
    num_images: int = option(2000, "generated images per evaluation (metrics.modes_images for modes)", ge=2)
    reference_images: int | None = option(5000, "real images to compare with; null: the whole training set", ge=2)
    modes_images: int = option(10000, "generated images for mode coverage", ge=1)
    extractor: str = option("auto", "feature network of the scores", choices=lambda: ("auto", *EXTRACTORS.names()))
    input_size: int = option(96, "side in pixels of what efficientnet_lite0 sees, a multiple of 32", ge=32)
    weights: str | None = option(None, "file with the weights of inception, dinov2_… or clip_b32", path=True)
    lpips_weights: str | None = option(None, "file with the AlexNet weights of LPIPS", path=True)
    generator: str = option("ema", "which weights are scored", choices=("ema", "raw"))
    generator_mode: str = option(
        "eval",
        "batch norm while sampling for scores: running (eval) or batch (train) statistics",
        choices=("eval", "train"),
    )
    batch_size: int = option(100, "images per forward pass of the generator and extractor", ge=1)
    precision: str = option(
        "auto",
        "arithmetic of the extractor; auto is fp32 everywhere, because bf16 moves scores by more than 0.5 %",
        choices=("auto", "fp32", "tf32", "bf16"),
    )
    splits: int = option(10, "splits of the inception score", ge=1)
    kid_subsets: int = option(100, "subsets of KID", ge=1)
    kid_subset_size: int = option(1000, "images in each KID subset", ge=2)
    neighbourhood: int = option(3, "k of precision and recall", ge=1)
    density_neighbourhood: int = option(5, "k of density and coverage", ge=1)
    lpips_pairs: int = option(1000, "pairs of generated images for lpips_diversity", ge=2)
    objective: str | None = option(
        None, "score that a hyper-parameter search sees, such as eval/fid; null: the first one"
    )


def _part(group: str, name: str) -> Any:
    """The default of a group: the options that its part was registered with."""
    return field(default_factory=lambda: dataclasses.replace(GROUPS[group][name].options))


def _copier(options: Any) -> Callable[[], Any]:
    return lambda: dataclasses.replace(options)


@dataclass
class Config:
    """The resolved configuration of one training run."""

    name: str | None = option(
        None, "groups runs: outputs/NAME/…, multirun/NAME/JOB, the W&B group; a folder's name, or several with /"
    )
    seed: int = option(1, "seed of weights, noise and data order", ge=0)
    device: str = option("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = option(
        "auto",
        "arithmetic of the networks in training; auto: bf16 where the device has units for it, else fp32",
        choices=("auto", "fp32", "tf32", "bf16"),
    )
    engine: str = option(
        "auto",
        "auto: cudagraph on CUDA where a graph can be recorded (RMSprop: not with schedule.beta2), else eager",
        choices=("auto", "eager", "compiled", "cudagraph"),
    )
    deterministic: bool = option(
        False,
        "on a GPU: slower kernels that give the same bits in every run, where torch has them "
        "(a CPU's runs are always equal)",
    )
    resume: str | None = option(
        None,
        "auto: continue the newest run of this name and configuration; PATH: begin a new run from a run directory or "
        "checkpoint",
        path=True,
    )
    plugins: list[str] = option([], "modules or .py files that register losses, networks … of your own")
    fail_fast: bool = option(False, "stop a sweep at the first job that fails")
    model: ModelOptions = _part("model", "dcgan")
    loss: LossOptions = _part("loss", "ragan")
    penalty: PenaltyOptions = _part("penalty", "none")
    augment: AugmentOptions = _part("augment", "none")
    dataset: DatasetOptions = _part("dataset", "stacked_digits")
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    tracker: TrackerOptions = _part("tracker", "wandb")

    @property
    def images_per_update(self) -> int:
        """Real images that the critic sees, over all ranks, while the generator is updated once."""
        return self.train.batch_size * self.optimizer.n_critic


def metrics_class() -> type[MetricsConfig]:
    """MetricsConfig with a group for each score and extractor that has options of its own: ``metrics.NAME.OPTION``."""
    own = [
        entry for registry in (SCORES, EXTRACTORS) for entry in registry.values() if type(entry.options) is not Options
    ]
    if not own:
        return MetricsConfig
    taken = {f.name for f in dataclasses.fields(MetricsConfig)}
    if clash := next((entry for entry in own if entry.name in taken), None):
        raise ConfigError("plugins", f"{clash.origin}: metrics.{clash.name} is an option; rename {clash.name}")
    groups = [(entry.name, type(entry.options), field(default_factory=_copier(entry.options))) for entry in own]
    return cast(type[MetricsConfig], dataclasses.make_dataclass("MetricsConfig", groups, bases=(MetricsConfig,)))


def resolve(values: Any, *, to_train: bool = True) -> Config:
    """A checked configuration from nested values: an OmegaConf node, or a saved configuration.

    Each group becomes the dataclass of the part that its ``name`` names; what is missing has its default.

    Args:
        to_train: whether combinations that cannot be trained are refused. Networks that are trained already may have
            been so before a combination was.

    Raises:
        ConfigError: an unknown option or part, a value of the wrong type, or what cannot be run together.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    given = values if isinstance(values, DictConfig) else OmegaConf.create(dict(values))
    plain = OmegaConf.to_container(given, resolve=True)
    assert isinstance(plain, dict)
    chosen: dict[str, Any] = {"metrics": metrics_class()()}
    for group, registry in GROUPS.items():
        named = (plain.get(group) or {}).get("name")
        chosen[group] = dataclasses.replace(registry[str(named)].options) if named else getattr(Config(), group)
    default = Config(**chosen)
    known = {each.name for each in walk(default)}
    for key in flatten(plain):
        if key not in known:
            raise ConfigError(key, f"no such option{unknown(key)}")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(default), plain))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(str(error.full_key or "config"), reason) from error
    assert isinstance(config, Config)
    if to_train:
        validate(config)
    else:
        check(config)
    return config


def every_option() -> dict[str, tuple[Option, dict[str, Any]]]:
    """Every option there is, of any choice of a group too: as it is by default, and each choice's own default.

    There are no choices where it does not depend on one.
    """
    default = {each.name: each for each in walk(Config(metrics=metrics_class()()))}
    found: dict[str, tuple[Option, dict[str, Any]]] = {}
    for f in dataclasses.fields(Config):
        if f.name not in GROUPS:
            found |= {name: (each, {}) for name, each in default.items() if name.partition(".")[0] == f.name}
            continue
        for choice, entry in GROUPS[f.name].items():
            for own in walk(entry.options, f"{f.name}."):
                found.setdefault(own.name, (default.get(own.name, own), {}))[1][choice] = own.value
    return found


def unknown(key: str) -> str:
    """What to say of an option that does not exist: where it does, or what was probably meant."""
    known = every_option()
    if key in known:
        return f" with this {key.partition('.')[0]}; these have it: {', '.join(known[key][1])}"
    names = [*{name.partition(".")[0]: None for name in known}, *known]
    return suggest(key, names) or "; relgan-train --help lists the options"


def overlay(saved: Config, composed: Config, words: Iterable[str]) -> Config:
    """A saved configuration with what the command line names taken from the composed one.

    Args:
        words: overrides such as ``train.iterations=5``, ``metrics=quick`` (the whole group), ``~penalty``, or
            ``experiment=stacked`` (everything).
    """
    names = option_names(words)
    if not all(hasattr(composed, name.partition(".")[0]) for name in names):
        return composed
    config = saved
    for name in names:
        config = _with(config, name, attrgetter(name)(composed))
    return config


def _with(options: T, name: str, value: Any) -> T:
    """A copy in which the option of that dotted name has another value."""
    first, _, rest = name.partition(".")
    inner = _with(getattr(options, first), rest, value) if rest else value
    return dataclasses.replace(options, **{first: inner})  # type: ignore[type-var]


def absolute_paths(config: Config, base: Path) -> Config:
    """The configuration with every path made absolute; relative ones start from ``base``."""
    for each in list(walk(config)):
        if each.is_path and each.value and (each.name, each.value) != ("resume", "auto"):
            config = _with(config, each.name, str(base / user_path(each.value)))
    return config


def option_names(words: Iterable[str]) -> list[str]:
    """Names of the options that the words of a command line set, without Hydra's own and its packages."""
    names = {word.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".") for word in words}
    return sorted(name for name in names if not name.startswith("hydra"))


def as_values(config: Config) -> dict[str, Any]:
    """Nested plain values as JSON keeps them: a tuple or an integral float must not count as a change.

    Of the scores and extractors with options of their own, only those that are chosen.
    """
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return {**values, "metrics": _of_chosen(values["metrics"], values["metrics"])}


def _of_chosen(metrics: Mapping[str, Any], chosen_by: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {*(chosen_by.get("scores") or ()), chosen_by.get("extractor")}
    return {key: value for key, value in metrics.items() if key in chosen or not isinstance(value, dict)}


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration as one level of dotted names; options added since then get their defaults.

    Parts that are not registered here are left as they are.
    """
    defaults: dict[str, Any] = asdict(Config(metrics=metrics_class()()))
    for group, registry in GROUPS.items():
        part = saved.get(group)
        if isinstance(part, Mapping):
            entry = registry.get(str(part.get("name")))
            defaults[group] = {} if entry is None else asdict(entry.options)
    metrics = saved.get("metrics")
    if isinstance(metrics, Mapping):
        defaults["metrics"] = _of_chosen(defaults["metrics"], metrics)
    plain: dict[str, Any] = json.loads(json.dumps(defaults))
    return flatten(plain) | flatten(saved)


def has_average(config: Config) -> bool:
    """Whether the run keeps a moving average of the generator."""
    return config.train.ema_decay > 0 or config.schedule.ema_half_life is not None


def run_name(config: Any) -> str:
    """What groups a run: its name, else dataset and loss. Takes a Config or its OmegaConf twin.

    Raises:
        ConfigError: no folder can be called so.
    """
    check_name(config.name)
    return str(config.name or f"{config.dataset.name}-{config.loss.name}")


def home_of(config: Any) -> Path:
    """Where the directories of single runs lie: outputs/NAME. Takes what :func:`run_name` takes."""
    return Path("outputs") / run_name(config)


def check_name(name: str | None) -> None:
    """Raise :class:`ConfigError` unless ``name`` can be a folder, or folders, below outputs/ and multirun/."""
    if name is None:
        return
    parts = PurePath(str(name)).parts
    reasons = {
        "is no folder's name": not parts,
        "leads outside of outputs/": PurePath(str(name)).is_absolute() or ".." in parts,
        "holds a control character": any(ord(letter) < ord(" ") for letter in str(name)),
        f"is longer than {LONGEST_NAME} bytes": any(len(os.fsencode(part)) > LONGEST_NAME for part in parts),
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        raise ConfigError("name", f"{name!r} {reason}; give a folder's name, or several with /")


def _parts(values: Mapping[str, Any]) -> dict[str, tuple[Registry[Any], str]]:
    """Everything chosen by name in a configuration: ``loss=mine`` -> where it is registered, and its name there."""
    metrics = values["metrics"]
    chosen: list[tuple[str, Registry[Any], str]] = [
        (kind, registry, values[kind]["name"]) for kind, registry in GROUPS.items()
    ]
    chosen += [("metrics.scores", SCORES, score) for score in metrics["scores"]]
    chosen += [("metrics.extractor", EXTRACTORS, metrics["extractor"])] if metrics["extractor"] != "auto" else []
    return {f"{kind}={name}": (registry, name) for kind, registry, name in chosen}


def foreign_parts(values: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a configuration that are not relgan's own, and the module each comes from; "" if nobody has it."""
    entries = {part: registry.get(name) for part, (registry, name) in _parts(values).items()}
    return {part: entry.origin if entry else "" for part, entry in entries.items() if entry is None or entry.foreign}


def refuse_foreign(values: Mapping[str, Any], foreign: Mapping[str, str], path: Path) -> None:
    """Nothing that lies in a file runs code: other people's parts must be registered by now, by whom they were then.

    Args:
        values: the saved configuration.
        foreign: the saved part -> module that registered it.
        path: where that lies.
    """
    given = f"plugins=[{','.join(values.get('plugins') or dict.fromkeys(foreign.values()))}]"
    for part, module in foreign_parts(values).items():
        then = foreign.get(part, "relgan")
        if not module and then == "__main__":
            raise ConfigError("plugins", f"{path} needs {part}, which a notebook or script registered; run that first")
        if not module:
            raise ConfigError(
                "plugins",
                f"{path} needs {part} from {then}; relgan imports no code because a file names it: "
                f"allow it with {given}, or install the package that has it",
            )
        if then != module and "__main__" not in (then, module):
            raise ConfigError("plugins", f"{path} needs {part} from {then}, and not the one from {module}")


def check_batch_size(config: Config, ranks: int) -> None:
    """Raise ConfigError unless the batch splits evenly over ``ranks`` processes, parts and packs."""
    pack = getattr(config.model, "pack", 1)
    factors = {"ranks": ranks, "train.accumulate": config.train.accumulate, "model.pack": pack}
    if config.train.batch_size % math.prod(factors.values()):
        product = " × ".join(f"{name} {factor}" for name, factor in factors.items() if factor > 1)
        raise ConfigError("train.batch_size", f"{config.train.batch_size} is not a multiple of {product}")


def validate(config: Config) -> None:
    """Raise :class:`ConfigError` naming the first option, or combination, that cannot be run."""
    check(config)
    check_name(config.name)
    if len(config.optimizer.betas) != 2:
        raise ConfigError("optimizer.betas", f"must be two numbers in [0, 1), got {list(config.optimizer.betas)}")
    if (config.train.iterations is None) == (config.train.epochs is None):
        raise ConfigError("train.iterations", "give either train.iterations or train.epochs, and set the other to null")
    _check_schedule(config)
    _check_labels(config)
    for group in GROUPS:
        getattr(config, group).check(config)
    check_batch_size(config, ranks=1)


def _check_schedule(config: Config) -> None:
    schedule = config.schedule
    last = {f.name: getattr(schedule, f.name) for f in dataclasses.fields(schedule) if f.name != "burn_in"}
    moving = [name for name, value in last.items() if value is not None]
    if moving and schedule.burn_in is None:
        raise ConfigError(
            f"schedule.{moving[0]}", "needs schedule.burn_in: after how many images the last value is reached"
        )
    if schedule.burn_in is not None and not moving:
        raise ConfigError("schedule.burn_in", f"give what it ends at: one of schedule.{', schedule.'.join(last)}")
    if schedule.gamma is not None and not hasattr(config.penalty, "weight"):
        raise ConfigError("schedule.gamma", f"penalty={config.penalty.name} has no coefficient that could move")
    if schedule.augment_p is not None and not isinstance(config.augment, RandomOptions):
        raise ConfigError("schedule.augment_p", f"augment={config.augment.name} has no probability")
    if config.optimizer.decay and not {"lr_g", "lr_d"}.isdisjoint(moving):
        raise ConfigError("optimizer.decay", "must be 0 with schedule.lr_g or schedule.lr_d, which move the rates too")


def _check_labels(config: Config) -> None:
    if not config.dataset.labels:
        return
    if not MODELS[config.model.name].facts.labels:
        able = ", ".join(name for name, entry in MODELS.items() if entry.facts.labels)
        raise ConfigError("dataset.labels", f"model={config.model.name} takes no labels (these do: {able})")
    if getattr(config.model, "pack", 1) > 1:
        raise ConfigError("model.pack", "must be 1 with dataset.labels=true: packed images have several labels")
    if config.train.redraw_real and not config.train.redraw_fake:
        raise ConfigError(
            "train.redraw_fake",
            "must be true with dataset.labels=true, whose fakes have the labels of the real images, "
            "unless train.redraw_real=false",
        )
