"""What is kept between runs is a convenience: whatever becomes of it, a run goes on and says so once."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from relgan import cache
from relgan.cache import Refused, load_or_compute, load_or_make
from relgan.config import MetricsConfig
from relgan.data import prepare
from relgan.data.pack import prepared, store_path
from relgan.files import atomic_write
from relgan.metrics.extractors import Extractor, digits
from relgan.metrics.reference import real_statistics
from relgan.metrics.weights import WeightFile
from relgan.registry import DATASETS, DatasetOptions

Harm = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A temporary folder of the test's own, as at the start of a process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(cache.tempfile, "tempdir", str(folder))
    cache._temporary.cache_clear()


@pytest.fixture
def pictures(tmp_path: Path, cache: Path) -> DatasetOptions:
    """A data set of four pictures in two classes."""
    for number in range(4):
        path = tmp_path / "pictures" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    return dataclasses.replace(DATASETS["folder"].options, path=str(tmp_path / "pictures"), image_size=16, labels=True)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said about keeping things."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [line for line in lines if "images are few" not in line]


def load(path: Path) -> str:
    text = path.read_text()
    if text != "made":
        raise ValueError("damaged")
    return text


def save(path: Path, value: str) -> None:
    with atomic_write(path) as file:
        file.write(value.encode())


def make(path: Path) -> str:
    save(path, "made")
    return "made"


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbled(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _a_zip(path: Path) -> None:
    path.write_bytes(b"PK\3\4" + bytes(40))


def _folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def _gone(path: Path) -> None:
    path.unlink()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("harm", [_empty, _garbled, _cut, _folder, _dangling])
def test_what_is_damaged_is_computed_again_and_kept(
    tmp_path: Path, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache" / "thing"
    assert load_or_compute(path, load, lambda: "made", save) == "made"
    assert warnings(caplog) == []
    harm(path)
    assert load_or_compute(path, load, lambda: "made", save) == "made"
    assert warnings(caplog) == [f"{path} is damaged: making it again"]
    assert load(path) == "made"


def test_a_reader_without_memory_harms_nothing(tmp_path: Path) -> None:
    def greedy(path: Path) -> str:
        raise MemoryError

    save(tmp_path / "thing", "made")
    with pytest.raises(MemoryError):
        load_or_compute(tmp_path / "thing", greedy, lambda: "other", save)
    assert load(tmp_path / "thing") == "made"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_what_cannot_be_read_now_is_left_as_it_is(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache" / "thing"
    path.parent.mkdir()
    save(path, "made")

    def refused(place: Path) -> str:
        if place == path:
            raise OSError(number, os.strerror(number), str(place))
        return load(place)

    before = path.stat()
    assert load_or_make(path, refused, make) == "made"
    assert load_or_compute(path, refused, lambda: pytest.fail("made again"), save) == "made"
    assert warnings(caplog) == [f"{path} cannot be read ({os.strerror(number)}): using a temporary folder"]
    assert path.stat() == before


def _file_above(path: Path) -> None:
    path.parent.parent.mkdir(parents=True)
    path.parent.write_bytes(b"")


def _folder_for_lock(path: Path) -> None:
    path.with_name(f".{path.name}.lock").mkdir(parents=True)


def _folder_for_temporary_file(path: Path) -> None:
    path.with_name(f".{path.name}.tmp").mkdir(parents=True)


@pytest.mark.parametrize("harm", [_file_above, _folder_for_lock, _folder_for_temporary_file])
def test_where_nothing_can_be_kept_it_is_computed_once(
    tmp_path: Path, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cache" / "folder" / "thing"
    harm(path)
    computed: list[str] = []
    assert load_or_compute(path, load, lambda: computed.append("made") or "made", save) == "made"
    assert len(computed) == len(warnings(caplog)) == 1
    assert str(path) in caplog.text


def test_an_error_of_the_computation_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def compute() -> str:
        raise FileNotFoundError("the reference pictures are gone")

    with pytest.raises(FileNotFoundError, match="pictures are gone"):
        load_or_compute(tmp_path / "thing", load, compute, save)


def test_a_second_use_finds_what_lies_in_the_temporary_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cache" / "folder" / "thing"
    _file_above(path)
    assert load_or_make(path, load, make) == "made"
    assert load_or_make(path, load, lambda _: pytest.fail("made again")) == "made"
    assert len(warnings(caplog)) == 1


def test_nothing_can_be_kept_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache" / "folder" / "thing"
    _file_above(path)
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(Refused, match="a temporary folder cannot be written"):
        load_or_make(path, load, make)
    assert load_or_compute(path, load, lambda: "made", save) == "made"


def _other_type(path: Path) -> None:
    path.write_text("[]")


def _other_values(path: Path) -> None:
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "fingerprint": 5, "classes": 3}))


def _other_labels(path: Path) -> None:
    np.save(path, np.full(4, 2))


def _few_labels(path: Path) -> None:
    np.save(path, np.zeros(3, np.int64))


ANY_FILE: list[Harm] = [_empty, _garbled, _cut, _a_zip, _folder, _gone, _dangling]


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *((name, harm) for name in ("meta.json", "images.npy", "labels.npy") for harm in ANY_FILE),
        ("meta.json", _other_type),
        ("meta.json", _other_values),
        ("labels.npy", _few_labels),
        ("labels.npy", _other_labels),
    ],
)
def test_a_damaged_store_is_prepared_again(
    pictures: DatasetOptions, name: str, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare(pictures)
    harm(first.path / name)
    again = prepare(pictures)
    assert (again.path, again.fingerprint) == (first.path, first.fingerprint)
    again.verify()
    assert warnings(caplog) == [f"{first.path} is damaged: making it again"]


def test_a_file_in_place_of_a_store_is_replaced(pictures: DatasetOptions) -> None:
    path = store_path(pictures)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert prepare(pictures).path == path


def test_one_damaged_store_hides_no_other(
    pictures: DatasetOptions, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from relgan.cli import data

    good = prepare(pictures).path
    for harmed in ("a", "b"):
        (good.parent / harmed).mkdir()
    (good.parent / "b" / "meta.json").write_text("[]")
    assert [path.name for path in prepared()] == ["a", "b", good.name]
    monkeypatch.setattr(sys, "argv", ["relgan-data", "list"])
    data.main()
    listed = capsys.readouterr().out
    assert f"{good.name}: 4 images" in listed
    assert listed.count("is damaged (") == 2
    monkeypatch.setattr(sys, "argv", ["relgan-data", "verify"])
    with pytest.raises(SystemExit):
        data.main()
    shown = capsys.readouterr()
    assert f"{good}: 4 images, unchanged" in shown.out
    assert shown.err == "relgan-data: 2 of 3 prepared data sets are damaged\n"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A disk on which names fit, but nothing in the files."""
    monkeypatch.setattr(os, "fsync", _no_space)


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


