"""From options to an opened store: found in the cache, or packed there once, with all cores and bounded memory."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relgan.cache import Refused, cache_dir, keyed, load_or_make
from relgan.data.archives import beside, identity, locate
from relgan.data.decode import Unusable
from relgan.data.sources import Source
from relgan.data.store import FORMAT, PackedStore, StoreWriter, fixed_subset
from relgan.options import ConfigError, RelganError
from relgan.progress import progress_bar
from relgan.registry import DATASETS, DatasetOptions, load_plugins

log = logging.getLogger("relgan")

_FOLDER = "datasets"
_FEW_IMAGES = 1000
_CHUNK_BYTES = 1 << 20
_MIN_IMAGES_PER_WORKER = 1000
_MAX_NAMED = 100
_LEAVE_IMAGES_ALONE = ("path", "sampling", "hflip", "min_images", "url", "residence")


def store_path(options: DatasetOptions) -> Path:
    """The directory of this data set's store, whether it exists or not.

    Its name depends on every option that changes an image, a data set's own ones too, on the source files' names,
    sizes and times, and on the code of a data set from outside.
    """
    registered = DATASETS[options.name]
    values = {name: value for name, value in asdict(options).items() if name not in _LEAVE_IMAGES_ALONE}
    if not registered.facts.splits:
        del values["split"]
    # Where there are always labels, the store has them whether or not they are used.
    if registered.facts.labels or not options.labels:
        del values["labels"]
    key = {"format": FORMAT, "options": values, "source": _source_identity(options), "code": registered.code}
    return keyed(_FOLDER, f"{options.name}-{options.image_size}", key)


def _source_identity(options: DatasetOptions) -> str | None:
    """What changes with the user's files; None where there are none."""
    if not options.path:
        return None
    path = locate(options.path)
    lists = DATASETS[options.name].facts.split_lists if options.split != "all" else ()
    return identity(path, *beside(path, lists))


