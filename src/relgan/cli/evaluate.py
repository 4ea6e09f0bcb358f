"""relgan-eval: score a checkpoint again, compare two runs, or score any folder or archive of pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from relgan.cli.command import CommandOptions, Line, command
from relgan.config import Config, option_names, overlay, resolve
from relgan.files import writing_to
from relgan.options import ConfigError, RelganError, option, user_path
from relgan.progress import progress_bar
from relgan.registry import DATASETS, DatasetOptions
from relgan.tracking.console import ConsoleHandler, console

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from relgan.data import PackedStore
    from relgan.generator import TrainedGenerator
    from relgan.metrics.compare import Comparison
    from relgan.metrics.evaluator import Evaluator
    from relgan.metrics.reference import Images, Pictures

USAGE = """relgan-eval RUN [checkpoint=best|last] [metrics=…] [out=FILE.json]
relgan-eval RUN against=RUN [checkpoint=best|last] [metrics=…] [out=FILE.json]
relgan-eval images=FOLDER_OR_ZIP reference=FOLDER_OR_ZIP_OR_DATASET [metrics=…] [out=FILE.json]

A run is scored as in training unless metrics say otherwise; against another run, with the same latents and real
images, and an interval for each difference. Pictures of any size are scored at that size.
Also accepted: metrics=default|quick|paper_cifar10|paper_cat, seed, device, dataset.path.
"""
_RUN_MAY_CHANGE = ("metrics", "device", "seed", "dataset.path", "plugins")
SHUFFLE = 2020  # the seed by which torch-fidelity shuffles, too
# Options of metrics in which two runs may differ that are compared: they change no number.
_MAY_DIFFER = ("name", "scores", "every", "objective", "weights", "lpips_weights")

log = logging.getLogger("relgan")


@dataclass
class EvalOptions(CommandOptions):
    run: str = option("", "a run directory or a checkpoint; run= may be left out")
    checkpoint: str | None = option(
        None, "of a run directory: best, last, or another in checkpoints/; null: best, or last of a run without scores"
    )
    against: str | None = option(None, "another run directory or checkpoint, which the run is compared with")
    images: str | None = option(None, "instead of a run: pictures to score")
    reference: str | None = option(None, "what pictures are compared with: other pictures, or a data set by name")
    out: str | None = option(
        None, 'FILE.json: also write {"scores": …, "protocol": …}, what a comparison or classes add; pictures beside it'
    )


@dataclass(frozen=True)
class Result:
    """What ``out=FILE.json`` holds, but for what is empty.

    Attributes:
        by_class: of numbers that are shares of the images, the same for each class by its name.
        comparison: with another run.
    """

    scores: dict[str, float]
    protocol: dict[str, Any]
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)
    comparison: dict[str, Comparison] = field(default_factory=dict)

    def as_json(self) -> str:
        content = dataclasses.asdict(self)
        return json.dumps({name: value for name, value in content.items() if value or name == "scores"}, indent=2)


def main() -> None:
    command(EvalOptions, USAGE, evaluate, positional="run", composes=("metrics",))


def evaluate(options: EvalOptions, line: Line) -> None:
    """Score, print, and write what was asked for."""
    if bool(options.run) == bool(options.images):
        raise RelganError("give either run=RUN_DIRECTORY or images=FOLDER_OR_ZIP")
    out = user_path(options.out) if options.out else None
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError("out", f"{out.parent} is not a directory")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ConsoleHandler("stderr")])
    picture = None
    with progress_bar(0, "evaluation"):
        if options.against is not None:
            result = _compare_runs(options, line)
        elif options.images:
            result = _score_pictures(options, line)
        else:
            result, picture = _score_run(options, line)
    _print_table(result)
    if out is not None:
        with writing_to(out, "out"):
            out.write_text(result.as_json() + "\n", "utf-8")
    if picture is not None:
        from relgan.images import save_png

        path = Path("neighbours.png") if out is None else out.with_name(f"{out.stem}_neighbours.png")
        with writing_to(path, "metrics.scores" if out is None else "out"):
            save_png(picture, path)
        log.info("%s", path)


class Run(NamedTuple):
    """A trained generator, and what it is scored with."""

    config: Config
    trained: TrainedGenerator
    store: PackedStore
    device: torch.device

    @classmethod
    def open(cls, run: str, checkpoint: str | None, composed: Config, line: Line) -> Run:
        """With the run's own configuration, but for what the line, whose configuration is ``composed``, names."""
        from relgan.data import prepare
        from relgan.device import prepare_device
        from relgan.generator import from_checkpoint, read_checkpoint
        from relgan.rundir import RunDir

        scored = RunDir(user_path(run)).best.exists()
        saved = read_checkpoint(run, checkpoint or ("best" if scored else "last"))
        config = overlay(resolve(saved["config"], to_train=False), composed, line.words)
        device = prepare_device(config.device)
        store = prepare(config.dataset)
        return cls(config, from_checkpoint(saved, weights=config.metrics.generator, device=device), store, device)

    def evaluator(self) -> Evaluator:
        from relgan.metrics.evaluator import Evaluator

        return Evaluator(
            self.config.metrics,
            self.config.dataset,
            self.store,
            latent_dim=self.trained.latent_dim,
            seed=self.config.seed,
            device=self.device,
            class_counts=self.trained.class_counts,
        )


