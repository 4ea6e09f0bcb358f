"""Whether two generators differ by more than chance: scores and their differences, with intervals of 95 %.

The spread of a difference is found by exchange. Two sets of images from the same source could have been dealt out in
any other way, so some images of one, chosen at random, change places with those at the same positions of the other,
and the difference of the scores is taken again: its mean square over many exchanges is the variance that chance makes.

A bootstrap would draw images with replacement, and most scores are wrong for a set with repetitions: a repeated image
is its own nearest neighbour, a covariance loses rank and the Fréchet distance grows, modes go missing. After an
exchange a set has as many images as before, all different: every bias is the same in both sets and cancels, and for
two sets from one source the spread is right whatever the score. Where the sources differ, the exchanged sets are
mixtures of both, and the spread is an approximation, the better the less they differ.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from relgan.metrics.catalogue import direction
from relgan.metrics.evaluator import Evaluator
from relgan.metrics.interval import Interval
from relgan.metrics.scores import Batch, Seen

EXCHANGES = 50
WIDTH = 2.009  # 97.5 % of Student's t with that many degrees of freedom lie below
SEED = 2020


@dataclass(frozen=True)
class Comparison:
    """One score of two generators.

    Attributes:
        run, against: where other latents might have put each.
        difference: run − against.
        better: which of them, if 0 lies outside of the difference's interval.
    """

    run: Interval
    against: Interval
    difference: Interval
    better: Literal["run", "against"] | None


class Sample(NamedTuple):
    """What networks make of a generator's images, and of as many of its images with other latents."""

    seen: list[Seen]
    again: list[Seen]


def sample(evaluator: Evaluator, generator: nn.Module, latent_dim: int) -> Sample:
    """Two sets of a generator's images, the first with the evaluator's own latents.

    Raises:
        ValueError: the generator returned values that are not finite, or images of another size.
    """
    seeds = (evaluator.seed, evaluator.seed + 1)
    return Sample(*(evaluator.see(generator, latent_dim=latent_dim, seed=seed) for seed in seeds))


def compare(
    evaluator: Evaluator, run: Sample, against: Sample, advance: Callable[[int], None] = lambda count: None
) -> dict[str, Comparison]:
    """The scores of two generators that have a better and a worse, under their full keys.

    Args:
        advance: called with 1 after each of 3 · EXCHANGES exchanges.
    """
    values = [evaluator.judge(each.seen) for each in (run, against)]
    # The difference of two sets varies twice as much as either of them.
    own = [
        {key: deviation / math.sqrt(2) for key, deviation in spread(evaluator, *each, advance).items()}
        for each in (run, against)
    ]
    between = spread(evaluator, run.seen, against.seen, advance)
    everywhere = values[1].keys() & own[0].keys() & own[1].keys() & between.keys()
    return {
        key: _comparison(
            key,
            Interval.around(value, WIDTH * own[0][key]),
            Interval.around(values[1][key], WIDTH * own[1][key]),
            Interval.around(value - values[1][key], WIDTH * between[key]),
        )
        for key, value in values[0].items()
        if direction(key) and key in everywhere
    }


def _comparison(key: str, run: Interval, against: Interval, difference: Interval) -> Comparison:
    better: Literal["run", "against"] | None = None
    if difference.leaves_out_zero:
        better = "run" if (difference.value < 0) == (direction(key) == "min") else "against"
    return Comparison(run, against, difference, better)


def spread(
    evaluator: Evaluator,
    one: Sequence[Seen],
    other: Sequence[Seen],
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """Standard deviation of the difference between the scores of two sets of images, if these have one source.

    Args:
        one, other: as :meth:`Evaluator.see` returns them, of as many images.
    """
    rng = torch.Generator().manual_seed(SEED)
    count = max(batch.start + len(batch.features) for part in one for batch in part.values())
    squares: dict[str, list[float]] = defaultdict(list)
    for _ in range(EXCHANGES):
        chosen = torch.rand(count, generator=rng) < 0.5
        dealt = [evaluator.judge(exchanged(a, b, chosen)) for a, b in ((one, other), (other, one))]
        for key in dealt[0].keys() & dealt[1].keys():
            squares[key].append((dealt[0][key] - dealt[1][key]) ** 2)
        advance(1)
    return {key: math.sqrt(sum(values) / len(values)) for key, values in squares.items()}


def exchanged(kept: Sequence[Seen], taken: Sequence[Seen], chosen: Tensor) -> list[Seen]:
    """What was seen of one set, with the images that are ``chosen``, bool (N,), taken from another."""
    return [
        {extractor: _mixed(batch, other[extractor], chosen) for extractor, batch in part.items()}
        for part, other in zip(kept, taken, strict=True)
    ]


def _mixed(kept: Batch, taken: Batch, chosen: Tensor) -> Batch:
    here = chosen.to(kept.features.device)[kept.index]
    labels = None
    if kept.labels is not None and taken.labels is not None:
        labels = torch.where(here, taken.labels, kept.labels)
    return replace(
        kept,
        features=torch.where(here[:, None], taken.features, kept.features),
        logits=torch.where(here[:, None], taken.logits, kept.logits),
        labels=labels,
    )