def prepared() -> list[Path]:
    """The directories of everything in the cache, damaged ones too; RelganError if it cannot be read."""
    try:
        return sorted(path for path in (cache_dir() / _FOLDER).iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RelganError(f"{error.filename} cannot be read ({error.strerror})") from error


def prepare(options: DatasetOptions, *, progress: bool = True) -> PackedStore:
    """Open the data set, packing it first where that was not done before.

    Of several processes that ask at once, one packs and the others wait. What is made appears under its
    name only when complete. Where the cache cannot be written, it lies in a temporary folder while this process runs.

    Raises:
        ConfigError: an option names nothing usable.
        RelganError: nothing could be prepared; or neither place can be written.
    """
    _check_facts(options)
    try:
        store = load_or_make(store_path(options), PackedStore.open, lambda path: _make(path, options, progress))
    except Refused as error:
        raise RelganError(
            f"cannot write prepared data to {cache_dir()} or elsewhere ({error}); "
            "the environment variable RELGAN_CACHE chooses another place"
        ) from error
    _check_store(store, options)
    return store


def _check_facts(options: DatasetOptions) -> None:
    facts = DATASETS[options.name].facts
    if options.split in ("valid", "test") and not facts.splits:
        raise ConfigError("dataset.split", f"{options.name} has no {options.split} split; use all")
    if options.labels and facts.labels is False:
        able = ", ".join(name for name, entry in DATASETS.items() if entry.facts.labels is not False)
        raise ConfigError("dataset.labels", f"{options.name} has no labels (these have: {able})")


def _make(path: Path, options: DatasetOptions, progress: bool) -> PackedStore:
    source = DATASETS.build(options.name, options, of=Source)
    meta = {"name": options.name, "split": options.split, "source": options.path}
    with DATASETS[options.name].failing_in_one_line():
        return pack(source, path, options.image_size, options.num_images, meta, progress)


def _check_store(store: PackedStore, options: DatasetOptions) -> None:
    if options.labels and store.labels is None:
        raise ConfigError("dataset.labels", f"{options.name} has no labels")
    if len(store) < options.min_images:
        raise ConfigError(
            "dataset.min_images",
            f"only {len(store)} images after preparing, fewer than {options.min_images}; lower it to accept them",
        )
    if len(store) < _FEW_IMAGES:
        log.warning("%d images are few: enough to prove the pipeline, not to train a model", len(store))


@dataclass
class _Chunk:
    """Some images of a source: those that could be used, and (index, reason, detail) of the others."""

    size: int
    images: NDArray[np.uint8]
    indices: list[int]
    skipped: list[tuple[int, str, str]]


def pack(source: Source, path: Path, size: int, count: int | None, meta: dict[str, Any], progress: bool) -> PackedStore:
    """Read (a fixed random ``count`` of) the images of ``source`` into a new store at ``path``.

    Raises:
        ConfigError: no image could be used.
        RelganError: the source gives something else than images and labels, or a process that reads it ends early.
    """
    _check_labels(source)
    indices = fixed_subset(len(source), count)
    skipped: Counter[str] = Counter(source.dropped)
    named: list[str] = []
    with StoreWriter(path, size, size, source.channels) as writer:
        with progress_bar(len(indices), f"preparing {meta['name']}", show=progress) as bar:
            for chunk in _chunks(source, size, indices):
                labels = None if source.labels is None else source.labels[chunk.indices]
                writer.append(chunk.images, labels)
                skipped.update(reason for _, reason, _ in chunk.skipped)
                named += [f"{source.name(index)}: {detail}" for index, _, detail in chunk.skipped if detail]
                bar.advance(chunk.size)
        _tell(named)
        if writer.count == 0:
            reason = f": {_counts(skipped)}" if skipped else ""
            raise ConfigError("dataset.path", f"dataset={meta['name']} has no usable images{reason}")
        if source.classes:
            meta = {"classes": list(source.classes), **meta}
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
    if source.classes:
        sizes = [f"{name} {size}" for name, size in zip(store.classes, store.class_counts, strict=True)]
        more = [] if len(sizes) <= _MAX_NAMED else ["…"]
        log.info("%d classes: %s", len(sizes), ", ".join(sizes[:_MAX_NAMED] + more))
    return store


def _check_labels(source: Source) -> None:
    if source.labels is None:
        return
    count = len(source.classes) or np.inf
    if ((source.labels < 0) | (source.labels >= count)).any():
        expected = f"0 … {count - 1}, the numbers of its classes" if source.classes else "0 or more"
        raise RelganError(f"{type(source).__name__}.labels must be {expected}")


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
    sent = _pickled(source) if workers > 1 else None
    if sent is None:
        yield from (_read(source, size, piece) for piece in pieces)
        return
    # Processes, because half of the time per small JPEG is spent in Python; spawned, because a fork after
    # threads were started (torch, logging, progress bars) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(*sent, size))
    try:
        yield from _ordered(pool, pieces, ahead=2 * workers)
    except BrokenProcessPool as error:
        raise RelganError("a process that was reading images ended early (out of memory?); run it again") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pickled(source: Source) -> tuple[bytes, str] | None:
    """The source and the file of its class for another process; None where that process could not load it."""
    # Spawned processes know __main__ only where it is a file that guards what it runs.
    if type(source).__module__ == "__main__":
        return None
    try:
        return pickle.dumps(source), inspect.getfile(type(source))
    except Exception as error:  # what its parts raise: nearly anything
        log.info("reading with one process, because the data set cannot be sent to others: %s", error)
        return None


def _ordered(pool: ProcessPoolExecutor, pieces: Iterable[NDArray[np.int64]], ahead: int) -> Iterator[_Chunk]:
    waiting: deque[Future[_Chunk]] = deque()
    for piece in pieces:
        with _nobodys_main():  # a task may start a process
            waiting.append(pool.submit(_read_in_worker, piece))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _nobodys_main() -> Iterator[None]:
    """Spawned processes would run the user's script again, which may have no ``if __name__ == "__main__"``."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _read(source: Source, size: int, indices: NDArray[np.int64]) -> _Chunk:
    images = np.empty((len(indices), size, size, source.channels), dtype=np.uint8)
    chunk = _Chunk(len(indices), images, [], [])
    for index in indices.tolist():
        try:
            image = source.read(index)
        except Unusable as unusable:
            chunk.skipped.append((index, unusable.reason, unusable.detail))
            continue
        # NumPy would stretch or round what it can.
        if image.dtype != np.uint8 or image.shape != images.shape[1:]:
            expected = f"uint8 {images.shape[1:]}"
            raise RelganError(f"{type(source).__name__}.read gave {image.dtype} {image.shape}, not {expected}")
        images[len(chunk.indices)] = image
        chunk.indices.append(index)
    chunk.images = images[: len(chunk.indices)]
    return chunk


_worker: tuple[Source, int]


def _start_worker(pickled: bytes, file: str, size: int) -> None:
    global _worker
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        source = pickle.loads(pickled)
    except ImportError:  # its class is in a plugin that was given as a file
        load_plugins([file], [Path(file).parent])
        source = pickle.loads(pickled)
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