def _composed(line: Line) -> Config:
    """The line's configuration; ConfigError for what a run does not let change."""
    from relgan.cli.compose import compose

    for name in option_names(line.words):
        if not any(name == known or name.startswith(f"{known}.") for known in _RUN_MAY_CHANGE):
            raise ConfigError(name, f"with run=, only {', '.join(_RUN_MAY_CHANGE)} can be given")
    return compose(line)


def _score_run(options: EvalOptions, line: Line) -> tuple[Result, torch.Tensor | None]:
    """The numbers are those of training; and the picture of neighbours, if the line asks for it."""
    composed = _composed(line)
    run = Run.open(options.run, options.checkpoint, composed, line)
    evaluator = run.evaluator()
    with _one_line():
        scores = evaluator.evaluate(run.trained.module)
    picture = _neighbours(evaluator, run.trained) if _names_neighbours(line, composed) else None
    classes = run.trained.classes
    by_class = {
        key: {classes[label]: value for label, value in values.items()} for key, values in evaluator.by_class.items()
    }
    return Result(scores, {**evaluator.protocol, "step": run.trained.step}, by_class), picture


def _names_neighbours(line: Line, composed: Config) -> bool:
    """Whether this line asks for the picture; a run that drew it in training does not."""
    named = {"metrics", "metrics.scores"} & set(option_names(line.words))
    return bool(named) and "neighbours" in composed.metrics.scores


def _neighbours(evaluator: Evaluator, trained: TrainedGenerator) -> torch.Tensor | None:
    """As in training: without it the scores still count."""
    from relgan.networks.sampling import UNSCORABLE

    try:
        return evaluator.neighbours(trained.module)
    except UNSCORABLE as error:
        log.warning("no picture of neighbours (%s)", error)
        return None


def _compare_runs(options: EvalOptions, line: Line) -> Result:
    """Two runs, with the latents and metrics of the first."""
    from relgan.metrics.compare import EXCHANGES, compare, sample

    if not (options.run and options.against):
        raise ConfigError("against", "compares two runs: give run=RUN_DIRECTORY, too")
    composed = _composed(line)
    if _names_neighbours(line, composed):
        raise ConfigError("metrics.scores", "neighbours is a picture of one run: leave out against=")
    run, against = (Run.open(path, options.checkpoint, composed, line) for path in (options.run, options.against))
    check_comparable(run, against)
    evaluator = run.evaluator()
    if all(score.extractor is None for score in evaluator.scores):
        raise ConfigError("metrics.scores", "a comparison needs at least one score made from features")
    with _one_line():
        ours, theirs = (sample(evaluator, each.trained.module, each.trained.latent_dim) for each in (run, against))
    with progress_bar(3 * EXCHANGES, "comparing") as bar:
        comparison = compare(evaluator, ours, theirs, bar.advance)
    step, other = run.trained.step, {"run": options.against, "step": against.trained.step}
    protocol = {**evaluator.protocol, "step": step, "against": other}
    return Result({key: each.run.value for key, each in comparison.items()}, protocol, comparison=comparison)


