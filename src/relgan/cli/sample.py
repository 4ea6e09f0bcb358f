"""relgan-sample: pictures out of a trained generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from relgan.cli.command import CommandOptions, Line, command
from relgan.options import ConfigError, RelganError, option

if TYPE_CHECKING:
    from relgan.generator import TrainedGenerator

USAGE = """relgan-sample RUN [n=64] [seed=0] [out=FILE.png|FOLDER|FILE.zip]
relgan-sample RUN interpolate=8 [n=4] [out=FILE.png|FILE.gif]
relgan-sample RUN timelapse=true [out=FILE.gif]
"""
LARGEST_GRID = 1024
FRAME_MS = {"interpolate": 80, "timelapse": 400}


@dataclass
class SampleOptions(CommandOptions):
    run: str = option("", "a run directory or a checkpoint; run= may be left out")
    checkpoint: str = option("last", "which one of a run directory: last, best, or the name of another in checkpoints/")
    n: int | None = option(None, "how many images (64), or rows of an interpolation (4)", ge=1)
    seed: int = option(0, "of the noise: the same seed, the same images", ge=0)
    out: str = option("", "sample.png: one grid; a folder or .zip: a PNG for each image; .gif: a film")
    weights: str = option("ema", "the generator's moving average or its newest weights", choices=("ema", "raw"))
    truncation: float = option(1.0, "scale of the noise: below 1 images are safer and more alike", gt=0)
    interpolate: int | None = option(None, "steps of a walk from one noise to another (spherical), a row each", ge=2)
    timelapse: bool = option(False, "the fixed noise from the start of training to its end, as an animation")
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))

    @property
    def path(self) -> Path:
        return Path(self.out or ("timelapse.gif" if self.timelapse else "sample.png")).expanduser()

    @property
    def count(self) -> int:
        return self.n or (4 if self.interpolate else 64)


def main() -> None:
    command(SampleOptions, USAGE, sample, positional="run")


def sample(options: SampleOptions, line: Line) -> None:
    """Write what the options ask for, and say where."""
    _check(options)
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
    if suffix == ".png" and options.count * (options.interpolate or 1) > LARGEST_GRID:
        raise ConfigError("n", f"a grid holds at most {LARGEST_GRID} images; give out= a folder or a .zip for more")


def _timelapse(options: SampleOptions) -> None:
    from PIL import Image

    from relgan.images import save_gif
    from relgan.rundir import RunDir

    grids = sorted(RunDir(Path(options.run).expanduser()).samples.glob("step_*.png"))
    if not grids:
        raise ConfigError("run", f"{options.run} holds no samples/step_*.png")
    save_gif((Image.open(path).convert("RGB") for path in grids), options.path, milliseconds=FRAME_MS["timelapse"])


def _draw(options: SampleOptions) -> None:
    from relgan.generator import load
    from relgan.images import grid, save_each, save_png
    from relgan.networks.sampling import sample_images

    trained = load(options.run, checkpoint=options.checkpoint, weights=options.weights, device=options.device)
    try:
        if options.interpolate:
            _interpolate(options, trained, options.interpolate)
            return
        if options.path.suffix.lower() == ".png":
            images = trained.sample(options.count, options.seed, truncation=options.truncation)
            save_png(grid(images, separate_channels=trained.stacked), options.path)
            return
        batches = sample_images(
            trained.module,
            options.count,
            latent_dim=trained.latent_dim,
            seed=options.seed,
            truncation=options.truncation,
        )
        save_each(batches, options.path)
    except ValueError as error:
        raise RelganError(f"{options.run}: {error}") from error


def _interpolate(options: SampleOptions, trained: TrainedGenerator, steps: int) -> None:
    import torch
    from PIL import Image

    from relgan.images import grid, save_gif, save_png
    from relgan.networks.sampling import generate, latents, spherical

    device = next(trained.module.parameters()).device
    rng = torch.Generator().manual_seed(options.seed)
    starts, stops = (options.truncation * latents(2 * options.count, trained.latent_dim, rng, device)).chunk(2)
    frames = generate(trained.module, spherical(starts, stops, steps))
    if options.path.suffix.lower() == ".png":
        rows = torch.stack([frame.cpu() for frame in frames], dim=1)
        save_png(grid(rows.flatten(0, 1), columns=steps), options.path)
        return
    pictures = [Image.fromarray(grid(frame.cpu()).numpy()) for frame in frames]
    # There and back, so that the film has no jump.
    save_gif(pictures + pictures[-2:0:-1], options.path, milliseconds=FRAME_MS["interpolate"])


if __name__ == "__main__":
    main()
