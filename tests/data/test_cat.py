from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relgan.data import PackedStore, alignment, prepare
from relgan.options import ConfigError

from .conftest import encode, make_folder, make_zip, options, picture

pytestmark = pytest.mark.usefixtures("cache")

WRONG = "9 220 215 277 232 230 255 191 177 166 124 206 169 325 197 381 182 358 219"


def annotation(ears: int = 100) -> bytes:
    """Level eyes in a 300×300 photo whose ears are so many pixels apart."""
    left, right = 150 - ears // 2, 150 + ears // 2
    points = [130, 150, 170, 150, 150, 190, left, 120, left, 90, 140, 110, 160, 110, right, 90, right, 120]
    return f"9 {' '.join(map(str, points))} ".encode()


def photos(*names: str, **shape: int) -> dict[str, bytes]:
    jpegs = {name: encode(picture(seed, (300, 300)), "JPEG") for seed, name in enumerate(names)}
    return {**jpegs, **{f"{name}.cat": annotation(**shape) for name in names}}


def cat(path: Path, size: int = 64) -> PackedStore:
    return prepare(options("cat", path=str(path), image_size=size, min_images=1))


def test_folders_and_archives_in_any_mix(tmp_path: Path) -> None:
    make_folder(tmp_path, photos("CAT_00/00000001_000.jpg"))
    make_zip(tmp_path / "CAT_01.zip", photos("CAT_01/00000100_000.jpg", "CAT_01/00000100_001.jpg"))
    make_zip(tmp_path / "CAT_DATASET_02.zip", photos("CAT_DATASET_02/CAT_05/00001000_000.jpg"))
    make_zip(tmp_path / "holiday.zip", photos("00002000_000.jpg"))
    assert len(cat(tmp_path)) == 4
    assert len(cat(tmp_path / "CAT_01.zip")) == 2
    assert len(cat(tmp_path / "CAT_00")) == 1


def test_a_photo_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    make_folder(tmp_path, photos("CAT_00/00000001_000.jpg"))
    make_zip(tmp_path / "CAT_00.zip", photos("CAT_00/00000001_000.jpg"))
    assert len(cat(tmp_path)) == 1


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="relgan")
    good = photos("00000001_000.jpg", "00000001_001.jpg")
    outlier = photos("00000004_007.jpg")
    wrong = {**photos("00000003_015.jpg"), "00000003_015.jpg.cat": WRONG.encode() + b" \n"}
    alone = {"00000002_000.jpg": good["00000001_000.jpg"]}
    garbled = {**photos("00000002_001.jpg"), "00000002_001.jpg.cat": b"9 1 2 3"}
    damaged = {**photos("00000002_002.jpg"), "00000002_002.jpg": b"\xff\xd8\xff"}
    stray = {"00000003_019.jpg.cat": annotation()}
    small = photos("00000001_002.jpg", ears=50)
    everything = {**good, **outlier, **wrong, **alone, **garbled, **damaged, **stray, **small}
    store = cat(make_folder(tmp_path / "CAT_00", everything))
    assert len(store) == 2
    assert store.meta["skipped"] == {
        "outlier": 1,
        "wrong annotation": 1,
        "without annotation": 1,
        "damaged annotation": 1,
        "damaged": 1,
        "face smaller than 64": 1,
    }
    assert store.meta["usable"] == {"16": 3, "32": 3, "64": 2, "128": 0, "256": 0}
    for name in ("00000003_015", "00000002_000", "00000002_001", "00000002_002"):
        assert f"skipped {name}.jpg: " in caplog.text
    assert "with a face of at least so many pixels: 16: 3, 32: 3, 64: 2, 128: 0, 256: 0" in caplog.text


def test_a_corrected_annotation_is_used(tmp_path: Path) -> None:
    assert len(cat(make_folder(tmp_path / "CAT_00", photos("00000003_015.jpg")))) == 1


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotations_as_other_systems_write_them(tmp_path: Path, encoding: str) -> None:
    photo = photos("00000001_000.jpg")["00000001_000.jpg"]
    text = annotation().decode().replace(" ", "\t").strip() + " \r\n\r\n"
    files = {"00000001_000.JPG": photo, "00000001_000.JPG.CAT": text.encode(encoding), "00000004_007.JPG": photo}
    store = cat(make_folder(tmp_path / "CAT_00", files))
    assert len(store) == 1
    assert store.meta["skipped"] == {"outlier": 1}


