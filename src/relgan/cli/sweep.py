"""What -m adds to relgan-train: stable job directories, failures that stop nothing else, a table at the end.

What a job logs goes into its own train.log; the console has a line for each job that ends, and what went wrong.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from relgan.cli import workers
from relgan.cli.command import EXIT_BAD_INPUT, again, fail
from relgan.metrics.catalogue import card_of, direction
from relgan.options import ConfigError, RelganError, first_line, near
from relgan.progress import Sweep, in_sweep
from relgan.registry import TrackerOptions
from relgan.rundir import RunDir
from relgan.tracking.console import console, ending_line, lasting

log = logging.getLogger("relgan")

SLUG_LENGTH = 80
DIGEST_LENGTH = 8
PAGE = "report.html"
PAGE_EVERY_S = 30.0  # of a sweep that goes on; for a hundred runs a page takes seconds
# They say where and how a sweep runs, not what its jobs are.
NOT_OF_THE_JOB = ("name", "fail_fast", "device", "tracker", "plugins", "hydra")

# Where a sweep tells its workers what it is: {"jobs": how many, "over": [the options that differ]}.
SWEEP = "RELGAN_SWEEP"
ENDED = ("finished", "diverged")
NEGLIGIBLE = 30.0  # seconds
TRIALS = "n_trials"  # of a search, which has as many jobs

FIRST_IN_SLUG = ("dataset=", "loss=", "seed=", "model=", "penalty=", "optimizer=")


def job_name(overrides: Iterable[str]) -> str:
    """Directory of a sweep's job: its own overrides, readable, and a hash of them.

    Independent of the job's number and of the order of the options, so that adding values to a sweep moves
    no job. Safe as a file name whatever the values are.
    """
    own = sorted(o for o in overrides if re.split(r"[.=/]", o.lstrip("+~"), maxsplit=1)[0] not in NOT_OF_THE_JOB)
    telling = sorted(own, key=lambda override: not override.startswith(FIRST_IN_SLUG))
    slug = re.sub(r"[^A-Za-z0-9=.+-]+", "_", ",".join(telling))[:SLUG_LENGTH].strip("_.")
    digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:DIGEST_LENGTH]
    return f"{slug}-{digest}" if slug else digest


def search_direction(objective: str | None, scores: Sequence[str]) -> str:
    """minimize or maximize, as a search for the best ``objective``, else the first of ``scores``, has to.

    Raises:
        ConfigError: there is no score, or none that can be better or worse.
    """
    ranked = [key.name for score in scores[:1] for key in card_of(score).keys if key.better]
    key = objective or next(iter(ranked), "")
    way = direction(key)
    if way is None:
        raise ConfigError("metrics.objective", f"a search needs a score with a best value, not {key or 'none'}")
    return f"{way}imize"


def worst(hydra_config: Any) -> float:
    """What a job that diverged or failed is worth to a search: infinitely bad in the sweeper's direction."""
    return -math.inf if "maximize" in str(hydra_config.sweeper.get("direction")) else math.inf


def swept(config: DictConfig) -> tuple[int | None, list[str]]:
    """How many jobs a sweep has, None where only its sweeper knows, and the options that it goes over."""
    sweeper = config.hydra.sweeper
    params = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    several = {each.get_key_element(): each for each in overrides}
    over = {name: each for name, each in several.items() if each.is_sweep_override()}
    if TRIALS in sweeper:
        return int(sweeper[TRIALS]), list(over)
    if not str(sweeper._target_).endswith(".BasicSweeper"):
        return None, list(over)
    return math.prod(len(list(each.sweep_string_iterator())) for each in over.values()), list(over)


def jobs_at_once(sweeper: DictConfig, jobs: int | None) -> int | None:
    """How many of its jobs a sweeper gives to the launcher together, None where only it knows."""
    # As Optuna and as Hydra itself call it.
    limits = (jobs, sweeper.get("n_jobs"), sweeper.get("max_batch_size"))
    return min((limit for limit in limits if limit), default=None)


def told_by(overrides: Iterable[str]) -> str:
    """What tells a job from the others of its sweep."""
    over = _sweep_of_this_process().get("over")
    names = [(word, re.split(r"=", word.lstrip("+~"), maxsplit=1)[0]) for word in overrides]
    own = [word for word, name in names if name.partition(".")[0] not in NOT_OF_THE_JOB]
    return " ".join(own if over is None else [word for word, name in names if name in over])


def _sweep_of_this_process() -> dict[str, Any]:
    """Empty where the launcher hands on no environment."""
    found: dict[str, Any] = json.loads(os.environ.get(SWEEP, "{}"))
    return found


