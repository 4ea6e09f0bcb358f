"""The one composition root: a checked configuration becomes the objects of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from relgan.config import Config, ConfigError, MetricsConfig, RelganError, check_batch_size, run_name
from relgan.data import prepare
from relgan.data.sampler import Batches, Sampler
from relgan.data.store import PackedStore
from relgan.distributed import is_main, largest, own_part, rank, world_size
from relgan.losses import get_loss
from relgan.metrics.direction import direction
from relgan.networks import build_networks
from relgan.penalties import build_penalty
from relgan.rundir import OccupiedError, RunDir, differences, find_checkpoint
from relgan.tracking.base import JsonLines, Tracker, Trackers
from relgan.training import checkpoint
from relgan.training.ema import EMA
from relgan.training.engine import (
    build_iteration,
    choose_device,
    choose_engine,
    choose_precision,
    keep_freed_memory,
)
from relgan.training.iteration import Eager, Iteration
from relgan.training.run import Run
from relgan.training.schedule import build_optimizers, build_schedule, total_iterations
from relgan.training.state import TrainState
from relgan.training.step import Step

if TYPE_CHECKING:
    from relgan.metrics.evaluator import Evaluator

log = logging.getLogger("relgan")


def build_run(
    config: Config,
    run_dir: Path,
    overrides: Sequence[str] = (),
    *,
    group: str | None = None,
    job_type: str = "train",
) -> Run:
    """Prepare the data, build everything and, when asked, continue from a checkpoint.

    Args:
        config: checked by ``relgan.config.validate``.
        run_dir: created if needed.
        overrides: the command line that led to ``config``, kept in the summary.
        group: what W&B shows together; by default runs of the same name.
        job_type: what kind of run this is to W&B.

    Raises:
        RelganError: the data, the device, the weights of a score or the checkpoint cannot be used; nothing was
            trained and no file of an earlier run was touched.
    """
    directory = RunDir(run_dir)
    saved, source = _find_saved(config, directory)
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    # Batches have one size, so looking once for the fastest convolutions pays.
    torch.backends.cudnn.benchmark = device.type == "cuda"
    store = prepare(config.dataset)
    engine = choose_engine(config.engine, device, accumulate=config.train.accumulate, ranks=world_size())
    state, step = _build_training(config, store, device, captured=engine == "cudagraph")
    if saved is not None:
        _check_data(saved, store)
        state.load_state_dict(saved)
    total = total_iterations(config.train, config.optimizer.n_critic, len(store))
    if state.step > total:
        raise ConfigError("train.iterations", f"the checkpoint is at {state.step} updates already; give more")
    _check_objective(config.metrics)
    evaluator = _build_evaluator(config, store, device)
    in_place = source is not None and _is_own(source, directory)
    # What another directory's run was scored and tracked as belongs to it.
    own = saved if saved is not None and in_place else {}
    logged = directory.last_logged()
    engine, iteration = _build_iteration(config, engine, step, store.channels)
    # Together: no rank may still be looking for what to continue when rank 0 begins to write.
    if (newest := largest(state.step)) != state.step:
        raise RelganError(f"resume: other ranks continue at update {newest}, this one finds {state.step}")
    lock = _occupy(directory)
    visited = saved is None or bool(saved.get("visited", True))
    if is_main():
        directory.write_config(config)
        # Lines after the checkpoint, or of a start that never reached one, are about to be written again.
        kept = visited and state.step not in (0, total)
        directory.truncate_metrics(state.step if in_place else -1, with_scores=kept)
    run = Run(
        config=config,
        dir=directory,
        device=device,
        store=store,
        state=state,
        step=step,
        iteration=iteration,
        engine=engine,
        evaluator=evaluator,
        trackers=_build_trackers(
            config,
            directory,
            group=group or run_name(config),
            job_type=job_type,
            run_id=own.get("tracker_run_id"),
            logged=logged,
        ),
        total=total,
        command=list(overrides),
        resumed_from=None if source is None else str(source),
        lock=lock,
        final=own.get("final", {}),
        best=own.get("best", {}),
        ranking=own.get("ranking", {}),
        visited=visited,
    )
    run.write_summary("running")
    if source is not None:
        log.info("continuing from %s at update %d", source, state.step)
    return run


def _occupy(directory: RunDir) -> FileLock:
    """Create the directory and keep every other run from training in it until rank 0 releases the lock."""
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory.lock)
        if is_main():
            lock.acquire(blocking=False)
    except Timeout as error:
        raise OccupiedError(f"{directory.path} is being trained in by another process") from error
    except OSError as error:
        raise ConfigError("hydra.run.dir", f"{directory.path}: {error.strerror}") from error
    return lock


def _build_training(
    config: Config, store: PackedStore, device: torch.device, *, captured: bool
) -> tuple[TrainState, Step]:
    torch.manual_seed(config.seed)
    generator, critic = build_networks(config.model, config.dataset.image_size, store.channels)
    for network in (generator, critic):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Apple's fused kernel does not know the mask that keeps weights from a gradient that is not finite.
    optimizers = build_optimizers(config.optimizer, generator, critic, fused=device.type != "mps", captured=captured)
    check_batch_size(config, world_size())
    own_batch = config.train.batch_size // world_size()
    sampler = Sampler(len(store), own_batch, config.dataset.sampling, config.seed, rank(), world_size())
    batches = Batches(store, sampler, device, config.dataset.hflip, config.dataset.residence)
    state = TrainState(
        generator=generator,
        critic=critic,
        ema=EMA(generator, config.train.ema_decay),
        optimizers=optimizers,
        schedules=(
            build_schedule(config.optimizer, optimizers[0]),
            build_schedule(config.optimizer, optimizers[1]),
        ),
        batches=batches,
        device=device,
    )
    step = Step(
        generator=generator,
        critic=critic,
        loss=get_loss(config.loss.name, config.loss.generator_terms),
        penalty=build_penalty(config.penalty),
        optimizer_g=optimizers[0],
        optimizer_d=optimizers[1],
        precision=choose_precision(config.precision, device),
        pack=config.model.pack,
        accumulate=config.train.accumulate,
    )
    return state, step


def _build_iteration(config: Config, engine: str, step: Step, channels: int) -> tuple[str, Iteration]:
    count, size, device = config.train.batch_size, config.dataset.image_size, step.precision.device

    def latents() -> Tensor:
        """This rank's z ~ N(0, I) from the device's default generator, whose state is in the checkpoint."""
        return own_part(torch.randn(count, config.model.latent_dim, device=device))

    def examples() -> list[Tensor]:
        shape = (count, channels, size, size)
        black = torch.full(shape, -1.0, device=device).contiguous(memory_format=torch.channels_last)
        return [black] * (config.optimizer.n_critic + 1)

    return build_iteration(engine, Eager(step, latents), examples, chosen_by_user=config.engine != "auto")


def _check_objective(metrics: MetricsConfig) -> None:
    if metrics.objective is not None and (not metrics.scores or direction(metrics.objective) is None):
        raise ConfigError("metrics.objective", f"{metrics.objective} is not computed, or is no score with a best value")


def _build_evaluator(config: Config, store: PackedStore, device: torch.device) -> Evaluator | None:
    if not config.metrics.scores:
        return None
    # Here, because torchmetrics takes seconds to import, which a run without scores should not pay.
    from relgan.metrics.evaluator import Evaluator

    return Evaluator(
        config.metrics,
        config.dataset,
        store,
        latent_dim=config.model.latent_dim,
        seed=config.seed,
        device=device,
    )


def _build_trackers(
    config: Config, directory: RunDir, *, group: str, job_type: str, run_id: str | None, logged: dict[str, int]
) -> Tracker:
    if not is_main():
        return Trackers([])
    trackers: list[Tracker] = [JsonLines(directory.metrics)]
    if config.tracker.name == "wandb":
        from relgan.tracking import wandb

        tracker = wandb.start(
            config.tracker,
            run_dir=directory.path,
            group=group,
            job_type=job_type,
            tags=[config.loss.name, get_loss(config.loss.name).form, config.dataset.name],
            options=asdict(config),
            run_id=run_id,
            logged=logged,
        )
        if tracker is not None:
            trackers.append(tracker)
    return Trackers(trackers)


def _find_saved(config: Config, directory: RunDir) -> tuple[dict[str, Any] | None, Path | None]:
    """The checkpoint to continue from and where it lies; refuses to overwrite a run or to change an experiment."""
    path = None if config.resume is None else find_checkpoint(config.resume, directory.path)
    if directory.metrics.exists() and config.resume != "auto" and not (path and _is_own(path, directory)):
        raise ConfigError(
            "hydra.run.dir", f"{directory.path} already holds a run; continue it with resume=auto or name another"
        )
    if path is None:
        if config.resume is not None:
            log.info("resume=auto: nothing to continue, starting anew")
        return None, None
    saved = checkpoint.load_newest(path)
    # Through JSON, because a tuple or an integral float must not count as a change.
    old, new = json.loads(json.dumps(saved["config"])), json.loads(json.dumps(asdict(config)))
    for option, before, now in differences(old, new):
        raise RelganError(f"resume: {option} was {before} in {path}, now {now}; only a new run may change it")
    return saved, path


def _check_data(saved: dict[str, Any], store: PackedStore) -> None:
    """Refuse to go on with other images under the same options; older checkpoints do not tell."""
    before, now = saved.get("data_fingerprint", store.fingerprint), store.fingerprint
    if before != now:
        raise ConfigError("dataset.path", f"the checkpoint was trained on other images ({before}) than these ({now})")


def _is_own(path: Path, directory: RunDir) -> bool:
    return path.parent.resolve() == directory.checkpoints.resolve()
