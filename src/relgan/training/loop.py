"""When things happen: updates, logged losses, grids, scores, checkpoints and the end."""

from __future__ import annotations

import contextlib
import logging
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from relgan.distributed import average, is_main, largest, world_size
from relgan.networks.sampling import UNSCORABLE
from relgan.options import near
from relgan.progress import Bar, progress_bar
from relgan.rundir import previous
from relgan.tracking.console import ending_line, training_line
from relgan.training import checkpoint
from relgan.training.cadence import is_due, quarters
from relgan.training.run import Run, Status
from relgan.training.signals import REQUEUING, StopRequested, StopSignals, requeue
from relgan.training.update import CriticResult, GeneratorResult

log = logging.getLogger("relgan")

FINAL_SAVE_ATTEMPTS = 5
NEGLIGIBLE, LONG = 30.0, 2 * 3600.0  # seconds left of a run: nothing to say, or too long for most people


@dataclass(frozen=True)
class Outcome:
    """How a run ended and the exit status that says so."""

    status: Status
    exit_code: int
    error: str | None = None


@dataclass
class Speed:
    """Images per second from the medians of whole logging intervals; the first interval is warm-up."""

    images_per_iteration: int
    seconds: list[float] = field(default_factory=list)

    def add(self, seconds: float, iterations: int) -> float:
        """Record an interval; returns its images per second."""
        self.seconds.append(seconds / iterations)
        return self.images_per_iteration * iterations / seconds

    @property
    def images_per_second(self) -> float | None:
        measured = self.seconds[1:] or self.seconds
        return self.images_per_iteration / statistics.median(measured) if measured else None


def train(run: Run, *, show: bool = True, asked_to_stop: Callable[[], int | None] = lambda: None) -> Outcome:
    """Train until the configured end, a signal, or a loss that is not finite; the run directory tells the rest.

    Args:
        show: a progress bar, where standard output is a terminal.
        asked_to_stop: the signal, if any, that has come before training.
    """
    outcome = Outcome("failed", 1)
    signals = StopSignals(asked_to_stop)
    loop = Loop(run, signals, show=show)
    try:
        with signals:
            outcome = loop.run_until_done()
    except BaseException as error:
        trace: str | None = "".join(traceback.format_exception(error))
        if isinstance(error, KeyboardInterrupt):
            outcome, trace = Outcome("interrupted", 130), None
        run.write_summary(outcome.status, images_per_second=loop.speed.images_per_second, error=trace)
        raise
    finally:
        run.close(outcome.exit_code)
    return outcome


