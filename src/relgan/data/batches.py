"""Which images come next, and how they become a batch on the training device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relgan.data.store import PackedStore
from relgan.distributed import rank, world_size
from relgan.images import to_float
from relgan.options import ConfigError
from relgan.registry import DatasetOptions

AHEAD = 8  # batches on their way to a GPU

_COPY_ROWS = 4096
_FLIP_STREAM = 1


class Batch(NamedTuple):
    """Real images as the networks see them.

    Attributes:
        images: float32 (N, C, H, W) in [−1, 1], channels_last, on the training device.
        labels: int64 (N,) beside them; None where the networks see none.
    """

    images: Tensor
    labels: Tensor | None = None

    @property
    def condition(self) -> tuple[Tensor, ...]:
        """What the networks are given besides latents or images."""
        return () if self.labels is None else (self.labels,)


class Sampler:
    """An endless, reproducible order of image indices.

    The order is a function of the seed and of how many images were drawn before, so that number is the whole
    state. All ranks follow one global order, of which each takes its own part of every batch.

    Args:
        num_images: size of the data set.
        batch_size: indices per call, on this rank.
        sampling: "epoch": a permutation at a time, a batch may straddle two, so no image is ever dropped;
            "independent": each global batch drawn anew, without repeats inside it.
        seed: of the order.
        rank, world_size: which part of the global batch (batch_size × world_size) is this process's.

    Raises:
        ConfigError: the global batch is larger than the data set.
    """

    def __init__(
        self, num_images: int, batch_size: int, sampling: str, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_images, self.batch_size, self.sampling, self.seed = num_images, batch_size, sampling, seed
        self.global_batch = batch_size * world_size
        self.part = slice(rank * batch_size, (rank + 1) * batch_size)
        self.drawn = 0
        self._permutation: tuple[int, NDArray[np.int64]] | None = None
        if self.global_batch > num_images:
            raise ConfigError(
                "train.batch_size",
                f"{self.global_batch} is more than the {num_images} images of the data set",
            )

    def next(self) -> NDArray[np.int64]:
        """The next indices: (batch_size,)."""
        draw = self._independent if self.sampling == "independent" else self._from_epochs
        indices = draw()[self.part]
        self.drawn += self.global_batch
        return indices

    def _independent(self) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, self.drawn])
        return rng.choice(self.num_images, self.global_batch, replace=False)

    def _from_epochs(self) -> NDArray[np.int64]:
        epoch, start = divmod(self.drawn, self.num_images)
        indices = self._epoch(epoch)[start : start + self.global_batch]
        missing = self.global_batch - len(indices)
        return np.concatenate([indices, self._epoch(epoch + 1)[:missing]]) if missing else indices.copy()

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if self._permutation is None or self._permutation[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
            self._permutation = (epoch, order)
        return self._permutation[1]

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = int(state["drawn"])


class Event(Protocol):
    """A point in a device's work, as ``torch.cuda.Event``."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class Ring:
    """Page-locked buffers in host memory, used in turn for what goes to a GPU.

    A copy from them waits for nothing. Before a buffer is used again the host waits until its last copy was made, so
    it is never more than ``AHEAD`` batches in front of the device and needs no more memory than that.

    Args:
        like: the largest that will be sent.
        device: where to.
        event: makes events of that device.
    """

    def __init__(self, like: NDArray[Any], device: torch.device, event: Callable[[], Event]) -> None:
        self._device = device
        empty = torch.from_numpy(np.empty_like(like, order="C"))
        pinned = device.type == "cuda"
        self._slots = cycle([(empty.pin_memory() if pinned else empty.clone(), event()) for _ in range(AHEAD)])

    def send(self, values: NDArray[Any]) -> Tensor:
        """A copy on the device, perhaps still on its way; as many rows as ``values`` has."""
        buffer, copied = next(self._slots)
        copied.synchronize()
        rows = buffer[: len(values)]
        np.copyto(rows.numpy(), values)
        sent = torch.empty(rows.shape, dtype=rows.dtype, device=self._device).copy_(rows, non_blocking=True)
        copied.record()
        return sent


class Batches:
    """The batches of a run, one after another.

    Args:
        store: the data set.
        sampler: gives the indices.
        device: where batches are needed.
        hflip: mirror each image with probability one half.
        labels: whether batches carry them.
        residence: "device" keeps the whole uint8 data set on ``device``; "host" leaves it in the memory map;
            "auto" takes the device when it is a GPU and at most half of its free memory is needed.
    """

    def __init__(
        self,
        store: PackedStore,
        sampler: Sampler,
        device: torch.device,
        hflip: bool,
        *,
        labels: bool = False,
        residence: str = "auto",
    ) -> None:
        self.sampler, self.device, self.hflip = sampler, device, hflip
        if residence == "auto":
            residence = "device" if _fits(store, device) else "host"
        self._host = store.images
        self._labels = store.labels if labels else None
        self._resident = _to_device(store, device) if residence == "device" else None
        self._rings: dict[str, Ring] = {}

    @classmethod
    def of(
        cls, store: PackedStore, options: DatasetOptions, batch_size: int, seed: int, device: torch.device
    ) -> Batches:
        """This rank's part of batches of ``batch_size`` images."""
        own = batch_size // world_size()
        sampler = Sampler(len(store), own, options.sampling, seed, rank(), world_size())
        return cls(store, sampler, device, options.hflip, labels=options.labels, residence=options.residence)

    def next(self) -> Batch:
        position = self.sampler.drawn
        indices = self.sampler.next()
        if self._resident is not None:
            images = self._resident.index_select(0, self._sent("indices", indices))
        else:
            images = self._sent("images", self._host[indices])
        if self.hflip:
            images = self._mirror_some(images, position)
        labels = None if self._labels is None else self._sent("labels", self._labels[indices])
        return Batch(to_float(images.permute(0, 3, 1, 2)), labels)

    def _mirror_some(self, images: Tensor, position: int) -> Tensor:
        # Seeded by the position: reproducible after a resume, and the same however many ranks share the batch.
        rng = np.random.default_rng([self.sampler.seed, position, _FLIP_STREAM])
        coins = rng.random(self.sampler.global_batch)[self.sampler.part]
        chosen = self._sent("mirrored", np.flatnonzero(coins < 0.5))
        return images.index_copy_(0, chosen, images.index_select(0, chosen).flip(2))

    def _sent(self, what: str, values: NDArray[Any]) -> Tensor:
        """On the device; ``what`` never has more rows than a batch."""
        if self.device.type != "cuda":
            return torch.from_numpy(values).to(self.device)
        if what not in self._rings:
            whole = np.empty((self.sampler.batch_size, *values.shape[1:]), values.dtype)
            self._rings[what] = Ring(whole, self.device, partial(torch.cuda.Event, blocking=True))
        return self._rings[what].send(values)

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)


def _fits(store: PackedStore, device: torch.device) -> bool:
    return device.type == "cuda" and store.images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


def _to_device(store: PackedStore, device: torch.device) -> Tensor:
    """The data set as uint8 (N, H, W, C) on ``device``, copied in pieces so that host memory stays small."""
    resident = torch.empty(store.images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(store), _COPY_ROWS):
        rows = torch.from_numpy(np.array(store.images[start : start + _COPY_ROWS]))
        resident[start : start + len(rows)] = rows.to(device)
    return resident
