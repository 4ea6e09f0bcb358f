"""What each score is called, which way it improves, and what it depends on: said here, asked for everywhere. No torch.

A score logs its numbers as ``eval/NAME``. Names never lie: a number made from features may be called as the literature
calls it (``eval/fid``) only with the literature's network, and is ``eval/GENERAL_EXTRACTOR`` with any other
(``eval/fd_digits``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from relgan.registry import EXTRACTORS, SCORES, DatasetCard, register_score

Direction = Literal["min", "max"]

FEATURES = "features"
LITERATURE = "inception"
# Facts of a protocol that do not bar two scores from one ranking.
OF_NO_SCORE = ("seed", "versions", "metrics")
_SPREADS = {"_std": "standard deviation", "_se": "standard error"}


@dataclass(frozen=True)
class Key:
    """One number of a score. Its spread, NAME_std or NAME_se, needs no entry and is never ranked.

    Attributes:
        name, title: as the literature has it.
        better: which way it improves; None: it is not ranked.
        general: name and title with another extractor than the unnamed one, if they differ.
    """

    name: str
    title: str
    better: Direction | None = None
    general: tuple[str, str] | None = None


@dataclass(frozen=True)
class ScoreCard:
    """What is known of a score before it is computed.

    Attributes:
        keys: its numbers, the most important first.
        family: which facts of the protocol tell whether two of its values may be compared: "features" has those of
            the extractor and of the number of images, any other name those that begin with it.
        unnamed: the extractor whose numbers go by a key's name alone, where others stand in the key; by default the
            literature's for "features". Scores of other families have no extractor in their keys unless this is set.
        suits: whether the score makes sense for a data set; elsewhere it is left out.
        conditional: whether it judges only generators that are asked for classes; it is left out of other runs.
        by_classes: whether it judges by the extractor's classes; it is left out where the network has none.
    """

    keys: tuple[Key, ...] = ()
    family: str = FEATURES
    suits: Callable[[DatasetCard], bool] = lambda dataset: True
    conditional: bool = False
    by_classes: bool = False
    unnamed: str | None = None

    def __post_init__(self) -> None:
        if self.family == FEATURES and self.unnamed is None:
            object.__setattr__(self, "unnamed", LITERATURE)


register_score(
    "fid",
    None,
    "relgan.metrics.scores.frechet:Frechet",
    about="distance from the real images: Fréchet distance of features",
    facts=ScoreCard((Key("fid", "FID", "min", ("fd", "Fréchet distance")),)),
)
register_score(
    "is",
    None,
    "relgan.metrics.scores.inception:InceptionScore",
    about="inception score: sure of each image, unsure of all together",
    facts=ScoreCard((Key("is", "IS", "max", ("score", "Classifier score")),), by_classes=True),
)
register_score(
    "kid",
    None,
    "relgan.metrics.scores.kernel:Kernel",
    about="distance from the real images by a kernel, unbiased for few images",
    facts=ScoreCard((Key("kid", "KID", "min", ("kd", "Kernel distance")),)),
)
register_score(
    "precision",
    None,
    "relgan.metrics.scores.manifold:Precision",
    about="share of the generated images that could be real",
    facts=ScoreCard((Key("precision", "Precision", "max"),)),
)
register_score(
    "recall",
    None,
    "relgan.metrics.scores.manifold:Recall",
    about="share of the real images that could be generated",
    facts=ScoreCard((Key("recall", "Recall", "max"),)),
)
register_score(
    "density",
    None,
    "relgan.metrics.scores.manifold:Density",
    about="how many real images a generated one lies near",
    facts=ScoreCard((Key("density", "Density", "max"),)),
)
register_score(
    "coverage",
    None,
    "relgan.metrics.scores.manifold:Coverage",
    about="share of the real images that a generated one lies near",
    facts=ScoreCard((Key("coverage", "Coverage", "max"),)),
)
register_score(
    "fid_infinity",
    None,
    "relgan.metrics.scores.infinity:FrechetInfinity",
    about="Fréchet distance extrapolated to infinitely many generated images",
    facts=ScoreCard((Key("fid_infinity", "FID∞", "min", ("fd_infinity", "Fréchet distance∞")),)),
)
register_score(
    "is_infinity",
    None,
    "relgan.metrics.scores.infinity:InceptionInfinity",
    about="inception score extrapolated to infinitely many generated images",
    facts=ScoreCard((Key("is_infinity", "IS∞", "max", ("score_infinity", "Classifier score∞")),), by_classes=True),
)
register_score(
    "vendi",
    None,
    "relgan.metrics.scores.vendi:Vendi",
    about="effective number of different generated images",
    facts=ScoreCard((Key("vendi", "Vendi score", "max"),)),
)
register_score(
    "modes",
    None,
    "relgan.metrics.scores.modes:Modes",
    about="how many of the 1,000 stacked digits are generated, and how evenly",
    facts=ScoreCard(
        keys=(
            Key("modes", "Modes", "max"),
            Key("mode_kl", "Mode KL", "min"),
            Key("mode_confidence", "Mode confidence", "max"),
        ),
        family="modes",
        suits=lambda dataset: dataset.stacked,
    ),
)
register_score(
    "label_agreement",
    None,
    "relgan.metrics.scores.agreement:build",
    about="share of the images in which a classifier sees the class that was asked for",
    facts=ScoreCard(
        keys=(
            Key("label_agreement", "Label agreement", "max"),
            Key("label_agreement_real", "Label agreement of real images"),
        ),
        family="label_agreement",
        conditional=True,
        unnamed="digits",
    ),
)
register_score(
    "lpips_diversity",
    None,
    "relgan.metrics.scores.lpips:Diversity",
    about="how different two generated images look",
    facts=ScoreCard((Key("lpips_diversity", "LPIPS diversity", "max"),), family="lpips"),
)
register_score(
    "authenticity",
    None,
    "relgan.metrics.scores.copies:Authenticity",
    about="share of the generated images that are no near copies of training images",
    facts=ScoreCard((Key("authenticity", "Authenticity", "max"),)),
)
register_score(
    "neighbours",
    None,
    "relgan.metrics.scores.copies:Neighbours",
    about="a picture: the training images nearest to generated ones",
    facts=ScoreCard(),
)


def card_of(score: str) -> ScoreCard:
    """The card that a score was registered with; ConfigError for an unknown one."""
    facts = SCORES[score].facts
    return facts if isinstance(facts, ScoreCard) else ScoreCard()


def direction(key: str) -> Direction | None:
    """Whether a smaller or a larger value of ``key`` ("eval/fid", …) is better; None for what is not ranked."""
    found = _find(key)
    return None if found is None else found.better


def title(key: str) -> str:
    """What people call it: eval/fd_digits is the Fréchet distance (digits)."""
    found = _find(key)
    return key.removeprefix("eval/").replace("_", " ") if found is None else found.title


def declared(key: str) -> Key | None:
    """The number that ``key`` is a value of, whichever extractor it was made with."""
    found = _find(key)
    return None if found is None else found.key


def family(key: str) -> str:
    """See :class:`ScoreCard`; what is unknown counts as made from features, which has the most facts."""
    found = _find(key)
    return FEATURES if found is None else card_of(found.score).family


def families() -> set[str]:
    """Those of all scores."""
    return {card_of(score).family for score in SCORES.names()}


def score_of(key: str) -> str | None:
    """The entry of ``metrics.scores`` that computes ``key``; None where that is not known."""
    found = _find(key)
    return None if found is None else found.score


def meaning(key: str) -> str:
    """What the score that computes ``key`` says, in a few words; empty where that is not known."""
    found = _find(key)
    return "" if found is None else SCORES[found.score].about


def full_key(name: str, extractor: str) -> str:
    """``eval/…`` of a number made from an extractor's features.

    Args:
        name: of a :class:`Key`, or its spread.
    """
    stem, spread = split_spread(name)
    for score, key in _declared():
        if key.name == stem:
            if extractor == card_of(score).unnamed:
                return f"eval/{name}"
            stem = key.general[0] if key.general else stem
    return f"eval/{stem}_{extractor}{spread}"


def spellings(score: str) -> list[str]:
    """The full keys under which a score's ranked numbers may appear, with each known extractor."""
    card = card_of(score)
    ranked = [key.name for key in card.keys if key.better]
    if card.unnamed is None:
        return [f"eval/{name}" for name in ranked]
    return [full_key(name, extractor) for name in ranked for extractor in EXTRACTORS.names()]


@dataclass(frozen=True)
class _Found:
    score: str
    key: Key
    title: str
    better: Direction | None


def _find(key: str) -> _Found | None:
    """What a full key means; a declared name goes before one that only begins like it."""
    name = key.removeprefix("eval/")
    for score, each in _declared():
        if each.name == name:
            return _Found(score, each, each.title, each.better)
    stem, spread = split_spread(name)
    if spread:
        found = _find(stem)
        return found and replace(found, title=f"{found.title}, {_SPREADS[spread]}", better=None)
    general = [
        (begin, _Found(score, each, f"{words} ({name.removeprefix(begin)})", each.better))
        for score, each in _declared()
        for stem, words in [each.general or (each.name, each.title)]
        if card_of(score).unnamed and name.startswith(begin := f"{stem}_")
    ]
    return max(general, key=lambda pair: len(pair[0]))[1] if general else None


def _declared() -> Iterator[tuple[str, Key]]:
    return ((score, key) for score in SCORES.names() for key in card_of(score).keys)


def split_spread(name: str) -> tuple[str, str]:
    """A name and the suffix that makes it another number's spread; empty where it is none."""
    suffix = next((suffix for suffix in _SPREADS if name.endswith(suffix)), "")
    return name.removesuffix(suffix), suffix
