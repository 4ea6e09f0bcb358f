"""CIFAR-10 and the MNIST family in the published formats, made small."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from relgan.data import prepare
from relgan.options import ConfigError, RelganError
from relgan.registry import DatasetOptions

from . import test_download
from .conftest import make_folder, options
from .test_download import Mirrors, mirrors, send

__all__ = ["mirrors"]
pytestmark = pytest.mark.usefixtures("cache")

PIXELS = np.random.default_rng(1).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(60) % 10
BATCHES = {
    name: pickle.dumps({b"data": PIXELS[part].reshape(-1, 3072), b"labels": LABELS[part].tolist()}, protocol=2)
    for name, part in [
        *((f"data_batch_{i + 1}", slice(10 * i, 10 * i + 10)) for i in range(5)),
        ("test_batch", slice(50, 60)),
    ]
}


def tar(members: dict[str, bytes], folder: str = "cifar-10-batches-py/") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An archive of sixty images, and torchvision's checksums set to it."""
    from torchvision.datasets import CIFAR10

    archive = tar(BATCHES)
    sums = [[name, hashlib.md5(data).hexdigest()] for name, data in BATCHES.items()]
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    return archive


def cifar(path: Path | None = None, **values: object) -> DatasetOptions:
    return options("cifar10", path=None if path is None else str(path), **values)


