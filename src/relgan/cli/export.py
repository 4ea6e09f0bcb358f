"""relgan-export: a trained generator as one file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relgan.cli.command import CommandOptions, Line, command
from relgan.environment import installed
from relgan.files import atomic_write, writing_to
from relgan.options import ConfigError, RelganError, first_line, option, user_path
from relgan.progress import progress_bar

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.export import ExportedProgram

    from relgan.generator import TrainedGenerator

    Network = Callable[..., Tensor]

USAGE = """relgan-export RUN [format=safetensors|pt2|onnx] [out=FILE] [checkpoint=last] [weights=ema]

safetensors: the weights and how to rebuild the network, for relgan.load and relgan-sample.
pt2: the traced network, for torch.export.load without relgan.
onnx: the same for ONNX Runtime, without relgan and torch.
A conditional network takes labels beside the latents z: numbers of classes, int64.
"""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# A traced network is most often wrong for a single image.
TRIED_BATCHES = (1, 5)


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        write: the file's content.
        read: the network as another program loads it: latents (N, latent_dim), and labels int64 (N,) if it is
            conditional, to images (N, C, S, S).
        tolerance: largest difference from the network's own images in [−1, 1]. Float32 sums in another order differ
            by about 1e-6, neighbouring values of an 8-bit pixel by 8e-3.
    """

    write: Callable[[TrainedGenerator], bytes]
    read: Callable[[Path], Network]
    tolerance: float = 1e-4


def _write_safetensors(trained: TrainedGenerator) -> bytes:
    from relgan.generator import to_safetensors

    return to_safetensors(trained)


def _read_safetensors(path: Path) -> Network:
    from relgan.generator import from_safetensors

    return from_safetensors(path).module


def _write_pt2(trained: TrainedGenerator) -> bytes:
    import torch

    content = io.BytesIO()
    torch.export.save(_trace(trained), content)
    return content.getvalue()


def _read_pt2(path: Path) -> Network:
    import torch

    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _write_onnx(trained: TrainedGenerator) -> bytes:
    import torch

    # Exporting the program itself would lose the name of the batch axis.
    program = torch.onnx.export(
        _trace(trained).module(),
        **_signature(trained),
        input_names=["z", "labels"] if trained.conditional else ["z"],
        output_names=["images"],
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _read_onnx(path: Path) -> Network:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def network(*inputs: Tensor) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["images"], given)[0])

    return network


FORMATS = {
    "safetensors": Format(_write_safetensors, _read_safetensors, tolerance=0.0),
    "pt2": Format(_write_pt2, _read_pt2),
    "onnx": Format(_write_onnx, _read_onnx),
}


def _trace(trained: TrainedGenerator) -> ExportedProgram:
    """The generator's operations, for any batch; its spectral norm becomes plain weights, also in ``trained``.

    Raises:
        RelganError: it does something that cannot be traced.
    """
    import torch
    from torch.nn.utils import parametrize

    for module in trained.module.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
    # A file for any machine; torch 2.14 warns of saved weights in channels_last.
    module = trained.module.to(memory_format=torch.contiguous_format)
    try:
        return torch.export.export(module, **_signature(trained), strict=False)
    except Exception as error:  # another's network: anything
        reason = first_line(error)
        raise RelganError(
            f"model={trained.config.model.name}: torch.export cannot trace its generator ({reason}); "
            "format=safetensors needs no tracing"
        ) from error


def _signature(trained: TrainedGenerator) -> dict[str, Any]:
    """Example inputs, and the axis that may have any length."""
    import torch

    args = _inputs(trained, 2, torch.Generator())
    return {"args": args, "dynamic_shapes": ({0: torch.export.Dim("batch")},) * len(args)}


def _inputs(trained: TrainedGenerator, count: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Random latents, and labels of a conditional network."""
    import torch

    from relgan.networks.sampling import latents

    z = latents(count, trained.latent_dim, rng, torch.device("cpu"))
    labels = trained.draw_labels(count, seed=0)
    return (z,) if labels is None else (z, labels)


@dataclass
class ExportOptions(CommandOptions):
    run: str = option("", "a run directory, a checkpoint or a .safetensors file; run= may be left out")
    format: str | None = option(None, "kind of file; null: what out= ends in, else safetensors", choices=tuple(FORMATS))
    out: str = option("", "the file; by default generator.safetensors, generator.pt2 or generator.onnx")
    checkpoint: str = option("last", "which one of a run directory: last, best, or the name of another in checkpoints/")
    weights: str = option("ema", "the generator's moving average or its newest weights", choices=("ema", "raw"))

    @property
    def path(self) -> Path:
        return user_path(self.out or f"generator.{self.format or 'safetensors'}")


def main() -> None:
    command(ExportOptions, USAGE, export, positional="run")


def export(options: ExportOptions, line: Line) -> None:
    """Write the file that the options ask for, and say where and how exact it is."""
    kind = _check(options)

    with progress_bar(0, "exporting"):
        from relgan.generator import load

        trained = load(options.run, checkpoint=options.checkpoint, weights=options.weights)
        with writing_to(options.path, "out"):
            difference = write(trained, options.path, kind)
    print(f"{options.path}: largest difference from the network's own images {difference:.1g}")


def _check(options: ExportOptions) -> Format:
    if not options.run:
        raise ConfigError("run", "give a run directory or a checkpoint")
    path = options.path
    suffixes = [f".{name}" for name in FORMATS if options.format in (name, None)]
    if path.suffix not in suffixes:
        raise ConfigError("out", f"{path} does not end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError("out", f"{path.parent} is not a directory")
    name = path.suffix.removeprefix(".")
    if name == "onnx" and (missing := [package for package in ONNX_PACKAGES if not installed(package)]):
        raise ConfigError("format", f"onnx needs {', '.join(missing)}: pip install 'relgan[export]'")
    return FORMATS[name]


def write(trained: TrainedGenerator, path: Path, kind: Format) -> float:
    """Write the generator to ``path`` once the file gives the same images; returns their largest difference.

    Args:
        trained: used up: see :func:`_trace`.

    Raises:
        RelganError: it cannot be traced, or the images differ by more than ``kind.tolerance``.
        OSError: the file cannot be written; what was there is untouched.
    """
    import torch

    rng = torch.Generator().manual_seed(0)
    tried = [_inputs(trained, count, rng) for count in TRIED_BATCHES]
    own = [trained.module(*inputs) for inputs in tried]
    with _quiet(), atomic_write(path) as file:
        file.write(kind.write(trained))
        file.flush()
        network = kind.read(Path(file.name))
        pairs = [(network(*inputs), images) for inputs, images in zip(tried, own, strict=True)]
        difference = max(float((read - images).abs().max()) for read, images in pairs)
        if not difference <= kind.tolerance:
            raise RelganError(f"{path}: not written, its images differ from the network's own by {difference:.2g}")
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch prints and warns of while it traces."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


if __name__ == "__main__":
    main()
