"""Processes for tests, forked from one that has imported what takes long: a start costs a tenth of a second, not three.

relgan itself is imported anew in each.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import multiprocessing
import multiprocessing.context
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

# An optimizer imports torch._dynamo, which is as much again as torch.
PRELOADED = [
    "torch",
    "torch._dynamo",
    "torchvision",
    "hydra.main",
    "wandb",
    "sklearn.datasets",
    "rich.progress",
    "pytest",
]
TIMEOUT = 200
# Of commands called otherwise.
MODULES = {"eval": "evaluate"}
CHECKOUT = Path(__file__).resolve().parents[1] / "src"


class Started:
    """A process that was started: ``pid``, and what it has printed."""

    def __init__(self, process: BaseProcess, folder: str) -> None:
        self._process, self._folder = process, folder
        assert process.pid is not None
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; as of subprocess."""
        return self._process.exitcode

    @property
    def printed(self) -> tuple[str, str]:
        """Its standard output and standard error so far."""
        out, err = (Path(self._folder, name).read_text("utf-8") for name in ("stdout", "stderr"))
        return out, err

    def wait(self) -> int:
        self._process.join(TIMEOUT)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", TIMEOUT, *self.printed)
        return self._process.exitcode


@contextlib.contextmanager
def started(
    code: str,
    *arguments: str,
    here: Path | None = None,
    environment: Mapping[str, str] | None = None,
    path: Sequence[str] | None = None,
) -> Iterator[Started]:
    """Start what ``run`` runs; killed where it has not ended at the end of the block."""
    surroundings = {**(os.environ if environment is None else environment), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("stdout", "stderr"):
            Path(folder, name).touch()
        given = (code, arguments, str(here or Path.cwd()), surroundings, path, folder)
        process = _context().Process(target=_child, args=given)
        process.start()
        try:
            yield Started(process, folder)
        finally:
            process.kill()
            process.join()


def run(
    code: str,
    *arguments: str,
    here: Path | None = None,
    environment: Mapping[str, str] | None = None,
    path: Sequence[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` as ``python -c`` does, with one thread.

    Args:
        here: its working directory; None: this process's.
        environment: None: this process's.
        path: where it finds packages, relgan above all; None: as this process.
    """
    with started(code, *arguments, here=here, environment=environment, path=path) as process:
        return subprocess.CompletedProcess(code, process.wait(), *process.printed)


def ranks(world: int, target: Callable[..., None], *arguments: object) -> None:
    """Call ``target(rank, *arguments)`` in a process for each rank, with one thread, and wait for all."""
    processes = [_context().Process(target=_rank, args=(target, rank, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + TIMEOUT
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        assert [process.exitcode for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()


def _rank(target: Callable[..., None], rank: int, *arguments: object) -> None:
    _use_one_thread()
    target(rank, *arguments)


def _use_one_thread() -> None:
    """OMP_NUM_THREADS comes too late for a process in which torch is imported already."""
    import torch

    torch.set_num_threads(1)


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def command(name: str) -> str:
    """What ``relgan-NAME`` is to ``run``."""
    module = MODULES.get(name, name)
    return f"import sys; sys.argv[0] = 'relgan-{name}'\nfrom relgan.cli.{module} import main; main()"


def _child(
    code: str,
    arguments: Sequence[str],
    here: str,
    environment: Mapping[str, str],
    path: Sequence[str] | None,
    folder: str,
) -> None:
    os.chdir(here)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(folder, name), os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
        setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w"), "utf-8", write_through=True))
    if path is not None:
        own = (str(CHECKOUT), sysconfig.get_paths()["purelib"])
        sys.path[:] = ["", *path, *(place for place in sys.path if place not in own)]
        importlib.invalidate_caches()
    _use_one_thread()
    sys.argv = ["-c", *arguments]
    main = sys.modules["__main__"] = ModuleType("__main__")
    try:
        exec(compile(code, "<string>", "exec"), vars(main))
    finally:
        atexit._run_exitfuncs()
