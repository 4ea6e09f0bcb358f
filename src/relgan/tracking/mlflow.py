"""A copy of the local records for MLflow: an experiment for each group, read by `mlflow ui`."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from relgan.builtin import MlflowOptions
from relgan.options import ConfigError, flatten
from relgan.rundir import RunDir
from relgan.tracking.base import Context, Copy, Facts, Kind

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger("relgan")

_INTERRUPTED = 128  # exit statuses above it are signals


class MlflowTracker(Copy):
    """One MLflow run, ended by :meth:`close`.

    Args:
        checkpoints: the run directory whose best checkpoint is sent at the end; None: none is.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, checkpoints: RunDir | None, logged: Mapping[str, int]
    ) -> None:
        super().__init__(logged)
        self.run_id: str = run_id
        self._client, self._checkpoints = client, checkpoints

    def log(
        self, kind: Kind, step: int, time_s: float, values: Mapping[str, float], protocol: Facts | None = None
    ) -> None:
        from mlflow.entities import Metric

        if not self.is_new(step, kind):
            return
        now = int(1000 * time.time())
        self._client.log_batch(self.run_id, [Metric(key, value, now, step) for key, value in values.items()])
        if protocol is not None:
            self._client.log_dict(self.run_id, dict(protocol), "protocol.json")

    def log_image(self, key: str, step: int, path: Path, caption: str) -> None:
        if self.is_new(step):
            self._client.log_artifact(self.run_id, str(path), key)

    def send(self, kind: str, files: Sequence[Path]) -> None:
        for file in files:
            self._client.log_artifact(self.run_id, str(file), kind)

    def close(self, exit_code: int) -> None:
        if self._checkpoints is not None and exit_code == 0:
            kept = [path for path in (self._checkpoints.best, self._checkpoints.last) if path.exists()]
            self.send("model", kept[:1])
        status = "KILLED" if exit_code > _INTERRUPTED else "FAILED" if exit_code else "FINISHED"
        self._client.set_terminated(self.run_id, status)


def start(options: MlflowOptions, context: Context) -> MlflowTracker:
    """Begin (or continue, given ``context.run_id``) a run.

    Raises:
        ConfigError: MLflow is not installed.
        Exception: its server does not answer; :func:`relgan.tracking.base.start` goes on without it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what it is built on
        client = _client(options)
        checkpoints = RunDir(context.run_dir) if options.artifacts else None
        if context.run_id:
            client.update_run(context.run_id, status="RUNNING")
            return MlflowTracker(client, context.run_id, checkpoints, context.logged)
        tags = {"job_type": context.job_type, "tags": ", ".join(context.tags), "directory": str(context.run_dir)}
        run = client.create_run(_experiment(client, context.group), run_name=context.title, tags=tags)
        for option, value in flatten(context.options).items():
            client.log_param(run.info.run_id, option, value)
    return MlflowTracker(client, run.info.run_id, checkpoints, {})


def _client(options: MlflowOptions) -> MlflowClient:
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise ConfigError("tracker", "mlflow is not installed; pip install 'relgan[mlflow]'") from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = options.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"
    log.info("MLflow: %s", uri)
    return MlflowClient(uri)


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return client.create_experiment(name) if found is None else found.experiment_id
