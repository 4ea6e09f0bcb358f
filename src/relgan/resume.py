"""Going on with a run: which checkpoint, whether it may be, and what of the old records stays. No torch at import."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from relgan.config import (
    Config,
    TrainConfig,
    as_values,
    home_of,
    option_names,
    overlay,
    refuse_foreign,
    resolve,
    run_name,
    with_defaults,
)
from relgan.files import atomic_write
from relgan.metrics.catalogue import OF_NO_SCORE
from relgan.options import ConfigError, RelganError, flatten, near, user_path
from relgan.rundir import OccupiedError, RunDir
from relgan.tracking.base import Context, Trackers, open_trackers

if TYPE_CHECKING:
    from relgan.data import PackedStore
    from relgan.training.run import Run
    from relgan.training.state import TrainState

log = logging.getLogger("relgan")

# A continued run may go on longer, report more or less often, elsewhere and on another device. Images are compared by
# their fingerprint, weights of extractors by their hash in the protocol of the scores.
MAY_DIFFER = (
    *("name", "device", "resume", "plugins", "fail_fast"),
    *("dataset.path", "dataset.url", "dataset.residence", "dataset.min_images"),
    *("train.iterations", "train.epochs", "train.log_every", "train.sample_every", "train.checkpoint_every"),
    *("train.keep_checkpoints", "train.keep_best", "tracker."),
    *("metrics.every", "metrics.weights", "metrics.lpips_weights"),
)


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run goes on from.

    Attributes:
        in_place: the run goes on in its own directory; otherwise a new run starts from another's checkpoint.
        config: what it goes on with.
    """

    path: Path
    content: Mapping[str, Any]
    in_place: bool
    config: Config

    @property
    def tracker_runs(self) -> dict[str, str]:
        """Identifiers of the trackers' runs that go on, too, by the tracker's name."""
        return self.content["tracker_runs"] if self.in_place else {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (option, old, new) where two configurations differ in what a continued run must keep."""
    before, after = with_defaults(old), flatten(new)
    # Another choice before the options that come with it.
    for option in sorted(before.keys() | after.keys(), key=lambda name: (not name.endswith(".name"), name)):
        free = any(option == name or (name.endswith(".") and option.startswith(name)) for name in MAY_DIFFER)
        if not free and before.get(option) != after.get(option):
            yield option, before.get(option), after.get(option)


def newest(base: Path, config: Config) -> Path | None:
    """The newest run directory below ``base`` that ``resume=auto`` goes on with.

    It is of the same configuration, holds a checkpoint, and is unfinished or finished with fewer iterations than
    are now asked for.
    """
    return next((run.path for run in _with_checkpoint(base) if _obstacle(run, config) is None), None)


def _with_checkpoint(base: Path) -> Iterator[RunDir]:
    """The run directories below ``base`` that hold a checkpoint, the newest first."""
    runs = (RunDir(path) for path in sorted(base.glob("*/"), reverse=True))
    return (run for run in runs if run.has_checkpoint())


def _obstacle(run: RunDir, config: Config) -> str | None:
    """Why ``resume=auto`` does not go on with a run; None where it does."""
    saved, summary = run.read_config(), run.read_summary()
    if not saved:
        return "its config.yaml cannot be read"
    for option, before, now in differences(saved, as_values(config)):
        return f"{option} was {before}, now {now}"
    if summary.get("status") == "diverged":
        return "it diverged"
    if summary.get("status") == "finished" and not _asks_for_more(config.train, saved["train"], summary.get("step", 0)):
        return "it has finished as long a training as is now asked for"
    return None


def _asks_for_more(wanted: TrainConfig, before: Mapping[str, Any], step: int) -> bool:
    """Whether a finished run has something left to do.

    Args:
        before: its own ``train``.
        step: what it reached.
    """
    if wanted.iterations is not None:
        return step < wanted.iterations
    assert wanted.epochs is not None
    epochs = before.get("epochs")
    return epochs is not None and epochs < wanted.epochs


def find(config: Config, directory: RunDir, words: Iterable[str]) -> Origin | None:
    """The checkpoint that ``config.resume`` means; None where a new run starts.

    ``resume=PATH`` takes the saved configuration, with what ``words`` of the command line name on top.

    Raises:
        RelganError: there is no such checkpoint, the directory holds another run, or an option differs that a
            continued run must keep.
    """
    from relgan.training import checkpoint

    path = None if config.resume is None else _checkpoint(config.resume, directory)
    own = directory.checkpoints
    in_place = path is not None and own.exists() and path.parent.samefile(own)
    if directory.metrics.exists() and config.resume != "auto" and not in_place:
        raise ConfigError(
            "hydra.run.dir", f"{directory.path} already holds a run; continue it with resume=auto or name another"
        )
    if path is None:
        if config.resume is not None:
            _tell_what_was_found(config, directory)
        return None
    content = checkpoint.load_newest(path)
    values = content["config"]
    if config.resume == "auto" or any(name.partition(".")[0] == "tracker" for name in option_names(words)):
        # The saved one is not needed.
        values = {**values, "tracker": as_values(config)["tracker"]}
    refuse_foreign(values, content["foreign"], path)
    if config.resume != "auto":
        config = overlay(resolve(values), config, words)
    wanted = as_values(config)
    for option, before, now in differences(values, wanted):
        raise RelganError(f"resume: {option} was {before} in {path}, now {now}; only a new run may change it")
    return Origin(path, content, in_place, config)


def _tell_what_was_found(config: Config, own: RunDir) -> None:
    """Why ``resume=auto`` starts anew: which run of this name is the newest, and what is different about it."""
    from relgan.distributed import is_main

    if not is_main():
        return
    base, home = own.path.absolute().parent, home_of(config).parts
    run = next(_with_checkpoint(base), None) if base.parts[-len(home) :] == home else None
    if run is not None and (reason := _obstacle(run, config)):
        log.warning("resume=auto: starting anew, not going on with %s: %s", near(run.path), reason)
    else:
        log.info("resume=auto: nothing to continue, starting anew")


def _checkpoint(resume: str, own: RunDir) -> Path | None:
    if resume == "auto":
        return own.last if own.has_checkpoint() else None
    path = user_path(resume)
    if path.is_dir():
        if not RunDir(path).has_checkpoint():
            raise RelganError(f"resume: {resume} holds no checkpoints/last.pt")
        return RunDir(path).last
    if not path.is_file():
        raise RelganError(f"resume: {resume} is neither a run directory nor a checkpoint (or give null or auto)")
    return path


def restore(origin: Origin, state: TrainState, store: PackedStore, protocol: Mapping[str, Any]) -> None:
    """Put the checkpoint's state into the new objects.

    Args:
        protocol: how scores will be made. Where they were made otherwise before, they are not ranked together.

    Raises:
        RelganError: it was trained on other images or for longer than is now asked for, or the networks do not fit.
    """
    before, now = origin.content["data_fingerprint"], store.fingerprint
    if before != now:
        raise ConfigError("dataset.path", f"the checkpoint was trained on other images ({before}) than these ({now})")
    state.load_state_dict(origin.content)
    if not origin.in_place or _otherwise_scored(origin.content["protocol"], protocol):
        # What another directory's run was scored belongs to it.
        state.history = type(state.history)(visited=state.history.visited)


def _otherwise_scored(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What makes scores of two protocols incomparable; None where nothing does."""
    before, now = flatten(old), flatten(new)
    for fact in sorted(before.keys() | now.keys()):
        if fact.partition(".")[0] not in OF_NO_SCORE and before.get(fact) != now.get(fact):
            return f"{fact} of the scores was {before.get(fact)}, now {now.get(fact)}"
    return None


def begin(run: Run, origin: Origin | None, *, sweep: str | None, job_type: str) -> None:
    """Give the run its directory: nobody else's, with its config.yaml, without records that are written again.

    Args:
        sweep: the name of the sweep that it is a job of.
        job_type: what kind of run this is to a tracker.

    Raises:
        OccupiedError: another process is training there.
        RelganError: it cannot be written; or the ranks do not go on at the same update.
    """
    from relgan.distributed import is_main, largest

    # Together: no rank may still be looking for what to continue when rank 0 begins to write.
    if (newest := largest(run.state.step)) != run.state.step:
        raise RelganError(f"resume: other ranks continue at update {newest}, this one finds {run.state.step}")
    run.lock = _occupy(run.dir)
    logged = _ever_logged(run.dir)
    if is_main():
        run.dir.write_config(run.values)
        _set_best_aside(run, origin)
        run.dir.logged.write_text(json.dumps(logged), encoding="utf-8")
        truncate(run.dir, origin, run.state, run.total)
    context = Context(
        run_dir=run.dir.path,
        group=sweep or run_name(run.config),
        job_type=job_type,
        tags=[run.config.loss.name, run.update.loss.form, run.config.dataset.name],
        options=run.values,
        logged=logged,
        alone=sweep is None,
    )
    run_ids = {} if origin is None else origin.tracker_runs
    run.trackers = open_trackers(run.config.tracker, context, run_ids, run.dir.metrics) if is_main() else Trackers()
    run.write_summary("running")
    if origin is not None:
        log.info("continuing from %s at update %d", near(origin.path), run.state.step)


def _occupy(directory: RunDir) -> FileLock:
    """Create the directory and keep every other run from training in it until rank 0 releases the lock."""
    from relgan.distributed import is_main

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


def _set_best_aside(run: Run, origin: Origin | None) -> None:
    """Keep the best checkpoints so far under other names where those to come are scored in another way."""
    if origin is None or not origin.in_place:
        return
    if changed := _otherwise_scored(origin.content["protocol"], run.protocol):
        run.dir.set_best_aside()
        reason = "scores made in different ways are not ranked together; the earlier ones are earlier_best*.pt"
        log.warning("%s: best.pt is chosen anew, because %s", changed, reason)


def _ever_logged(directory: RunDir) -> dict[str, int]:
    """The last step of each kind that any start has recorded, dropped records too: trackers were sent them."""
    try:
        earlier: dict[str, int] = json.loads(directory.logged.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    return {kind: max(step, earlier.get(kind, 0)) for kind, step in {**earlier, **last_logged(directory)}.items()}


def last_logged(directory: RunDir) -> dict[str, int]:
    """The last step in metrics.jsonl of each kind of record."""
    last: dict[str, int] = {}
    for line in _lines(directory.metrics):
        step, scores = _position(line)
        if step < float("inf"):
            last["eval" if scores else "train"] = int(step)
    return last


def truncate(directory: RunDir, origin: Origin | None, state: TrainState, total: int) -> None:
    """Drop the records after the checkpoint, or of a start that never reached one: they are written again."""
    if not directory.metrics.exists():
        return
    step = state.step if origin is not None and origin.in_place else -1
    # Scores at the first and the last update are computed anew.
    with_scores = state.history.visited and state.step not in (0, total)
    kept = [line for line in _lines(directory.metrics) if _position(line) <= (step, int(with_scores))]
    with atomic_write(directory.metrics) as file:
        file.writelines(kept)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _position(line: bytes) -> tuple[float, int]:
    """Step of a metrics.jsonl line, and 1 for scores; infinite for a line cut short by a killed process."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else {}
        return float(record["step"]), int(record["kind"] == "eval")
    except (ValueError, KeyError, TypeError):
        return float("inf"), 0
