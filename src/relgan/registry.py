"""What can be chosen by name: losses, costs, penalties, networks, augmentations, data sets, scores, trackers …

A registry maps a name to what builds it and to the dataclass of its own options. relgan's parts and those of other
people's code enter by the same calls, which need no torch::

    @register_loss("margin", MarginOptions, about="my margin loss")
    class MarginLoss(Loss):
        def __init__(self, options: MarginOptions) -> None: ...

:func:`load_plugins` imports the modules that make such calls; docs/extend.md has an example of each kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from relgan.options import ConfigError, Options, RelganError, first_line, option, suggest, user_path

ENTRY_POINTS = "relgan.plugins"
# Loaded like plugins, before any other.
BUILT_IN = ("relgan.builtin", "relgan.data.sets", "relgan.metrics.catalogue")

Builder = Callable[..., Any] | str
B = TypeVar("B", bound=Builder)
OptionsT = TypeVar("OptionsT", bound=Options)
Form = Literal["standard", "paired", "average", "centered", "all_pairs"]

IMAGE_SIZES = (16, 32, 64, 128, 256)
GENERATOR_TERMS = ("both", "fake", "real", "standard")
TWO_TERM_FORMS: tuple[Form, ...] = ("average", "centered")


@dataclass
class ModelOptions(Options):
    """A generator and a critic; further options are each network's own."""

    latent_dim: int = option(128, "dimensions of z ~ N(0, I); 22 where dcgan makes stacked_digits", ge=1)


@dataclass(frozen=True)
class ModelCard:
    """What relgan must know of a pair of networks before it is built.

    Attributes:
        labels: whether it can be conditional. Its builder then takes the number of classes as a fourth argument where
            there are some, its generator (z, labels) and its critic (images, labels), labels int64 (N,).
    """

    labels: bool = False


@dataclass(kw_only=True)
class LossOptions(Options):
    """A pair of adversarial losses, and what training adds to the critic's (:mod:`relgan.side_terms`)."""

    centring: float = option(0.0, "coefficient of the critic's term E[(r + f)²]; 0: none; usual: 0.01", ge=0)
    lecam: float = option(0.0, "coefficient of the critic's LeCam term; 0: none; usual: 0.3", ge=0)


@dataclass
class TwoTermOptions(LossOptions):
    """A relativistic loss whose generator has two different terms."""

    generator_terms: str = option(
        "both", "which of the two terms of the generator's loss to keep (an ablation)", choices=GENERATOR_TERMS
    )


@dataclass
class PenaltyOptions(Options):
    """A regulariser of the critic."""


@dataclass
class AugmentOptions(Options):
    """A random change of what the critic sees."""


@dataclass
class RandomOptions(AugmentOptions):
    """An augmentation that changes each image with some probability.

    With ``target``, and unless ``schedule.augment_p`` sets it, the probability is steered by what the critic says of
    real images (Karras et al. 2020): up while it is too sure of them, down while it is not.
    """

    p: float = option(1.0, "probability of each of its transformations, at the start", ge=0, le=1)
    target: float | None = option(
        None,
        "mean sign of real − fake (of real, in a standard loss) to which p is steered; null: p is not steered",
        ge=-1,
        le=1,
    )
    ramp: float = option(500_000, "images in which a steered p goes from 0 to 1 if nothing stops it", gt=0)

    def check(self, config: Any) -> None:
        scheduled = config.schedule.augment_p is not None
        steered = self.target is not None and not scheduled
        if self.p == 0 and not (steered or scheduled):
            raise ConfigError("augment.p", "is 0 and nothing moves it; give it, augment.target or schedule.augment_p")
        if not steered and self.ramp != vars(AUGMENTATIONS[self.name].options)["ramp"]:
            raise ConfigError("augment.ramp", "counts only where augment.target steers p")


