"""SIGKILL, SIGHUP and SIGTERM at random instants, again and again: nothing may be lost. ``make torture``: fifty times.

Every start is a process of its own that builds and trains a real run with ``resume=auto``. All are forked from one
server that has imported torch, so that a kill costs a fraction of a second.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tiny
from relgan import build
from relgan.cache import cache_dir
from relgan.options import RelganError
from relgan.rundir import RunDir
from relgan.training import checkpoint, loop
from relgan.training.run import Run

PHASES = ("starting", "training", "saving", "scoring", "between")
# How far a checkpoint has come when the process dies in it.
POINTS = ("half written", "before the sync", "before the old one is kept", "before the new one gets its name")
SETTINGS = {
    "ragan, saved at every update": ("train.iterations=40", "train.checkpoint_every=1"),
    "sgan with gp, five critic updates, decay, saved at every other": (
        "loss.name=sgan",
        "penalty.name=gp",
        "optimizer.n_critic=5",
        "optimizer.decay=0.1",
        "dataset.num_images=50",
        "train.iterations=40",
        "train.checkpoint_every=2",
    ),
    "rsgan, packed, mirrored, independent, rmsprop, saved at every third": (
        "loss.name=rsgan",
        "optimizer.name=rmsprop",
        "model.pack=2",
        "dataset.sampling=independent",
        "dataset.hflip=true",
        "train.iterations=60",
        "train.checkpoint_every=3",
    ),
    "ragan, scored at every fourth, saved at every third, some kept": (
        "train.keep_checkpoints=3",
        "train.keep_best=2",
        "dataset.name=stacked_digits",
        "metrics.scores=[modes]",
        "metrics.modes_images=20",
        "metrics.every=4",
        "train.iterations=40",
        "train.checkpoint_every=3",
    ),
}
TIMES = ("time_s", "train/images_per_second")
# How a process is stopped, and how often: SIGKILL gives it no time, before the others it saves.
STOPS = {signal.SIGKILL: 5, signal.SIGHUP: 2, signal.SIGTERM: 1}
PATIENCE = 120
AIM_SECONDS = 0.01
"""About as long as a save of this model takes."""


class LostError(AssertionError):
    """Something an undisturbed run has is not there, or not the same."""


@dataclass
class Report:
    """Where the kills fell and what they cost."""

    phases: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        where = ", ".join(f"{self.phases[phase]} {phase}" for phase in PHASES)
        which = ", ".join(f"{count} {name}" for name, count in self.signals.items())
        return (
            f"{self.phases.total()} kills ({which}; {where}) in {self.seconds:.0f} s; "
            f"{self.repeated} updates done again; "
            "weights, average, optimizers, random states and records equal the undisturbed runs'"
        )


def _mark(target: Any, name: str, phase: int, marks: Any) -> None:
    """Let ``marks`` tell from outside that the process is inside ``target.name``."""
    original = getattr(target, name)

    def marked(*arguments: Any, **keywords: Any) -> Any:
        before, marks[0] = marks[0], phase
        try:
            return original(*arguments, **keywords)
        finally:
            marks[0] = before

    setattr(target, name, marked)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(point: str, at_step: int) -> None:
    """Make this process kill itself at one ``POINTS`` of the checkpoint of update ``at_step``."""
    save, write = checkpoint.save, checkpoint.torch.save
    replace = Path.replace

    def half(content: Any, file: Any) -> None:
        whole = io.BytesIO()
        write(content, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        _die()

    def rename(self: Path, target: Path) -> Path:
        doomed = "last.pt" if point == POINTS[2] else ".last.pt.tmp"
        return _die() if self.name == doomed else replace(self, target)  # type: ignore[return-value]

    def saved(content: dict[str, Any], path: Path, **keywords: Any) -> None:
        if content["step"] == at_step:
            if point == POINTS[0]:
                checkpoint.torch.save = half
            elif point == POINTS[1]:
                os.fsync = _die  # type: ignore[assignment]
            else:
                Path.replace = rename  # type: ignore[method-assign]
        save(content, path, **keywords)

    checkpoint.save = saved


def _live(
    directory: Path, options: tuple[str, ...], cache: str, marks: Any, prepare: Callable[..., None] | None, given: Any
) -> None:
    """One process's life: from build_run to the end, or to the kill."""
    os.environ["RELGAN_CACHE"] = cache
    with directory.with_suffix(".log").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if prepare is not None:
        prepare(*given)
    _mark(loop.Loop, "iterate", PHASES.index("training"), marks)
    _mark(checkpoint, "save", PHASES.index("saving"), marks)
    _mark(Run, "evaluate", PHASES.index("scoring"), marks)
    words = (*options, "train.log_every=1", "resume=auto")
    run = build.build_run(tiny.config(*words), directory, words)
    marks[0] = PHASES.index("between")
    sys.exit(loop.train(run).exit_code)