class Brightness(nn.Module):
    """Features and logits of no meaning."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = images.float().mean(dim=(2, 3)).repeat(1, 2)
        return features, features


def statistics(images: Any) -> Any:
    extractor = Extractor(Brightness(), torch.device("cpu"), num_features=6)
    return real_statistics(images, extractor, count=None, keep_features=True, batch_size=100)


class Made:
    """A few real images, as a score is given them."""

    fingerprint, size, labels = "made", (4, 4), None
    meta: dict[str, Any] = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 20

    def batches(self, indices: np.ndarray, batch_size: int) -> Any:
        rng = torch.Generator().manual_seed(0)
        yield torch.randint(0, 256, (len(indices), 3, 4, 4), dtype=torch.uint8, generator=rng)


@pytest.mark.parametrize("harm", ANY_FILE)
def test_damaged_reference_statistics_are_computed_again(
    cache: Path, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    first = statistics(Made())
    [kept] = (cache / "reference").glob("[!.]*")
    harm(kept)
    torch.testing.assert_close(statistics(Made()).features, first.features, rtol=0, atol=0)
    assert warnings(caplog) == ([] if harm is _gone else [f"{kept} is damaged: making it again"])


@pytest.mark.usefixtures("full")
def test_statistics_need_no_space(caplog: pytest.LogCaptureFixture) -> None:
    assert statistics(Made()).features.shape == (20, 6)
    assert len(warnings(caplog)) == 1
    assert "cannot be kept (No space left on device)" in caplog.text


def test_a_full_disk_moves_prepared_data_to_a_temporary_folder(
    pictures: DatasetOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = prepare(pictures).fingerprint
    monkeypatch.setenv("RELGAN_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("relgan.data.store._sync_and_close", refuse_below(tmp_path / "another"))
    store = prepare(pictures)
    assert store.fingerprint == expected
    assert store.path.is_relative_to(tmp_path / "temporary")
    assert len(warnings(caplog)) == 1
    assert "cannot be written (No space left on device): using a temporary folder" in caplog.text
    assert [path for path in (tmp_path / "another" / "datasets").iterdir() if path.is_dir()] == []


def refuse_below(folder: Path) -> Callable[[IO[Any]], None]:
    def close(file: IO[Any]) -> None:
        if Path(file.name).is_relative_to(folder):
            _no_space()
        file.close()

    return close


def test_preparing_for_later_is_refused_where_nothing_is_kept(
    pictures: DatasetOptions, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from relgan.cli import data

    cache.write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["relgan-data", "prepare", "dataset=folder", f"dataset.path={pictures.path}"])
    with pytest.raises(SystemExit) as stopped:
        data.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("RELGAN_CACHE names another place\n")


@pytest.mark.parametrize("harm", ANY_FILE)
def test_a_damaged_classifier_is_trained_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    trained: list[digits.DigitNet] = []
    monkeypatch.setattr(digits, "_make", lambda: trained.append(digits.DigitNet().eval()) or trained[-1])

    def build() -> Extractor:
        return digits.build(MetricsConfig(), DATASETS["digits"].options, torch.device("cpu"))

    assert build().fingerprint == build().fingerprint
    assert len(trained) == 1
    [kept] = (cache / "extractors").glob("[!.]*")
    harm(kept)
    assert build().fingerprint == build().fingerprint
    assert len(trained) == 2
    assert warnings(caplog) == ([] if harm is _gone else [f"{kept} is damaged: making it again"])


def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[WeightFile, Path]:
    """A weight file in a store of this machine, and where the torch hub would keep it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "weights-abc.pth").write_bytes(b"published")
    url = (tmp_path / "weights-abc.pth").as_uri()
    file = WeightFile("metrics.weights", url, hashlib.sha256(b"published").hexdigest())
    return file, tmp_path / "torch" / "hub" / "checkpoints" / "weights-abc.pth"


@pytest.mark.parametrize("harm", [_empty, _garbled, _cut, _folder, _dangling])
def test_damaged_weights_are_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm, caplog: pytest.LogCaptureFixture
) -> None:
    file, kept = published(tmp_path, monkeypatch)
    assert file.find(None) == kept
    harm(kept)
    assert file.find(None).read_bytes() == b"published"
    assert warnings(caplog) == [f"{kept} is damaged: making it again"]


def test_weights_that_cannot_be_kept_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, kept = published(tmp_path, monkeypatch)
    _file_above(kept)
    assert file.find(None).read_bytes() == b"published"
    assert len(warnings(caplog)) == 1


def test_the_temporary_folder_goes_with_the_process(tmp_path: Path) -> None:
    script = """
from pathlib import Path
from relgan.cache import load_or_make
print(load_or_make(Path("file/folder/thing"), Path.read_text, lambda path: path if path.write_text("made") else path))
"""
    (tmp_path / "file").write_bytes(b"")
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "temporary")
    assert "file/folder/thing cannot be written" in done.stderr
    assert list((tmp_path / "temporary").iterdir()) == []
