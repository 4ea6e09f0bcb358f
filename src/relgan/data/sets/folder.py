"""Any directory or zip archive of images."""

from __future__ import annotations

from relgan.data.archives import image_files, passed_over
from relgan.data.sources import FolderSource
from relgan.options import ConfigError
from relgan.registry import DatasetCard, DatasetOptions, register_dataset


@register_dataset("folder", DatasetOptions, about="any images", facts=DatasetCard(get="dataset.path=DIRECTORY or zip"))
def folder(options: DatasetOptions) -> FolderSource:
    """Every image file below dataset.path."""
    if options.path is None:
        raise ConfigError("dataset.path", "name a directory or zip archive of images: dataset.path=PATH")
    files, entries = image_files(options.path)
    source = FolderSource(files, entries, options.image_size, options.crop, labelled=options.labels)
    source.facts = {"passed_over": passed_over(files)}
    return source
