"""relgan-train: one run, or with -m a sweep."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from relgan.cache import cache_dir
from relgan.cli import workers
from relgan.cli.command import Line, again, answered, fail, guard, is_rank
from relgan.cli.compose import STARTED, conf_dir, explain_config, open_line, to_config
from relgan.cli.sweep import ENDED, reported, worst
from relgan.cli.words import split_flags, sweeps
from relgan.config import Config, as_values, check_batch_size
from relgan.metrics.catalogue import direction
from relgan.options import ConfigError, RelganError, near
from relgan.progress import progress_bar
from relgan.registry import load_plugins
from relgan.resume import differences
from relgan.rundir import OccupiedError, RunDir
from relgan.streams import lossy

log = logging.getLogger("relgan")

USAGE = """relgan-train trains a GAN with the loss, networks, data and scores named on the command line.

  relgan-train                                      the default: ragan on stacked_digits
  relgan-train loss=ralsgan model=cnn32 dataset=folder dataset.path=photos.zip
  relgan-train resume=auto                          go on with the newest run of this configuration
  relgan-train resume=outputs/NAME/TIME             a new run that goes on from there
  relgan-train -m loss=sgan,ragan seed=1,2,3        a sweep
  relgan-train --config-dir my plugins=[my_gan] loss=mine       parts of your own (docs/extend.md)

-m KEY=A,B … runs every combination; with hydra/launcher=parallel|processes|slurm|cluster several at a time; with
hydra/sweeper=search a search for the best. --cfg job prints the composed configuration and exits; --resolve with it
fills in references; --version; --hydra-help for more.

