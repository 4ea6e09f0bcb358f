"""What is made once and kept: where it lives, what it is called, and who may make it."""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from relgan.options import RelganError, user_path

log = logging.getLogger("relgan")

T = TypeVar("T")

# Nothing there, or something else than what was kept; a reader's own errors have no number, or EINVAL.
_OF_THE_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)


def cache_dir() -> Path:
    """$RELGAN_CACHE, else the user's cache directory, else a temporary folder."""
    if chosen := os.environ.get("RELGAN_CACHE"):
        return user_path(chosen).absolute()
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("relgan", appauthor=False))
    except RuntimeError:  # a user without a home
        return _temporary()


def keyed(folder: str, name: str, key: Mapping[str, Any], suffix: str = "") -> Path:
    """The place in the cache of what is determined by ``key``: NAME-HASH."""
    text = json.dumps(key, sort_keys=True, default=str)  # options may be paths and enumerations
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_dir() / folder / f"{name}-{digest}{suffix}"


class Refused(RelganError):
    """The file system refuses to keep something or to give it back.

    It is full or read-only, forbids it, or something is in the way.
    """


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses inside the block into :class:`Refused`."""
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        raise Refused(f"{path} cannot be written ({getattr(error, 'strerror', None) or error})") from error


def load_or_make(path: Path, load: Callable[[Path], T], make: Callable[[Path], T]) -> T:
    """What is kept at ``path``; made there where it is missing or damaged, by one process while the others wait.

    Where nothing can be kept it is made in a temporary folder, which goes when the process ends.

    Args:
        load: reads it; nearly any exception means damaged (see :func:`_loaded`).
        make: makes it at the path it is given, under an atomic name, and returns it.

    Raises:
        Refused: the temporary folder cannot be used either.
    """
    try:
        return _load_or_make(path, load, make)
    except Refused as error:
        place = _temporary() / path.parent.name / path.name
        if not place.exists():
            log.warning("%s: using a temporary folder", error)
        return _load_or_make(place, load, make)


def _load_or_make(path: Path, load: Callable[[Path], T], make: Callable[[Path], T]) -> T:
    found = _loaded(path, load)
    if found is not None:
        return found
    with locked(path):
        found = _loaded(path, load)
        if found is not None:
            return found
        if os.path.lexists(path):
            log.warning("%s is damaged: making it again", path)
        return make(path)


def load_or_compute(
    path: Path, load: Callable[[Path], T], compute: Callable[[], T], save: Callable[[Path, T], None]
) -> T:
    """What is kept at ``path``, else computed once; where it cannot be kept that costs time, but is no failure.

    Args:
        load: reads it; nearly any exception means damaged (see :func:`_loaded`).
        compute: makes it anew.
        save: keeps it at the path under an atomic name.
    """

    def make(path: Path) -> T:
        made = compute()
        try:
            discard(path)
            save(path, made)
        except OSError as error:
            log.warning("%s cannot be kept (%s)", path, error.strerror or error)
        return made

    try:
        return load_or_make(path, load, make)
    except Refused as error:
        log.warning("%s", error)
        return compute()


def _loaded(path: Path, load: Callable[[Path], T]) -> T | None:
    """What is at ``path``; None where that is nothing, or damaged.

    Raises:
        MemoryError: which says nothing of the file.
        Refused: it may be whole, but cannot be read now.
    """
    try:
        return load(path)
    except MemoryError:
        raise
    except Exception as error:  # readers of damaged files raise nearly anything
        if isinstance(error, OSError) and error.errno not in _OF_THE_FILE:
            raise Refused(f"{path} cannot be read ({error.strerror})") from error
        return None


def discard(path: Path) -> None:
    """Remove what is at ``path``, if anything: a file, a link, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@functools.cache
def _temporary() -> Path:
    """A folder that is removed when the process ends."""
    with writing(Path("a temporary folder")):
        folder = tempfile.mkdtemp(prefix="relgan-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``; its directory is made here. A killed process holds no lock.

    Raises:
        Refused: there can be no lock.
    """
    from filelock import FileLock, Timeout

    with writing(path):
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
