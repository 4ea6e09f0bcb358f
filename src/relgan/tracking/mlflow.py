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
from relgan.cache import locked
from relgan.options import ConfigError, flatten
from relgan.rundir import RunDir
from relgan.tracking.base import Context, Copy, Facts, Kind

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger("relgan")

# A server that does not answer must not hold training back; by itself MLflow would try for minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "6"}
_MOST_PARAMS = 100  # of one request
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
        status = "KILLED" if exit_code > _INTERRUPTED else "FAILED" if exit_code else "FINISHED"
        try:
            if self._checkpoints is not None and exit_code == 0:
                self.send("model", self._checkpoints.best_or_last())
        finally:
            self._client.set_terminated(self.run_id, status)


def start(options: MlflowOptions, context: Context) -> MlflowTracker:
    """Begin (or continue, given ``context.run_id``) a run.

    Raises:
        ConfigError: MLflow is not installed.
        Exception: its server does not answer; :func:`relgan.tracking.base.start` goes on without it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what it is built on
        try:
            from mlflow.entities import Param
        except ImportError:
            raise ConfigError("tracker", "mlflow is not installed; pip install 'relgan[mlflow]'") from None

        # Jobs that start together would create one database, or one experiment, at the same time.
        with locked(Path(options.folder).absolute() / "mlflow.db"):
            client = _client(options)
            experiment = _experiment(client, context.group)
        checkpoints = RunDir(context.run_dir) if options.artifacts else None
        if context.run_id:
            client.update_run(context.run_id, status="RUNNING")
            return MlflowTracker(client, context.run_id, checkpoints, context.logged)
        tags = {"job_type": context.job_type, "tags": ", ".join(context.tags), "directory": str(context.run_dir)}
        run = client.create_run(experiment, run_name=context.title, tags=tags)
        params = [Param(option, str(value)) for option, value in flatten(context.options).items()]
        for first in range(0, len(params), _MOST_PARAMS):
            client.log_batch(run.info.run_id, params=params[first : first + _MOST_PARAMS])
    return MlflowTracker(client, run.info.run_id, checkpoints, {})


def _client(options: MlflowOptions) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    uri = (
        options.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(options.folder).absolute()}/mlflow.db"
    )
    log.info("MLflow: %s", uri)
    return MlflowClient(uri)


def _experiment(client: MlflowClient, name: str) -> str:
    """The identifier of the experiment of that name, old or new."""
    found = client.get_experiment_by_name(name)
    return client.create_experiment(name) if found is None else found.experiment_id