def check_comparable(run: Run, against: Run) -> None:
    """ConfigError unless both have the same real images, classes and metrics."""
    ours, theirs = vars(run.config.metrics), vars(against.config.metrics)
    for name in (ours.keys() | theirs.keys()) - set(_MAY_DIFFER):
        here, there = ours.get(name), theirs.get(name)
        if here != there:
            advice = f"give metrics.{name} for both on the command line"
            raise ConfigError("against", f"metrics.{name} is {there} in that run and {here} in the other; {advice}")
    if run.store.fingerprint != against.store.fingerprint:
        here, there = (f"{each.config.dataset.name} at {each.config.dataset.image_size}" for each in (run, against))
        raise ConfigError("against", f"that run saw other images ({there}, not {here} as they are here)")
    if list(run.trained.class_counts) != list(against.trained.class_counts):
        raise ConfigError("against", "only one of the two runs is conditional")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Images that cannot be scored are no bug."""
    try:
        yield
    except ValueError as error:
        raise RelganError(str(error)) from error


def _score_pictures(options: EvalOptions, line: Line) -> Result:
    """Score all pictures, or ``metrics.num_images`` of them, at their native size."""
    from relgan.cli.compose import compose
    from relgan.data import prepare
    from relgan.metrics.reference import Pictures, StoreImages

    assert options.images is not None
    if options.reference is None:
        raise ConfigError("reference", f"give a folder, a zip archive or one of {', '.join(DATASETS)}")
    known = options.reference in DATASETS
    words = [*line.words, *([f"dataset={options.reference}"] if known else [])]
    config = compose(Line(words, line.config_dir))
    names = option_names(line.words)
    if "metrics.reference_images" not in names:
        config.metrics = dataclasses.replace(config.metrics, reference_images=None)
    limit = config.metrics.num_images if "metrics.num_images" in names else None
    if _names_neighbours(line, config):
        raise ConfigError("metrics.scores", "neighbours is a picture of a run's images: give run= instead of images=")
    pictures = Pictures(options.images, "images")
    if known:
        return _score(pictures, StoreImages(prepare(config.dataset)), config, config.dataset, limit)
    kind = DATASETS["folder"].options
    return _score(pictures, Pictures(options.reference, "reference"), config, kind, limit)


def _score(pictures: Pictures, real: Images, config: Config, kind: DatasetOptions, limit: int | None) -> Result:
    """``kind`` is the data set that decides which networks and scores make sense."""
    import numpy as np

    from relgan.data.store import fixed_subset
    from relgan.device import prepare_device
    from relgan.metrics.evaluator import Evaluator

    if real.size != pictures.size:
        sizes = ("×".join(map(str, size)) for size in (pictures.size, real.size))
        log.warning("the pictures are %s, the reference %s: a score then also measures that difference", *sizes)
    # Names often sort pictures by class, and some scores split or pair what comes one after the other.
    indices = np.random.RandomState(SHUFFLE).permutation(fixed_subset(len(pictures), limit))
    metrics = dataclasses.replace(
        config.metrics,
        num_images=len(indices),
        modes_images=len(indices),
        lpips_pairs=min(config.metrics.lpips_pairs, len(indices) // 2),
    )
    kind = dataclasses.replace(kind, image_size=min(pictures.size))
    evaluator = Evaluator(metrics, kind, real, latent_dim=0, seed=config.seed, device=prepare_device(config.device))
    scores = evaluator.score(pictures.positioned(indices, metrics.batch_size))
    made = {"images": {**pictures.meta, "fingerprint": pictures.fingerprint}}
    unused = ("generator", "generator_mode", "seed")
    return Result(scores, {**{key: v for key, v in evaluator.protocol.items() if key not in unused}, **made})


def _print_table(result: Result) -> None:
    out = console()
    if result.scores:
        out.print(_comparison_table(result.comparison) if result.comparison else _score_table(result.scores))
    protocol = result.protocol
    if "extractor" not in protocol:  # scores with judges and numbers of images of their own
        return
    known = "" if protocol["weights_known"] else " with unpublished weights"
    out.print(
        f"{protocol['extractor']}{known}, {protocol['num_images']} images against "
        f"{protocol['reference_images']} of {protocol['reference']['name']}",
        highlight=False,
    )


def _score_table(scores: dict[str, float]) -> Table:
    from rich.table import Table

    table = Table("score", "value")
    for key, value in scores.items():
        table.add_row(key, f"{value:.6g}")
    return table


def _comparison_table(comparison: dict[str, Comparison]) -> Table:
    from rich.table import Table

    table = Table("score", "run", "against", "difference, 95 %", "better")
    for key, each in comparison.items():
        own = (f"{value:.4g} ± {high - value:.2g}" for value, _, high in (each.run, each.against))
        value, low, high = each.difference
        table.add_row(key, *own, f"{value:+.3g} ({low:+.3g} … {high:+.3g})", each.better or "not told apart")
    return table


if __name__ == "__main__":
    main()
