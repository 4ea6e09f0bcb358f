"""What may be compared with what: variants of a run, columns of scores, and the statistics over seeds."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from relgan.metrics.catalogue import (
    FEATURES,
    OF_NO_SCORE,
    declared,
    direction,
    families,
    family,
    meaning,
    score_of,
    title,
)
from relgan.options import flatten
from relgan.registry import LOSSES
from relgan.report.collect import Row, RunRecord, overrides

MANY_OPTIONS = 2  # beyond the loss; a name that lists more of them is not read
POINTS = 120  # of a curve: a chart is about three pixels wide for each

# In the label of a data set, where runs on it differ in them.
_OF_IMAGES = ("image_size", "split", "num_images", "min_images", "crop")
_NOT_COMPARED = {
    *(f"dataset.{name}" for name in ("name", "path", *_OF_IMAGES, "url", "residence")),
    *("name", "seed", "device", "resume", "fail_fast"),
    *("train.log_every", "train.sample_every", "train.sample_count", "train.checkpoint_every"),
}
# Facts of the protocol that tell something of every score; others belong to one family of scores.
_OF_ANY_SCORE = ("reference", "generator", "generator_mode", "batch_size")


@dataclass(frozen=True)
class Point:
    """Mean and range over seeds."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Column:
    """Where one score of one dataset was computed in one way: the only place where numbers are compared."""

    key: str
    dataset: str
    facts: tuple[tuple[str, str], ...]
    ranked: bool


@dataclass(frozen=True)
class Cell:
    """One variant in one column.

    Attributes:
        finals: last score of each finished run, by its seed.
        low, high: over every seed and every evaluation after the start.
        reached: (updates, seconds) of each finished run that got as far as the threshold.
        evaluations: of the run that has most, the start left out.
    """

    finals: dict[int, float]
    low: float | None
    high: float | None
    reached: list[tuple[int, float]]
    evaluations: int

    @property
    def values(self) -> list[float]:
        return list(self.finals.values())

    @cached_property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.finals else None

    @cached_property
    def sd(self) -> float | None:
        return statistics.stdev(self.values) if len(self.finals) > 1 else None


@dataclass(frozen=True)
class Board:
    """All variants under one score, by their mean place over its ranked columns; each extractor has its own columns."""

    keys: tuple[str, ...]
    columns: list[Column]
    variants: list[str]
    cells: dict[tuple[str, Column], Cell]
    thresholds: dict[Column, float]

    @property
    def title(self) -> str:
        if len(self.keys) == 1:
            return title(self.keys[0])
        name = declared(self.keys[0])
        return (name.general[1] if name.general else name.title) if name else self.keys[0]

    @property
    def meaning(self) -> str:
        """What the score says, in a few words; may be empty."""
        return meaning(self.keys[0])

    @property
    def smaller(self) -> bool:
        """Whether smaller is better."""
        return direction(self.keys[0]) == "min"

    def of(self, column: Column) -> list[Cell]:
        return [cell for (_, place), cell in self.cells.items() if place == column]

    def once(self, column: Column) -> bool:
        """Whether there is nothing but final scores."""
        return all(cell.evaluations <= 1 for cell in self.of(column))

    def decimals(self, column: Column) -> int:
        """For a whole column: three digits of its smallest mean, one more to show a spread; none for a single count."""
        cells = self.of(column)
        means = [abs(cell.mean) for cell in cells if cell.mean]
        if not means or all(len(cell.finals) <= 1 and sum(cell.values, 0.0).is_integer() for cell in cells):
            return 0
        three = 2 - math.floor(math.log10(min(means)))
        shown = max((-math.floor(math.log10(cell.sd)) for cell in cells if cell.sd), default=three)
        return min(max(three, min(shown, three + 1), 0), 4)

    def score(self, variant: str, column: Column) -> str:
        """A variant's mean ± its standard deviation, in words; a dash where it has none."""
        cell, decimals = self.cells.get((variant, column)), self.decimals(column)
        if cell is None or cell.mean is None:
            return "–"
        return f"{cell.mean:,.{decimals}f}" + ("" if cell.sd is None else f" ± {cell.sd:,.{decimals}f}")


