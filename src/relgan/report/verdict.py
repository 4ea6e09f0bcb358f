"""Which variant is better, by how much and how sure: the statistics over seeds, and the sentences that tell them.

A variant is told apart from the best where Welch's interval of the difference between their means over seeds leaves
out 0. The level is corrected for all comparisons with the best (Bonferroni), so that the truly best variant is called
worse than another in at most one column of twenty, whatever the variants' spreads (multiple comparisons with the best,
Hsu 1984). One seed has no spread, so it tells nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from relgan.metrics import catalogue
from relgan.metrics.interval import Interval
from relgan.report.collect import RunRecord
from relgan.report.compare import Board, Cell, Column

CONFIDENCE = 0.95
NAMED = 6  # variants in a sentence; of more, some are counted


def welch(one: Sequence[float], other: Sequence[float], comparisons: int = 1) -> Interval | None:
    """Interval of mean(other) − mean(one); None where one of them has a single value, or neither has any spread.

    Args:
        comparisons: how many such intervals have to hold together with a probability of :data:`CONFIDENCE`.
    """
    if min(len(one), len(other)) < 2:
        return None
    parts = [statistics.variance(values) / len(values) for values in (one, other)]
    if sum(parts) == 0:
        return None

    from scipy.special import stdtrit  # Student's quantile; a second faster to import than scipy.stats

    degrees = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (one, other), strict=True))
    width = stdtrit(degrees, 1 - (1 - CONFIDENCE) / comparisons / 2) * math.sqrt(sum(parts))
    difference = statistics.fmean(other) - statistics.fmean(one)
    return Interval.around(difference, float(width))


@dataclass(frozen=True)
class Verdict:
    """What the seeds tell of one column.

    Attributes:
        ranking: variants with a final score, by their mean, the best first.
        behind: by how much each of the others is worse than the first; None where that cannot be told.
        comparisons: with the first, that hold together.
        winner: the first, if it is told apart from each of the others.
        sentences: the same in words.
    """

    ranking: list[str]
    behind: dict[str, Interval | None]
    comparisons: int
    winner: str | None
    sentences: list[str]


def judge(board: Board, column: Column) -> Verdict:
    """Rank the variants of a column and tell them apart as far as their seeds allow."""
    cells = {v: cell for v in board.variants if (cell := board.cells.get((v, column))) and cell.finals}
    ranking = sorted(cells, key=lambda v: statistics.fmean(cells[v].values), reverse=not board.smaller)
    comparisons = max(sum(len(cells[variant].finals) > 1 for variant in ranking[1:]), 1)
    behind = {
        variant: _worse(cells[ranking[0]].values, cells[variant].values, comparisons, board.smaller)
        for variant in ranking[1:]
    }
    sure = bool(behind) and all(interval and interval.leaves_out_zero for interval in behind.values())
    winner = ranking[0] if sure and column.ranked else None
    verdict = Verdict(ranking, behind, comparisons if any(behind.values()) else 0, winner, [])
    verdict.sentences.extend(_sentences(_Words(board, column, cells), verdict))
    return verdict


def endings(variant: str, runs: Sequence[RunRecord]) -> str | None:
    """Which of a variant's runs on one data set do not count in its mean, in words; None if all do."""
    lost = [f"{count} {status}" for status in ("diverged", "failed") if (count := _count(runs, status))]
    return f"{variant}: of {_seeds([len(runs)])} {' and '.join(lost)}, not counted in its mean." if lost else None


def _count(runs: Sequence[RunRecord], status: str) -> int:
    return sum(run.status == status for run in runs)


def _worse(best: Sequence[float], other: Sequence[float], comparisons: int, smaller: bool) -> Interval | None:
    return welch(best, other, comparisons) if smaller else welch(other, best, comparisons)


@dataclass(frozen=True)
class _Words:
    """Names and numbers of a column as its sentences write them."""

    board: Board
    column: Column
    cells: dict[str, Cell]

    def number(self, value: float) -> str:
        return f"{value:,.{self.board.decimals(self.column)}f}".replace("-", "−")

    def score(self, variant: str) -> str:
        return self.board.score(variant, self.column)

    def range(self, interval: Interval) -> str:
        return f"{self.number(interval.value)} ({self.number(interval.low)} to {self.number(interval.high)})"

    def seeds(self, variants: Sequence[str]) -> str:
        return _seeds([len(self.cells[variant].finals) for variant in variants])


def _sentences(words: _Words, verdict: Verdict) -> Iterator[str]:
    ranking, behind = verdict.ranking, verdict.behind
    name, extreme = catalogue.title(words.column.key), "lowest" if words.board.smaller else "highest"
    if not ranking:
        yield f"No run has finished with {name} yet."
        return
    best = ranking[0]
    if len(ranking) == 1:
        yield f"{best} ends with {name} {words.score(best)} ({words.seeds([best])})."
        return
    if not words.column.ranked:
        yield f"{name} is not ranked here: its weights are of unknown origin, or its protocol was not recorded."
        return
    tied = [variant for variant, interval in behind.items() if interval and not interval.leaves_out_zero]
    beaten = {variant: interval for variant, interval in behind.items() if interval and interval.leaves_out_zero}
    unknown = [variant for variant, interval in behind.items() if interval is None]
    how = "" if verdict.winner else " mean"
    sure = f", told apart from every other variant by {words.seeds(ranking)}" if verdict.winner else ""
    yield f"{best} has the {extreme}{how} {name}, {words.score(best)}{sure}."
    if beaten:
        nearest, interval = next(iter(beaten.items()))
        if len(beaten) == 1:
            yield f"It is better than {nearest} by {words.range(interval)}."
        else:
            by = words.range(interval)
            yield f"It is better than {_listed(list(beaten))}; the closest, {nearest}, is behind by {by}."
    if tied:
        group = [best, *tied]
        if len(tied) == 1 and (difference := behind[tied[0]]):
            by = words.range(difference)
            yield f"{_listed(group)} are not told apart by {words.seeds(group)}: the difference is {by}."
        else:
            yield f"{words.seeds(group)} cannot tell it from {_listed(tied)}."
        if any(len(words.cells[variant].finals) == 2 for variant in group):
            yield "Two seeds say little about the spread, so only a very large difference counts. Run more seeds."
    if unknown:
        yield _why_unknown(words, [best, *unknown])


def _why_unknown(words: _Words, variants: Sequence[str]) -> str:
    single = [variant for variant in variants if len(words.cells[variant].finals) == 1]
    if not single:
        return f"{_listed(variants)} have the same score in every seed, so there is no spread to judge by."
    if len(single) == len(words.cells):
        return "One seed of each cannot tell a difference from chance: run several, such as seed=1,2,3."
    have = "has only one" if len(single) == 1 else "have only one each"
    return f"One seed cannot tell a difference from chance: {_listed(single)} {have}."


def _listed(names: Sequence[str]) -> str:
    """a, b and c; of many, the first ones and how many more."""
    shown = list(names) if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _seeds(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low} to {high} seeds" if low < high else f"{high} seed{'s' * (high > 1)}"