def share_machine(jobs: int | None) -> None:
    """Give each of ``jobs`` that submitit runs at once on this machine its share of the cores, and a GPU.

    Multi-threaded processes on the same cores wait for each other; joblib's workers share by themselves. And submitit
    hides every GPU from its local jobs. A number of threads that the user has set stays.
    """
    import torch

    os.environ[workers.GPUS] = os.environ.get("CUDA_VISIBLE_DEVICES", workers.ALL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // (jobs or 1))))


class SweepCallback(Callback):
    """Keeps a sweep going after a failed job, and reports on all of them at its end.

    Works with the basic, joblib and submitit launchers: a job's result travels in its run directory, not in
    this object, which each process has its own copy of.
    """

    running: ClassVar[SweepCallback | None] = None
    """The one of the sweep that this process has started and not yet reported on."""
    sweep: Sweep | None = None
    """The jobs that this process runs itself."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a search that looks for nothing; be ready to pass Ctrl-C on to joblib's workers."""
        self.started = time.time()
        if "direction" in config.hydra.sweeper:
            try:
                wanted = search_direction(config.metrics.objective, config.metrics.scores)
            except ConfigError as error:
                fail(str(error))
            if wanted not in str(config.hydra.sweeper.direction):
                fail(f"hydra.sweeper.direction: {wanted} it, or choose another metrics.objective")
        self.config = config
        SweepCallback.running = self
        jobs, over = swept(config)
        self._announce(jobs, over)
        if "n_jobs" in config.hydra.launcher:
            workers.lead()
        if str(config.hydra.launcher._target_).endswith(".LocalLauncher"):
            share_machine(jobs_at_once(config.hydra.sweeper, jobs))

    def _announce(self, jobs: int | None, over: list[str]) -> None:
        os.environ[SWEEP] = json.dumps({"jobs": jobs, "over": over})
        self.sweep = Sweep(jobs)
        in_sweep(self.sweep)
        count = "jobs" if jobs is None else "1 job" if jobs == 1 else f"{jobs} jobs"
        place = near(Path(self.config.hydra.sweep.dir).absolute())
        print(f"{count}{' over ' if over else ''}{', '.join(over)} in {place}", flush=True)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make a worker process ready for its first job."""
        if config.hydra.mode == RunMode.MULTIRUN:
            workers.enter(Path(config.hydra.sweep.dir))
            self.before = RunDir(Path(config.hydra.runtime.output_dir)).read_summary().get("status")
            if self.sweep is not None:
                self.sweep.job = told_by(config.hydra.overrides.task)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Say how it ended; record a failure where the job's own files are and let the others run."""
        gc.collect()
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        run = RunDir(Path(config.hydra.runtime.output_dir))
        failed = job_return.status == JobStatus.FAILED
        if failed:
            self._record(run, config, job_return._return_value)
        self._tell(run, config)
        grow_page(Path(config.hydra.sweep.dir))
        if failed and config.fail_fast:
            raise SystemExit(1)
        if failed:
            # Hydra would raise the first failure after the last job and show none of the others.
            job_return.status = JobStatus.COMPLETED
            job_return.return_value = worst(config.hydra)

    def _tell(self, run: RunDir, config: DictConfig) -> None:
        """One line on the job that has ended, and when the sweep will."""
        summary = run.read_summary()
        status, told = str(summary.get("status")), told_by(config.hydra.overrides.task)
        skipped = status == self.before and status in ENDED
        left = None
        if self.sweep is not None:
            self.sweep.end_job(worked=not skipped)
            left = self.sweep.clock.left(self.sweep.done, self.sweep.total)
        parts = [
            f"{config.hydra.job.num + 1}/{_sweep_of_this_process().get('jobs') or '?'}",
            f"already {status}" if skipped else status,
            told,
            _score(summary, config.metrics.objective),
            *([] if skipped or "seconds" not in summary else [lasting(summary["seconds"])]),
            *([f"the sweep {ending_line(left)}"] if left is not None and left > NEGLIGIBLE else []),
        ]
        print("  ".join(filter(None, parts)), flush=True)

    def _record(self, run: RunDir, config: DictConfig, error: Any) -> None:
        """Write a failure where the job's own files are."""
        # A refused configuration has left no directory, and train.log needs one.
        run.path.mkdir(parents=True, exist_ok=True)
        line = str(error) if isinstance(error, RelganError) else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        log.error("failed: %s", line if isinstance(error, RelganError) else trace)
        run.write_summary(
            {
                "step": 0,
                "final": {},
                "best": {},
                "command": list(config.hydra.overrides.task),
                **run.read_summary(),
                "status": "failed",
                "error": trace,
            }
        )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Show how every job ended, write the comparison page, and exit with 1 if any failed."""
        if number := workers.asked_to_stop():
            raise SystemExit(128 + number)  # reported like every other early end
        runs = self.report()
        # A named sweep may hold jobs that failed under another line.
        own = (run for run in runs if (run.path / "summary.json").stat().st_mtime >= self.started)
        if any(run.read_summary().get("status") == "failed" for run in own):
            raise SystemExit(1)

    def report(self) -> list[RunDir]:
        """Show how every job ended, and write the comparison page; returns the jobs."""
        SweepCallback.running = None
        in_sweep(None)
        sweep_dir = Path(self.config.hydra.sweep.dir)
        runs = _jobs(sweep_dir)
        if runs:
            _print_table(runs, self.config.metrics.objective)
            _write_report(sweep_dir, self.config)
        for name in (SWEEP, workers.GPUS):
            os.environ.pop(name, None)
        return runs


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Report also on a sweep that ends before all of its jobs have, which Hydra tells no callback."""
    try:
        yield
    except BaseException as error:
        number, sweep = workers.asked_to_stop(), SweepCallback.running
        if lost := _lost_job(error):
            log.error("%s", lost)
        jobs = [] if sweep is None else sweep.report()
        if sweep is not None and jobs and (number or lost or _can_go_on(error)):
            # Unless a name gives it one, the sweep's directory is a new one each time.
            place = near(Path(sweep.config.hydra.sweep.dir).absolute())
            print("continue with:", again() if sweep.config.name else again(**{"hydra.sweep.dir": place}), flush=True)
        if number:
            # Whatever was raised comes of it: a worker, for one, that the signal found before it could answer.
            raise SystemExit(128 + number) from error
        if lost:
            raise SystemExit(1) from error
        raise


def _lost_job(error: BaseException) -> str | None:
    """What to say where submitit waited in vain for a job: it was cancelled or killed, or its machine failed."""
    submitit = sys.modules.get("submitit")
    if submitit is None or not isinstance(error, submitit.core.utils.UncompletedJobError):
        return None
    job, state = (re.search(pattern, str(error)) for pattern in (r"Job (\S+)", r"\(state: (.+)\)"))
    which = f"job {job[1]} left no result ({state[1]})" if job and state else first_line(error)
    return f"{which}; the other jobs go on"


def _can_go_on(error: BaseException) -> bool:
    """Whether the same line again would go on: not where it was refused, or met a bug."""
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code != EXIT_BAD_INPUT)


