"""From a checked configuration to the objects of a run: assembled here, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from relgan import resume
from relgan.augment import build_augmentation
from relgan.config import Config
from relgan.data import PackedStore, prepare
from relgan.data.batches import Batch, Batches
from relgan.device import Precision, choose_precision, prepare_device
from relgan.distributed import own_part, world_size
from relgan.losses import build_loss
from relgan.networks import build_networks
from relgan.options import ConfigError
from relgan.penalties import build_penalty
from relgan.rundir import RunDir
from relgan.side_terms import build_side_terms
from relgan.training.engine import Eager, Iteration, build_iteration, choose_engine
from relgan.training.optimizers import build_optimizers
from relgan.training.run import Run
from relgan.training.schedules import Schedules
from relgan.training.state import EMA, TrainState
from relgan.training.strength import Strength
from relgan.training.update import Update

if TYPE_CHECKING:
    from relgan.metrics.evaluator import Evaluator


def build_run(
    config: Config, run_dir: Path, words: Sequence[str] = (), *, sweep: str | None = None, job_type: str = "train"
) -> Run:
    """Prepare the data, build everything and, when asked, continue from a checkpoint.

    Args:
        config: checked by ``relgan.config.validate``.
        run_dir: created if needed.
        words: the command line that led to ``config``, kept in the summary.
        sweep: the name of the sweep that the run is a job of.
        job_type: what kind of run this is to a tracker.

    Raises:
        RelganError: the data, the device, the weights of a score or the checkpoint cannot be used; nothing was
            trained and no file of an earlier run was touched.
    """
    directory = RunDir(run_dir)
    origin = resume.find(config, directory, words)
    if origin is not None:
        config = origin.config
    device = prepare_device(config.device, deterministic=config.deterministic)
    precision = choose_precision(config.precision, device)
    engine = choose_engine(config.engine, device, config)
    store = prepare(config.dataset)
    evaluator = _build_evaluator(config, store, device)
    state = _build_state(config, store, device, captured=engine == "cudagraph")
    if origin is not None:
        resume.restore(origin, state, store, {} if evaluator is None else evaluator.protocol)
    update = _build_update(config, state, store, precision)
    engine, iteration = _build_iteration(config, engine, update, store)
    run = Run(
        config=config,
        dir=directory,
        store=store,
        class_counts=_class_counts(config, store),
        state=state,
        update=update,
        schedules=Schedules(config, len(store), state, update),
        iteration=iteration,
        engine=engine,
        evaluator=evaluator,
        command=list(words),
        resumed_from=None if origin is None else str(origin.path),
    )
    if state.step > run.total:
        raise ConfigError("train.iterations", f"the checkpoint is at {state.step} updates already; give more")
    resume.begin(run, origin, sweep=sweep, job_type=job_type)
    return run


def _class_counts(config: Config, store: PackedStore) -> list[int]:
    """Images of each class that the networks are told of; empty without labels."""
    return store.class_counts if config.dataset.labels else []


def _build_state(config: Config, store: PackedStore, device: torch.device, *, captured: bool) -> TrainState:
    """What is trained."""
    torch.manual_seed(config.seed)
    classes = len(_class_counts(config, store))
    generator, critic = build_networks(config.model, config.dataset.image_size, store.channels, classes)
    for network in (generator, critic):
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch_size = config.train.batch_size
    return TrainState(
        generator=generator,
        critic=critic,
        optimizers=build_optimizers(
            config.optimizer,
            generator,
            critic,
            captured=captured,
            moving_beta2=config.schedule.beta2 is not None,
        ),
        ema=EMA(generator, config.train.ema_decay),
        side_terms=build_side_terms(config.loss, device),
        strength=Strength(config.augment, batch_size, device, scheduled=config.schedule.augment_p is not None),
        batches=Batches.of(store, config.dataset, batch_size, config.seed, device),
        device=device,
    )


def _build_update(config: Config, state: TrainState, store: PackedStore, precision: Precision) -> Update:
    """By what it is trained."""
    return Update(
        generator=state.generator,
        critic=state.critic,
        loss=build_loss(config.loss),
        penalty=build_penalty(config.penalty),
        optimizer_g=state.optimizers[0],
        optimizer_d=state.optimizers[1],
        precision=precision,
        side_terms=state.side_terms,
        augmentation=build_augmentation(config.augment, store.channels),
        strength=state.strength,
        pack=getattr(config.model, "pack", 1),
        accumulate=config.train.accumulate,
    )


def _build_iteration(config: Config, engine: str, update: Update, store: PackedStore) -> tuple[str, Iteration]:
    count, size, device = config.train.batch_size, config.dataset.image_size, update.precision.device

    def latents() -> Tensor:
        """This rank's z ~ N(0, I) from the device's default generator, whose state is in the checkpoint."""
        return own_part(torch.randn(count, config.model.latent_dim, device=device))

    def examples() -> list[Batch]:
        shape = (count // world_size(), store.channels, size, size)
        black = torch.full(shape, -1.0, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(len(black), dtype=torch.int64, device=device) if config.dataset.labels else None
        return [Batch(black, labels)] * (config.optimizer.n_critic + 1)

    eager = Eager(update, latents, redraw_fake=config.train.redraw_fake)
    return build_iteration(engine, eager, examples, chosen_by_user=config.engine != "auto")


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
        class_counts=_class_counts(config, store),
    )
