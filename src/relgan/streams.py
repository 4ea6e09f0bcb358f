"""Standard streams that lose what cannot be written: no program ends because nobody can read what it says."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@contextlib.contextmanager
def lossy() -> Iterator[None]:
    """While entered, nothing written to standard output or standard error raises.

    What a pipe without a reader, a full disk or a lost terminal refuses is lost, as is what goes to a stream that was
    closed from the start. A character that the encoding lacks appears as its escape sequence.
    """
    with contextlib.ExitStack() as undo:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            given = getattr(sys, name)
            undo.callback(setattr, sys, name, given)
            if given is None:
                # It takes the descriptor that was closed: in another file, what libraries print there would end up.
                setattr(sys, name, undo.enter_context(open(os.devnull, mode, encoding="utf-8")))  # noqa: PTH123
            elif mode == "w" and hasattr(given, "buffer"):  # a notebook's stream has none, and cannot break
                stream = _around(given)
                undo.callback(stream.flush)
                setattr(sys, name, stream)
        yield


def beside(given: TextIO) -> TextIO:
    """Another stream to the same place, which knows nothing of what programs put around the first."""
    return _around(given) if hasattr(given, "buffer") else given


def _around(given: TextIO) -> TextIO:
    with contextlib.suppress(OSError):
        given.flush()
    raw = _Lossy(getattr(given.buffer, "raw", given.buffer))
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=given.encoding, errors="backslashreplace", line_buffering=True
    )


class _Lossy(io.RawIOBase):
    """Passes bytes on; those that ``target`` refuses are lost. Closing it leaves ``target`` open."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._target.fileno()

    def isatty(self) -> bool:
        return self._target.isatty()

    def write(self, data: ReadableBuffer) -> int:
        written = None  # also the answer of a full pipe that does not block
        with contextlib.suppress(OSError, ValueError):  # ValueError: the target was closed
            written = self._target.write(data)
        return memoryview(data).nbytes if written is None else written
