"""What only a GPU can show, in one go: is it right, is it fast, and where does it wait.

``python -m benchmarks.gpu_check --images cifar10.zip`` takes at most ten minutes and no network, and writes a JSON file
and a Markdown table with the machine, every figure and every failure. Each step is a process of its own, so that none
hides the next. Called again it does what has not passed yet. ``--device cpu --small`` rehearses it without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

STEPS = {
    name: f"benchmarks.gpu_steps:{name}"
    for name in (
        *("machine", "tests", "runs", "waiting", "evaluation", "inception", "memory", "speed", "stop", "ranks"),
        *("cifar10", "sharing"),
    )
}
SECONDS = 300  # for one step
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Setting:
    """Where and how large the steps are.

    Attributes:
        out: the folder of the results.
        device: "cuda", or "cpu" for a rehearsal.
        small: networks and runs as small as they can be.
        images: CIFAR-10 as dataset.path takes it.
    """

    out: Path
    device: str = "cuda"
    small: bool = False
    images: str | None = None


@dataclass
class Found:
    """What a step has found so far; in its file at once, because the process may not live to its end."""

    file: Path
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: str | None = None
    ended: bool = False

    def figure(self, name: str, value: Any) -> None:
        self.figures[name] = value
        self.save()

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)
            self.save()

    def skip(self, reason: str) -> None:
        self.skipped = reason
        self.save()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """An error inside is a failure of this part, after which the others go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.expect(False, f"{name}: {type(error).__name__}: {(str(error) or '-').splitlines()[0]}")

    def save(self) -> None:
        _write(self.file, json.dumps({name: value for name, value in vars(self).items() if name != "file"}))


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def run(step: str, setting: Setting) -> None:
    """Do the step that a function is, ``module:name``, in this process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = Found(_result(setting, step))
    module, _, function = step.partition(":")
    with found.part("the step"):
        getattr(import_module(module), function)(setting, found)
    found.ended = True
    found.save()


def _result(setting: Setting, step: str) -> Path:
    return setting.out / f"{step.replace(':', '.')}.json"


def in_process(step: str, setting: Setting, seconds: float) -> dict[str, Any]:
    """The step's entry: done in a process of its own, which is ended with all it has started after ``seconds``."""
    file = _result(setting, step)
    Found(file).save()
    options = ["--device", setting.device, "--out", str(setting.out), *(["--small"] if setting.small else [])]
    options += ["--images", setting.images] if setting.images else []
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--step", step, *options]
    started = time.perf_counter()
    with file.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        late = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            # What it has started and left, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    entry: dict[str, Any] = json.loads(file.read_text())
    ended = entry.pop("ended")
    if late and not ended and seconds < SECONDS:
        entry["skipped"] = f"only {seconds:.0f} s were left"
    elif late or not ended:
        what = "step ended, but its process" if ended else "step"
        ending = f"took longer than {seconds:.0f} s" if late else f"ended with status {process.returncode}"
        entry["failures"].append(f"the {what} {ending}; see {file.with_suffix('.log').name}")
    otherwise = "not run" if late else "skipped" if entry["skipped"] else "passed"
    status = "failed" if entry["failures"] else otherwise
    return {"status": status, "seconds": round(time.perf_counter() - started, 1), **entry}


def check(setting: Setting, steps: Mapping[str, str] = STEPS, *, seconds: float = 600) -> dict[str, Any]:
    """Do every step that has not passed; the JSON file and the table are written anew after each."""
    setting.out.mkdir(parents=True, exist_ok=True)
    file = setting.out / "gpu-check.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    deadline = time.monotonic() + seconds
    for name, step in steps.items():
        if record.get(name, {}).get("status") == "passed":
            continue
        left = deadline - time.monotonic()
        if left > 0:
            print(f"{name} …", flush=True)
            entry = in_process(step, setting, min(left, SECONDS))
            print(f"{name}: {entry['status']} after {entry['seconds']} s", flush=True)
            # One that was cut short tells less than the one before.
            if entry["status"] != "not run" or name not in record:
                record[name] = entry
        else:
            record.setdefault(name, {"status": "not run", "seconds": 0, "figures": {}, "failures": [], "skipped": None})
        for path, text in ((file, json.dumps(record, indent=2)), (file.with_suffix(".md"), table(record))):
            _write(path, text + "\n")
    return record


def table(record: Mapping[str, Any]) -> str:
    """Everything that was found, in Markdown."""
    lines = ["| step | | s | figure | value |", "|---|---|---|---|---|"]
    for name, entry in record.items():
        heads = [name, entry["status"], str(entry["seconds"])]
        why = {"": entry["skipped"]} if entry["skipped"] or not entry["figures"] else {}
        for figure, value in (entry["figures"] | why).items():
            lines.append(f"| {' | '.join(heads)} | {figure} | {_shown(value)} |")
            heads = ["", "", ""]
    failures = [f"- {name}: {failure}" for name, entry in record.items() for failure in entry["failures"]]
    return "\n".join([*lines, "", *(["**Failures**", "", *failures] if failures else ["No failures."])])


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value).replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results (%(default)s)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="everything as small as it can be: a rehearsal")
    parser.add_argument("--images", help="CIFAR-10 as dataset.path takes it; without, that step is skipped")
    parser.add_argument("--minutes", type=float, default=10.0, help="what is not done by then is left (%(default)g)")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="these steps")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    images = None if given.images is None else str(Path(given.images).resolve())
    setting = Setting(given.out.resolve(), given.device, given.small, images)
    if given.step:
        run(given.step, setting)
        return
    record = check(setting, {name: STEPS[name] for name in given.only}, seconds=60 * given.minutes)
    print(table(record))
    sys.exit(any(entry["status"] in ("failed", "not run") for entry in record.values()))


if __name__ == "__main__":
    main()
