"""CelebA's aligned faces, from any of the archives and folders they circulate in."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from relgan.cache import cache_dir, locked
from relgan.data.archives import Files, roots
from relgan.data.sources import FolderSource
from relgan.options import ConfigError
from relgan.registry import DatasetCard, DatasetOptions, register_dataset

_IMAGES = r"\d{6}\.(jpg|jpeg|png)"
_PARTITION = r"list_eval_partition\.(txt|csv)"
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
        text = files.read(listed[0]).decode("utf-8", "replace")
    else:
        parent = files.roots[0].parent
        beside = [*parent.glob("list_eval_partition.*"), *parent.glob("Eval/list_eval_partition.*")]
        if not beside:
            raise ConfigError(
                "dataset.split", "needs list_eval_partition.txt in or beside dataset.path; or use dataset.split=all"
            )
        text = beside[0].read_text(encoding="utf-8", errors="replace")
    rows = (line.replace(",", " ").split() for line in text.splitlines())
    return {row[0][:6]: row[1] for row in rows if len(row) == 2}


def _downloaded() -> Path:
    """The directory torchvision's own Google Drive links were downloaded to."""
    if importlib.util.find_spec("gdown") is None:
        raise ConfigError(
            "dataset.path",
            "get img_align_celeba.zip from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html "
            "and give dataset.path=FILE (or pip install gdown to try the download)",
        )
    from torchvision.datasets import CelebA
    from torchvision.datasets.utils import download_file_from_google_drive

    folder = cache_dir() / "downloads" / "celeba"
    wanted = [row for row in CelebA.file_list if row[2] in ("img_align_celeba.zip", "list_eval_partition.txt")]
    with locked(folder):
        for identifier, md5, name in wanted:
            try:
                download_file_from_google_drive(identifier, str(folder), name, md5)
            except Exception as error:  # gdown raises what its web page parsing meets
                raise ConfigError(
                    "dataset.path",
                    f"{name} could not be downloaded (quota? {str(error).splitlines()[0]}); "
                    "get it in a browser and give dataset.path=FILE",
                ) from error
    return folder
