"""Picture files at their native size, as a set of images to score or to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relgan.config import ConfigError
from relgan.data.decode import EXTENSIONS, Unusable, whole
from relgan.data.files import Files, identity


class Pictures:
    """Every image file below a directory or in a zip archive, in the order of their names, as RGB.

    Args:
        path: the directory or archive.
        option: whose value the path is, for messages.

    Raises:
        ConfigError: nothing is there, or no image file is in it.
    """

    def __init__(self, path: str, option: str) -> None:
        root = Path(path).expanduser().absolute()
        if not root.exists():
            raise ConfigError(option, f"{path} does not exist")
        try:
            self._files = Files([root])
        except ConfigError as error:
            raise ConfigError(option, str(error).removeprefix(f"{error.option}: ")) from error
        self._entries = [entry for entry in self._files.entries if entry[1].lower().endswith(EXTENSIONS)]
        if not self._entries:
            raise ConfigError(option, f"no image files ({' '.join(EXTENSIONS)}) in {path}")
        self._option = option
        self.fingerprint = identity(root)
        self.size: tuple[int, ...] = self._read(0).shape[:2]
        self.meta: dict[str, Any] = {"name": root.name, "split": "all", "preprocessing": "RGB, native size"}

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, index: int) -> NDArray[np.uint8]:
        """One picture, uint8 [H, W, 3]; a damaged one is an error, because leaving it out would change a score."""
        try:
            return np.asarray(whole(self._files.read(self._entries[index])))
        except Unusable as error:
            name = self._entries[index][1]
            raise ConfigError(self._option, f"{name}: {error.reason} ({error.detail}); remove it") from error

    def batches(self, indices: NDArray[np.int64], batch_size: int) -> Iterator[Tensor]:
        """uint8 (n, 3, H, W); a batch ends early where the next picture has another size."""
        batch: list[NDArray[np.uint8]] = []
        for index in indices:
            picture = self._read(int(index))
            if batch and (len(batch) == batch_size or picture.shape != batch[0].shape):
                yield _stack(batch)
                batch = []
            batch.append(picture)
        if batch:
            yield _stack(batch)

    def positioned(self, indices: NDArray[np.int64], batch_size: int) -> Iterator[tuple[int, Tensor]]:
        """Batches, each with the position of its first picture in the stream."""
        start = 0
        for batch in self.batches(indices, batch_size):
            yield start, batch
            start += len(batch)


def _stack(batch: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
