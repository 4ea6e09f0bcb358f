"""The page: tables, charts and pictures of a comparison, handed to the template."""

from __future__ import annotations

import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from relgan.metrics import catalogue
from relgan.report.collect import STATUSES, Paired, RunRecord
from relgan.report.compare import Board, Column, Comparison, Point, curve
from relgan.report.figures import COLOURS, Dots, Series, against, chart, dot_plot
from relgan.report.pictures import Image, embed
from relgan.report.tables import as_latex, as_markdown, csv_of
from relgan.report.verdict import Verdict, endings, judge
from relgan.rundir import RunDir

STAGES = ("Start", "¼", "½", "¾", "End")
MANY_PICTURES = 250  # beyond, a page would be slow to load: seeds other than the first keep the end of training only


@dataclass(frozen=True)
class Picture:
    """One grid and the stages of training at which it is the nearest."""

    step: int
    path: Path
    stages: tuple[int, ...]


@dataclass(frozen=True)
class Card:
    """The same noise through one variant's generator at each stage, by seed; real images have neither."""

    name: str
    style: int | None
    by_seed: dict[int | None, list[Picture]]


@dataclass(frozen=True)
class Contest:
    """One line of the paired comparisons."""

    run: RunRecord
    against: str
    paired: Paired

    @property
    def outcome(self) -> str:
        return {"run": "better", "against": "worse", None: "not told apart"}[self.paired.better]


