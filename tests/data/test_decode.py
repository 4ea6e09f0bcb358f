from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from relgan.data.decode import MAX_PIXELS, Unusable, declared_size, square

from .conftest import encode, picture


def colour(data: bytes) -> list[int]:
    """The colour of the middle of the decoded square."""
    return square(data, 32)[16, 16].tolist()


def test_an_rgb_image_of_the_right_size_is_unchanged() -> None:
    np.testing.assert_array_equal(square(encode(picture(1)), 32), np.asarray(picture(1)))


def test_the_centred_square_is_cut_out() -> None:
    wide = Image.new("RGB", (80, 40), "red")
    wide.paste(Image.new("RGB", (40, 40), "blue"), (20, 0))
    assert (square(encode(wide), 32) == [0, 0, 255]).all()
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    assert (square(encode(tall), 32) == [0, 0, 255]).all()


def test_crop_is_the_side_before_resizing_but_at_most_what_there_is() -> None:
    framed = Image.new("RGB", (80, 60), "red")
    framed.paste(Image.new("RGB", (36, 36), "blue"), (22, 12))
    assert (square(encode(framed), 32, crop=36) == [0, 0, 255]).all()
    np.testing.assert_array_equal(square(encode(framed), 32, crop=500), square(encode(framed), 32))


def test_resizing_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    resized = square(encode(Image.fromarray(stripes)), 32)
    assert np.abs(resized[:, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (40, 40), 77), [77, 77, 77]),
        (Image.new("1", (40, 40), 1), [255, 255, 255]),
        (Image.new("RGB", (40, 40), (1, 2, 3)).quantize(4), [1, 2, 3]),
        (Image.new("RGBA", (40, 40), (200, 100, 50, 255)), [200, 100, 50]),
        (Image.new("RGBA", (40, 40), (200, 100, 50, 0)), [255, 255, 255]),
        (Image.new("LA", (40, 40), (77, 255)), [77, 77, 77]),
        (Image.fromarray(np.full((40, 40), 0x4D12, np.uint16)), [0x4D, 0x4D, 0x4D]),
    ],
    ids=["grey", "bilevel", "palette", "opaque", "transparent", "grey-alpha", "16-bit"],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: list[int]) -> None:
    assert colour(encode(image)) == expected


def test_a_transparent_palette_becomes_white() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([10, 20, 30])
    assert colour(encode(image, transparency=0)) == [255, 255, 255]


def test_cmyk_and_grey_jpegs() -> None:
    cyan = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
    assert np.abs(np.subtract(colour(encode(cyan, "JPEG", quality=95)), [0, 255, 255])).max() <= 3
    assert np.abs(np.subtract(colour(encode(Image.new("L", (40, 40), 90), "JPEG")), 90)).max() <= 2


def test_a_16_bit_tiff() -> None:
    assert colour(encode(Image.fromarray(np.full((40, 40), 0xFF00, np.uint16)), "TIFF")) == [255, 255, 255]


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (40, 40), name) for name in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert colour(data) == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(5, (64, 96)), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = square(encode(upright), 32).astype(int)
    assert np.abs(square(data, 32) - expected).max() <= 1


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", encode(picture(1, (300, 300)), "JPEG")[:900]])
def test_damaged_bytes_are_unusable(data: bytes) -> None:
    with pytest.raises(Unusable) as caught:
        square(data, 32)
    assert caught.value.reason == "damaged"
    assert caught.value.detail


def test_a_truncated_png_is_unusable() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise))
    with pytest.raises(Unusable):
        square(data[: len(data) // 2], 32)


def png_header(width: int, height: int) -> bytes:
    """A PNG file that ends where its pixels would begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


@pytest.mark.parametrize("width", [MAX_PIXELS // 10_000 + 1, 60_000])
def test_an_image_that_declares_too_many_pixels_is_never_decoded(width: int) -> None:
    with pytest.raises(Unusable) as caught:
        declared_size(io.BytesIO(png_header(width, 10_000)))
    assert caught.value.reason == "too large"


def test_scaled_jpeg_decoding_stays_close_to_full_decoding() -> None:
    data = encode(picture(3, (178, 218)), "JPEG", quality=90)
    full = Image.open(io.BytesIO(data)).convert("RGB")
    reference = np.asarray(full.resize((64, 64), Image.Resampling.BICUBIC, box=(0, 20, 178, 198)))
    assert np.abs(square(data, 64).astype(int) - reference).max() <= 2
