"""Writing files so that a reader sees the old or the new content, never half of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from relgan.options import ConfigError


@contextlib.contextmanager
def writing_to(path: Path, option: str) -> Iterator[None]:
    """Blame what the file system refuses inside the block on the option that names ``path``.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(option, f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_write(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path``; on success sync it to disk and give it the name.

    One process at a time may write a path: its owner, or whoever holds its lock.

    Args:
        path: the file to create or replace.
        keep: name under which the file being replaced stays.

    Raises:
        OSError: the disk is full or the directory is not writable; ``path`` is untouched and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
