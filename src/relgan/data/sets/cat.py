"""The CAT data set: photos with nine annotated points each, aligned as in the relativistic GAN paper."""

from __future__ import annotations

import logging
from collections import Counter
from importlib.resources import files as package_files

import numpy as np
from numpy.typing import NDArray

from relgan.data import alignment
from relgan.data.archives import Entry, Files, as_text, roots
from relgan.data.decode import Unusable, declared_size, whole
from relgan.data.sources import Source
from relgan.options import ConfigError
from relgan.registry import IMAGE_SIZES, DatasetCard, DatasetOptions, register_dataset

log = logging.getLogger("relgan")

_PHOTOS = r"\d{8}_\d{3}\.jpg"
# In the circulating archives this annotation of 00000003_015 belongs to another picture.
_WRONG_PHOTO = "00000003_015.jpg"
_WRONG_ANNOTATION = "9 220 215 277 232 230 255 191 177 166 124 206 169 325 197 381 182 358 219"


class CatSource(Source):
    """Upright cat faces; ``facts["usable"]`` counts the photos with a face of at least each image size."""

    def __init__(self, files: Files, size: int) -> None:
        self._files, self._size = files, size
        self._faces: list[tuple[Entry, alignment.Points, alignment.Box]] = []
        self.preprocessing = f"turned by the eyes, face cut out by the ears, resized to {size}×{size}, bicubic"
        dropped = Counter(files.dropped)
        usable: Counter[int] = Counter()
        photos = files.matching(_PHOTOS)
        known = {(root, name.lower()): (root, name) for root, name in files.entries}
        outliers = set(package_files("relgan.data.sets").joinpath("cat_outliers.txt").read_text("utf-8").split())
        for photo in photos:
            try:
                points, box = self._locate_face(photo, known, outliers)
            except Unusable as unusable:
                dropped[unusable.reason] += 1
                if unusable.detail:
                    log.warning("skipped %s: %s", photo[1], unusable.detail)
                continue
            side = min(box[2] - box[0], box[3] - box[1])
            usable.update(s for s in IMAGE_SIZES if side >= s)
            if side >= size:
                self._faces.append((photo, points, box))
            else:
                dropped[f"face smaller than {size}"] += 1
        self.dropped = dict(dropped)
        self.facts = {"usable": {str(s): usable[s] for s in IMAGE_SIZES}}
        listed = ", ".join(f"{s}: {usable[s]}" for s in IMAGE_SIZES)
        log.info("%d cat photos; with a face of at least so many pixels: %s", len(photos), listed)

    def _locate_face(
        self, photo: Entry, known: dict[Entry, Entry], outliers: set[str]
    ) -> tuple[alignment.Points, alignment.Box]:
        """The annotated points and the crop; reads only the header of the photo."""
        root, name = photo
        base = name.rsplit("/", 1)[-1].lower()
        if base in outliers:
            raise Unusable("outlier")
        beside = known.get((root, f"{name}.cat".lower()))
        if beside is None:
            raise Unusable("without annotation", "no .cat file beside it")
        annotation = as_text(self._files.read(beside))
        if base == _WRONG_PHOTO and annotation.split() == _WRONG_ANNOTATION.split():
            raise Unusable("wrong annotation", "its annotation is known to belong to another picture")
        try:
            points = alignment.order_eyes(alignment.parse(annotation))
        except ValueError as error:
            raise Unusable("damaged annotation", str(error)) from error
        with self._files.open(photo) as file:
            width, height = declared_size(file)
        return points, alignment.crop_box(alignment.level_points(points), width, height)

    def __len__(self) -> int:
        return len(self._faces)

    def read(self, index: int) -> NDArray[np.uint8]:
        photo, points, box = self._faces[index]
        # The annotations were made on the pixels as they lie in the file; the eyes say what is upright.
        return alignment.align(whole(self._files.read(photo), upright=False), points, box, self._size)

    def name(self, index: int) -> str:
        return self._faces[index][0][1]


@register_dataset(
    "cat",
    DatasetOptions(image_size=64, min_images=1000, hflip=True),
    about="9,997 annotated photos",
    facts=DatasetCard(
        terms="cite Zhang et al. 2008", size="about 2 GB", get="dataset.path=DIRECTORY of CAT_*", labels=False
    ),
)
def cat(options: DatasetOptions) -> CatSource:
    """CAT_DATASET_01/02.zip, CAT_00 … CAT_06 as folders or archives, or a directory with any mix of them."""
    if options.path is None:
        raise ConfigError(
            "dataset.path",
            "get CAT_DATASET_01.zip and CAT_DATASET_02.zip (https://archive.org/details/CAT_DATASET) "
            "and give dataset.path=DIRECTORY that holds them",
        )
    return CatSource(Files(roots(options.path, "cat")), options.image_size)
