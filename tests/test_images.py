"""The one conversion to uint8, its inverse, and the grid."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from relgan.images import class_rows, grid, save_png, to_float, to_uint8


def test_every_value_survives_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    lowest, highest = to_float(values).aminmax()
    assert lowest == -1
    assert 1 - 2e-7 < highest <= 1


def test_rounding_clamping_and_types() -> None:
    values = torch.tensor([-1.0, -1.5, 1.0, 7.0, 0.0, 1 / 255, -0.9999])
    assert to_uint8(values).tolist() == [0, 0, 255, 255, 128, 128, 0]
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [191]
    # bfloat16 has 8 bits: the arithmetic must not happen in it
    assert to_uint8(torch.tensor([0.75], dtype=torch.bfloat16)).tolist() == [223]
    before = values.clone()
    to_uint8(values)
    assert torch.equal(values, before)


def test_memory_format_is_kept() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert to_float(images).is_contiguous(memory_format=torch.channels_last)


def flat(*values: int, channels: int = 3, size: int = 2) -> torch.Tensor:
    return torch.stack([torch.full((channels, size, size), v, dtype=torch.uint8) for v in values])


def test_images_run_along_rows_with_white_between() -> None:
    picture = grid(flat(10, 20, 30), columns=2, gap=1)
    assert picture.shape == (7, 7, 3)
    channel = picture[..., 0].tolist()
    white = [255] * 7
    first, second = [255, 10, 10, 255, 20, 20, 255], [255, 30, 30, 255, 255, 255, 255]
    assert channel == [white, first, first, white, second, second, white]


def test_one_channel_is_grey_and_the_default_is_square() -> None:
    picture = grid(flat(*range(9), channels=1), gap=0)
    assert picture.shape == (6, 6, 3)
    assert torch.equal(picture[..., 0], picture[..., 2])
    assert picture[::2, ::2, 0].flatten().tolist() == list(range(9))


def test_stacked_digits_show_their_channels_side_by_side() -> None:
    image = torch.stack([torch.full((2, 2), v, dtype=torch.uint8) for v in (10, 20, 30)])[None]
    picture = grid(image, gap=0, separate_channels=True)
    assert picture.shape == (2, 8, 3)
    assert picture[0, ::2].tolist() == [[10, 20, 30], [10, 10, 10], [20, 20, 20], [30, 30, 30]]


@pytest.mark.parametrize(
    ("count", "classes", "rows", "columns"),
    [
        (64, 10, list(range(10)), 6),
        (64, 2, [0, 1], 16),
        (64, 16, list(range(16)), 4),
        (64, 32, list(range(0, 32, 2)), 4),
        (36, 10, list(range(10)), 3),
        (4, 10, [0, 2, 5, 7], 1),
        (1, 10, [0], 1),
    ],
)
def test_classes_have_rows(count: int, classes: int, rows: list[int], columns: int) -> None:
    assert class_rows(count, classes) == (rows, columns)


def test_rows_of_classes_fill_a_grid_that_is_not_too_long() -> None:
    for count in range(1, 200):
        for classes in (1, 2, 3, 10, 43, 1000):
            rows, columns = class_rows(count, classes)
            side = math.isqrt(count)
            assert max(1, side // 2) <= columns <= 2 * side
            assert len(rows) * columns <= count
            assert rows == sorted(set(rows))
            assert rows[-1] < classes


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_holds_the_same_pixels(tmp_path: Path, count: int) -> None:
    picture = grid(torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8))
    path = tmp_path / "new" / "grid.png"
    save_png(picture, path)
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert list(image.tobytes()) == picture.flatten().tolist()