@dataclass
class DatasetOptions(Options):
    """Real images; the defaults are each data set's own."""

    path: str | None = option(None, "archive or directory that is already on this machine", path=True)
    image_size: int = option(32, "side of the square training images, pixels", choices=IMAGE_SIZES)
    sampling: str = option(
        "epoch",
        "epoch: each image once per epoch; independent: batches drawn anew, without repeats inside a batch",
        choices=("epoch", "independent"),
    )
    hflip: bool = option(False, "mirror each image with probability one half")
    labels: bool = option(False, "train a conditional pair: networks and losses see the classes of the images")
    num_images: int | None = option(None, "images to make (stacked sets) or at most to use; null: all", ge=1)
    min_images: int = option(1, "fewest images to accept after preparing", ge=1)
    split: str = option("all", "part of the data to use", choices=("train", "valid", "test", "all"))
    crop: float | None = option(
        None, "side of the centred square cut out before resizing: pixels, or up to 1 a share of the largest", gt=0
    )
    url: list[str] = option([], "mirrors to try in this order instead of the built-in ones")
    residence: str = option("auto", "where the training images live", choices=("auto", "device", "host"))


@dataclass(frozen=True)
class DatasetCard:
    """What a person should know of a data set before getting it, and what relgan must know of it.

    Attributes:
        terms, size, get: a few words each.
        splits: whether it comes in official parts.
        split_lists: patterns of the files beside dataset.path that tell which image is in which part.
        digits: how many handwritten digits an image shows, one per channel; 0: it shows something else.
        labels: whether it has them; None: that depends on its options and files.
        grey: whether its images are known, before they are read, to have one channel.
    """

    terms: str = "yours"
    size: str = "yours"
    get: str = ""
    splits: bool = False
    split_lists: tuple[str, ...] = ()
    digits: int = 0
    labels: bool | None = None
    grey: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the channels are pictures of their own: 1,000 modes."""
        return self.digits == 3


@dataclass
class TrackerOptions(Options):
    """Where the local records are also sent."""

    also: list[str] = option(
        [],
        "further trackers, as they are by default: tracker=wandb tracker.also=[tensorboard]",
        choices=lambda: list(GROUPS["tracker"]),
    )


# By identity, because options cannot be hashed.
@dataclass(frozen=True, eq=False)
class Entry(Generic[OptionsT]):
    """One part that can be chosen by name.

    Attributes:
        options: an instance with the part's defaults.
        about: one line for people.
        origin: the module that registered it.
        facts: what is known of it before it is built, depending on the kind.
    """

    name: str
    builder: Builder
    options: OptionsT
    about: str
    origin: str
    facts: Any = None

    @property
    def foreign(self) -> bool:
        """Whether its code is not relgan's own."""
        return _is_foreign(self.origin)

    @property
    def code(self) -> str:
        """Hash of the source file of other people's code: what was made by another version of it is made again."""
        file = getattr(sys.modules.get(self.origin), "__file__", None)
        if not self.foreign or file is None or not Path(file).is_file():
            return ""
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]

    def build(self, *arguments: Any) -> Any:
        """Call the builder, importing it first if it was given as "module:name"."""
        builder = self.builder
        if isinstance(builder, str):
            module, _, name = builder.partition(":")
            builder = getattr(importlib.import_module(module), name)
        return builder(*arguments)

    @contextlib.contextmanager
    def failing_in_one_line(self) -> Iterator[None]:
        """What other people's code raises is one line that names it; what relgan's own raises is a bug."""
        try:
            yield
        except RelganError:
            raise
        except Exception as error:
            if not self.foreign:
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError("plugins", f"{self.name} of {self.origin} fails ({reason})") from error