@dataclass
class Page:
    """What the template asks for, so that it holds no arithmetic."""

    comparison: Comparison
    title: str
    file: Path
    images: dict[Path, Image] = field(default_factory=dict)

    @property
    def now(self) -> str:
        return datetime.now().astimezone().strftime("%d %B %Y, %H:%M")

    @property
    def numbers(self) -> str:
        return csv_of(self.file).name

    @property
    def statuses(self) -> list[tuple[str, int]]:
        return count_statuses(self.comparison.every)

    def style(self, variant: str) -> int:
        return self.comparison.variants.index(variant)

    @cached_property
    def boards(self) -> list[Board]:
        return self.comparison.boards()

    @property
    def heading(self) -> str:
        """A single run goes by what it is, not by its folder."""
        if len(self.comparison.every) > 1:
            return self.title
        (run,) = self.comparison.every
        return f"{self.comparison.variant(run)} on {self.comparison.dataset(run)}, seed {run.seed}"

    def ended(self, variant: str, dataset: str | None = None) -> list[tuple[str, int]]:
        return count_statuses(self.comparison.of(variant, dataset))

    @cached_property
    def verdicts(self) -> dict[Column, Verdict]:
        return {column: judge(board, column) for board in self.boards for column in board.columns}

    def endings(self, column: Column) -> list[str]:
        """Of each variant with runs that do not count: how many, and why."""
        found = (endings(v, self.comparison.of(v, column.dataset)) for v in self.comparison.variants)
        return [line for line in found if line]

    def facts(self, column: Column) -> str:
        """How the column's numbers were made, in a few words."""
        facts = dict(column.facts)
        words = [
            facts.get("extractor", ""),
            "" if facts.get("generator", "ema") == "ema" else "newest weights, not the average",
        ]
        real = facts.pop("reference_images", None)
        made = facts.get("num_images") or next((facts[name] for name in facts if name.endswith("_images")), None)
        words += [f"{int(made):,} images" + (f" against {int(real):,}" if real else "")] if made else []
        return ", ".join(filter(None, words)) or "protocol not recorded"

    @staticmethod
    def mean(pairs: Sequence[tuple[int, float]], index: int) -> float:
        return statistics.fmean(pair[index] for pair in pairs)

    def values(self, variant: str, option: str) -> str:
        """Every value a variant has of an option; more than one where datasets differ."""
        return ", ".join(dict.fromkeys(self.comparison.value(run, option) for run in self.comparison.of(variant)))

    def folder(self, run: RunRecord) -> str | None:
        """Link to a run that lies below the page's folder."""
        root = self.file.parent.resolve()
        return f"{quote(str(run.path.relative_to(root)))}/" if run.path.is_relative_to(root) else None

    def contests(self) -> list[Contest]:
        """Networks compared on the same latents, by run."""
        return [
            Contest(run, self._called(paired.against), paired)
            for run in self.comparison.listed()
            for paired in run.paired
            if catalogue.direction(paired.key)
        ]

    def _called(self, path: str) -> str:
        """A run of this page by what it is, where its folder's name is in the path; else the path's last name."""
        comparison = self.comparison
        found = [run for run in comparison.every if run.path.name in Path(path).parts]
        return f"{comparison.variant(found[0])}, seed {found[0].seed}" if len(found) == 1 else Path(path).name

    def dot_plot(self, board: Board, column: Column) -> Any:
        """Every seed's final score, the best variant first."""
        verdict = self.verdicts[column]
        rows = [
            Dots(
                f"★ {variant}" if variant == verdict.winner else variant,
                board.score(variant, column),
                self.style(variant),
                board.cells[variant, column].finals,
            )
            for variant in verdict.ranking
        ]
        if sum(len(row.values) for row in rows) < 2:
            return ""
        name, way = catalogue.title(column.key), "lower" if board.smaller else "higher"
        title = f"{name} on {column.dataset} at the end of training, every seed"
        return dot_plot(rows, title=title, x=f"{name}, {way} is better")

    def drawn(self, board: Board) -> bool:
        """Whether a score has dot plots, beside which its curves stand."""
        return any(self.dot_plot(board, column) for column in board.columns)

    def score_chart(self, board: Board, column: Column) -> Any:
        """Curves of the runs in one column; the untrained start would flatten all the rest."""
        if board.once(column):
            return ""
        series = []
        for variant in self.comparison.variants:
            runs = [r for r in self.comparison.of(variant, column.dataset) if column.key in r.score_keys]
            same = [run for run in runs if self.comparison.column(run, column.key) == column]
            if later := [point for point in curve(same, column.key, "eval") if point.x > 0]:
                series.append(Series(variant, self.style(variant), later))
        name = catalogue.title(column.key)
        title = f"{name} on {column.dataset} over generator updates"
        return chart(series, title=title, x="generator updates", y=name, log=None) if series else ""

    def line_chart(self, dataset: str, key: str, name: str, *, log: bool = True) -> Any:
        """Curves of a logged value; those that are 0 throughout (no penalty) are left out of a logarithmic one."""
        series = [line for line in self._series(dataset, key) if not log or any(point.y for point in line.points)]
        title = f"{name} on {dataset} over generator updates"
        return chart(series, title=title, x="generator updates", y=name, log=log) if series else ""

    def _series(self, dataset: str, key: str) -> list[Series]:
        made = ((v, curve(self.comparison.of(v, dataset), key)) for v in self.comparison.variants)
        return [Series(variant, self.style(variant), points) for variant, points in made if points]

    def probability_charts(self, dataset: str) -> list[tuple[str, Any]]:
        """For each variant what the critic makes of real and of generated images."""
        charts = []
        longest = max((row.step for run in self.comparison.of(dataset=dataset) for row in run.train[-1:]), default=0)
        for variant in self.comparison.variants:
            runs, style = self.comparison.of(variant, dataset), self.style(variant)
            pair = [
                Series("real", style, curve(runs, "train/prob_real")),
                Series("generated", style, curve(runs, "train/prob_fake"), dashed=True),
            ]
            if pair[0].points and pair[1].points:
                title = f"{variant} on {dataset}: what the critic makes of real and generated images"
                picture = chart(pair, title=title, x="generator updates", y="probability", unit=True, until=longest)
                charts.append((variant, picture))
        return charts

    def pull_chart(self, dataset: str) -> Any:
        series = []
        for variant in self.comparison.variants:
            runs = self.comparison.of(variant, dataset)
            real, fake = curve(runs, "train/pull_real"), curve(runs, "train/pull_fake")
            points = [Point(r.y, f.y, f.low, f.high) for r, f in zip(real, fake, strict=False)]
            if points:
                series.append(Series(variant, self.style(variant), points))
        title = f"Gradient pull of real against generated images on {dataset}"
        return against(series, title=title, x="pull of real images  |∂L_D/∂r|", y="generated") if series else ""

    def cards(self, dataset: str) -> list[Card]:
        """Real images, and each variant's by seed."""
        runs = [run for run in self.comparison.of(dataset=dataset) if run.samples]
        if not runs:
            return []
        end = max(max(run.samples) for run in runs)
        real = RunDir(runs[0].path).samples / "real.png"
        everywhere = tuple(range(len(STAGES)))
        cards = [Card("real images", None, {None: [Picture(0, real, everywhere)]})] if real.exists() else []
        for variant in self.comparison.variants:
            own = [run for run in runs if self.comparison.variant(run) == variant]
            if own:
                by_seed: dict[int | None, list[Picture]] = {run.seed: list(self._stages(run, end)) for run in own}
                cards.append(Card(variant, self.style(variant), by_seed))
        return cards

    @cached_property
    def seeds(self) -> list[int]:
        """Of the runs with pictures; the one that most of them share is first."""
        counts = Counter(run.seed for run in self.comparison.runs if run.samples)
        return sorted(counts, key=lambda seed: (-counts[seed], seed))

    @cached_property
    def _stages_of_other_seeds(self) -> bool:
        return len(STAGES) * sum(bool(run.samples) for run in self.comparison.runs) <= MANY_PICTURES

    def _stages(self, run: RunRecord, end: int) -> Iterator[Picture]:
        samples = run.samples
        if run.seed != self.seeds[0] and not self._stages_of_other_seeds:
            samples = {max(samples): samples[max(samples)]}
        nearest: dict[int, list[int]] = {}
        for stage in range(len(STAGES)):
            step = min(samples, key=lambda s: abs(s - end * stage / (len(STAGES) - 1)))
            nearest.setdefault(step, []).append(stage)
        return (Picture(step, samples[step], tuple(stages)) for step, stages in nearest.items())

    def load_images(self) -> None:
        """Turn every picture of the page into text, several at a time."""
        cards = [card for dataset in self.comparison.datasets for card in self.cards(dataset)]
        pictures = (picture for card in cards for own in card.by_seed.values() for picture in own)
        paths = list(dict.fromkeys(picture.path for picture in pictures))
        with ThreadPoolExecutor() as pool:
            self.images = dict(zip(paths, pool.map(embed, paths), strict=True))

    def warnings(self) -> list[str]:
        return list(_warnings(self.comparison, self.boards))