class Starter:
    """Starts processes from a server that has already imported everything."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        # The server finds neither tests/ nor src/ by itself.
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        self._context.set_forkserver_preload([__name__ if __name__ != "__main__" else "torture", "torch._dynamo"])
        try:
            process = self._context.Process(target=time.time)
            process.start()
            process.join()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before

    def live(
        self,
        directory: Path,
        options: tuple[str, ...],
        *,
        kill_after: float | None = None,
        stop: signal.Signals = signal.SIGKILL,
        inside: tuple[str, float] | None = None,
        prepare: Callable[..., None] | None = None,
        given: tuple[Any, ...] = (),
    ) -> tuple[int | None, str]:
        """Train until the end, or until a signal after ``kill_after`` seconds.

        Args:
            stop: the signal.
            inside: after them, the phase to wait for, and how many seconds inside it.

        Returns:
            exit code, and the phase that the process was in when it was stopped.
        """
        marks = self._context.RawArray("i", 1)
        process = self._context.Process(
            target=_live, args=(directory, options, str(cache_dir()), marks, prepare, given)
        )
        process.start()
        process.join(PATIENCE if kill_after is None else kill_after)
        if inside is not None:
            while process.exitcode is None and marks[0] != PHASES.index(inside[0]):
                time.sleep(0.0005)
            time.sleep(inside[1])
        phase = PHASES[marks[0]]
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL if kill_after is None else stop)
            process.join(PATIENCE)
            if kill_after is None or process.exitcode is None:
                process.kill()
                raise LostError(f"{directory}: nothing happened for {PATIENCE} s")
        return process.exitcode, phase


def saved_step(directory: Path) -> int | None:
    """Update of the checkpoint that the next start will take; None where there is none yet."""
    run = RunDir(directory)
    if not run.has_checkpoint():
        return None
    try:
        return int(checkpoint.load_newest(run.last)["step"])
    except RelganError as error:
        raise LostError(f"no valid checkpoint: {error}") from error


def failed(directory: Path, code: int | None) -> LostError:
    text = directory.with_suffix(".log").read_text(encoding="utf-8").strip()
    return LostError(f"{directory} ended with {code}: {text.splitlines()[-1] if text else 'no message'}")


def finish(starter: Starter, directory: Path, options: tuple[str, ...]) -> None:
    """Let the run come to its end."""
    code, _ = starter.live(directory, options)
    if code != 0:
        raise failed(directory, code)


def compare(disturbed: Path, whole: Path) -> None:
    """Raise LostError unless two finished runs agree in all but their times."""
    kept = ("config", "seconds", "tracker_runs")
    names, expected = (
        sorted({path.stem for path in (directory / "checkpoints").iterdir()} - {"last.previous"})
        for directory in (disturbed, whole)
    )
    if names != expected:
        raise LostError(f"there are the checkpoints {names}, not {expected}")
    for name in names:
        ours, theirs = (
            {key: value for key, value in tiny.last(directory, name).items() if key not in kept}
            for directory in (disturbed, whole)
        )
        if wrong := tiny.differing(ours, theirs):
            raise LostError(f"{name}.pt differs in {', '.join(wrong[:5])}")
    ours, theirs = (
        [{key: value for key, value in line.items() if key not in TIMES} for line in tiny.records(directory)]
        for directory in (disturbed, whole)
    )
    if ours != theirs:
        steps = [(line["kind"], line["step"]) for line in ours]
        raise LostError(f"metrics.jsonl differs; it has {steps}")
    for picture in whole.glob("samples/step_*.png"):
        if (disturbed / "samples" / picture.name).read_bytes() != picture.read_bytes():
            raise LostError(f"{picture.name} differs")
    if leftovers := [path.name for path in disturbed.rglob("*.tmp")]:
        raise LostError(f"left behind: {', '.join(leftovers)}")


def torture(starter: Starter, home: Path, options: tuple[str, ...], kills: int, draw: random.Random) -> Report:
    """Kill runs of one configuration ``kills`` times in all and compare each with an undisturbed one.

    Every other kill is aimed: it falls at a random instant of a save or an evaluation.
    """
    aims = ("saving", "scoring") if any(option.startswith("metrics.every") for option in options) else ("saving",)
    report = Report()
    home.mkdir(parents=True)
    finish(starter, home / "warm", (*options, "train.iterations=0"))  # the data and the judge go into the cache
    whole, started = home / "whole", time.perf_counter()
    finish(starter, whole, options)
    length = time.perf_counter() - started
    for number in range(10 * kills):  # at most: a run that ends before its kill is followed by another one
        directory = home / f"run{number}"
        before: int | None = None
        while report.phases.total() < kills:
            # Long enough on average to come further, short enough to be killed several times before the end.
            delay = draw.uniform(0, 0.5 * length)
            aim = (draw.choice(aims), draw.uniform(0, AIM_SECONDS))
            inside = aim if report.phases.total() % 2 else None
            (stop,) = draw.choices(list(STOPS), weights=list(STOPS.values()))
            code, phase = starter.live(directory, options, kill_after=delay, stop=stop, inside=inside)
            if code == 0:
                break
            saved = code == 128 + stop
            if not saved and code != -stop:
                raise failed(directory, code)
            report.phases[phase] += 1
            report.signals[stop.name] += 1
            step = saved_step(directory)
            if before is not None and (step is None or step < before):
                raise LostError(f"the checkpoint went back from update {before} to {step}")
            before = step
            reached = tiny.records(directory)[-1]["step"] if _whole_lines(directory) else 0
            repeated = max(0, reached - (step or 0))
            if saved and (repeated or step is None):
                raise LostError(f"{stop.name} at update {reached}, saved at update {step}")
            report.repeated += repeated
            later = "" if inside is None else f" and {1000 * inside[1]:.1f} ms of {inside[0]}"
            print(f"  {stop.name} after {delay:.3f} s{later}, {phase}: next start from update {step}", flush=True)
        finish(starter, directory, options)
        compare(directory, whole)
        if report.phases.total() == kills:
            break
    report.seconds = time.perf_counter() - started
    return report


def _whole_lines(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        text = (directory / "metrics.jsonl").read_bytes()
        return bool(text) and text.endswith(b"\n")
    return False


def shares(total: int, parts: int) -> Iterator[int]:
    """``total`` as ``parts`` nearly equal whole numbers."""
    for part in range(parts):
        yield total * (part + 1) // parts - total * part // parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"{arguments.kills} kills, seed {seed} (--seed {seed} draws the same instants again)", flush=True)
    draw, total, starter = random.Random(seed), Report(), Starter()
    with tempfile.TemporaryDirectory() as home:
        for number, (name, share) in enumerate(zip(SETTINGS, shares(arguments.kills, len(SETTINGS)), strict=True)):
            print(name, flush=True)
            report = torture(starter, Path(home) / str(number), SETTINGS[name], share, draw)
            total.phases += report.phases
            total.signals += report.signals
            total.repeated += report.repeated
            total.seconds += report.seconds
    print(total)


if __name__ == "__main__":
    main()
