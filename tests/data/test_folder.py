"""The folder source: any directory or zip archive, however it was damaged."""

from __future__ import annotations

import logging
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from relgan.data import PackedStore, prepare
from relgan.data.decode import MAX_FILE_BYTES
from relgan.options import ConfigError

from .conftest import encode, make_folder, make_zip, options, picture

pytestmark = pytest.mark.usefixtures("cache")

PICTURES = {f"class/{seed}.png": encode(picture(seed)) for seed in range(4)}


def folder(path: Path) -> PackedStore:
    return prepare(options("folder", path=str(path)), progress=False)


def expected(*seeds: int) -> np.ndarray:
    return np.stack([np.asarray(picture(seed)) for seed in seeds])


@pytest.mark.parametrize(
    ("crop", "said"),
    [
        (None, "RGB, largest centred square, resized"),
        (0.9, "RGB, inner 90 % of the largest centred square, resized"),
        (80, "RGB, centred 80×80, resized"),
    ],
)
def test_what_was_cut_out_is_recorded(tmp_path: Path, crop: float | None, said: str) -> None:
    path = make_folder(tmp_path / "pictures", PICTURES)
    store = prepare(options("folder", path=str(path), crop=crop), progress=False)
    assert store.meta["preprocessing"].startswith(said)


def test_a_directory_and_a_zip_of_it_are_the_same_data(tmp_path: Path) -> None:
    from_directory = folder(make_folder(tmp_path / "pictures", PICTURES))
    from_zip = folder(make_zip(tmp_path / "pictures.zip", PICTURES))
    np.testing.assert_array_equal(from_directory.images, expected(0, 1, 2, 3))
    assert from_directory.fingerprint == from_zip.fingerprint
    assert from_directory.labels is None


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_unicode_long_and_deep_names(tmp_path: Path, make: object) -> None:
    names = ["ünï çødé/猫 🐈.png", "long/" + "x" * 250 + ".PNG", "/".join("d" * 30) + "/deep.jpeg", "spaces in it.png"]
    members = {name: encode(picture(seed)) for seed, name in enumerate(names)}
    store = folder(make(tmp_path / "pictures", members))  # type: ignore[operator]
    assert len(store) == 4


def test_only_images_count(tmp_path: Path) -> None:
    clutter = {
        "notes.txt": b"hello",
        "Thumbs.db": b"\0",
        ".hidden.png": b"",
        "__MACOSX/class/._0.png": b"\0\5\x16\7",
    }
    store = folder(make_zip(tmp_path / "pictures.zip", {**PICTURES, **clutter}))
    assert len(store) == 4
    assert store.meta["skipped"] == {}


def test_a_damaged_file_is_named_counted_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="relgan")
    bad = {"class/half.png": PICTURES["class/1.png"][:60], "class/nothing.jpg": b""}
    store = folder(make_zip(tmp_path / "pictures.zip", {**PICTURES, **bad}))
    np.testing.assert_array_equal(store.images, expected(0, 1, 2, 3))
    assert store.meta["skipped"] == {"damaged": 1, "empty": 1}
    assert "skipped class/half.png: " in caplog.text
    assert "skipped class/nothing.jpg: the file is empty" in caplog.text
    assert "4 images kept, 2 skipped (1 damaged, 1 empty)" in caplog.text


def test_no_usable_image_is_an_error(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"dataset\.path: dataset=folder has no usable images: 2 skipped \(2 damaged\)"
    ):
        folder(make_zip(tmp_path / "bad.zip", {"a.png": b"x", "b.png": b"y"}))
    assert [path for path in (cache / "datasets").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("members", [{}, {"notes.txt": b"hello"}])
@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_no_image_file_is_an_error(tmp_path: Path, make: object, members: dict[str, bytes]) -> None:
    (tmp_path / "here").mkdir() if make is make_folder else None
    with pytest.raises(ConfigError, match=r"dataset\.path: no image files \(\.jpg .*\) in "):
        folder(make(tmp_path / "here", members))  # type: ignore[operator]


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.path: .*nowhere does not exist"):
        folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"dataset\.path: name a directory or zip archive"):
        prepare(options("folder"))


def test_a_web_page_saved_as_zip_is_recognised(tmp_path: Path) -> None:
    page = tmp_path / "img_align_celeba.zip"
    page.write_text("\n <!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(ConfigError, match="is a web page"):
        folder(page)


def test_a_zip_that_ends_early_is_an_error(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "pictures.zip", PICTURES)
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="is not a complete zip archive"):
        folder(whole)


def test_nothing_is_written_for_names_that_climb_or_are_absolute(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    evil = {"../../climbed.png": encode(picture(0)), f"{tmp_path}/absolute.png": encode(picture(1))}
    assert len(folder(make_zip(inside / "evil.zip", evil))) == 2
    assert not list(tmp_path.glob("**/climbed.png")) + list(tmp_path.glob("**/absolute.png"))


def test_links_in_an_archive_are_ignored(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "pictures.zip", PICTURES)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("class/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    store = folder(path)
    assert len(store) == 4
    assert store.meta["skipped"] == {}


def test_links_to_files_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    make_folder(tmp_path / "elsewhere", PICTURES)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link.png").symlink_to(tmp_path / "elsewhere" / "class" / "2.png")
    (tmp_path / "pictures" / "circle").symlink_to(tmp_path / "pictures")
    (tmp_path / "pictures" / "broken.png").symlink_to(tmp_path / "nothing.png")
    np.testing.assert_array_equal(folder(tmp_path / "pictures").images, expected(2))


def test_a_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", encode(picture(0)))
        archive.writestr("bomb.png", b"\0" * (MAX_FILE_BYTES + 1))
    assert path.stat().st_size < 200_000
    assert folder(path).meta["skipped"] == {"too large": 1}


def test_a_bomb_that_lies_about_its_size_inflates_no_further(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    size = 1_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.png", encode(picture(0)))
        archive.writestr("bomb.png", b"\0" * size)
    data = path.read_bytes()
    assert data.count(size.to_bytes(4, "little")) == 2
    path.write_bytes(data.replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    assert folder(path).meta["skipped"] == {"damaged": 1}


def test_a_member_with_a_wrong_checksum_is_skipped(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "pictures.zip", PICTURES)
    data = bytearray(path.read_bytes())
    data[data.index(PICTURES["class/2.png"]) + 50] ^= 0xFF
    path.write_bytes(data)
    store = folder(path)
    np.testing.assert_array_equal(store.images, expected(0, 1, 3))
    assert store.meta["skipped"] == {"damaged": 1}