def test_a_damaged_member_of_an_archive_costs_no_other(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "CAT_00.zip", photos(*(f"00000001_00{number}.jpg" for number in range(4))))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for name in ("00000001_001.jpg", "00000001_002.jpg.cat"):
            data[archive.getinfo(name).header_offset] = 0
    path.write_bytes(data)
    store = cat(path)
    assert len(store) == 2
    assert store.meta["skipped"] == {"damaged": 2}


def test_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "CAT_00", photos("00000001_000.jpg"))
    (path / "00000001_001.jpg").symlink_to("nowhere.jpg")
    assert cat(path).meta["skipped"] == {"unreadable": 1}


def test_a_photo_is_turned_by_its_eyes_and_not_twice(tmp_path: Path) -> None:
    """Annotations are of the pixels as they lie in the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = photos("00000001_000.jpg")
    tagged = {**plain, "00000001_000.jpg": encode(picture(0, (300, 300)), "JPEG", exif=exif)}
    first = cat(make_folder(tmp_path / "CAT_00", plain))
    again = cat(make_folder(tmp_path / "CAT_01", tagged))
    np.testing.assert_array_equal(first.images, again.images)


def test_the_list_of_outliers_is_complete() -> None:
    from importlib.resources import files

    names = (files("relgan.data.sets") / "cat_outliers.txt").read_text().split()
    assert len(set(names)) == len(names) == 134
    assert (names[0], names[-1]) == ("00000004_007.jpg", "00001487_020.jpg")


def test_a_size_is_kept_where_the_face_has_as_many_pixels(tmp_path: Path) -> None:
    path = make_folder(
        tmp_path / "CAT_00", {**photos("00000001_000.jpg", ears=128), **photos("00000001_001.jpg", ears=126)}
    )
    assert len(cat(path, 128)) == 1
    with pytest.raises(
        ConfigError, match=r"dataset\.path: dataset=cat has no usable images: 2 skipped \(2 face smaller than 256\)"
    ):
        cat(path, 256)


def test_without_a_path_one_line_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.path: get CAT_DATASET_01\.zip .* give dataset\.path=DIRECTORY"):
        prepare(options("cat"))


def test_the_real_photos_are_upright(sample_data: Path) -> None:
    """24 photos: every pair of eyes ends up level, centred and at two fifths of the height."""
    with zipfile.ZipFile(sample_data / "cat-sample-24.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        assert len(names) == 24
        tilts, middles, heights = [], [], []
        for name in names:
            text = archive.read(f"{name}.cat").decode()
            if text.split() == WRONG.split():
                continue
            points = alignment.order_eyes(alignment.parse(text))
            tilts.append(abs(alignment.eye_angle(points)))
            level = alignment.level_points(points)
            width, height = Image.open(io.BytesIO(archive.read(name))).size
            left, top, right, bottom = alignment.crop_box(level, width, height)
            assert level[0, 1] == pytest.approx(level[1, 1])
            assert level[0, 0] < level[1, 0]
            if left > 0 and top > 0 and right < width and bottom < height:
                middles.append((level[:2, 0].mean() - left) / (right - left))
                heights.append((level[0, 1] - top) / (bottom - top))
    assert max(tilts) > 0.3, "the photos did need turning"
    assert len(middles) >= 18
    np.testing.assert_allclose(middles, 0.5, atol=0.015)
    np.testing.assert_allclose(heights, 0.4, atol=0.015)


@pytest.mark.parametrize(("size", "count"), [(32, 23), (64, 22), (128, 17), (256, 4)])
def test_the_real_photos_at_every_size(sample_data: Path, size: int, count: int) -> None:
    store = cat(sample_data / "cat-sample-24.zip", size)
    assert store.images.shape == (count, size, size, 3)
    assert store.meta["skipped"]["wrong annotation"] == 1
    assert store.meta["usable"] == {"16": 23, "32": 23, "64": 22, "128": 17, "256": 4}