def render(comparison: Comparison, title: str, file: Path, jobs: int = 0) -> str:
    """The whole page, for ``file``. Whatever comes from a run directory is escaped by the template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("relgan.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "fixed": fixed,
        "duration": duration,
        "command": command,
        "counted": counted,
        "signed": signed,
        "score_title": catalogue.title,
    }
    page = Page(comparison, title, file)
    page.load_images()
    template = environment.get_template("page.html")
    return template.render(
        page=page,
        runs=comparison.every,
        to_come=max(jobs - len(comparison.every), 0),
        stages=STAGES,
        colours=COLOURS,
        as_markdown=as_markdown,
        as_latex=as_latex,
    )


def count_statuses(runs: Iterable[RunRecord]) -> list[tuple[str, int]]:
    """How many runs ended in which way, in the usual order."""
    counts = Counter(run.status for run in runs)
    return [(status, counts[status]) for status in STATUSES if counts[status]]


def counted(number: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def fixed(value: Any, decimals: int) -> str:
    """A number with thousands separators; a dash where there is none."""
    return f"{value:,.{decimals}f}" if isinstance(value, int | float) else "–"


def signed(value: float) -> str:
    """A difference, with a minus sign rather than a hyphen."""
    return f"{value:+,.4g}".replace("-", "−")


def duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def command(run: RunRecord) -> str:
    """The line that starts this job again."""
    return shlex.join(["relgan-train", *run.command])


def _warnings(comparison: Comparison, boards: Sequence[Board]) -> Iterator[str]:
    ways: dict[tuple[str, str], list[str]] = defaultdict(list)
    unranked = []
    for board in boards:
        for dataset in comparison.datasets:
            columns = [column for column in board.columns if column.dataset == dataset]
            if len(columns) > 1:
                ways[dataset, _disagreements(columns)].append(board.title)
        if any(not column.ranked for column in board.columns):
            unranked.append(board.title)
    for (dataset, facts), names in ways.items():
        yield f"{', '.join(names)} on {dataset} differ in {facts}: separate columns, never ranked together."
    if unranked:
        yield (
            f"{', '.join(unranked)}: network weights of unknown origin, or no record of how the score was made; "
            "shown but not ranked."
        )
    if hidden := [key for key in comparison.differing if key not in comparison.label_options]:
        yield f"The variants also differ in {', '.join(hidden)}, which their names do not show; see Settings."
    for what, consequence in (("versions", "scores may differ slightly"), ("hardware", "times are not comparable")):
        if differing := _differing_facts(comparison.runs, what):
            yield f"Runs differ in {what} ({', '.join(differing)}): {consequence}."
    if count := len(comparison.superseded):
        repeat = "repeats" if count == 1 else "repeat"
        yield (
            f"{counted(count, 'more run')} {repeat} a variant, data set and seed; "
            "only the newest finished one of each counts."
        )
    seeds = {
        (v, d): tuple(run.seed for run in comparison.of(v, d)) for d in comparison.datasets for v in comparison.variants
    }
    if len({found for found in seeds.values() if found}) > 1:
        yield "Not every variant was run with the same seeds."


def _disagreements(columns: Sequence[Column]) -> str:
    facts = [dict(column.facts) for column in columns]
    names = sorted({name for each in facts for name in each})
    return ", ".join(name for name in names if len({each.get(name) for each in facts}) > 1)


def _differing_facts(runs: Sequence[RunRecord], what: str) -> list[str]:
    facts = [found for run in runs if isinstance(found := run.summary.get(what), dict)]
    names = sorted({name for each in facts for name in each})
    return [name for name in names if len({str(each.get(name)) for each in facts}) > 1]
