"""Training from Python: what ``relgan-train`` does, without a process of its own."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relgan.options import ConfigError, RelganError, user_path
from relgan.rundir import LOG, RunDir
from relgan.streams import lossy

if TYPE_CHECKING:
    from relgan.generator import TrainedGenerator


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        directory: the run directory.
        summary: its summary.json.
    """

    directory: Path
    summary: dict[str, Any] = field(repr=False)

    def load(self, **options: Any) -> TrainedGenerator:
        """Its generator; options as of :func:`relgan.load`."""
        from relgan.generator import load

        return load(self.directory, **options)

    def _repr_png_(self) -> bytes | None:
        """The newest grid of the fixed noise."""
        grids = sorted((self.directory / "samples").glob("step_*.png"))
        return grids[-1].read_bytes() if grids else None


def train(
    words: Sequence[str] = (),
    *,
    directory: str | Path | None = None,
    config_dir: str | Path | None = None,
    log: bool = False,
) -> TrainedRun:
    """Train one run.

    Args:
        words: as on the command line of relgan-train: ``["loss=ragan", "train.iterations=100"]``.
        directory: of the run; None: outputs/NAME/TIME, or that of the run that ``resume=auto`` goes on with.
        config_dir: more configuration files, and plugins.
        log: show the lines that the command would show.

    Raises:
        RelganError: an option, the data or a checkpoint cannot be used, or the run failed.
        KeyboardInterrupt: after the run was saved; ``resume=auto`` goes on with it.
    """
    from relgan.build import build_run
    from relgan.cli.command import Line, user_errors
    from relgan.cli.compose import compose, run_directory
    from relgan.config import absolute_paths
    from relgan.training.loop import train as train_run

    _check(words, config_dir)
    with user_errors():
        config = compose(Line(list(words), None if config_dir is None else user_path(config_dir)))
    config = absolute_paths(config, Path.cwd())
    place = user_path(directory) if directory else run_directory(config, f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    with _made(place), _logged(place, show=log), lossy():
        try:
            run = build_run(config, place, words)
        except ConfigError as error:
            if error.option != "hydra.run.dir":
                raise
            raise ConfigError("directory", str(error).partition(": ")[2]) from error
        outcome = train_run(run, show=log)
    if outcome.exit_code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if outcome.status == "interrupted":
        raise SystemExit(outcome.exit_code)
    if outcome.status == "failed":
        raise RelganError(f"{place}: {outcome.error}")
    return TrainedRun(place, run.dir.read_summary())


def _check(words: Sequence[str], config_dir: str | Path | None) -> None:
    if isinstance(words, str):
        raise RelganError(f'{words!r}: give a list of words, such as ["loss=ragan", "dataset=digits"]')
    for word in words:
        if word.startswith("-"):
            raise RelganError(f"{word}: flags are for the command; relgan.train trains one run")
        if word.lstrip("+~").startswith("hydra"):
            raise RelganError(f"{word}: there is no Hydra job here; directory= names the run directory")
    if config_dir is not None and not user_path(config_dir).is_dir():
        raise ConfigError("config_dir", f"{config_dir} is not a directory")


@contextlib.contextmanager
def _made(directory: Path) -> Iterator[None]:
    """The run's directory, gone again where it was refused before anything but log lines was written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("directory", f"{directory}: {error.strerror}") from error
    try:
        yield
    except RelganError:
        RunDir(directory).discard_unused()
        raise


@contextlib.contextmanager
def _logged(directory: Path, *, show: bool) -> Iterator[None]:
    """relgan's log lines go to train.log, and if ``show`` to the console; nobody else sees them."""
    from relgan.tracking.console import ConsoleHandler, FileHandler

    logger = logging.getLogger("relgan")
    before = logger.level, logger.propagate
    file = FileHandler(directory / LOG, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s] %(message)s"))
    handlers = [file, ConsoleHandler()] if show else [file]
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.level, logger.propagate = before
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
