"""What the scores make of real images that were blurred, made noisy, thinned out or copied: tables of docs/scores.md.

``python -m benchmarks.damage --images TEST --reference TRAIN`` reads two folders or archives in which each class has a
folder, and prints a Markdown table; ``--counts`` prints instead how the scores of undamaged pictures depend on their
number. ``--picture FILE`` also draws the damages. ``python -m benchmarks.damage --digits`` damages stacked digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    *("vendi", "authenticity", "label_agreement"),
]
DIGIT_SCORES = ["modes", "fid", "label_agreement"]
DIGITS = "stacked_digits"
SHOWN = 12  # images of each damage
ZOOM = 2


@dataclass(frozen=True)
class Labelled:
    """Images, uint8 (N, C, H, W), and the classes that they are meant to show, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, chosen: Tensor | slice) -> Labelled:
        return Labelled(self.images[chosen], self.labels[chosen])

    def __len__(self) -> int:
        return len(self.images)

    def shuffled(self) -> Labelled:
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(0))]

    def shown_as(self, images: Tensor) -> Labelled:
        """Other images of the same classes."""
        return replace(self, images=images.round().clamp(0, 255).to(torch.uint8))


Sets = dict[str, Callable[[], Labelled]]


class Damages:
    """Sets of ``count`` images, each damaged in one way.

    Args:
        new: images that are damaged.
        reference: those to compare with.
    """

    def __init__(self, new: Labelled, reference: Labelled, count: int) -> None:
        self.new, self.reference, self.count = new, reference, count

    def of_classes(self) -> Sets:
        """For photographs of ten classes."""
        return {
            "none": self.undamaged,
            "blur, 0.5 px": lambda: self.blurred(0.5),
            "blur, 1 px": lambda: self.blurred(1),
            "noise, 5 of 255": lambda: self.noisy(5),
            "noise, 20 of 255": lambda: self.noisy(20),
            "5 of 10 classes": lambda: self.undamaged(self.new.labels < 5),
            "2 of 10 classes": lambda: self.undamaged(self.new.labels < 2),
            "each 10 times": lambda: self.repeated(10),
            "10 % copies": lambda: self.copied(every=10),
            "50 % copies": lambda: self.copied(every=2),
            "all copies": lambda: self.copied(every=1),
        }

    def of_digits(self) -> Sets:
        """For stacked digits, whose class has one decimal for each channel."""
        digits = torch.stack([self.new.labels // 100, self.new.labels // 10 % 10, self.new.labels % 10])
        return {
            "none": self.undamaged,
            "blur, 0.5 px": lambda: self.blurred(0.5),
            "blur, 1 px": lambda: self.blurred(1),
            "noise, 20 of 255": lambda: self.noisy(20),
            "noise, 60 of 255": lambda: self.noisy(60),
            "a sixth of another": lambda: self.mixed(1 / 6),
            "a third of another": lambda: self.mixed(1 / 3),
            "digits 0 to 4": lambda: self.undamaged((digits < 5).all(dim=0)),
            "each 100 times": lambda: self.repeated(100),
        }

    def undamaged(self, kept: Tensor | None = None) -> Labelled:
        """Random images, all or those of a mask."""
        return (self.new if kept is None else self.new[kept]).shuffled()[: self.count]

    def blurred(self, sigma: float) -> Labelled:
        """Convolution with a Gaussian of ``sigma`` pixels."""
        side = 2 * round(4 * sigma) + 1
        some = self.undamaged()
        return some.shown_as(gaussian_blur(some.images.float(), kernel_size=[side, side], sigma=[sigma, sigma]))

    def noisy(self, sigma: float) -> Labelled:
        """Gaussian noise of standard deviation ``sigma``, where white is 255."""
        some = self.undamaged()
        noise = torch.randn(some.images.shape, generator=torch.Generator().manual_seed(0))
        return some.shown_as(some.images + sigma * noise)

    def mixed(self, share: float) -> Labelled:
        """Each image with a share of another one."""
        some = self.undamaged()
        return some.shown_as(torch.lerp(some.images.float(), some.images.roll(1, dims=0).float(), share))

    def repeated(self, times: int) -> Labelled:
        once = self.undamaged()[: self.count // times]
        return Labelled(*(values.repeat_interleave(times, dim=0) for values in (once.images, once.labels)))

    def copied(self, every: int) -> Labelled:
        """Every so many images there is one of those to compare with."""
        some, copies = self.undamaged(), self.reference.shuffled()[: self.count]
        some.images[::every], some.labels[::every] = copies.images[::every], copies.labels[::every]
        return some


def load(options: DatasetOptions, count: int | None = None) -> tuple[Labelled, str]:
    """All images of a data set, or a random ``count``, and their fingerprint."""
    store = prepare(options)
    chosen = fixed_subset(len(store), count)
    assert store.labels is not None
    images = torch.from_numpy(store.images[chosen]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(store.labels[chosen]).long()
    return Labelled(images, labels), f"{store.fingerprint} {len(chosen)}"


class Judge:
    """Scores sets of images against one reference.

    Args:
        kind: of data set.
        fingerprint: of the reference, whose statistics are cached by it.
    """

    def __init__(self, scores: Sequence[str], extractor: str, kind: str, reference: Labelled, fingerprint: str) -> None:
        self._config = MetricsConfig(scores=list(scores), extractor=extractor, reference_images=None, splits=1)
        self._kind = replace(DATASETS[kind].options, labels=True)
        self._class_counts = torch.bincount(reference.labels).tolist()
        self._reference = InMemory(fingerprint, reference.images, reference.labels.numpy())

    def __call__(self, some: Labelled) -> dict[str, float]:
        """Scores by their names without the extractor's, spreads of subsets and splits left out."""
        config = replace(self._config, num_images=len(some), modes_images=len(some))
        judge = Evaluator(
            config,
            self._kind,
            self._reference,
            latent_dim=0,
            seed=0,
            device=torch.device("cpu"),
            class_counts=self._class_counts,
        )
        size = config.batch_size
        batches = zip(range(0, len(some), size), some.images.split(size), strict=True)
        scores = judge.score(batches, some.labels)
        names = {key.removeprefix("eval/").replace(f"_{config.extractor}", ""): scores[key] for key in scores}
        return {name: value for name, value in names.items() if not name.endswith("_std")}


def table(scores: dict[str, dict[str, float]]) -> str:
    """Markdown, a row for each number and a column for each set of images, which may lack a number."""
    shown = {
        name: [_number(each[name]) if name in each else "–" for each in scores.values()]
        for name in dict.fromkeys(name for each in scores.values() for name in each)
    }
    lines = [["", *scores], ["---"] * (len(scores) + 1), *([f"`{name}`", *row] for name, row in shown.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def picture(sets: Sets) -> Image.Image:
    """A row of images for each damage, beside its name."""
    shown = torch.cat([made().images[-SHOWN:] for made in sets.values()])
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
    parser.add_argument("--images", help="folder or archive of the pictures to damage")
    parser.add_argument("--reference", help="folder or archive of the pictures to compare with")
    parser.add_argument("--digits", action="store_true", help="damage 10,000 stacked digits instead")
    parser.add_argument("--count", type=int, default=2000, help="pictures of each set")
    parser.add_argument("--counts", type=int, nargs="+", help="numbers of undamaged pictures to score instead")
    parser.add_argument("--reference-count", type=int, default=5000, help="pictures to compare with")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures")
    parser.add_argument("--extractor", default="efficientnet_lite0", help="feature network")
    parser.add_argument("--picture", type=Path, help="file to draw the damages into")
    arguments = parser.parse_args()
    if arguments.digits:
        given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
        if given - {"digits", "picture"}:
            parser.error("--digits goes with --picture alone")
        images, fingerprint = load(replace(DATASETS[DIGITS].options, num_images=20_000))
        new, reference = images[:10_000], images[10_000:]
        sets = Damages(new, reference, len(new)).of_digits()
        judge = Judge(DIGIT_SCORES, "digits", DIGITS, reference, f"{fingerprint}, the second half")
    else:
        if not (arguments.images and arguments.reference):
            parser.error("give --images and --reference, or --digits")
        folder = partial(DatasetOptions, name="folder", image_size=arguments.size, labels=True)
        new, _ = load(folder(path=arguments.images))
        if max(arguments.counts or [arguments.count]) > len(new):
            parser.error(f"there are only {len(new):,} images")
        reference, fingerprint = load(folder(path=arguments.reference), arguments.reference_count)
        sets = Damages(new, reference, arguments.count).of_classes()
        if arguments.counts:
            sets = {f"{count:,} images": Damages(new, reference, count).undamaged for count in arguments.counts}
        judge = Judge(SCORES, arguments.extractor, "folder", reference, fingerprint)
    if arguments.picture:
        picture(sets).save(arguments.picture, quality=90)
    print(table({name: judge(made()) for name, made in sets.items()}))


if __name__ == "__main__":
    main()
