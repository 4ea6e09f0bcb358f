"""What the scores make of real images that were blurred, made noisy, thinned out or copied: a table of docs/scores.md.

``python -m benchmarks.damage --images TEST --reference TRAIN`` reads two folders or archives in which each class has a
folder, and prints a Markdown table; ``--counts`` prints instead how the scores of undamaged pictures depend on their
number. ``--picture FILE`` also draws the damages.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from benchmarks.scores import InMemory
from relgan.config import MetricsConfig
from relgan.data import prepare
from relgan.data.store import fixed_subset
from relgan.images import grid
from relgan.metrics.evaluator import Evaluator
from relgan.registry import DATASETS, DatasetOptions

SCORES = [
    *("fid", "fid_infinity", "kid", "is", "is_infinity", "precision", "recall", "density", "coverage"),
    *("vendi", "authenticity"),
]
SHOWN = 12  # images of each damage
ZOOM = 2


class Damages:
    """Sets of images, each damaged in one way.

    Args:
        images, labels: new images, uint8 (N, 3, H, W), and their classes, int64 (N,).
        reference: those to compare with.
        count: images of a set.
    """

    def __init__(self, images: Tensor, labels: Tensor, reference: Tensor, count: int) -> None:
        self.images, self.labels, self.reference, self.count = images, labels, reference, count

    def all(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "none": self.undamaged,
            "blur, 0.5 px": lambda: self.blurred(0.5),
            "blur, 1 px": lambda: self.blurred(1),
            "noise, 5 of 255": lambda: self.noisy(5),
            "noise, 20 of 255": lambda: self.noisy(20),
            "5 of 10 classes": lambda: self.undamaged(classes=5),
            "2 of 10 classes": lambda: self.undamaged(classes=2),
            "each 10 times": lambda: self.repeated(10),
            "10 % copies": lambda: self.copied(every=10),
            "50 % copies": lambda: self.copied(every=2),
            "all copies": lambda: self.copied(every=1),
        }

    def undamaged(self, classes: int | None = None) -> Tensor:
        """Random images of the first ``classes`` classes, or of all."""
        kept = self.images if classes is None else self.images[self.labels < classes]
        return _shuffled(kept)[: self.count]

    def blurred(self, sigma: float) -> Tensor:
        """Convolution with a Gaussian of ``sigma`` pixels."""
        side = 2 * round(4 * sigma) + 1
        blurred: Tensor = gaussian_blur(self.undamaged(), kernel_size=[side, side], sigma=[sigma, sigma])
        return blurred

    def noisy(self, sigma: float) -> Tensor:
        """Gaussian noise of standard deviation ``sigma``, where white is 255."""
        images = self.undamaged().float()
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return (images + sigma * noise).round().clamp(0, 255).to(torch.uint8)

    def repeated(self, times: int) -> Tensor:
        return self.undamaged()[: self.count // times].repeat_interleave(times, dim=0)

    def copied(self, every: int) -> Tensor:
        """Every so many images there is one of those to compare with."""
        images = self.undamaged()
        images[::every] = _shuffled(self.reference)[: self.count][::every]
        return images


def _shuffled(images: Tensor) -> Tensor:
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


def load(path: str, count: int | None, size: int) -> tuple[InMemory, Tensor]:
    """Square pictures, all or a random ``count``, and their classes."""
    store = prepare(DatasetOptions(name="folder", path=path, image_size=size, labels=True))
    chosen = fixed_subset(len(store), count)
    assert store.labels is not None
    images = torch.from_numpy(store.images[chosen]).permute(0, 3, 1, 2)
    return InMemory(f"{store.fingerprint} {len(chosen)}", images), torch.from_numpy(store.labels[chosen])


def score(images: Tensor, reference: InMemory, extractor: str) -> dict[str, float]:
    """Scores by their names without the extractor's, spreads of subsets and splits left out."""
    config = MetricsConfig(scores=SCORES, extractor=extractor, num_images=len(images), reference_images=None, splits=1)
    kind = DATASETS["folder"].options
    judge = Evaluator(config, kind, reference, latent_dim=0, seed=0, device=torch.device("cpu"))
    batches = images.split(config.batch_size)
    scores = judge.score(zip(range(0, len(images), config.batch_size), batches, strict=True))
    names = {key.removeprefix("eval/").replace(f"_{extractor}", ""): value for key, value in scores.items()}
    return {name: value for name, value in names.items() if not name.endswith("_std")}


def table(scores: dict[str, dict[str, float]]) -> str:
    """Markdown, a row for each number and a column for each set of images, which may lack a number."""
    shown = {
        name: [f"{each[name]:.3g}" if name in each else "–" for each in scores.values()]
        for name in dict.fromkeys(name for each in scores.values() for name in each)
    }
    lines = [["", *scores], ["---"] * (len(scores) + 1), *([f"`{name}`", *row] for name, row in shown.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(sets: dict[str, Callable[[], Tensor]]) -> Image.Image:
    """A row of images for each damage, beside its name."""
    shown = torch.cat([made()[-SHOWN:] for made in sets.values()])
    rows = Image.fromarray(grid(shown, columns=SHOWN).numpy())
    rows = rows.resize((ZOOM * rows.width, ZOOM * rows.height), Image.Resampling.NEAREST)
    height, margin = rows.height / len(sets), 180
    whole = Image.new("RGB", (margin + rows.width, rows.height), "white")
    whole.paste(rows, (margin, 0))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size=18)
    for row, name in enumerate(sets):
        draw.text((margin - 12, (row + 0.5) * height), name, fill="black", font=font, anchor="rm")
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", required=True, help="folder or archive of the pictures to damage")
    parser.add_argument("--reference", required=True, help="folder or archive of the pictures to compare with")
    parser.add_argument("--count", type=int, default=2000, help="pictures of each set")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of undamaged pictures to score instead")
    parser.add_argument("--reference-count", type=int, default=5000, help="pictures to compare with")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures")
    parser.add_argument("--extractor", default="efficientnet_lite0", help="feature network")
    parser.add_argument("--picture", type=Path, help="file to draw the damages into")
    arguments = parser.parse_args()
    images, labels = load(arguments.images, None, arguments.size)
    if max(arguments.counts or [arguments.count]) > len(images.images):
        parser.error(f"there are only {len(images.images):,} images")
    reference, _ = load(arguments.reference, arguments.reference_count, arguments.size)
    damages = partial(Damages, images.images, labels, reference.images)
    sets = damages(arguments.count).all()
    if arguments.counts:
        sets = {f"{count:,} images": damages(count).undamaged for count in arguments.counts}
    if arguments.picture:
        picture(sets).save(arguments.picture, quality=90)
    print(table({name: score(made(), reference, arguments.extractor) for name, made in sets.items()}))


if __name__ == "__main__":
    main()
