"""CelebA's aligned faces, from any of the archives and folders they circulate in."""

from __future__ import annotations

import importlib.util
import re
from contextlib import suppress
from pathlib import Path

from relgan.cache import cache_dir, load_or_make, writing
from relgan.data.archives import Files, as_text, beside, reading, roots
from relgan.data.decode import Unusable
from relgan.data.sources import FolderSource
from relgan.options import ConfigError, first_line
from relgan.registry import DatasetCard, DatasetOptions, register_dataset

_IMAGES = r"\d{6}\.(jpg|jpeg|png)"
_PARTITION = r"list_eval_partition\.(txt|csv)"
_LISTS_BESIDE = ("list_eval_partition.*", "Eval/list_eval_partition.*")
_SPLITS = {"train": "0", "valid": "1", "test": "2"}


@register_dataset(
    "celeba",
    DatasetOptions(image_size=64, min_images=1000, hflip=True),
    about="202,599 aligned faces",
    facts=DatasetCard(
        terms="research, not commercial",
        size="1.4 GB",
        get="dataset.path=img_align_celeba.zip",
        splits=True,
        split_lists=_LISTS_BESIDE,
        labels=False,
    ),
)
def celeba(options: DatasetOptions) -> FolderSource:
    """Faces named NNNNNN.jpg in a zip archive or below a directory, which may hold the archive instead."""
    path = options.path or str(_downloaded())
    files = Files(roots(path, r"(img_align_)?celeb"))
    entries = files.matching(_IMAGES)
    if not entries:
        raise ConfigError("dataset.path", f"no CelebA images (000001.jpg …) in {path}")
    if options.split != "all":
        split = _partition(files)
        entries = [e for e in entries if split.get(e[1].rsplit("/", 1)[-1][:6]) == _SPLITS[options.split]]
        if not entries:
            raise ConfigError("dataset.split", f"{path} has no images of the {options.split} split")
    return FolderSource(files, entries, options.image_size, options.crop)


def _partition(files: Files) -> dict[str, str]:
    """Six-digit image number → "0" train, "1" valid, "2" test, from the official list or Kaggle's CSV of it."""
    if listed := files.matching(_PARTITION):
        try:
            data = files.read(listed[0])
        except Unusable as error:
            raise ConfigError("dataset.split", f"{listed[0][1]} is {error.reason} ({error.detail})") from error
    else:
        lists = beside(files.roots[0], _LISTS_BESIDE)
        if not lists:
            raise ConfigError(
                "dataset.split", "needs list_eval_partition.txt in or beside dataset.path; or use dataset.split=all"
            )
        with reading(lists[0], "dataset.split"):
            data = lists[0].read_bytes()
    return dict(re.findall(r"(\d{6})\.\w+\W+([012])\b", as_text(data)))


def _downloaded() -> Path:
    """The directory torchvision's own Google Drive links were downloaded to."""
    if importlib.util.find_spec("gdown") is None:
        raise ConfigError(
            "dataset.path",
            "get img_align_celeba.zip from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html "
            "and give dataset.path=FILE (or pip install gdown to try the download)",
        )
    return load_or_make(cache_dir() / "downloads" / "celeba", _complete, _from_google_drive)


def _files() -> list[tuple[str, str, str]]:
    """Identifier at Google Drive, MD5 and name of each file, as torchvision knows them."""
    from torchvision.datasets import CelebA

    return [row for row in CelebA.file_list if row[2] in ("img_align_celeba.zip", "list_eval_partition.txt")]


def _complete(folder: Path) -> Path:
    """The folder; FileNotFoundError if a file is missing or damaged."""
    from torchvision.datasets.utils import check_integrity

    for _, md5, name in _files():
        if not check_integrity(folder / name, md5):
            raise FileNotFoundError(name)
    return folder


def _from_google_drive(folder: Path) -> Path:
    from torchvision.datasets.utils import download_file_from_google_drive

    with writing(folder):
        folder.mkdir(exist_ok=True)
    for identifier, md5, name in _files():
        try:
            download_file_from_google_drive(identifier, str(folder), name, md5)
        except Exception as error:  # gdown raises what its web page parsing meets
            with suppress(OSError):  # unless another file is in it already
                folder.rmdir()
            raise ConfigError(
                "dataset.path",
                f"{name} could not be downloaded (quota? {first_line(error)}); "
                "get it in a browser and give dataset.path=FILE",
            ) from error
    return folder
