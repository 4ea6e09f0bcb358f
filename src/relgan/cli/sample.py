"""relgan-sample: pictures out of a trained generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from relgan.cli.command import CommandOptions, Line, command
from relgan.files import writing_to
from relgan.options import ConfigError, RelganError, first_line, option, user_path
from relgan.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from relgan.generator import TrainedGenerator

USAGE = """relgan-sample RUN [n=64] [seed=0] [out=FILE.png|FOLDER|FILE.zip]
relgan-sample RUN labels=3 | labels=cat | labels=[cat,dog] [n=8] [out=FILE.png|FOLDER|FILE.zip]
relgan-sample RUN interpolate=8 [n=4] [out=FILE.png|FILE.gif]
relgan-sample RUN timelapse=true [out=FILE.gif]

Of a conditional generator a grid shows a row of each class, and single files random classes as frequent as in training;
labels asks for n images of one class, or of each of several, a row of each. All rows are made from the same noise.
"""
LARGEST_GRID = 1024
FRAME_MS = {"interpolate": 80, "timelapse": 400}


@dataclass
class SampleOptions(CommandOptions):
    run: str = option("", "a run directory or a checkpoint; run= may be left out")
    checkpoint: str = option("last", "which one of a run directory: last, best, or the name of another in checkpoints/")
    n: int | None = option(
        None, "how many images (64), of each of several labels (8), or rows of an interpolation (4)", ge=1
    )
    labels: str | None = option(None, "class of a conditional generator's images, by name or number; several: [A,B,…]")
    seed: int = option(0, "of the noise: the same seed, the same images", ge=0)
    out: str = option("", "sample.png: one grid; a folder or .zip: a PNG for each image; .gif: a film")
    weights: str = option("ema", "the generator's moving average or its newest weights", choices=("ema", "raw"))
    truncation: float = option(
        1.0, "scale of the noise: below 1, images are better and less varied; not with model.latent=bernoulli", gt=0
    )
    interpolate: int | None = option(None, "steps of a walk from one noise to another (spherical), a row each", ge=2)
    timelapse: bool = option(False, "the fixed noise from the start of training to its end, as an animation")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))

    @property
    def path(self) -> Path:
        return user_path(self.out or ("timelapse.gif" if self.timelapse else "sample.png"))

    @property
    def classes(self) -> list[str]:
        """What ``labels`` lists."""
        if self.labels is None:
            return []
        several = self.labels.startswith("[") and self.labels.endswith("]")
        return [each.strip() for each in self.labels[1:-1].split(",")] if several else [self.labels]

    @property
    def count(self) -> int:
        """Images or rows, of each class listed."""
        return self.n or (4 if self.interpolate else 8 if len(self.classes) > 1 else 64)


def main() -> None:
    command(SampleOptions, USAGE, sample, positional="run")


def sample(options: SampleOptions, line: Line) -> None:
    """Write what the options ask for, and say where."""
    _check(options)
    with progress_bar(0, "sampling"):
        if options.timelapse:
            _timelapse(options)
        else:
            _draw(options)
    print(options.path)


def _check(options: SampleOptions) -> None:
    if not options.run:
        raise ConfigError("run", "give a run directory or a checkpoint")
    usual = SampleOptions(run=options.run, out=options.out, timelapse=True, plugins=options.plugins)
    if options.timelapse and options != usual:
        extra = next(name for name, value in vars(options).items() if value != getattr(usual, name))
        raise ConfigError(extra, "has no effect with timelapse=true, which shows the grids of training")
    path, suffix = options.path, options.path.suffix.lower()
    accepted = (".gif",) if options.timelapse else (".png", ".gif") if options.interpolate else (".png", ".zip", "")
    if suffix not in accepted:
        raise ConfigError("out", f"{path} does not end in {' or '.join(filter(None, accepted))}")
    if not path.absolute().parent.is_dir():
        raise ConfigError("out", f"{path.parent} is not a directory")
    if suffix == "" and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError("out", f"{path} exists and is not an empty folder")
    images = options.count * (options.interpolate or 1) * max(1, len(options.classes))
    if suffix == ".png" and images > LARGEST_GRID:
        raise ConfigError("n", f"a grid holds at most {LARGEST_GRID} images; give out= a folder or a .zip for more")


def _timelapse(options: SampleOptions) -> None:
    from PIL import Image

    from relgan.images import save_gif
    from relgan.rundir import RunDir

    grids = sorted(RunDir(user_path(options.run)).samples.glob("step_*.png"))
    if not grids:
        raise ConfigError("run", f"{options.run} holds no samples/step_*.png")

    def frames() -> Iterator[Image.Image]:
        for path in grids:
            try:
                yield Image.open(path).convert("RGB")
            except OSError as error:
                raise RelganError(f"{path} is damaged: {first_line(error)}") from error

    with writing_to(options.path, "out"):
        save_gif(frames(), options.path, milliseconds=FRAME_MS["timelapse"])


def _draw(options: SampleOptions) -> None:
    from relgan.generator import load
    from relgan.images import save_each, save_png

    trained = load(options.run, checkpoint=options.checkpoint, weights=options.weights, device=options.device)
    trained.check_truncation(options.truncation)
    labels = [trained.class_number(each) for each in options.classes]
    try:
        with writing_to(options.path, "out"):
            if options.interpolate:
                _interpolate(options, trained, labels, options.interpolate)
            elif options.path.suffix.lower() == ".png":
                save_png(_picture(options, trained, labels), options.path)
            else:
                save_each(_batches(options, trained, labels), options.path)
    except ValueError as error:
        raise RelganError(f"{options.run}: {error}") from error


def _picture(options: SampleOptions, trained: TrainedGenerator, labels: list[int]) -> Tensor:
    """uint8 (H, W, 3)."""
    import torch

    from relgan.images import grid

    if len(labels) <= 1:
        return trained.picture(
            options.count, options.seed, labels[0] if labels else None, truncation=options.truncation
        )
    images = torch.cat([batch.cpu() for batch in _batches(options, trained, labels)])
    return grid(images, columns=options.count, separate_channels=trained.stacked)


def _batches(options: SampleOptions, trained: TrainedGenerator, labels: list[int]) -> Iterator[Tensor]:
    """Images of one class after another, or of random ones."""
    with progress_bar(options.count * max(1, len(labels)), "images") as bar:
        for label in labels or (None,):
            for batch in trained.batches(options.count, options.seed, label, truncation=options.truncation):
                yield batch
                bar.advance(len(batch))


def _interpolate(options: SampleOptions, trained: TrainedGenerator, labels: list[int], steps: int) -> None:
    import torch
    from PIL import Image

    from relgan.images import grid, save_gif, save_png
    from relgan.networks.sampling import generate, latents, spherical

    device = next(trained.module.parameters()).device
    rng = torch.Generator().manual_seed(options.seed)
    starts, stops = (options.truncation * latents(2 * options.count, trained.latent_dim, rng, device)).chunk(2)
    walk = spherical(starts, stops, steps).repeat(1, max(1, len(labels)), 1)
    wanted = [label for label in labels for _ in range(options.count)]
    rows = trained.draw_labels(walk.shape[1], options.seed, wanted or None)
    frames = generate(trained.module, walk if rows is None else ((z, rows.to(device)) for z in walk))
    if options.path.suffix.lower() == ".png":
        table = torch.stack([frame.cpu() for frame in frames], dim=1)
        save_png(grid(table.flatten(0, 1), columns=steps), options.path)
        return
    pictures = [Image.fromarray(grid(frame.cpu()).numpy()) for frame in frames]
    # There and back, so that the film has no jump.
    save_gif(pictures + pictures[-2:0:-1], options.path, milliseconds=FRAME_MS["interpolate"])


if __name__ == "__main__":
    main()
