"""Pictures at their native size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relgan.metrics.reference import Pictures
from relgan.options import ConfigError


def save(path: Path, width: int, height: int, mode: str = "RGB") -> np.ndarray:
    rng = np.random.default_rng(width * height)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(path)
    return np.asarray(image.convert("RGB"))


def test_pictures_keep_their_size_and_batches_do_not_mix_sizes(tmp_path: Path) -> None:
    shapes = [(20, 10), (20, 10), (20, 10), (8, 30), (20, 10)]
    saved = [save(tmp_path / f"{i}.png", w, h, "L" if i == 1 else "RGB") for i, (w, h) in enumerate(shapes)]
    (tmp_path / "notes.txt").write_text("no picture")
    pictures = Pictures(str(tmp_path), "images")
    assert len(pictures) == 5
    assert pictures.size == (10, 20)
    batches = list(pictures.positioned(np.arange(5), 2))
    assert [(start, tuple(batch.shape)) for start, batch in batches] == [
        (0, (2, 3, 10, 20)),
        (2, (1, 3, 10, 20)),
        (3, (1, 3, 30, 8)),
        (4, (1, 3, 10, 20)),
    ]
    shown = [image for _, batch in batches for image in batch.permute(0, 2, 3, 1).numpy()]
    for image, expected in zip(shown, saved, strict=True):
        np.testing.assert_array_equal(image, expected)


def test_pictures_are_scored_upright_and_hidden_ones_not_at_all(tmp_path: Path) -> None:
    upright, exif = Image.fromarray(save(tmp_path / "a.png", 20, 10)), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / ".hidden" / "c.png", 5, 5)
    [batch] = Pictures(str(tmp_path), "images").batches(np.arange(2), 2)
    np.testing.assert_array_equal(batch[0], batch[1])


def test_an_archive_is_read_without_extracting(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 4, 4)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "sub/a.png")
    assert len(Pictures(str(tmp_path / "all.zip"), "images")) == 1


@pytest.mark.parametrize("content", ["nowhere", "empty", "damaged", "half.zip"])
def test_what_cannot_be_scored_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / content
    if content == "half.zip":
        path.write_bytes(b"PK half an archive")
    elif content != "nowhere":
        path.mkdir()
    if content == "damaged":
        (path / "x.png").write_bytes(b"nonsense")
    complaint = r"^images: .*(does not exist|no image files|x\.png: damaged|not a complete zip)"
    with pytest.raises(ConfigError, match=complaint) as caught:
        Pictures(str(path), "images")
    assert "\n" not in str(caught.value)
