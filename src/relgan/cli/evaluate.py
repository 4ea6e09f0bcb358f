"""relgan-eval: score a checkpoint again, or any folder or archive of pictures."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from relgan.cli.command import CommandOptions, Line, command
from relgan.config import Config, option_names, overlay, resolve
from relgan.files import writing
from relgan.options import ConfigError, RelganError, option, user_path
from relgan.registry import DATASETS, DatasetOptions
from relgan.tracking.console import console

if TYPE_CHECKING:
    from relgan.metrics.reference import Images, Pictures

USAGE = """relgan-eval RUN [checkpoint=best|last] [metrics=…] [out=FILE.json]
relgan-eval images=FOLDER_OR_ZIP reference=FOLDER_OR_ZIP_OR_DATASET [metrics=…] [out=FILE.json]

A run is scored as in training unless metrics say otherwise; pictures of any size are scored at that size.
Also accepted: metrics=default|quick|paper_cifar10, seed, device, dataset.path.
"""
_RUN_MAY_CHANGE = ("metrics", "device", "seed", "dataset.path", "plugins")

log = logging.getLogger("relgan")


@dataclass
class EvalOptions(CommandOptions):
    run: str = option("", "a run directory or a checkpoint; run= may be left out")
    checkpoint: str | None = option(
        None, "of a run directory: best, last, or another in checkpoints/; null: best, or last of a run without scores"
    )
    images: str | None = option(None, "instead of a run: pictures to score")
    reference: str | None = option(None, "what pictures are compared with: other pictures, or a data set by name")
    out: str | None = option(None, 'FILE.json: also write {"scores": …, "protocol": …}')


class Result(NamedTuple):
    """What ``out=FILE.json`` holds."""

    scores: dict[str, float]
    protocol: dict[str, Any]


def main() -> None:
    command(EvalOptions, USAGE, evaluate, positional="run", composes=("metrics",))


def evaluate(options: EvalOptions, line: Line) -> None:
    """Score, print, and write what was asked for."""
    if bool(options.run) == bool(options.images):
        raise RelganError("give either run=RUN_DIRECTORY or images=FOLDER_OR_ZIP")
    out = user_path(options.out) if options.out else None
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError("out", f"{out.parent} is not a directory")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    result = _score_run(options, line) if options.run else _score_pictures(options, line)
    _print_table(result)
    if out is not None:
        with writing("out", out):
            out.write_text(json.dumps(result._asdict(), indent=2) + "\n", "utf-8")


def _score_run(options: EvalOptions, line: Line) -> Result:
    """With the run's own configuration the numbers are those of training."""
    from relgan.cli.compose import compose
    from relgan.data import prepare
    from relgan.generator import from_checkpoint, read_checkpoint
    from relgan.metrics.evaluator import Evaluator
    from relgan.rundir import RunDir
    from relgan.training.engine import prepare_device

    for name in option_names(line.words):
        if not any(name == known or name.startswith(f"{known}.") for known in _RUN_MAY_CHANGE):
            raise ConfigError(name, f"with run=, only {', '.join(_RUN_MAY_CHANGE)} can be given")
    composed = compose(line)
    scored = RunDir(user_path(options.run)).best.exists()
    saved = read_checkpoint(options.run, options.checkpoint or ("best" if scored else "last"))
    config = overlay(resolve(saved["config"]), composed, line.words)
    device = prepare_device(config.device)
    store = prepare(config.dataset)
    trained = from_checkpoint(saved, weights=config.metrics.generator, device=device)
    evaluator = Evaluator(
        config.metrics,
        config.dataset,
        store,
        latent_dim=trained.latent_dim,
        seed=config.seed,
        device=device,
        class_counts=trained.class_counts,
    )
    try:
        return Result(evaluator.evaluate(trained.module), {**evaluator.protocol, "step": trained.step})
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
    pictures = Pictures(options.images, "images")
    if known:
        return _score(pictures, StoreImages(prepare(config.dataset)), config, config.dataset, limit)
    kind = DATASETS["folder"].options
    return _score(pictures, Pictures(options.reference, "reference"), config, kind, limit)


def _score(pictures: Pictures, real: Images, config: Config, kind: DatasetOptions, limit: int | None) -> Result:
    """``kind`` is the data set that decides which networks and scores make sense."""
    from relgan.data.store import fixed_subset
    from relgan.metrics.evaluator import Evaluator
    from relgan.training.engine import prepare_device

    if real.size != pictures.size:
        sizes = ("×".join(map(str, size)) for size in (pictures.size, real.size))
        log.warning("the pictures are %s, the reference %s: a score then also measures that difference", *sizes)
    indices = fixed_subset(len(pictures), limit)
    metrics = dataclasses.replace(
        config.metrics,
        scores=[score for score in config.metrics.scores if score != "neighbours"],
        num_images=len(indices),
        modes_images=len(indices),
        lpips_pairs=min(config.metrics.lpips_pairs, len(indices) // 2),
    )
    evaluator = Evaluator(metrics, kind, real, latent_dim=0, seed=config.seed, device=prepare_device(config.device))
    scores = evaluator.score(pictures.positioned(indices, metrics.batch_size))
    made = {"images": {**pictures.meta, "fingerprint": pictures.fingerprint}}
    unused = ("generator", "generator_mode", "seed")
    return Result(scores, {**{key: v for key, v in evaluator.protocol.items() if key not in unused}, **made})


def _print_table(result: Result) -> None:
    from rich.table import Table

    table = Table("score", "value")
    for key, value in result.scores.items():
        table.add_row(key, f"{value:.6g}")
    out = console()
    out.print(table)
    protocol = result.protocol
    known = "" if protocol.get("weights_known", True) else " with unpublished weights"
    out.print(
        f"{protocol.get('extractor', 'no feature network')}{known}, {protocol['num_images']} images against "
        f"{protocol['reference_images']} of {protocol['reference']['name']}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
