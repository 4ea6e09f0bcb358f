"""The packed store: images of one size in one memory-mapped file, with a description beside it.

A store is a directory of ``images.npy`` (uint8 [N, H, W, C]), ``meta.json`` and perhaps ``labels.npy`` (int64 [N]).
It is written under a temporary name and renamed, so a directory of the final name is always complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relgan.cache import discard, writing
from relgan.options import RelganError, first_line

FORMAT = 1
_HASH_CHUNK = 1 << 22


class PackedStore:
    """An opened, read-only data set.

    Attributes:
        images: uint8 [N, H, W, C] memory map.
        labels: int64 [N], or None.
        meta: name, num_images, height, width, channels, fingerprint, preprocessing, split, skipped, seconds, classes …
        path: the directory.
    """

    def __init__(
        self, path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, meta: dict[str, Any]
    ) -> None:
        self.path, self.images, self.labels, self.meta = path, images, labels, meta

    @classmethod
    def open(cls, path: Path) -> PackedStore:
        """Open the store at ``path``; RelganError if it is incomplete or contradicts its own description."""
        try:
            meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            images = np.lib.format.open_memmap(path / "images.npy", mode="r")
            labels = _read_labels(path / "labels.npy") if meta["labels"] else None
            _check(meta, images, labels)
        except PermissionError as error:
            raise RelganError(f"the prepared data in {path} cannot be read ({error.strerror})") from error
        except Exception as error:  # damaged files make their readers raise nearly anything
            raise RelganError(f"the prepared data in {path} is damaged ({first_line(error)}); delete it") from error
        return cls(path, images, labels, meta)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return int(self.images.shape[3])

    @property
    def image_size(self) -> int:
        return int(self.images.shape[1])

    @property
    def class_counts(self) -> list[int]:
        """Images of each class; empty without labels."""
        if self.labels is None:
            return []
        counts: list[int] = np.bincount(self.labels, minlength=len(self.meta.get("classes", ()))).tolist()
        return counts

    @property
    def classes(self) -> list[str]:
        """Names of the classes: those in ``meta``, or else numbers of one length, such as 000 … 999."""
        count = len(self.class_counts)
        width = len(str(count - 1))
        return list(self.meta.get("classes") or (f"{label:0{width}}" for label in range(count)))

    @property
    def fingerprint(self) -> str:
        """Hash of every pixel and label: equal data have equal fingerprints on every machine."""
        return str(self.meta["fingerprint"])

    @property
    def size_on_disk(self) -> int:
        """Bytes."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    def verify(self) -> None:
        """Read everything again and compare with the fingerprint; RelganError if a bit has changed."""
        try:
            found = content_fingerprint(self.path)
        except OSError as error:
            raise RelganError(f"the prepared data in {self.path} cannot be read ({error.strerror})") from error
        if found != self.fingerprint:
            raise RelganError(f"the prepared data in {self.path} has changed on disk; delete it")


def _read_labels(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _check(meta: dict[str, Any], images: NDArray[Any], labels: NDArray[Any] | None) -> None:
    """ValueError if the parts of a store do not belong together; nothing is read but the labels."""
    shape = (meta["num_images"], meta["height"], meta["width"], meta["channels"])
    right = images.dtype == np.uint8 and images.shape == shape
    right &= isinstance(meta["name"], str) and isinstance(meta["fingerprint"], str)
    classes = meta.get("classes", [])
    right &= isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if labels is not None:
        right &= labels.dtype == np.int64 and labels.shape == shape[:1]
        right = right and labels.min() >= 0 and labels.max() < (len(classes) or np.inf)
    if not right:
        raise ValueError("it contradicts its meta.json")


def content_fingerprint(path: Path) -> str:
    """Hash of the array files in ``path``."""
    digest = hashlib.sha256()
    for name in ("images.npy", "labels.npy"):
        if (path / name).exists():
            with (path / name).open("rb") as file:
                while block := file.read(_HASH_CHUNK):
                    digest.update(block)
    return digest.hexdigest()[:32]


def fixed_subset(count: int, size: int | None) -> NDArray[np.int64]:
    """Sorted indices int64 of all ``count`` things, or of a fixed random ``size`` of them.

    Random, because archives are often sorted by class; fixed, so that every machine takes the same.
    """
    if size is None or size >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))


class StoreWriter:
    """Writes a store image by image; nothing is visible at ``path`` before :meth:`finish`.

    Ordinary writes, not a memory map: a full disk is then an OSError instead of a bus error. Leaving the
    ``with`` block without :meth:`finish` removes what was written. All methods raise
    :class:`relgan.cache.Refused` where the disk refuses.
    """

    def __init__(self, path: Path, height: int, width: int, channels: int) -> None:
        self.path = path
        self.shape = (height, width, channels)
        self.count = 0
        self._labels: list[int] = []
        self._started = time.perf_counter()
        self._partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        with writing(path):
            for leftover in path.parent.glob(f".{path.name}.partial*"):
                discard(leftover)
            self._partial.mkdir(parents=True)
            self._file = (self._partial / "images.npy").open("wb")
            self._header_end = self._write_header()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take when it was written
            self._file.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _write_header(self) -> int:
        """NumPy pads the header so that its length does not depend on the number of rows."""
        self._file.seek(0)
        description = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, description)
        return self._file.tell()

    def append(self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None = None) -> None:
        """Add uint8 [n, H, W, C] images and perhaps their labels."""
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise ValueError(f"expected uint8 images of shape {self.shape}, got {images.dtype} {images.shape[1:]}")
        with writing(self.path):
            self._file.write(np.ascontiguousarray(images).data)
        self.count += len(images)
        if labels is not None:
            self._labels.extend(labels.tolist())

    def finish(self, **meta: Any) -> PackedStore:
        """Complete the store, give it its name in place of whatever has it, and open it."""
        with writing(self.path):
            self._complete(meta)
            discard(self.path)
            self._partial.rename(self.path)
        return PackedStore.open(self.path)

    def _complete(self, meta: dict[str, Any]) -> None:
        if self._write_header() != self._header_end:
            raise RuntimeError("the .npy header changed its length")
        _sync_and_close(self._file)
        if self._labels:
            with (self._partial / "labels.npy").open("wb") as file:
                np.save(file, np.array(self._labels, dtype=np.int64))
                _sync_and_close(file)
        height, width, channels = self.shape
        description = {
            "format": FORMAT,
            "num_images": self.count,
            "height": height,
            "width": width,
            "channels": channels,
            "labels": bool(self._labels),
            "fingerprint": content_fingerprint(self._partial),
            "seconds": round(time.perf_counter() - self._started, 3),
            **meta,
        }
        # A path may hold bytes that are no characters: JSON has an escape for them.
        with (self._partial / "meta.json").open("w", encoding="utf-8", errors="backslashreplace") as text:
            json.dump(description, text, indent=2, ensure_ascii=False)
            _sync_and_close(text)


def _sync_and_close(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
