"""From a checked configuration to the objects of a run: assembled here, nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from relgan import resume
from relgan.config import Config, as_values, check_batch_size, foreign_origins, run_name
from relgan.data import PackedStore, prepare
from relgan.data.batches import Batches, Sampler
from relgan.distributed import is_main, largest, own_part, rank, world_size
from relgan.losses import build_loss
from relgan.metrics.catalogue import direction
from relgan.networks import build_networks
from relgan.options import ConfigError, RelganError
from relgan.penalties import build_penalty
from relgan.rundir import OccupiedError, RunDir
from relgan.tracking.base import Context, JsonLines, Tracker, Trackers, start
from relgan.training.engine import Eager, Iteration, build_iteration, choose_engine, choose_precision, prepare_device
from relgan.training.optimizers import build_optimizers
from relgan.training.run import Run
from relgan.training.schedules import build_schedule, total_iterations
from relgan.training.state import EMA, TrainState
from relgan.training.update import Update

if TYPE_CHECKING:
    from relgan.metrics.evaluator import Evaluator

log = logging.getLogger("relgan")


def build_run(
    config: Config, run_dir: Path, words: Sequence[str] = (), *, group: str | None = None, job_type: str = "train"
) -> Run:
    """Prepare the data, build everything and, when asked, continue from a checkpoint.

    Args:
        config: checked by ``relgan.config.validate``.
        run_dir: created if needed.
        words: the command line that led to ``config``, kept in the summary.
        group: what a tracker shows together; by default runs of the same name.
        job_type: what kind of run this is to a tracker.

    Raises:
        RelganError: the data, the device, the weights of a score or the checkpoint cannot be used; nothing was
            trained and no file of an earlier run was touched.
    """
    directory = RunDir(run_dir)
    origin = resume.find(config, directory, words)
    if origin is not None:
        config = origin.config
    device = prepare_device(config.device)
    store = prepare(config.dataset)
    total = total_iterations(config.train, config.optimizer.n_critic, len(store))
    state, update, engine = _build_training(config, store, device)
    if origin is not None:
        resume.restore(origin, state, store)
    if state.step > total:
        raise ConfigError("train.iterations", f"the checkpoint is at {state.step} updates already; give more")
    evaluator = _build_evaluator(config, store, device)
    engine, iteration = _build_iteration(config, engine, update, store.channels)
    # Together: no rank may still be looking for what to continue when rank 0 begins to write.
    if (newest := largest(state.step)) != state.step:
        raise RelganError(f"resume: other ranks continue at update {newest}, this one finds {state.step}")
    lock = _occupy(directory)
    logged = resume.last_logged(directory)
    if is_main():
        directory.write_config(config)
        resume.truncate(directory, origin, state, total)
    context = Context(
        run_dir=directory.path,
        group=group or run_name(config),
        job_type=job_type,
        tags=[config.loss.name, update.loss.form, config.dataset.name],
        options=as_values(config),
        run_id=None if origin is None else origin.tracker_run_id,
        logged=logged,
    )
    run = Run(
        config=config,
        dir=directory,
        store=store,
        state=state,
        update=update,
        iteration=iteration,
        engine=engine,
        evaluator=evaluator,
        trackers=_build_trackers(config, context),
        total=total,
        command=list(words),
        lock=lock,
        resumed_from=None if origin is None else str(origin.path),
        foreign=foreign_origins(config),
    )
    run.write_summary("running")
    if origin is not None:
        log.info("continuing from %s at update %d", origin.path, state.step)
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


def _build_training(config: Config, store: PackedStore, device: torch.device) -> tuple[TrainState, Update, str]:
    """What is trained, by what, and in which engine."""
    engine = choose_engine(config.engine, device, accumulate=config.train.accumulate, ranks=world_size())
    torch.manual_seed(config.seed)
    generator, critic = build_networks(config.model, config.dataset.image_size, store.channels)
    for network in (generator, critic):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Apple's fused kernel does not know the mask that keeps weights from a gradient that is not finite.
    optimizers = build_optimizers(
        config.optimizer, generator, critic, fused=device.type != "mps", captured=engine == "cudagraph"
    )
    check_batch_size(config, world_size())
    own_batch = config.train.batch_size // world_size()
    sampler = Sampler(len(store), own_batch, config.dataset.sampling, config.seed, rank(), world_size())
    state = TrainState(
        generator=generator,
        critic=critic,
        ema=EMA(generator, config.train.ema_decay),
        optimizers=optimizers,
        schedules=(
            build_schedule(config.optimizer, optimizers[0]),
            build_schedule(config.optimizer, optimizers[1]),
        ),
        batches=Batches(store, sampler, device, config.dataset.hflip, config.dataset.residence),
        device=device,
    )
    update = Update(
        generator=generator,
        critic=critic,
        loss=build_loss(config.loss),
        penalty=build_penalty(config.penalty),
        optimizer_g=optimizers[0],
        optimizer_d=optimizers[1],
        precision=choose_precision(config.precision, device),
        pack=getattr(config.model, "pack", 1),
        accumulate=config.train.accumulate,
    )
    return state, update, engine


def _build_iteration(config: Config, engine: str, update: Update, channels: int) -> tuple[str, Iteration]:
    count, size, device = config.train.batch_size, config.dataset.image_size, update.precision.device

    def latents() -> Tensor:
        """This rank's z ~ N(0, I) from the device's default generator, whose state is in the checkpoint."""
        return own_part(torch.randn(count, config.model.latent_dim, device=device))

    def examples() -> list[Tensor]:
        shape = (count, channels, size, size)
        black = torch.full(shape, -1.0, device=device).contiguous(memory_format=torch.channels_last)
        return [black] * (config.optimizer.n_critic + 1)

    return build_iteration(engine, Eager(update, latents), examples, chosen_by_user=config.engine != "auto")


def _build_evaluator(config: Config, store: PackedStore, device: torch.device) -> Evaluator | None:
    wanted = config.metrics.objective
    if wanted is not None and (not config.metrics.scores or direction(wanted) is None):
        raise ConfigError("metrics.objective", f"{wanted} is not computed, or is no score with a best value")
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


def _build_trackers(config: Config, context: Context) -> Tracker:
    if not is_main():
        return Tracker()
    local = JsonLines(RunDir(context.run_dir).metrics)
    other = start(config.tracker, context)
    return Trackers([local], [] if other is None else [other])
