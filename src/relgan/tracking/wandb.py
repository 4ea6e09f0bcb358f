"""A copy of the local records for Weights & Biases; never a prompt, never a reason for training to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relgan.config import TrackerConfig
from relgan.metrics.direction import direction
from relgan.rundir import RunDir
from relgan.tracking.base import Facts, Kind

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("relgan")

# wandb waits about three times its init_timeout before it gives up: together under 20 seconds.
INIT_TIMEOUT_S = 6.0
FINISH_TIMEOUT_S = 60.0


class WandbTracker:
    """One W&B run, closed by :meth:`close`; any failure of W&B is one warning and then silence.

    Args:
        run: begun, or continued.
        checkpoints: the run directory whose best checkpoint is sent at the end; None: none is.
        logged: last step of each kind that an earlier start of the same run has sent; it is not sent again.
    """

    def __init__(self, run: wandb.Run, checkpoints: RunDir | None, logged: Mapping[str, int]) -> None:
        self._run: wandb.Run | None = run
        self.run_id: str | None = run.id
        self._checkpoints = checkpoints
        self._logged = logged
        self._defined: set[str] = set()

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        if step <= self._logged.get(kind, -1):
            return
        if protocol is not None:
            self._attempt(lambda run: run.config.update({"protocol": dict(protocol)}, allow_val_change=True))
        for key in values.keys() - self._defined:
            self._attempt(lambda run, key=key: _define(run, key))  # type: ignore[misc]
            self._defined.add(key)
        self._attempt(lambda run: run.log({**values, "step": step, "time_s": time_s}, step=step))

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        import wandb

        if step < max(self._logged.values(), default=0):
            return
        self._attempt(lambda run: run.log({key: wandb.Image(str(path), caption=caption), "step": step}, step=step))

    def close(self, exit_code: int) -> None:
        if self._checkpoints is not None and exit_code == 0:
            kept = [path for path in (self._checkpoints.best, self._checkpoints.last) if path.exists()]
            if kept:
                self.send("model", kept[:1])
        self._attempt(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def send(self, kind: str, files: Sequence[Path]) -> None:
        """Send files as an artifact of this kind, from where they lie: no copy goes to the user's home."""
        self._attempt(lambda run: _send(run, kind, files))

    def _attempt(self, action: Callable[[wandb.Run], Any]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever breaks in W&B, the experiment goes on
            log.warning("W&B stopped receiving (%s); metrics.jsonl still has everything", _short(error))
            self._run = None


def start(
    config: TrackerConfig,
    *,
    run_dir: Path,
    group: str,
    job_type: str,
    tags: list[str],
    options: Mapping[str, Any],
    run_id: str | None = None,
    logged: Mapping[str, int] | None = None,
) -> WandbTracker | None:
    """Begin (or continue, given ``run_id``) a W&B run, online where that works, else offline.

    Args:
        config: project, entity and mode.
        run_dir: W&B's own files go to its ``wandb/`` folder.
        group: runs that belong together.
        job_type: what kind of run among them this is.
        tags: besides ``config.tags``.
        options: the resolved configuration, shown in the dashboard.
        run_id: of the run to continue.
        logged: the last step of each kind that the run to continue has sent.

    Returns:
        None where W&B cannot even start offline; the reason is logged.
    """
    import wandb

    def init(mode: str | None) -> wandb.Run:
        return wandb.init(
            project=config.project,
            entity=config.entity,
            group=group,
            name=run_dir.name,
            job_type=job_type,
            tags=[*tags, *config.tags],
            config=dict(options),
            # Its service keeps the working directory that it was started in.
            dir=run_dir.resolve(),
            id=run_id,
            resume="allow" if run_id else None,
            mode=mode,  # type: ignore[arg-type]
            reinit="finish_previous",
            settings=_settings(),
        )

    mode = _mode(config)
    try:
        try:
            run = init(mode)
        except Exception as error:
            if config.mode == "online" or mode == "offline":
                raise
            log.warning("W&B did not answer (%s): recording offline", _short(error))
            mode = "offline"
            run = init(mode)
        # Pictures are logged with the step as well, so that it is on every chart's x.
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
    except Exception as error:  # whatever breaks in W&B, the experiment goes on
        log.warning("tracker=wandb: %s; only the run directory is written", _short(error))
        return None
    if run.offline:
        log.info("W&B: offline; send it later with `wandb sync %s`", Path(run.dir).parent)
    else:
        log.info("W&B: %s", run.url)
    return WandbTracker(run, RunDir(run_dir) if config.artifacts else None, logged if logged and run_id else {})


def _send(run: wandb.Run, kind: str, files: Sequence[Path]) -> None:
    import wandb

    artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
    for file in files:
        artifact.add_file(str(file), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def _settings() -> wandb.Settings:
    import wandb

    return wandb.Settings(
        console="off",
        silent=True,
        x_disable_stats=True,
        disable_git=True,
        disable_code=True,
        init_timeout=INIT_TIMEOUT_S,
        # Not waiting for a network that has gone away: the run's files stay, and `wandb sync` sends them.
        finish_timeout=FINISH_TIMEOUT_S,
        # With the default of 15 s, a process killed soon after logging leaves nothing.
        x_transaction_log_flush_interval=1.0,
    )


def _mode(config: TrackerConfig) -> str | None:
    """What to pass to wandb.init; None leaves WANDB_MODE in charge."""
    import os

    import wandb

    wanted = os.environ.get("WANDB_MODE") if config.mode == "auto" else config.mode
    if wanted not in (None, "online"):
        return None if config.mode == "auto" else config.mode
    try:
        # Asked for even where "online" is wanted: without a key, wandb.init would stop at a prompt.
        if wandb.login(prompt=False):
            return None if config.mode == "auto" else config.mode
        if wanted == "online":
            log.warning("W&B: online needs a key (`wandb login`): recording offline")
        return "offline"
    except Exception as error:  # a key that is malformed, or that nobody confirms
        log.warning("W&B did not answer (%s): recording offline", _short(error))
        return "offline"


def _define(run: wandb.Run, key: str) -> None:
    """The summary keeps the best value of a score beside its last."""
    if way := direction(key):
        run.define_metric(key, step_metric="step", summary=f"{way},last")


def _short(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