def _jobs(sweep_dir: Path) -> list[RunDir]:
    return [RunDir(path.parent) for path in sorted(sweep_dir.glob("*/summary.json"))]


def _print_table(runs: Sequence[RunDir], objective: str | None) -> None:
    """One line a job, by what tells it from the others, and the end of its directory's name."""
    from rich.table import Column, Table

    summaries = [run.read_summary() for run in runs]
    columns = [Column(title, no_wrap=True) for title in ("status", "updates", "score", "time", "directory")]
    table = Table(Column("job", overflow="fold"), *columns, box=None)
    commands = [[str(word) for word in summary.get("command") or ()] for summary in summaries]
    shared = set.intersection(*map(set, commands))
    for run, summary, command in zip(runs, summaries, commands, strict=True):
        table.add_row(
            " ".join(word for word in command if word not in shared) or told_by(command),
            str(summary.get("status", "unknown")),
            str(summary.get("step", "")),
            _score(summary, objective),
            lasting(summary.get("seconds", 0)),
            f"*{run.path.name[-DIGEST_LENGTH:]}",
        )
    console().print(table)


def _score(summary: dict[str, Any], objective: str | None) -> str:
    """The final value of the objective, else of the first score the job was told to compute."""
    scores = summary.get("final") or {}
    key = objective if objective in scores else next(iter(scores), None)
    return "" if key is None else f"{key.removeprefix('eval/')} {scores[key]:.4g}"


def grow_page(sweep_dir: Path) -> None:
    """The comparison page of the jobs so far, unless it is new or another job's process is writing it."""
    from relgan.report import write_report

    page = sweep_dir / PAGE
    # What is wrong now will be told at the end.
    with (
        contextlib.suppress(Timeout, OSError, RelganError),
        FileLock(page.with_name(f".{page.name}.lock"), timeout=0),
    ):
        if not page.exists() or time.time() - page.stat().st_mtime > PAGE_EVERY_S:
            write_report([sweep_dir], sweep_dir, PAGE, _sweep_of_this_process().get("jobs") or 0)


def _write_report(sweep_dir: Path, config: DictConfig) -> None:
    from relgan.report import write_report

    try:
        page = write_report([sweep_dir], sweep_dir, PAGE)
    except (OSError, RelganError) as error:
        log.warning("no comparison page: %s", error)
        return
    print(f"comparison page: {near(page)}", flush=True)
    if getattr(config.tracker, "artifacts", False):
        _send_report(sweep_dir, page, config)


def _send_report(sweep_dir: Path, page: Path, config: DictConfig) -> None:
    from relgan.report import csv_of
    from relgan.tracking.base import Context, Trackers, start

    options = OmegaConf.to_object(config.tracker)
    assert isinstance(options, TrackerOptions)
    named = {"name": config.name}
    run = start(options, Context(sweep_dir, sweep_dir.name, "report", options=named, alone=False))
    if run is not None:
        trackers = Trackers(others={options.name: run})
        trackers.send("report", [page, csv_of(page)])
        trackers.close(0)
