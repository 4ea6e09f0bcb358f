"""A copy of the local records for Weights & Biases; never a prompt, never a reason for training to stop.

What no option says, W&B's own environment variables do: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE, WANDB_NAME,
WANDB_RUN_GROUP, WANDB_JOB_TYPE, WANDB_TAGS, WANDB_NOTES, WANDB_DIR.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relgan.builtin import WandbOptions
from relgan.metrics.catalogue import direction
from relgan.options import first_line, near, split_values
from relgan.rundir import RunDir
from relgan.tracking.base import Context, Copy, Facts, Kind

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("relgan")

# wandb waits about three times its init_timeout before it gives up: together under 20 seconds.
INIT_TIMEOUT_S = 6.0
FINISH_TIMEOUT_S = 60.0
_LONGEST_ID = 100  # of 128 characters
# What makes everything that a process sends one run, or look like one.
OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_NAME")


class WandbTracker(Copy):
    """One W&B run, closed by :meth:`close`.

    Args:
        run: begun, or continued.
        checkpoints: the run directory whose best checkpoint is sent at the end; None: none is.
        logged: last step of each kind that an earlier start of the same run has sent.
    """

    def __init__(self, run: wandb.Run, checkpoints: RunDir | None, logged: Mapping[str, int]) -> None:
        super().__init__(logged)
        self._run = run
        self.run_id = run.id
        self.url = None if run.offline else run.url
        self._checkpoints = checkpoints
        self._defined: set[str] = set()

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        if not self.is_new(step, kind):
            return
        if protocol is not None:
            self._run.config.update({"protocol": dict(protocol)}, allow_val_change=True)
        for key in values.keys() - self._defined:
            # The summary keeps the best value of a score beside its last.
            if way := direction(key):
                self._run.define_metric(key, step_metric="step", summary=f"{way},last")
            self._defined.add(key)
        self._run.log({**values, "step": step, "time_s": time_s}, step=step)

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        import wandb

        if self.is_new(step):
            self._run.log({key: wandb.Image(str(path), caption=caption), "step": step}, step=step)

    def send(self, kind: str, files: Sequence[Path]) -> None:
        """Send files as an artifact of this kind, from where they lie: no copy goes to the user's home."""
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._run.id}", type=kind)
        for file in files:
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        try:
            if self._checkpoints is not None and exit_code == 0 and (kept := self._checkpoints.best_or_last()):
                self.send("model", kept)
        finally:
            self._run.finish(exit_code=exit_code)


def start(options: WandbOptions, context: Context) -> WandbTracker | None:
    """Begin (or continue, given ``context.run_id``) a W&B run, online where that works, else offline.

    None where WANDB_MODE is disabled.

    Raises:
        Exception: W&B cannot even start offline; :func:`relgan.tracking.base.start` goes on without it.
    """
    if options.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled":
        return None
    for name in () if context.alone else OF_ONE_RUN:
        os.environ.pop(name, None)
    mode = _mode(options)
    try:
        run = _init(options, context, mode)
    except Exception as error:
        if options.mode == "online" or mode == "offline":
            raise
        log.warning("W&B did not answer (%s): recording offline", first_line(error))
        run = _init(options, context, "offline")
    # Pictures are logged with the step as well, so that it is on every chart's x.
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    if run.offline:
        log.info("W&B: offline; send it later with `wandb sync %s`", shlex.quote(near(Path(run.dir).parent)))
    else:
        log.info("W&B: %s", run.url)
    checkpoints = RunDir(context.run_dir) if options.artifacts else None
    return WandbTracker(run, checkpoints, context.logged if context.run_id else {})


def _init(options: WandbOptions, context: Context, mode: str | None) -> wandb.Run:
    import wandb

    return wandb.init(
        project=options.project or _variable("PROJECT", "relgan"),
        entity=options.entity,
        group=context.group if context.options.get("name") else _variable("RUN_GROUP", context.group),
        name=_variable("NAME", context.title),
        job_type=_variable("JOB_TYPE", context.job_type),
        tags=[*context.tags, *(options.tags or split_values(_variable("TAGS", "")))],
        config={**context.options, "choices": _choices(context.options)},
        # Its service keeps the working directory that it was started in.
        dir=Path(_variable("DIR", str(context.run_dir))).resolve(),
        id=context.run_id or _variable("RUN_ID", _new_id(context)),
        resume="allow" if context.run_id else None,
        mode=mode,  # type: ignore[arg-type]
        reinit="finish_previous",
        settings=_settings(options),
    )


def _choices(options: Mapping[str, Any]) -> dict[str, str]:
    """The name of each group's choice.

    Where an agent of W&B sweeps over a group, W&B keeps the name alone in the place of the group's values, locked.
    """
    groups = {group: values for group, values in options.items() if isinstance(values, Mapping)}
    return {group: values["name"] for group, values in groups.items() if "name" in values}


def _new_id(context: Context) -> str:
    """The run directory's name in the letters that W&B takes, and what makes it the only one of a project."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', context.run_dir.name)[:_LONGEST_ID]}-{secrets.token_hex(4)}"


def _variable(name: str, default: str) -> str:
    """What W&B's environment variable says; where it is not set, or empty, the default."""
    return os.environ.get(f"WANDB_{name}") or default


def _settings(options: WandbOptions) -> wandb.Settings:
    import wandb

    return wandb.Settings(
        console="wrap" if options.console else "off",
        silent=True,
        x_disable_stats=not options.system_metrics,
        disable_git=not options.git,
        disable_code=not options.code,
        save_code=options.code,
        init_timeout=INIT_TIMEOUT_S,
        # Not waiting for a network that has gone away: the run's files stay, and `wandb sync` sends them.
        finish_timeout=FINISH_TIMEOUT_S,
        # With the default of 15 s, a process killed soon after logging leaves nothing.
        x_transaction_log_flush_interval=1.0,
    )


def _mode(options: WandbOptions) -> str | None:
    """What to pass to wandb.init; None leaves WANDB_MODE in charge."""
    import wandb

    wanted = os.environ.get("WANDB_MODE") if options.mode == "auto" else options.mode
    if wanted not in (None, "online"):
        return None if options.mode == "auto" else options.mode
    try:
        # Asked for even where "online" is wanted: without a key, wandb.init would stop at a prompt.
        if wandb.login(prompt=False):
            return None if options.mode == "auto" else options.mode
        if wanted == "online":
            log.warning("W&B: online needs a key (`wandb login`): recording offline")
        return "offline"
    except Exception as error:  # a key that is malformed, or that nobody confirms
        log.warning("W&B did not answer (%s): recording offline", first_line(error))
        return "offline"
