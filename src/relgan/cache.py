"""What is made once and kept: where it lives, what it is called, and who may make it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    pass

log = logging.getLogger("relgan")

T = TypeVar("T")


def cache_dir() -> Path:
    """$RELGAN_CACHE, else the user's cache directory."""
    if chosen := os.environ.get("RELGAN_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("relgan", appauthor=False))


def keyed(folder: str, name: str, key: Mapping[str, Any], suffix: str = "") -> Path:
    """The place in the cache of what is determined by ``key``: NAME-HASH."""
    text = json.dumps(key, sort_keys=True, default=str)  # options may be paths and enumerations
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_dir() / folder / f"{name}-{digest}{suffix}"


def load_or_make(path: Path, load: Callable[[Path], T], make: Callable[[Path], T]) -> T:
    """What is kept at ``path``; made there where it is missing or damaged, by one process while the others wait.

    Args:
        load: reads it; any exception means damaged.
        make: computes it, keeps it at the path under an atomic name, and returns it.

    Raises:
        OSError: the lock cannot be taken: nothing can be kept there.
    """
    found = _loaded(path, load)
    if found is not None:
        return found
    with locked(path):
        found = _loaded(path, load)
        if found is not None:
            return found
        if path.exists():
            log.warning("%s is damaged: making it again", path)
        return make(path)


def load_or_compute(
    path: Path, load: Callable[[Path], T], compute: Callable[[], T], save: Callable[[Path, T], None]
) -> T:
    """What is kept at ``path``, else computed; where nothing can be kept that costs time, but is no failure.

    Args:
        load: reads it; any exception means damaged.
        compute: makes it anew.
        save: keeps it at the path under an atomic name.
    """

    def make(path: Path) -> T:
        made = compute()
        try:
            save(path, made)
        except OSError as error:
            log.warning("%s cannot be kept (%s)", path, error)
        return made

    try:
        return load_or_make(path, load, make)
    except OSError as error:
        log.warning("%s cannot be kept (%s)", path, error)
        return compute()


def _loaded(path: Path, load: Callable[[Path], T]) -> T | None:
    if not path.exists():
        return None
    try:
        return load(path)
    except Exception:  # readers of damaged files raise nearly anything
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``; its directory is made here. A killed process holds no lock."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is preparing %s: waiting for it", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def progress_bar(total: int, title: str, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while the block runs, if that is a terminal; yields ``advance(n)``."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
