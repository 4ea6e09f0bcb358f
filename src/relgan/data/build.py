"""Reading a source into a packed store, with all cores and bounded memory."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relgan.config import ConfigError, RelganError
from relgan.data.cache import progress_bar
from relgan.data.decode import Unusable
from relgan.data.sources import Source
from relgan.data.store import PackedStore, StoreWriter

log = logging.getLogger("relgan")

_CHUNK_BYTES = 1 << 20
_MIN_IMAGES_PER_WORKER = 1000
_MAX_NAMED = 100


@dataclass
class _Chunk:
    """Some images of a source: those that could be used, and (index, reason, detail) of the others."""

    size: int
    images: NDArray[np.uint8]
    indices: list[int]
    skipped: list[tuple[int, str, str]]


def build(
    source: Source, path: Path, size: int, indices: NDArray[np.int64], meta: dict[str, Any], progress: bool
) -> PackedStore:
    """Read the images ``indices`` of ``source`` into a new store at ``path``.

    Raises:
        ConfigError: no image could be used.
    """
    skipped: Counter[str] = Counter(source.dropped)
    named: list[str] = []
    with StoreWriter(path, size, size, source.channels) as writer:
        with progress_bar(len(indices), f"preparing {meta['name']}", show=progress) as advance:
            for chunk in _chunks(source, size, indices):
                labels = None if source.labels is None else source.labels[chunk.indices]
                writer.append(chunk.images, labels)
                skipped.update(reason for _, reason, _ in chunk.skipped)
                named += [f"{source.name(index)}: {detail}" for index, _, detail in chunk.skipped if detail]
                advance(chunk.size)
        _tell(named)
        if writer.count == 0:
            raise ConfigError("dataset.path", f"none of {len(indices)} images can be used: {_counts(skipped)}")
        store = writer.finish(preprocessing=source.preprocessing, skipped=dict(skipped), **source.facts, **meta)
    log.info(
        "%s: %d images kept, %s; %.1f s, %.1f MB in %s",
        meta["name"],
        len(store),
        _counts(skipped),
        store.meta["seconds"],
        store.size_on_disk / 1e6,
        store.path,
    )
    return store


def _counts(skipped: Counter[str]) -> str:
    if not skipped:
        return "none skipped"
    listed = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    return f"{skipped.total()} skipped ({listed})"


def _tell(named: list[str]) -> None:
    for line in named[:_MAX_NAMED]:
        log.warning("skipped %s", line)
    if len(named) > _MAX_NAMED:
        log.warning("skipped %d more", len(named) - _MAX_NAMED)


def _chunks(source: Source, size: int, indices: NDArray[np.int64]) -> Iterator[_Chunk]:
    """The chunks in order, read here or by several processes, a few ahead of the reader."""
    step = max(1, _CHUNK_BYTES // (size * size * source.channels))
    pieces = [indices[start : start + step] for start in range(0, len(indices), step)]
    workers = min(_cores(), len(indices) // _MIN_IMAGES_PER_WORKER) if source.parallel else 1
    if workers <= 1:
        yield from (_read(source, size, piece) for piece in pieces)
        return
    # Processes, because half of the time per small JPEG is spent in Python; spawned, because a fork after
    # threads were started (torch, logging, progress bars) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(source, size))
    try:
        yield from _ordered(pool, pieces, ahead=2 * workers)
    except BrokenProcessPool as error:
        raise RelganError("a process that was reading images was killed (out of memory?); run it again") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ordered(pool: ProcessPoolExecutor, pieces: Iterable[NDArray[np.int64]], ahead: int) -> Iterator[_Chunk]:
    waiting: deque[Future[_Chunk]] = deque()
    for piece in pieces:
        waiting.append(pool.submit(_read_in_worker, piece))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(source: Source, size: int, indices: NDArray[np.int64]) -> _Chunk:
    images = np.empty((len(indices), size, size, source.channels), dtype=np.uint8)
    chunk = _Chunk(len(indices), images, [], [])
    for index in indices.tolist():
        try:
            images[len(chunk.indices)] = source.read(index)
            chunk.indices.append(index)
        except Unusable as unusable:
            chunk.skipped.append((index, unusable.reason, unusable.detail))
    chunk.images = images[: len(chunk.indices)]
    return chunk


_worker: tuple[Source, int]


def _start_worker(source: Source, size: int) -> None:
    global _worker
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = (source, size)


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers to stop, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _read_in_worker(indices: NDArray[np.int64]) -> _Chunk:
    return _read(*_worker, indices)


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
