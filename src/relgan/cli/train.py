"""relgan-train: one run, or with -m a sweep."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from relgan.cli import app, workers
from relgan.cli.sweep import worst
from relgan.config import Config, RelganError
from relgan.rundir import OccupiedError, RunDir

log = logging.getLogger("relgan")


def train(config: Config, run_dir: Path) -> float | None:
    """Train; returns what a hyper-parameter search wants to know, see :func:`objective`."""
    hydra_config = HydraConfig.get()
    sweeping = hydra_config.mode == RunMode.MULTIRUN
    summary = RunDir(run_dir).read_summary()
    if sweeping and workers.asked_to_stop():
        return None
    if sweeping and summary.get("status") in ("finished", "diverged"):
        log.info("already %s: %s", summary["status"], run_dir)
        return objective(config, summary, worst(hydra_config))
    if sweeping and config.resume is None:
        config = dataclasses.replace(config, resume="auto")

    from relgan.build import build_run
    from relgan.training.loop import train as train_run

    try:
        run = build_run(
            config,
            run_dir,
            hydra_config.overrides.task,
            group=Path(hydra_config.sweep.dir).name if sweeping else None,
            job_type=hydra_config.runtime.choices.get("sweep") or "sweep" if sweeping else "train",
        )
    except OccupiedError as error:
        if not sweeping:
            raise
        log.info("left to the process that has it: %s", error)
        return None
    outcome = train_run(run)
    if outcome.status == "failed" and sweeping:
        raise RelganError(f"{run_dir}: {outcome.error}")
    if outcome.exit_code and workers.is_worker():
        # Leaving would take the other workers along before they have saved.
        workers.stop(outcome.exit_code - 128)
        return None
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    return objective(config, {"status": outcome.status, "final": run.final}, worst(hydra_config))


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


def main() -> None:
    app.run(train)


if __name__ == "__main__":
    main()
