"""A trained generator, out of a run directory, a checkpoint or an exported file: for pictures, scores and export."""

from __future__ import annotations

import io
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from relgan.builtin import ConvOptions
from relgan.config import Config, as_values, foreign_parts, has_average, refuse_foreign, resolve
from relgan.images import class_rows, grid
from relgan.networks import build_networks
from relgan.networks.sampling import draw_labels, sample_images, sample_rows
from relgan.options import ConfigError, RelganError, suggest, user_path
from relgan.registry import DATASETS
from relgan.rundir import RunDir
from relgan.training import checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 36
WEIGHTS = ("ema", "raw")
EXPORTED = ".safetensors"
# A class, by number or name; of all images, or of each.
Label = int | str
Labels = Label | Sequence[Label] | None
# The one entry of such a file's metadata, and the version of what it holds.
ENTRY, FORMAT = "relgan", 1
_MAX_LISTED = 20


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator with what is needed to use it.

    Attributes:
        module: (N, latent_dim), and labels int64 (N,) if it is conditional, to images (N, C, S, S), −1 black and 1
            white, in evaluation mode. Of networks without tanh (r3gan) some values lie beyond: clamp them.
        config: of the run that trained it.
        channels: of an image.
        step: generator updates it had.
        weights: "ema", a moving average, or "raw".
        classes: names of the classes that it can be asked for; empty where it is not conditional.
        class_counts: training images of each.
    """

    module: nn.Module = field(repr=False)
    config: Config = field(repr=False)
    channels: int
    step: int
    weights: str
    classes: Sequence[str] = field(repr=False)
    class_counts: Sequence[int] = field(repr=False)

    @property
    def latent_dim(self) -> int:
        return self.config.model.latent_dim

    @property
    def conditional(self) -> bool:
        """Whether it makes images of the class it is asked for."""
        return bool(self.class_counts)

    @property
    def stacked(self) -> bool:
        """Whether the channels are pictures of their own."""
        return bool(DATASETS[self.config.dataset.name].facts.stacked)

    def class_number(self, of: Label) -> int:
        """The number of a class by its name or number; where a name is the number of another class, the name counts.

        Raises:
            ConfigError: there is no such class.
        """
        if not self.conditional:
            raise ConfigError("labels", "this generator was trained without labels")
        numbers = range(len(self.classes))
        if isinstance(of, str):
            known = {str(number): number for number in numbers} | dict(zip(self.classes, numbers, strict=True))
            number = known.get(of, -1)
        else:
            number = operator.index(of)
        if number in numbers:
            return number
        few = len(self.classes) <= _MAX_LISTED
        listed = ", ".join(self.classes) if few else f"{self.classes[0]} … {self.classes[-1]}"
        raise ConfigError("labels", f"{of!r} is not one of {listed}{suggest(of, self.classes)}")

    def draw_labels(self, n: int, seed: int, wanted: Labels = None) -> Tensor | None:
        """Classes of ``n`` images, int64 (n,); None where it is not conditional.

        Args:
            seed: of those drawn.
            wanted: the class of all, or of each image; None: drawn, as frequent as in the training images.

        Raises:
            ConfigError: there is no such class, or they are not ``n``.
        """
        if wanted is None:
            return draw_labels(self.class_counts, n, seed) if self.conditional else None
        if isinstance(wanted, int | str):
            return torch.full((n,), self.class_number(wanted))
        chosen = [self.class_number(each) for each in wanted]
        if len(chosen) != n:
            raise ConfigError("labels", f"give a class for each of the {n} images, not {len(chosen)}")
        return torch.tensor(chosen)

    def check_truncation(self, factor: float) -> None:
        """Raise ConfigError if truncation would change nothing, because the generator sees only signs of latents."""
        model = self.config.model
        if factor != 1 and isinstance(model, ConvOptions) and model.latent == "bernoulli":
            raise ConfigError("truncation", "has no effect with model.latent=bernoulli: only the signs of z count")

    def batches(self, n: int, seed: int = 0, labels: Labels = None, *, truncation: float = 1.0) -> Iterator[Tensor]:
        """Generated images, uint8 (m, C, H, W), some at a time; arguments as in :meth:`sample`."""
        self.check_truncation(truncation)
        return sample_images(
            self.module,
            n,
            latent_dim=self.latent_dim,
            seed=seed,
            truncation=truncation,
            labels=self.draw_labels(n, seed, labels),
        )

    def sample(self, n: int, seed: int = 0, labels: Labels = None, *, truncation: float = 1.0) -> Tensor:
        """Generated images, uint8 (n, C, H, W), on the CPU.

        Args:
            seed: the same seed, the same images; with the same seed, images of two classes differ by the class only.
            labels: class of all images, or of each, by number or name; None: drawn, as frequent as in training.
            truncation: factor of the latents; below 1, images are better and less varied.

        Raises:
            ConfigError: there is no such class, labels are not ``n``, or truncation would have no effect.
            ValueError: the generator returned values that are not finite.
        """
        return torch.cat([batch.cpu() for batch in self.batches(n, seed, labels, truncation=truncation)])

    def picture(self, n: int = SHOWN, seed: int = 0, labels: Labels = None, *, truncation: float = 1.0) -> Tensor:
        """A grid of images, uint8 (H, W, 3); arguments as in :meth:`sample`.

        Of a conditional generator, unless there are labels: at most ``n`` images, with a row for each class.
        """
        if labels is not None or not self.conditional:
            return grid(self.sample(n, seed, labels, truncation=truncation), separate_channels=self.stacked)
        self.check_truncation(truncation)
        classes, columns = class_rows(n, len(self.classes))
        rows = sample_rows(self.module, classes, columns, latent_dim=self.latent_dim, seed=seed, truncation=truncation)
        images = torch.cat([batch.cpu() for batch in rows])
        return grid(images, columns=columns, separate_channels=self.stacked)

    def images(self, n: int = SHOWN, seed: int = 0, labels: Labels = None, **options: Any) -> Image:
        """The grid of :meth:`picture` as an image, which a notebook shows."""
        from PIL import Image

        return Image.fromarray(self.picture(n, seed, labels, **options).numpy())

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.images().save(buffer, "PNG")
        return buffer.getvalue()


def read_checkpoint(run: str | Path, which: str = "last") -> dict[str, Any]:
    """A checkpoint of a run directory by its name (best, last, step_00000500 …), or the file ``run`` itself.

    Raises:
        RelganError: it is missing or damaged, or needs a part that nobody has registered.
    """
    path = user_path(run)
    folder = RunDir(path).checkpoints
    names = ("best", "last", *sorted(file.stem for file in folder.glob("*_*.pt")))
    if which not in names:
        raise ConfigError("checkpoint", f"{which!r} is not one of {', '.join(names)}")
    path = folder / f"{which}.pt" if path.is_dir() else path
    saved = checkpoint.load(path)
    # Its code may be missing, and whoever uses a generator has no need of it.
    saved["config"]["tracker"] = {"name": "none"}
    refuse_foreign(saved["config"], saved["foreign"], path)
    return saved


def from_checkpoint(
    saved: Mapping[str, Any], *, weights: str = "ema", device: torch.device | str = "cpu"
) -> TrainedGenerator:
    """The generator of a checkpoint on ``device``.

    Args:
        weights: "ema" (the weights themselves where there is no moving average) or "raw".
    """
    if weights not in WEIGHTS:
        raise ConfigError("weights", f"{weights!r} is not one of {', '.join(WEIGHTS)}")
    config = resolve(saved["config"], to_train=False)
    averaged = weights == "ema" and has_average(config)
    state = saved["ema"]["module"] if averaged else saved["generator"]
    classes, counts = saved["classes"], saved["class_counts"]
    module = _rebuilt(config, saved["channels"], len(counts), state, device)
    weights = "ema" if averaged else "raw"
    return TrainedGenerator(module, config, saved["channels"], saved["step"], weights, classes, counts)


def _rebuilt(
    config: Config, channels: int, classes: int, state: Mapping[str, Tensor], device: torch.device | str
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        generator, _ = build_networks(config.model, config.dataset.image_size, channels, classes)
    try:
        generator.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RelganError(f"model={config.model.name}: the weights are of another network ({reason})") from error
    # The memory format decides which convolution runs, and so the last bits of a score.
    return generator.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


def to_safetensors(trained: TrainedGenerator) -> bytes:
    """Its weights, and in the metadata what :func:`from_safetensors` needs to build the network again."""
    values = as_values(trained.config)
    # The file is made to be given away; where the images were on this machine is nobody's business.
    values["dataset"]["path"] = None
    about = {
        "format": FORMAT,
        "config": values,
        "foreign": foreign_parts(values),
        "channels": trained.channels,
        "step": trained.step,
        "weights": trained.weights,
        "classes": trained.classes,
        "class_counts": trained.class_counts,
    }
    # Neither shared memory nor channels_last can be written.
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in trained.module.state_dict().items()
    }
    return safetensors.torch.save(state, {ENTRY: json.dumps(about)})


def from_safetensors(path: Path, *, device: torch.device | str = "cpu") -> TrainedGenerator:
    """The generator that :func:`to_safetensors` wrote, on ``device``; nothing in the file runs code.

    Raises:
        RelganError: it is missing, damaged or another file, or needs a part that nobody has registered.
    """
    if not path.is_file():
        raise RelganError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[ENTRY])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["format"] != FORMAT:
            raise RelganError(f"{path}: written by another relgan (format {about['format']}; this one reads {FORMAT})")
        refuse_foreign(about["config"], about["foreign"], path)
        config, channels = resolve(about["config"], to_train=False), int(about["channels"])
        step, weights = int(about["step"]), str(about["weights"])
        classes, counts = list(map(str, about["classes"])), list(map(int, about["class_counts"]))
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RelganError(f"{path}: damaged, or not a generator that relgan-export wrote") from error
    module = _rebuilt(config, channels, len(counts), state, device)
    return TrainedGenerator(module, config, channels, step, weights, classes, counts)


def load(path: str | Path, *, checkpoint: str = "last", weights: str = "ema", device: str = "cpu") -> TrainedGenerator:
    """The generator of a run directory, a checkpoint or a .safetensors file of relgan-export.

    Args:
        checkpoint: of a run directory: last, best, or the name of another in checkpoints/.
        weights: "ema", the moving average, or "raw"; an exported file holds one of them.
        device: where it goes: "cpu", "cuda" or "auto".

    Raises:
        RelganError: there is no such checkpoint or file, or it needs a part that nobody has registered.
    """
    from relgan.device import prepare_device

    place = prepare_device(device)
    path = user_path(path)
    if path.suffix != EXPORTED:
        return from_checkpoint(read_checkpoint(path, checkpoint), weights=weights, device=place)
    trained = from_safetensors(path, device=place)
    if weights == "raw" != trained.weights:
        raise ConfigError("weights", f"{path} holds the moving average only")
    return trained
