"""CUDA graphs without a GPU: what they forbid is noticed, and a stand-in does what they do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from relgan.training.engine import Results

aten = torch.ops.aten

READS = {
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item),
    # The size of what these return depends on the values.
    *(aten.nonzero, aten.nonzero_numpy, aten.masked_select, aten.unique_dim, aten._unique2, aten.unique_consecutive),
    *(aten.bincount, aten.histc, aten.combinations, aten.argwhere),
}
"""Operations that wait for the device."""
TO_THE_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__array__}
"""On the CPU these run no operation of their own."""
CHECKED_ON_CPUS = {torch.nn.functional.one_hot}
"""These look at their arguments' values on a CPU only."""
FROM_THE_HOST = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
"""Copies out of ordinary memory, which wait too."""


class ReadsValues(AssertionError):
    """Something waits for the device."""


class MadeElsewhere(AssertionError):
    """A tensor is made without ``device=``, so on the host."""


class _NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet in READS:
            raise ReadsValues(str(func))
        if packet in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise ReadsValues(f"{func} by a mask")
        made = func(*args, **(kwargs or {}))
        # Some operations would take one that has no dimensions together with those of another device.
        if isinstance(made, Tensor) and made.is_meta:
            raise MadeElsewhere(str(func))
        return made


class _NothingToTheHost(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A device given as a word is the host's own: torch's optimizers count steps there on a CPU.
        of_the_host = isinstance((kwargs or {}).get("device"), str)
        if func in TO_THE_HOST or (func in FROM_THE_HOST and not of_the_host):
            raise ReadsValues(str(func))
        with _disable_current_modes() if func in CHECKED_ON_CPUS else contextlib.nullcontext():
            return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_the_device() -> Iterator[None]:
    """Raise ReadsValues where values are read back, MadeElsewhere where a tensor is made without naming its device.

    The CPU is "the device" here, and the device of tensors that name none is ``meta``.
    """
    with torch.device("meta"), _NothingToTheHost(), _NoReads():
        yield


@contextlib.contextmanager
def capturable_on_the_cpu() -> Iterator[None]:
    """Let torch's optimizers run on the CPU in the form that a CUDA graph needs."""
    supported = ["cpu", "cuda"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("adam", "rmsprop"):
            # torch.optim hides its modules behind the classes of their names.
            module = sys.modules[f"torch.optim.{name}"]
            patch.setattr(module, "_get_capturable_supported_devices", lambda *_: supported)
        yield


def stand_in(work: Callable[[], Results], undo: Callable[[], None]) -> tuple[Callable[[], None], Results]:
    """What a graph does, without a GPU: the same work on the same memory, results into the same tensors."""
    for _ in range(3):
        work()
    undo()
    results = work()
    undo()

    def replay() -> None:
        for old, new in zip(results, work(), strict=True):
            for f in fields(old):
                getattr(old, f.name).copy_(getattr(new, f.name))

    return replay, results
