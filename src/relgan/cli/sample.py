"""relgan-sample: pictures out of a trained generator."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relgan.cli import app
from relgan.config import ConfigError, RelganError

HELP = """relgan-sample run=PATH [n=64] [seed=0] [out=FILE.png|FOLDER|FILE.zip]
relgan-sample run=PATH interpolate=8 [n=4] [out=FILE.png|FILE.gif]
relgan-sample run=RUN_DIRECTORY timelapse=true [out=FILE.gif]

  run=PATH              a run directory or a checkpoint
  checkpoint=last|best  which one of a run directory (default last), or the name of another in checkpoints/
  n=N                   how many images; rows of an interpolation
  seed=N                of the noise: the same seed, the same images
  out=…                 .png: one grid; a folder or .zip: a PNG for each image, however many
  weights=ema|raw       the generator's moving average (default) or its newest weights
  truncation=0.7        scale the noise: below 1 images are safer and more alike
  interpolate=STEPS     each row walks from one noise to another (spherical); a .gif shows it as a film
  timelapse=true        the fixed noise from the start of training to its end, as an animation
  device=auto|cpu|cuda|mps
"""
CHOICES = {
    "weights": ("ema", "raw"),
    "device": ("auto", "cpu", "cuda", "mps"),
}
LARGEST_GRID = 1024
FRAME_MS = {"interpolate": 80, "timelapse": 400}


@dataclass
class Options:
    """The command line, checked."""

    run: str = ""
    checkpoint: str = "last"
    n: int = 0
    seed: int = 0
    out: str = ""
    weights: str = "ema"
    truncation: float = 1.0
    interpolate: int = 0
    timelapse: bool = False
    device: str = "auto"

    @property
    def path(self) -> Path:
        return Path(self.out).expanduser()


def main() -> None:
    with app.guard():
        _main(sys.argv[1:])


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    options = parse(arguments)
    if options.timelapse:
        _timelapse(options)
    else:
        _sample(options)
    print(options.path)


def parse(arguments: list[str]) -> Options:
    """The options, with defaults that depend on each other filled in.

    Raises:
        RelganError: an unknown option or a value it does not accept.
    """
    options = Options()
    for argument in arguments:
        name, sign, text = argument.partition("=")
        if not sign or name not in vars(options):
            raise RelganError(f"{name}: not one of {', '.join(vars(options))}")
        setattr(options, name, _value(name, text, getattr(Options, name)))
    given = {argument.partition("=")[0] for argument in arguments}
    if not options.run:
        raise ConfigError("run", "give a run directory or a checkpoint")
    for name, choices in CHOICES.items():
        if getattr(options, name) not in choices:
            raise ConfigError(name, f"{getattr(options, name)!r} is not one of {', '.join(choices)}")
    if options.timelapse and (extra := given - {"run", "out", "timelapse"}):
        raise ConfigError(min(extra), "means nothing with timelapse=true, which shows the grids of training")
    for name, least in (("n", 1), ("interpolate", 2), ("seed", 0)):
        if name in given and getattr(options, name) < least:
            raise ConfigError(name, f"must be ≥ {least}, got {getattr(options, name)}")
    if not (math.isfinite(options.truncation) and options.truncation > 0):
        raise ConfigError("truncation", f"must be > 0, got {options.truncation:g}")
    options.n = options.n or (4 if options.interpolate else 64)
    options.out = options.out or ("timelapse.gif" if options.timelapse else "sample.png")
    _check_out(options)
    return options


def _value(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ConfigError(name, f"{text!r} is not true or false")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        raise ConfigError(name, f"{text!r} is not a {'whole ' if isinstance(default, int) else ''}number") from None


def _check_out(options: Options) -> None:
    path, suffix = options.path, options.path.suffix.lower()
    accepted = (".gif",) if options.timelapse else (".png", ".gif") if options.interpolate else (".png", ".zip", "")
    if suffix not in accepted:
        raise ConfigError("out", f"{path} does not end in {' or '.join(filter(None, accepted))}")
    if not path.absolute().parent.is_dir():
        raise ConfigError("out", f"{path.parent} is not a directory")
    if suffix == "" and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError("out", f"{path} exists and is not an empty folder")
    if suffix == ".png" and options.n * max(1, options.interpolate) > LARGEST_GRID:
        raise ConfigError("n", f"a grid holds at most {LARGEST_GRID} images; give out= a folder or a .zip for more")


def _timelapse(options: Options) -> None:
    from PIL import Image

    from relgan.files import save_gif
    from relgan.rundir import RunDir

    grids = sorted(RunDir(Path(options.run).expanduser()).samples.glob("step_*.png"))
    if not grids:
        raise ConfigError("run", f"{options.run} holds no samples/step_*.png")
    save_gif((Image.open(path).convert("RGB") for path in grids), options.path, milliseconds=FRAME_MS["timelapse"])


def _sample(options: Options) -> None:
    import torch
    from omegaconf import OmegaConf

    from relgan.images import grid, save_each, save_png
    from relgan.networks.sampling import sample_images
    from relgan.training.engine import choose_device
    from relgan.training.generator import load_checkpoint, load_generator

    saved = load_checkpoint(options.run, options.checkpoint)
    config = app.to_config(OmegaConf.create(saved["config"]))
    network = load_generator(saved, config, weights=options.weights, device=choose_device(options.device))
    stacked = config.dataset.name.startswith("stacked")
    try:
        if options.interpolate:
            _interpolate(options, network, config.model.latent_dim)
            return
        images = sample_images(
            network,
            options.n,
            latent_dim=config.model.latent_dim,
            seed=options.seed,
            truncation=options.truncation,
        )
        if options.path.suffix.lower() == ".png":
            save_png(grid(torch.cat([batch.cpu() for batch in images]), separate_channels=stacked), options.path)
        else:
            save_each(images, options.path)
    except ValueError as error:
        raise RelganError(f"{options.run}: {error}") from error


def _interpolate(options: Options, network: Any, latent_dim: int) -> None:
    import torch
    from PIL import Image

    from relgan.files import save_gif
    from relgan.images import grid, save_png
    from relgan.networks.sampling import generate, latents, spherical

    device = next(network.parameters()).device
    ends = latents(2 * options.n, latent_dim, torch.Generator().manual_seed(options.seed), device)
    starts, stops = (options.truncation * ends).chunk(2)
    frames = generate(network, spherical(starts, stops, options.interpolate))
    if options.path.suffix.lower() == ".png":
        rows = torch.stack([frame.cpu() for frame in frames], dim=1)
        save_png(grid(rows.flatten(0, 1), columns=options.interpolate), options.path)
        return
    pictures = [Image.fromarray(grid(frame.cpu()).numpy()) for frame in frames]
    # There and back, so that the film has no jump.
    save_gif(pictures + pictures[-2:0:-1], options.path, milliseconds=FRAME_MS["interpolate"])


if __name__ == "__main__":
    main()