class Registry(Mapping[str, Entry[OptionsT]]):
    """The parts of one kind by name, relgan's own first.

    Args:
        kind: what they are called: "loss".
        option: the option that names one: "loss.name".
        base: dataclass that the options of each derive from.
        facts: of a part that was registered without.
    """

    def __init__(self, kind: str, option: str, base: type[OptionsT], facts: Any = None) -> None:
        self.kind, self.option, self.base, self.facts = kind, option, base, facts
        self._entries: dict[str, Entry[OptionsT]] = {}

    def register(
        self,
        name: str,
        options: type[OptionsT] | OptionsT | None = None,
        builder: Builder | None = None,
        *,
        about: str = "",
        facts: Any = None,
        origin: str | None = None,
    ) -> Callable[[B], B]:
        """Make a part known; without ``builder``, a decorator of the class or function that builds it.

        Args:
            name: how it is chosen on the command line.
            options: dataclass of its own options, or an instance with other defaults; None: the base's.
            builder: called as is said below of each kind; "module:name" is imported only when it is built.
            about: one line for ``--help``; by default the first line of the builder's docstring.
            facts: see :class:`Entry`.
            origin: the module it comes from, if that is not the builder's.

        Raises:
            ConfigError: the name is taken.
            TypeError: the options are not of the kind's base.
        """

        def enter(builder: B) -> B:
            own = builder.partition(":")[0] if isinstance(builder, str) else builder.__module__
            # relgan's own builder may make another's part.
            module = origin or (_importing if _importing and not _is_foreign(own) else own)
            if _is_foreign(module):
                load_built_in()
            kind = self.base if options is None else options
            defaults = kind() if isinstance(kind, type) else kind
            # Fields of a subclass that is no dataclass itself would be no options.
            if not (isinstance(defaults, self.base) and "__dataclass_fields__" in vars(type(defaults))):
                raise TypeError(
                    f"{self.kind} {name}: the options must be a dataclass derived from {self.base.__name__}"
                )
            taken = self._entries.get(name)
            # A notebook runs its cells again.
            if taken is not None and not taken.origin == module == "__main__":
                raise ConfigError(self.option, f"{name} is registered twice, by {taken.origin} and by {module}")
            said = about or (getattr(builder, "__doc__", None) or "").strip().partition("\n")[0]
            self._entries[name] = Entry(name, builder, replace(defaults, name=name), said, module, facts or self.facts)
            return builder

        if builder is not None:
            enter(builder)
        return enter

    def build(
        self,
        name: str,
        *arguments: Any,
        of: type | tuple[type, ...],
        trial: Callable[[str, Any], None] | None = None,
    ) -> Any:
        """Build the part of that name, and see that it is one.

        Args:
            of: what it has to be.
            trial: tries other people's, which may be written wrongly, before anything depends on it.

        Raises:
            ConfigError: the name is unknown, it is something else, or other people's code fails.
        """
        entry = self[name]
        with entry.failing_in_one_line():
            built = entry.build(*arguments)
            if not isinstance(built, of):
                wanted = of[0] if isinstance(of, tuple) else of
                given = f"{name} builds a {type(built).__name__}"
                raise ConfigError(self.option, f"{given}, not a {wanted.__module__}.{wanted.__qualname__}")
            if trial is not None and entry.foreign:
                trial(name, built)
        return built

    def names(self) -> tuple[str, ...]:
        load_built_in()
        return tuple(self._entries)

    def __getitem__(self, name: str) -> Entry[OptionsT]:
        """The part of that name; ConfigError lists the known ones."""
        known = self.names()
        if name not in self._entries:
            raise ConfigError(self.option, f"{name!r} is not one of {', '.join(known)}{suggest(name, known)}")
        return self._entries[name]

    def get(self, name: str, default: Any = None) -> Any:
        self.names()
        return self._entries.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())


# How a builder of each kind is called, and what it returns:
# (options) -> relgan.losses.Loss
LOSSES = Registry("loss", "loss.name", LossOptions)
# (form) -> relgan.losses.Cost
COSTS = Registry("cost", "loss.name", Options)
# (options) -> relgan.penalties.Penalty
PENALTIES = Registry("penalty", "penalty.name", PenaltyOptions)
# (options, image_size, channels[, classes]) -> (generator, critic)
MODELS = Registry("model", "model.name", ModelOptions, ModelCard())
# (options, channels) -> relgan.augment.Augmentation
AUGMENTATIONS = Registry("augment", "augment.name", AugmentOptions)
# (options) -> relgan.data.sources.Source
DATASETS = Registry("dataset", "dataset.name", DatasetOptions, DatasetCard())
# (options, metrics, extractors) -> relgan.metrics.scores.Score
SCORES = Registry("score", "metrics.scores", Options)
# (metrics, dataset, device) -> relgan.metrics.extractors.Extractor
EXTRACTORS = Registry("extractor", "metrics.extractor", Options)
# (options, context) -> relgan.tracking.base.Tracker
TRACKERS = Registry("tracker", "tracker.name", TrackerOptions)

GROUPS: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (MODELS, LOSSES, PENALTIES, AUGMENTATIONS, DATASETS, TRACKERS)
}
"""Those that are groups of the configuration: ``loss=NAME``."""

register_loss = LOSSES.register
register_penalty = PENALTIES.register
register_model = MODELS.register
register_augment = AUGMENTATIONS.register
register_dataset = DATASETS.register
register_score = SCORES.register
register_extractor = EXTRACTORS.register
register_tracker = TRACKERS.register


