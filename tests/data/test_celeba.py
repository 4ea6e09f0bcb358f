from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relgan.data import PackedStore, prepare
from relgan.options import ConfigError, RelganError

from .conftest import encode, make_folder, make_zip, options

pytestmark = pytest.mark.usefixtures("cache")


def face(number: int, scale: int = 2) -> bytes:
    """Of the real size (scale 2: 178×218), its grey value the number; the outermost rows red."""
    picture = Image.new("RGB", (89 * scale, 109 * scale), "red")
    picture.paste((number, number, number), (0, 10 * scale, 89 * scale, 99 * scale))
    return encode(picture, "JPEG", quality=95, subsampling=0)


FACES = {f"{number:06}.jpg": face(number) for number in range(1, 9)}
LIST = "".join(f"{name} {split}\n" for name, split in zip(FACES, "00000112", strict=True))
CSV = "image_id,partition\n" + LIST.replace(" ", ",")


def celeba(path: Path, **values: object) -> PackedStore:
    return prepare(options("celeba", path=str(path), min_images=1, **values))


def below(folder: str, members: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in members.items()}


@pytest.mark.parametrize("folder", ["img_align_celeba", "img_align_celeba/img_align_celeba", "celebA", "."])
@pytest.mark.parametrize("make", [make_zip, make_folder])
def test_any_layout_gives_the_same_images(tmp_path: Path, folder: str, make: object) -> None:
    store = celeba(make(tmp_path / "celeba", below(folder, FACES)))  # type: ignore[operator]
    greys = store.images.reshape(8, -1).astype(float)
    np.testing.assert_allclose(greys.mean(1), range(1, 9), atol=1.5)


def test_a_directory_may_hold_the_archive(tmp_path: Path) -> None:
    (tmp_path / "celeba").mkdir()
    make_zip(tmp_path / "celeba" / "IMG_ALIGN_CELEBA.ZIP", below("img_align_celeba", FACES))
    make_zip(tmp_path / "celeba" / "other.zip", {"999999.jpg": face(200)})
    assert len(celeba(tmp_path / "celeba")) == 8
    with zipfile.ZipFile(tmp_path / "celeba" / "IMG_ALIGN_CELEBA.ZIP") as archive:
        archive.extractall(tmp_path / "celeba")
    assert len(celeba(tmp_path / "celeba")) == 8


def test_the_largest_centred_square_or_a_smaller_crop(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "celeba.zip", FACES)
    for crop in (None, 178, 160, 108):
        red = celeba(path, crop=crop).images[..., 0].max()
        assert red < 30, f"crop={crop} reached the red frame"


def test_half_size_copies_go_the_same_way(tmp_path: Path) -> None:
    full = celeba(make_zip(tmp_path / "full.zip", FACES))
    half = celeba(make_zip(tmp_path / "half.zip", {name: face(int(name[:6]), 1) for name in FACES}))
    assert np.abs(full.images.astype(int) - half.images).max() <= 5


@pytest.mark.parametrize("size", [32, 128, 256])
def test_all_image_sizes(tmp_path: Path, size: int) -> None:
    assert celeba(make_zip(tmp_path / "celeba.zip", FACES), image_size=size).images.shape == (8, size, size, 3)


@pytest.mark.parametrize(("split", "numbers"), [("train", range(1, 6)), ("valid", [6, 7]), ("test", [8])])
@pytest.mark.parametrize("place", ["inside", "beside", "Eval", "csv"])
def test_the_official_split(tmp_path: Path, split: str, numbers: list[int], place: str) -> None:
    inside = {"inside": {"list_eval_partition.txt": LIST.encode()}, "csv": {"list_eval_partition.csv": CSV.encode()}}
    path = make_zip(tmp_path / "celeba.zip", {**FACES, **inside.get(place, {})})
    if place in ("beside", "Eval"):
        folder = tmp_path / ("Eval" if place == "Eval" else "")
        folder.mkdir(exist_ok=True)
        (folder / "list_eval_partition.txt").write_text(LIST)
    store = celeba(path, split=split)
    np.testing.assert_allclose(store.images.reshape(len(store), -1).mean(1), numbers, atol=1.5)
    assert store.meta["split"] == split


QUOTED = '"image_id";"partition"\r\n' + "".join(
    f'"{name}";"{split}"\r\n' for name, split in zip(FACES, "00000112", strict=True)
)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", [LIST.replace("\n", "  \r\n") + "\r\n\r\n", LIST.replace("\n", "\r"), CSV, QUOTED])
def test_the_list_as_other_systems_write_it(tmp_path: Path, text: str, encoding: str) -> None:
    path = make_zip(tmp_path / "celeba.zip", {**FACES, "list_eval_partition.txt": text.encode(encoding)})
    assert len(celeba(path, split="train")) == 5


def test_a_damaged_list_is_one_line(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "celeba.zip", {**FACES, "list_eval_partition.txt": LIST.encode()})
    path.write_bytes(path.read_bytes().replace(b"000003.jpg 0", b"000003.jpg 1"))
    with pytest.raises(ConfigError, match=r"^dataset\.split: list_eval_partition\.txt is damaged \("):
        celeba(path, split="train")


def test_a_split_without_the_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"dataset\.split: needs list_eval_partition\.txt .* or use dataset\.split=all"
    ):
        celeba(make_zip(tmp_path / "celeba.zip", FACES), split="test")


@pytest.mark.parametrize("place", ["list_eval_partition.csv", "Eval/list_eval_partition.txt"])
def test_a_list_beside_that_has_changed_is_read_again(tmp_path: Path, place: str) -> None:
    beside = tmp_path / place
    beside.parent.mkdir(exist_ok=True)
    path = make_zip(tmp_path / "celeba.zip", FACES)
    beside.write_text(LIST)
    assert [len(celeba(path, split=split)) for split in ("all", "train", "test")] == [8, 5, 1]
    whole = celeba(path, split="all").path
    beside.write_text(LIST.replace(" 0", " 2"))
    assert len(celeba(path, split="test")) == 6
    assert celeba(path, split="all").path == whole


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no CelebA images \(000001\.jpg …\)"):
        celeba(make_zip(tmp_path / "holiday.zip", {"beach.jpg": face(1)}))


def test_without_path_and_gdown_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"dataset\.path: get img_align_celeba\.zip from https://\S+ and give"):
        prepare(options("celeba"))


def test_with_gdown_torchvisions_links_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    def fetch(identifier: str, root: str, name: str, md5: str) -> None:
        assert len(md5) == 32
        if name.endswith(".zip"):
            make_zip(make_folder(Path(root), {"list_eval_partition.txt": LIST.encode()}) / name, FACES)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(utils, "download_file_from_google_drive", fetch)
    assert len(prepare(options("celeba", split="train", min_images=1))) == 5


def test_a_quota_page_through_gdown_is_one_line(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from torchvision.datasets import utils

    def fetch(*_: str) -> None:
        raise RuntimeError("File not found or corrupted.\nmore")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(utils, "download_file_from_google_drive", fetch)
    for _ in range(2):
        with pytest.raises(
            RelganError, match=r"img_align_celeba\.zip could not be downloaded .*dataset\.path=FILE"
        ) as caught:
            prepare(options("celeba"))
        assert "\n" not in str(caught.value)
    assert "damaged" not in caplog.text


@pytest.mark.slow
def test_the_real_sample(sample_data: Path) -> None:
    store = celeba(sample_data / "celeba-10k-89x109.zip")
    assert store.images.shape == (10_000, 64, 64, 3)
    assert store.meta["skipped"] == {}