@pytest.mark.parametrize("split", ["train", "test", "all"])
@pytest.mark.parametrize("form", ["archive", "folder", "nested folder"])
def test_cifar10_from_what_the_user_has(tmp_path: Path, small_cifar: bytes, form: str, split: str) -> None:
    path = tmp_path / "cifar"
    if form == "archive":
        path.write_bytes(small_cifar)
    else:
        make_folder(path / ("a/b" if "nested" in form else ""), BATCHES)
    store = prepare(cifar(path, split=split))
    part = {"train": slice(0, 50), "test": slice(50, 60), "all": slice(0, 60)}[split]
    np.testing.assert_array_equal(store.images, PIXELS[part].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(store.labels, LABELS[part])
    assert store.classes[3:6] == ["cat", "deer", "dog"]


def test_cifar10_through_four_mirrors(
    cache: Path, small_cifar: bytes, mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answers 503, the second with a web page, the third cuts the connection, the fourth serves."""
    monkeypatch.setattr(test_download, "CONTENT", small_cifar)
    urls = [f"{mirrors.url}/{behaviour}/data.bin" for behaviour in ("unavailable", "web_page", "cuts_off", "serves")]
    store = prepare(cifar(url=urls))
    np.testing.assert_array_equal(store.images, PIXELS[:50].transpose(0, 2, 3, 1))
    assert (cache / "downloads" / "cifar-10-python.tar.gz").read_bytes() == small_cifar


def test_a_pickle_of_unknown_content_is_never_loaded(tmp_path: Path, small_cifar: bytes) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "harmed",)

    evil = {**BATCHES, "data_batch_3": pickle.dumps(Harm())}
    with pytest.raises(ConfigError, match=r"data_batch_3 in .* has a wrong checksum"):
        prepare(cifar(make_folder(tmp_path / "cifar", evil)))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda archive: archive[: len(archive) // 2], "is not a complete tar archive"),
        (lambda _: b"<html>quota</html>", "is a web page"),
        (lambda _: b"", "is not a complete tar archive"),
        (lambda _: tar({}), "does not hold data_batch_1"),
    ],
    ids=["ends early", "web page", "empty", "something else"],
)
def test_a_wrong_cifar10_archive(tmp_path: Path, small_cifar: bytes, content: object, message: str) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content(small_cifar))  # type: ignore[operator]
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(cifar(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_an_archive_damaged_in_any_compression_is_one_line(tmp_path: Path, small_cifar: bytes, kind: str) -> None:
    path = tmp_path / "cifar.tar"
    with tarfile.open(path, f"w:{kind}") as archive:
        archive.add(make_folder(tmp_path / "cifar", BATCHES))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4] = bytes(value ^ 0xFF for value in data[middle : middle + 4])
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"not a complete tar archive|wrong checksum|does not hold") as caught:
        prepare(cifar(path))
    assert "\n" not in str(caught.value)


def test_nothing_in_a_tar_is_followed_or_written(tmp_path: Path, small_cifar: bytes) -> None:
    path = tmp_path / "a" / "cifar.tar.gz"
    path.parent.mkdir()
    path.write_bytes(tar({f"../../{name}": data for name, data in BATCHES.items()}, folder=""))
    assert len(prepare(cifar(path))) == 50
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "cache"]
    link = tarfile.TarInfo("data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(link)
    with pytest.raises(ConfigError, match="does not hold data_batch_1"):
        prepare(cifar(path))


def test_cifar10_has_no_valid_split(tmp_path: Path, small_cifar: bytes) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.split: cifar10 has no valid split"):
        prepare(cifar(tmp_path, split="valid"))


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return header + values.astype(np.uint8).tobytes()


DIGITS = np.random.default_rng(2).integers(0, 256, (30, 28, 28), dtype=np.uint8)
FILES = {
    "train-images-idx3-ubyte": idx(DIGITS[:20]),
    "train-labels-idx1-ubyte": idx(LABELS[:20]),
    "t10k-images-idx3-ubyte": idx(DIGITS[20:]),
    "t10k-labels-idx1-ubyte": idx(LABELS[20:30]),
}


@pytest.mark.parametrize(("name", "ninth"), [("mnist", "9"), ("fashion_mnist", "Ankle boot")])
@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_from_a_folder(tmp_path: Path, name: str, ninth: str, zipped: bool) -> None:
    files = {f"{n}.gz": gzip.compress(data) for n, data in FILES.items()} if zipped else FILES
    folder = make_folder(tmp_path / "MNIST" / "raw", files)
    train = prepare(options(name, path=str(folder.parent), split="train"))
    assert train.images.shape == (20, 32, 32, 1)
    np.testing.assert_array_equal(train.labels, LABELS[:20])
    assert train.classes[9] == ninth
    # The resize is smooth: a 28 px image keeps its mean.
    np.testing.assert_allclose(train.images.mean((1, 2, 3)), DIGITS[:20].mean((1, 2)), atol=2)
    assert len(prepare(options(name, path=str(folder), split="test"))) == 10


def test_stacked_mnist_names_its_modes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "raw", FILES)
    single = prepare(options("mnist", path=str(folder)))
    stacked = prepare(options("stacked_mnist", path=str(folder), num_images=50))
    labels_of = {image.tobytes(): label for image, label in zip(single.images, single.labels, strict=True)}
    assert stacked.images.shape == (50, 32, 32, 3)
    for image, label in zip(stacked.images, stacked.labels, strict=True):
        red, green, blue = (labels_of[np.ascontiguousarray(image[..., c]).tobytes()] for c in range(3))
        assert label == 100 * red + 10 * green + blue


def test_mnist_is_downloaded_and_checked(mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    zipped = {f"{name}.gz": gzip.compress(data) for name, data in FILES.items()}
    monkeypatch.setattr(MNIST, "resources", [(n, hashlib.md5(data).hexdigest()) for n, data in zipped.items()])
    monkeypatch.setattr(MNIST, "mirrors", [f"{mirrors.url}/unavailable/", f"{mirrors.url}/serves_file/"])
    served = lambda handler: send(handler, zipped[handler.path.rsplit("/", 1)[1]])  # noqa: E731
    monkeypatch.setitem(vars(test_download), "serves_file", served)
    monkeypatch.setattr(mirrors, "names", set(zipped))
    store = prepare(options("mnist"))
    np.testing.assert_array_equal(store.labels, LABELS[:20])


@pytest.mark.parametrize("harm", [lambda data: data[:-5], lambda data: b"\1" + data[1:], lambda _: b""])
def test_damaged_mnist_files(tmp_path: Path, harm: object) -> None:
    files = {**FILES, "train-images-idx3-ubyte": harm(FILES["train-images-idx3-ubyte"])}  # type: ignore[operator]
    with pytest.raises(RelganError, match=r"train-images-idx3-ubyte.* is damaged"):
        prepare(options("mnist", path=str(make_folder(tmp_path / "raw", files))))


def test_mnist_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(ConfigError, match="does not hold train-images-idx3-ubyte"):
        prepare(options("mnist", path=str(tmp_path / "raw")))