FORMS: dict[Form, str] = {
    "standard": "{}",
    "paired": "r{}",
    "average": "ra{}",
    "centered": "rc{}",
    "all_pairs": "r{}_allpairs",
}
"""The ways to compare real with fake, and what the loss that compares so is called after its cost."""


@dataclass(frozen=True)
class Combination:
    """What a loss of the papers' table is made of."""

    cost: str
    form: Form


def register_cost(
    name: str, builder: Builder | None = None, *, forms: Iterable[Form] = tuple(FORMS), about: str = ""
) -> Callable[[B], B]:
    """Make an elementwise cost known, and with it the losses NAME, rNAME, raNAME, rcNAME and rNAME_allpairs.

    Args:
        name: of the cost and of its standard loss.
        builder: form -> :class:`relgan.losses.Cost`; without it, a decorator of such a function.
        forms: those that make a loss of it.
        about: one line for ``--help``.
    """

    def enter(builder: B) -> B:
        COSTS.register(name, None, builder, about=about)
        for form in forms:
            combine(FORMS[form].format(name), name, form, origin=COSTS[name].origin)
        return builder

    if builder is not None:
        enter(builder)
    return enter


def combine(name: str, cost: str, form: Form, *, about: str = "", origin: str | None = None) -> None:
    """Make a cost in one form known as a loss."""
    options = TwoTermOptions if form in TWO_TERM_FORMS else LossOptions
    facts = Combination(cost, form)
    LOSSES.register(name, options, "relgan.losses:combined", about=about, facts=facts, origin=origin)


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] != "relgan"


_loaded = False
_importing = ""  # the plugin whose code is running


def load_built_in() -> None:
    """Register relgan's own parts, and those of installed packages that declare ``relgan.plugins``; once.

    Raises:
        ConfigError: an installed package's plugin cannot be imported.
    """
    global _loaded
    if _loaded:
        return
    # Before, because the modules themselves ask the registries.
    _loaded = True
    try:
        for module in BUILT_IN:
            importlib.import_module(module)
        for point in entry_points(group=ENTRY_POINTS):
            package = point.dist.name if point.dist else "?"
            with _plugin_errors(f"{point.value} of the installed package {package}", point.module):
                point.load()
    except BaseException:
        _loaded = False
        raise


def load_plugins(names: Iterable[str], places: Sequence[Path] = ()) -> None:
    """Import modules that register parts.

    Args:
        names: of modules, or paths of .py files.
        places: directories where they are looked for first, before the module path.

    Raises:
        ConfigError: one cannot be found, or fails while it is imported.
    """
    load_built_in()
    for name in names:
        with _plugin_errors(name, Path(name).stem if name.endswith(".py") else name):
            _import(name, places)


def _import(name: str, places: Sequence[Path]) -> None:
    if not name.endswith(".py"):
        # For good, because a plugin may import its neighbours later.
        sys.path[:0] = [place for place in dict.fromkeys(map(str, places)) if place not in sys.path]
        importlib.invalidate_caches()
        module = importlib.import_module(name)
        meant = next((file for place in places if (file := place / f"{name.replace('.', '/')}.py").is_file()), None)
        if meant is not None and getattr(module, "__file__", None) != str(meant.resolve()):
            raise ImportError(f"another module is called {name}; rename {meant}")
        return
    path = next((found for place in places if (found := place / user_path(name)).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no such file in {' or '.join(map(str, places))}")
    if (there := sys.modules.get(path.stem)) is not None:
        if getattr(there, "__file__", None) != str(path.resolve()):
            raise ImportError(f"another module is called {path.stem}; rename the file")
        return
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


@contextlib.contextmanager
def _plugin_errors(plugin: str, module: str) -> Iterator[None]:
    """Whatever another's module raises is one line that names it, and what it has registered is forgotten.

    Args:
        plugin: as people know it.
        module: what its parts are said to come from.
    """
    global _importing
    registries = (*GROUPS.values(), COSTS, SCORES, EXTRACTORS)
    before = [dict(registry._entries) for registry in registries]
    outer, _importing = _importing, module
    try:
        yield
    except BaseException as error:
        for registry, entries in zip(registries, before, strict=True):
            registry._entries = entries
        if isinstance(error, RelganError):
            raise ConfigError("plugins", f"{plugin}: {error}") from error
        if not isinstance(error, Exception | SystemExit):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError("plugins", f"{plugin} cannot be imported ({reason})") from error
    finally:
        _importing = outer