Exit status: 0 finished or diverged, 1 failed, 2 bad input, 128 + the signal's number interrupted after saving (130:
Ctrl-C).
"""


def main() -> None:
    """Exit statuses: 0 finished, 2 bad input, 129/130/143 interrupted, 1 anything else (with a stack trace)."""
    with guard():
        line = Line.of(sys.argv[1:])
        if answered(line.words, lambda: f"{USAGE}\n{_explained(line)}"):
            return
        # Hydra would print its own several lines and exit with 1.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        # With hydra.job.chdir=true a job works in its own directory.
        os.environ["RELGAN_CACHE"] = str(cache_dir())
        sys.argv[1:] = _arguments(line)
        with _ranks():
            _run_hydra()


def _arguments(line: Line) -> list[str]:
    """What Hydra is given in place of the words that were typed."""
    words, flags = split_flags(line.words)
    words = open_line(dataclasses.replace(line, words=words), sweep=sweeps(words, flags))
    return [*words, *flags, *([] if line.config_dir is None else [f"--config-dir={line.config_dir}"])]


def _explained(line: Line) -> str:
    open_line(line)
    return explain_config(line.config_dir)


@contextlib.contextmanager
def _ranks() -> Iterator[None]:
    """Join torchrun's other ranks, if there are any: one run directory for all, and one that reports."""
    if not is_rank():
        yield
        return
    from relgan import distributed

    distributed.join()
    os.environ[STARTED] = distributed.from_main(f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    try:
        yield
    except SystemExit as end:
        # A run that a signal has stopped ends on all ranks together. One that fails alone must not wait for the others.
        if isinstance(end.code, int) and end.code >= 128:
            distributed.leave()
        raise
    distributed.leave()


def _run_hydra() -> None:
    started = False

    def compose_and_call(node: DictConfig) -> Any:
        nonlocal started
        started = True
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.MULTIRUN and is_rank():
            fail("--multirun: torchrun trains one run on its ranks; start one per job, or sweep without torchrun")
        # In a single run, leaving here keeps Hydra from printing its own report first; a sweep goes on, and a
        # process of its own that a launcher started has not come here through main.
        with guard() if hydra_config.mode == RunMode.RUN else lossy():
            run_dir = RunDir(Path(hydra_config.runtime.output_dir))
            try:
                # A sweep's worker process has not seen the command line.
                load_plugins(node.plugins, _places(hydra_config))
                return train(to_config(node, Path(hydra_config.runtime.cwd)), run_dir.path)
            except (RelganError, OmegaConfBaseException, KeyboardInterrupt, SystemExit):
                # A sweep writes there what was refused.
                if hydra_config.mode == RunMode.RUN:
                    run_dir.discard_unused()
                raise

    try:
        with reported():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(compose_and_call)()
    except ValueError as error:
        if "Only one of --run" in str(error):
            raise RelganError("-m does not go with --cfg or --info") from error
        if "Config group override" not in str(error):
            raise
        given = ", ".join(argument for argument in sys.argv[1:] if argument.endswith("=null"))
        raise RelganError(f"{given}: a group takes one of its choices; relgan-train --help lists them") from error
    except OSError as error:
        if started or isinstance(error, HydraException):
            raise
        raise ConfigError("hydra.run.dir", f"{error.filename}: {error.strerror}") from error


def _places(hydra_config: Any) -> list[Path]:
    """Where plugins lie: the directory in which the command was given, and its --config-dir."""
    sources = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    return [Path(hydra_config.runtime.cwd), *map(Path, sources)]


def _tell_of_other_options(config: Config, ended: RunDir) -> None:
    """A job keeps its place in a sweep although a default has changed since it ended."""
    for option, before, now in differences(ended.read_config(), as_values(config)):
        log.warning("%s has ended with %s=%s, now %s: kept; name= makes a new sweep", ended.path, option, before, now)
        return


def train(config: Config, run_dir: Path) -> float | None:
    """Train; returns what a hyper-parameter search wants to know, see :func:`objective`."""
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    summary = RunDir(run_dir).read_summary()
    if sweeping and workers.asked_to_stop():
        return None
    if sweeping and summary.get("status") in ENDED:
        _tell_of_other_options(config, RunDir(run_dir))
        return objective(config, summary, worst(hydra_config))
    wanted = config.metrics.objective
    if wanted is not None and (not config.metrics.scores or direction(wanted) is None):
        raise ConfigError("metrics.objective", f"{wanted} is not computed, or is no score with a best value")
    if is_rank():
        from relgan.distributed import world_size

        check_batch_size(config, world_size())
    if sweeping and config.resume is None:
        config = dataclasses.replace(config, resume="auto")

    try:
        with progress_bar(0, "starting"):
            from relgan.build import build_run
            from relgan.training.loop import Outcome
            from relgan.training.loop import train as train_run

            run = build_run(
                config,
                run_dir,
                hydra_config.overrides.task,
                sweep=Path(hydra_config.sweep.dir).name if sweeping else None,
                job_type=hydra_config.runtime.choices.get("experiment") or "sweep" if sweeping else "train",
            )
    except OccupiedError as error:
        if not sweeping:
            raise
        log.info("left to the process that has it: %s", error)
        return None
    try:
        outcome = train_run(run, asked_to_stop=workers.asked_to_stop)
    except KeyboardInterrupt:  # a second one, during the saving that the first has brought about
        outcome = Outcome("interrupted", 130)
    if outcome.status == "failed" and sweeping:
        raise RelganError(f"{run_dir}: {outcome.error}")
    if outcome.exit_code and workers.is_worker():
        # Leaving would take the other workers along before they have saved.
        workers.stop(outcome.exit_code - 128)
        return None
    if outcome.exit_code:
        if not sweeping and run.dir.has_checkpoint():
            log.info("continue with: %s", _continuing(config, run_dir, Path(hydra_config.runtime.cwd)))
        raise SystemExit(outcome.exit_code)
    ended = {"status": outcome.status, "final": run.state.history.final}
    return objective(config, ended, worst(hydra_config))


def _continuing(config: Config, run_dir: Path, base: Path) -> str:
    """The command line that goes on with a run in its own directory."""
    place = near(run_dir, base)
    # What was taken from another run's configuration is in that of this run, too.
    resume = "auto" if config.resume in (None, "auto") else place
    return again(**{"hydra.run.dir": place, "resume": resume})


def objective(config: Config, summary: dict[str, Any], worst: float) -> float | None:
    """``metrics.objective`` of a finished run, else its first score; ``worst`` if it diverged; None without scores.

    Raises:
        RelganError: the named score was not computed.
    """
    final: dict[str, float] = summary["final"]
    if summary["status"] == "diverged":
        return worst
    if not final:
        return None
    key = config.metrics.objective or next(iter(final))
    if key not in final:
        raise RelganError(f"metrics.objective: {key} was not computed; there are {', '.join(final)}")
    return final[key]


if __name__ == "__main__":
    main()