class Comparison:
    """Runs sorted into variants (what differs but the seed) and datasets.

    Options are compared within one data set: what follows from the choice of the data names nothing.

    Attributes:
        runs: one for each variant, dataset and seed.
        superseded: other runs of the same variant, dataset and seed.
        differing: options whose values differ between runs on one data set.
    """

    def __init__(self, runs: Sequence[RunRecord]) -> None:
        self._root = Path(os.path.commonpath([run.path.parent for run in runs])).parent
        every = {key for run in runs for key in run.options}
        self._usual = {key: _most_common(run.options[key] for run in runs if key in run.options) for key in every}
        named = _grouped(runs, self._images)
        self._dataset_options = {
            name: [o for o in _OF_IMAGES if _differs(same, f"dataset.{o}", self.value)] for name, same in named.items()
        }
        on_one = _grouped(runs, self.dataset).values()
        self.differing = sorted(
            key for key in every if _compared(key) and any(_differs(same, key, self.value) for same in on_one)
        )
        self.label_options = self._needed(runs)
        self.runs, self.superseded = self._one_per_seed(runs)
        self.datasets = sorted({self.dataset(run) for run in self.runs}, key=_by_value)
        order = {name: index for index, name in enumerate(LOSSES.names())}
        labels = {self.variant(run): order.get(self.loss(run), len(order)) for run in self.runs}
        self.variants = sorted(labels, key=lambda label: (labels[label], _by_value(label)))

    @property
    def every(self) -> list[RunRecord]:
        return [*self.runs, *self.superseded]

    def listed(self) -> list[RunRecord]:
        """Every run by data set, variant and seed."""
        return sorted(
            self.every,
            key=lambda run: (
                self.datasets.index(self.dataset(run)),
                self.variants.index(self.variant(run)),
                run.seed,
            ),
        )

    def place(self, run: RunRecord) -> Path:
        """Where a run lies, from the folder that holds all of them: without what is above it on this machine."""
        return run.path.relative_to(self._root)

    def value(self, run: RunRecord, key: str) -> str:
        """An option as text; a job that failed too early to tell is taken to be like the others."""
        return _text(run.options[key]) if key in run.options else self._usual.get(key, "")

    def loss(self, run: RunRecord) -> str:
        return self.value(run, "loss.name") or "unknown"

    def _needed(self, runs: Sequence[RunRecord]) -> list[str]:
        """The fewest options that tell variants apart: one that follows from the others would only make labels long."""
        first = ["loss.name", *_swept(runs), "model.name", "penalty.name"]
        kept: list[str] = []
        for key in sorted(self.differing, key=lambda key: (first.index(key) if key in first else len(first), key)):
            seen: dict[tuple[str, ...], set[str]] = defaultdict(set)
            for run in runs:
                seen[self.dataset(run), *(self.value(run, k) for k in kept)].add(self.value(run, key))
            if any(len(values) > 1 for values in seen.values()):
                kept.append(key)
        return kept

    def variant(self, run: RunRecord) -> str:
        """What tells this run from the others, seed and dataset aside; of many options, only unusual values."""
        others = [key for key in self.label_options if key != "loss.name"]
        if len(others) > MANY_OPTIONS:
            others = [key for key in others if self.value(run, key) != self._usual[key]]
        parts = [self.loss(run)] if "loss.name" in self.label_options or not self.label_options else []
        for key in others:
            group, _, name = key.rpartition(".")
            parts.append(f"{group if name == 'name' else name}={self.value(run, key)}")
        return " · ".join(parts) or "usual settings"

    def dataset(self, run: RunRecord) -> str:
        """Its name, and what tells the run's images from those of others by that name."""
        name = self._images(run)
        parts = [f"{option}={self.value(run, f'dataset.{option}')}" for option in self._dataset_options[name]]
        return " · ".join([name, *parts])

    def _images(self, run: RunRecord) -> str:
        name = self.value(run, "dataset.name") or "unknown"
        path = run.options.get("dataset.path")
        return Path(path).stem if name == "folder" and isinstance(path, str) else name

    def of(self, variant: str | None = None, dataset: str | None = None) -> list[RunRecord]:
        """Runs of a variant, a dataset or both, by seed."""
        chosen = [
            run for run in self.runs if variant in (None, self.variant(run)) and dataset in (None, self.dataset(run))
        ]
        return sorted(chosen, key=lambda run: run.seed)

    def _one_per_seed(self, runs: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
        rank = {"finished": 2, "diverged": 1}
        groups: dict[tuple[str, str, int], list[RunRecord]] = defaultdict(list)
        for run in sorted(runs, key=lambda run: (rank.get(run.status, 0), run.path.name), reverse=True):
            groups[self.variant(run), self.dataset(run), run.seed].append(run)
        return [group[0] for group in groups.values()], [run for group in groups.values() for run in group[1:]]

    def column(self, run: RunRecord, key: str) -> Column:
        """Where this run's value of a score belongs; two runs share it only if all that made the score agrees."""
        facts = {name: _text(value) for name, value in flatten(run.protocol).items() if _concerns(name, key)}
        if facts.get("generator_mode") == "eval":
            facts.pop("batch_size", None)  # only batch statistics depend on it
        prefix = "" if family(key) == FEATURES else f"{family(key)}_"
        known = run.protocol.get(f"{prefix}weights_known", True)
        return Column(key, self.dataset(run), tuple(sorted(facts.items())), bool(facts) and known)

    def score_keys(self) -> list[str]:
        """Scores that have a better and a worse, in the order the runs computed them."""
        keys = dict.fromkeys(key for run in self.runs for key in run.score_keys)
        return [key for key in keys if direction(key) is not None]

    def boards(self) -> list[Board]:
        """One for each score, whatever the extractors it was made with."""
        spellings: dict[Any, list[str]] = defaultdict(list)
        for key in self.score_keys():
            spellings[score_of(key), declared(key)].append(key)
        return [self.board(*keys) for keys in spellings.values()]

    def board(self, *keys: str) -> Board:
        """The leaderboard of one score, given by its spellings; best variant first."""
        groups: dict[tuple[str, Column], list[RunRecord]] = defaultdict(list)
        for run in self.runs:
            for key in keys:
                if key in run.score_keys:
                    groups[self.variant(run), self.column(run, key)].append(run)
        columns = sorted(
            {column for _, column in groups},
            key=lambda c: (self.datasets.index(c.dataset), keys.index(c.key), c.facts),
        )
        smaller = direction(keys[0]) == "min"
        thresholds = {}
        for column in columns:
            finals = [_finals(runs, column.key) for (_, c), runs in groups.items() if c == column]
            means = [statistics.fmean(values.values()) for values in finals if values]
            if means:
                thresholds[column] = (statistics.median_high if smaller else statistics.median_low)(means)
        cells = {
            (variant, column): _cell(runs, column.key, thresholds.get(column), smaller)
            for (variant, column), runs in groups.items()
        }
        board = Board(keys, columns, self.variants, cells, thresholds)
        return replace(board, variants=sorted(self.variants, key=_placing(board)))


def _placing(board: Board) -> Any:
    """Sort key: the mean place over the ranked columns; variants without a final score come last, in their order."""
    places: dict[str, list[int]] = defaultdict(list)
    for column in board.columns:
        means = {v: c.mean for v in board.variants if (c := board.cells.get((v, column))) and c.mean is not None}
        if column.ranked:
            ordered = sorted(means, key=lambda v: means[v] or 0.0, reverse=not board.smaller)
            for place, variant in enumerate(ordered):
                places[variant].append(place)
    return lambda variant: statistics.fmean(places[variant]) if variant in places else float("inf")


def _by_value(label: str) -> list[Any]:
    """Sort key of a label in which numbers count as such: n_critic=5 before n_critic=10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", label)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _most_common(values: Iterable[Any]) -> str:
    return Counter(_text(value) for value in values).most_common(1)[0][0]


def _compared(key: str) -> bool:
    return key not in _NOT_COMPARED and not key.startswith(("metrics.", "tracker."))


def _grouped(runs: Sequence[RunRecord], key: Callable[[RunRecord], str]) -> dict[str, list[RunRecord]]:
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def _swept(runs: Sequence[RunRecord]) -> list[str]:
    """Options to which the commands give more than one value, in the commands' order."""
    values: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for key, value in overrides(run.command):
            values[key].add(value)
    return [key for key, given in values.items() if len(given) > 1]


def _differs(runs: Sequence[RunRecord], key: str, value: Any) -> bool:
    return len({value(run, key) for run in runs}) > 1


def _concerns(fact: str, key: str) -> bool:
    """Whether values of a score may be compared only where this fact of the protocol, by its dotted name, agrees."""
    name, _, rest = fact.partition(".")
    if name in OF_NO_SCORE or name.endswith("weights_known"):
        return False
    if name in _OF_ANY_SCORE:
        return True
    if name == "options":
        return score_of(key) in (None, rest.partition(".")[0])
    return family(key) == next((each for each in families() if name.startswith(f"{each}_")), FEATURES)


def _finals(runs: Sequence[RunRecord], key: str) -> dict[int, float]:
    """Scores at the very end of the runs that got there, by seed."""
    last = [(run, run.evals[-1]) for run in runs if run.status == "finished" and run.evals]
    return {run.seed: row.values[key] for run, row in last if key in row.values and row.step >= run.step}


def _cell(runs: Sequence[RunRecord], key: str, threshold: float | None, smaller: bool) -> Cell:
    later = {run: [row for row in run.evals if row.step > 0 and key in row.values] for run in runs}
    values = [row.values[key] for rows in later.values() for row in rows]
    reached = []
    for run, rows in later.items():
        if run.status == "finished" and threshold is not None:
            good = (r for r in rows if (r.values[key] <= threshold if smaller else r.values[key] >= threshold))
            reached += [(row.step, row.time_s) for row in list(good)[:1]]
    evaluations = max(map(len, later.values()))
    return Cell(_finals(runs, key), min(values, default=None), max(values, default=None), reached, evaluations)


def curve(runs: Sequence[RunRecord], key: str, kind: str = "train") -> list[Point]:
    """Mean and range over runs of one key, at most :data:`POINTS` of them; long runs are averaged in equal bins."""
    series = [[row for row in (run.train if kind == "train" else run.evals) if key in row.values] for run in runs]
    return [
        Point(statistics.fmean(steps), statistics.fmean(values), min(values), max(values))
        for steps, values in _bins(series, key)
    ]


def _bins(series: Sequence[Sequence[Row]], key: str) -> list[tuple[list[float], list[float]]]:
    """(steps, values) of each bin, a value being one run's mean in it."""
    steps = {row.step for rows in series for row in rows}
    width = 1 if len(steps) <= POINTS else (max(steps) + 1) / POINTS
    bins: dict[int, list[list[Row]]] = defaultdict(list)
    for rows in series:
        own: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            own[int(row.step / width)].append(row)
        for number, members in own.items():
            bins[number].append(members)
    return [
        (
            [row.step for members in bins[number] for row in members],
            [statistics.fmean(row.values[key] for row in members) for members in bins[number]],
        )
        for number in sorted(bins)
    ]