class Loop:
    """One run in progress. Every method is called between whole generator updates."""

    def __init__(self, run: Run, signals: StopSignals, *, show: bool = True) -> None:
        self.run = run
        self.signals, self.show = signals, show
        self.state = run.state
        self.config = run.config
        self.speed = Speed(run.config.images_per_update)
        self.started = time.perf_counter() - run.state.seconds
        self.interval_started = time.perf_counter()
        self.interval_iterations = 0
        self.critic_result: CriticResult | None = None
        self.generator_result: GeneratorResult | None = None
        self.penalised = True
        self.bar = Bar("", None)
        self.newest: dict[str, str] = {}

    def run_until_done(self) -> Outcome:
        log.info("%s", self.run.describe())
        log.info("writing to %s; pictures are in samples/", near(self.run.dir.path))
        show = self.show and is_main() and sys.stdout.isatty()
        with (
            contextlib.suppress(StopRequested),
            progress_bar(self.run.total, "training", done=self.state.step, whole=True, show=show) as self.bar,
        ):
            return self.run_through()
        assert self.signals.received is not None
        name = signal.Signals(self.signals.received).name
        log.info("stopped by %s after %d of %d updates", name, self.state.step, self.run.total)
        outcome = self.end("interrupted", 128 + self.signals.received)
        if self.signals.received in REQUEUING and is_main():
            requeue()
        return outcome

    def run_through(self) -> Outcome:
        run, state = self.run, self.state
        if state.step == 0:
            self.look()
            self.score()
        elif not state.history.visited and state.step < run.total:
            self.visit()
        self.interval_started = time.perf_counter()
        first = state.step + 1
        while state.step < run.total:
            self.check_signals()
            before = time.perf_counter()
            self.iterate()
            if run.device.type == "cpu" and state.step == first + 1:
                # The very first update also makes what the others use again.
                self.estimate_end(time.perf_counter() - before)
            state.history.visited = False
            self.bar.advance()
            if self.log_is_due() and not self.log_training():
                return self.end("diverged", 0)
            self.check_signals()
            if state.step < run.total:
                self.visit()
        if state.step > 0:
            state.share_buffers()
            if run.evaluator is not None:
                # Scores take long and may fail; the end saves again with them.
                self.save()
            self.look()
            self.score()
        state.history.visited = True
        return self.end("finished", 0)

    def check_signals(self) -> None:
        """Raise StopRequested once a signal has come; several ranks agree on it when losses are logged."""
        if world_size() > 1:
            if not is_due(self.state.step, self.config.train.log_every, self.run.total):
                return
            self.signals.received = largest(self.signals.received or 0) or None
        self.signals.check()

    def iterate(self) -> None:
        """One generator update after n_critic critic updates."""
        run, state, config = self.run, self.state, self.config
        reals = [state.batches.next() for _ in range(config.optimizer.n_critic)]
        redraws = config.train.redraw_real and run.update.loss.needs_real_for_generator
        reals.append(state.batches.next() if redraws else reals[-1])
        run.schedules.apply(state.step)
        self.penalised = (state.step + 1) % run.update.penalty.interval == 0
        self.critic_result, self.generator_result = run.iteration(reals, penalised=self.penalised)
        state.ema.update(state.generator)
        state.step += 1
        self.interval_iterations += 1

    def log_is_due(self) -> bool:
        # Reading the flag costs nothing on the CPU; elsewhere it waits for the device.
        if self.run.device.type == "cpu" and self.run.update.diverged.item():
            return True
        return is_due(self.state.step, self.config.train.log_every, self.run.total)

    def log_training(self) -> bool:
        """Log the newest step's losses; False when training has diverged."""
        assert self.critic_result is not None
        assert self.generator_result is not None
        values = measure(self.run, self.critic_result, self.generator_result)
        if not self.penalised:
            del values["train/penalty"]
        now = time.perf_counter()
        rate = self.speed.add(now - self.interval_started, self.interval_iterations)
        self.interval_started, self.interval_iterations = now, 0
        if self.run.update.diverged.item():
            log.warning(
                "diverged: a loss or gradient became infinite or NaN, at the latest at update %d", self.state.step
            )
            return False
        self.state.seconds = now - self.started
        if self.run.device.type != "cpu" and len(self.speed.seconds) == 2:
            # Before, the device may still have been warming up; between logs nothing waits for it.
            self.estimate_end(self.speed.seconds[-1])
        values["train/images_per_second"] = rate
        self.run.trackers.log("train", self.state.step, self.state.seconds, values)
        self.show_progress(losses=training_line(values))
        tenth = max(1, self.run.total // 10)
        if not self.bar.live and self.state.step % tenth < self.config.train.log_every:
            log.info("%6d/%d  %s", self.state.step, self.run.total, training_line(values))
        return True

    def show_progress(self, **newest: str) -> None:
        """The newest losses and the newest scores, below the bar."""
        self.newest |= newest
        self.bar.show(*(self.newest[name] for name in ("losses", "scores") if name in self.newest))

    def estimate_end(self, seconds_per_update: float) -> None:
        """Say when the run will end; where that is far away on a CPU, also what is shorter."""
        seconds = (self.run.total - self.state.step) * seconds_per_update
        if seconds < NEGLIGIBLE:
            return
        shrunk = any(word.startswith("scale=") for word in self.run.command)
        shorter = "scale=cpu" if self.config.model.name == "r3gan" else "scale=minutes or scale=hour"
        helps = seconds >= LONG and self.run.device.type == "cpu" and not shrunk
        advice = f"; {shorter} trains a smaller network" if helps else ""
        log.info("%s, not counting scoring%s", ending_line(seconds), advice)

    def visit(self) -> None:
        """What is due between two updates."""
        step, total, config = self.state.step, self.run.total, self.config
        looks = step in quarters(total) or is_due(step, config.train.sample_every, total)
        scores = is_due(step, self.run.score_every, total)
        saves = is_due(step, config.train.checkpoint_every, total)
        if not (looks or scores or saves):
            return
        # Reading the flag waits for the device, which the work that is due does anyway.
        if self.run.update.diverged.item():
            return
        # Time between logging points only counts training.
        paused = time.perf_counter()
        self.state.share_buffers()
        if looks:
            self.look()
        if scores:
            self.score()
        self.state.history.visited = True
        if saves:
            self.save()
        self.interval_started += time.perf_counter() - paused

    def look(self) -> None:
        """Save the grids, on rank 0; training goes on without one that cannot be drawn or written."""
        if not is_main():
            return
        try:
            self.run.save_real_grid()
            self.run.save_grids(None if self.generator_result is None else self.generator_result.images)
        except UNSCORABLE as error:
            log.warning("no pictures at update %d (%s); training goes on", self.state.step, error)

    def score(self) -> None:
        """Evaluate; a generator that cannot be scored is reported, and training goes on."""
        self.state.seconds = time.perf_counter() - self.started
        # Ranks that leave an evaluation at different batches would wait for each other.
        alone = world_size() == 1
        try:
            with self.signals.inside_networks() if alone else contextlib.nullcontext():
                scores = self.run.evaluate()
        except UNSCORABLE as error:
            log.warning("no scores at update %d: %s", self.state.step, error)
            return
        except StopRequested:
            raise
        except Exception:  # a bug, which must cost no update
            self.save()
            raise
        if not scores:
            return
        self.run.trackers.log("eval", self.state.step, self.state.seconds, scores, self.run.protocol)
        line = self.run.score_line(scores)
        log.info("%6d/%d  %s", self.state.step, self.run.total, line)
        self.show_progress(scores=f"at {self.state.step:,}: {line}")
        self.save_among_best(self.run.remember(scores))
        self.run.write_summary("running", images_per_second=self.speed.images_per_second)

    def save_among_best(self, paths: Sequence[Path]) -> None:
        content = self.run.checkpoint() if paths else {}
        for path in paths if is_main() else ():
            try:
                checkpoint.save(content, path, keep_previous=False)
            except OSError as error:
                log.warning("%s could not be written (%s); training goes on", path.name, error)

    def save(self) -> bool:
        """Write last.pt, on rank 0; False where it could not be written."""
        self.state.seconds = time.perf_counter() - self.started
        if not is_main():
            return True
        directory, content = self.run.dir, self.run.checkpoint()
        try:
            if self.config.train.keep_checkpoints:
                # Before last.pt: a process killed between the two does it again.
                checkpoint.save(content, directory.kept(self.state.step), keep_previous=False)
            checkpoint.save(content, directory.last)
            if not directory.config.exists():  # the directory was deleted meanwhile
                directory.write_config(self.run.values)
        except OSError as error:
            log.warning("last.pt could not be written (%s); training goes on and tries again", error)
            return False
        # Only now: before, last.pt knew the ones that are to go.
        directory.prune(self.config.train.keep_checkpoints, self.state.history.ranking)
        self.run.write_summary("running", images_per_second=self.speed.images_per_second)
        return True

    def end(self, status: Status, exit_code: int) -> Outcome:
        """Save, tell where everything is; exit status 1 when the last checkpoint could not be written."""
        error = None
        self.state.share_buffers()
        for attempt in range(FINAL_SAVE_ATTEMPTS):
            if self.save():
                break
            time.sleep(0.2 * 2**attempt)
        else:
            last = self.run.dir.last
            good = next((path for path in (last, previous(last)) if path.exists()), "none")
            error = f"last.pt could not be written in {FINAL_SAVE_ATTEMPTS} attempts; last good checkpoint: {good}"
            log.error("%s", error)
            status, exit_code = "failed", 1
        self.run.write_summary(status, images_per_second=self.speed.images_per_second, error=error)
        log.info("%s after %d updates, %.0f s", status, self.state.step, self.state.seconds)
        return Outcome(status, exit_code, error)


def measure(run: Run, critic: CriticResult, generator: GeneratorResult) -> dict[str, float]:
    """The logged values of one step over all ranks, in one transfer from the device."""
    real, fake = critic.real_logits, critic.fake_logits
    prob_real, prob_fake = run.update.loss.probabilities(real, fake)
    pull_real, pull_fake = run.update.loss.pull(real, fake)
    values = {
        "train/loss_d": critic.loss,
        "train/loss_g": generator.loss,
        "train/penalty": critic.penalty,
        "train/logit_real": real.mean(),
        "train/logit_fake": fake.mean(),
        "train/prob_real": prob_real,
        "train/prob_fake": prob_fake,
        "train/pull_real": pull_real,
        "train/pull_fake": pull_fake,
        "train/grad_norm_d": critic.grad_norm,
        "train/grad_norm_g": generator.grad_norm,
    }
    if run.state.strength.steered:
        values["train/augment_p"] = run.state.strength.p
    numbers: list[float] = average(torch.stack(list(values.values()))).tolist()
    return {**dict(zip(values, numbers, strict=True)), **run.schedules.values(run.state.step)}
