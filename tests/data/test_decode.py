from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from relgan.data.decode import MAX_PIXELS, Unusable, declared_size, endings, formats, square, whole

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


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_pictures_in_a_file(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), name) for name in ("red", "blue")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    assert colour(encode(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)) == [255, 0, 0]


def tiff(pixels: bytes, bits: int, samples: int = 1, *, kind: int = 1, colours: int = 1, extra: int = 0) -> bytes:
    """An uncompressed little-endian TIFF of 32×32 pixels.

    Args:
        pixels: of one of them.
        bits, kind: of a sample; kind is 1 unsigned, 2 signed, 3 floating-point.
        colours: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK.
        extra: 1 where the last sample is premultiplied alpha.
    """
    data = pixels * 1024
    shorts = {256: [32], 257: [32], 258: [bits] * samples, 259: [1], 262: [colours], 277: [samples], 278: [32]}
    shorts[339] = [kind] * samples
    if extra:
        shorts[338] = [extra]
    entries, behind = {}, b""
    start = 8 + 2 + 12 * (len(shorts) + 2) + 4
    for tag, values in shorts.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, behind = struct.pack("<I", start + len(behind)), behind + packed
        entries[tag] = struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    for tag, value in ((273, start + len(behind)), (279, len(data))):
        entries[tag] = struct.pack("<HHII", tag, 4, 1, value)
    directory = b"".join(entries[tag] for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4) + behind + data


def png16(colour_type: int, *values: int, key: bool = False) -> bytes:
    """A PNG of 32×32 pixels of 16 bits a channel, all alike; ``key``: that value is the transparent one."""
    pixel = struct.pack(f">{len(values)}H", *values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, colour_type, 0, 0, 0))]
    chunks += [(b"tRNS", pixel)] if key else []
    chunks += [(b"IDAT", zlib.compress((b"\0" + pixel * 32) * 32)), (b"IEND", b"")]
    framed = [len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def pnm(kind: str, highest: int, *values: int) -> bytes:
    """A binary PNM of 32×32 pixels, all alike."""
    return f"{kind} 32 32 {highest}\n".encode() + struct.pack(f">{len(values)}H", *values) * 1024


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png16(0, 0x8234), [0x82] * 3),
        (png16(2, 0x8234, 0x5678, 0x9ABC), [0x82, 0x56, 0x9A]),
        (png16(4, 0x8234, 0xFFFF), [0x82] * 3),
        (png16(6, 0x8234, 0x5678, 0x9ABC, 0), [255] * 3),
        (pnm("P5", 1000, 500), [128] * 3),
        (pnm("P5", 65535, 0x8234), [0x82] * 3),
        (pnm("P6", 1023, 1023, 0, 512), [255, 0, 128]),
        (tiff(bytes([0x80, 0x08, 0x00]), 12), [0x80] * 3),
        (tiff(b"\x34\x82", 16), [0x82] * 3),
        (tiff(b"\x34\x12", 16, colours=0), [255 - 0x12] * 3),
        (tiff(b"\x34\x82\x78\x56\xbc\x9a", 16, 3, colours=2), [0x82, 0x56, 0x9A]),
        (tiff(bytes([50, 50, 50, 100]), 8, 4, colours=2, extra=1), [205] * 3),
        (tiff(b"\0\0\xff\xff\0\0\0\0", 16, 4, colours=5), [255, 0, 255]),
        (encode(Image.new("LAB", (40, 40), (255, 128, 128)), "TIFF"), [255] * 3),
        (encode(Image.new("RGB", (40, 40), (1, 2, 3)), transparency=(1, 2, 3)), [255] * 3),
        (encode(Image.fromarray(np.full((40, 40), 0x8234, np.uint16)), "JPEG2000"), [0x82] * 3),
    ],
    ids=[
        *("png-grey", "png-rgb", "png-grey-alpha", "png-transparent", "pgm-1000", "pgm-65535", "ppm-1023"),
        *("tiff-12", "tiff-16", "tiff-white-is-zero", "tiff-rgb", "tiff-premultiplied-rgb"),
        *("tiff-cmyk", "lab", "colour-key", "jpeg2000"),
    ],
)
def test_more_than_8_bits_and_rare_modes(data: bytes, expected: list[int]) -> None:
    assert np.abs(np.subtract(colour(data), expected)).max() <= 1


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        (tiff(bytes([50, 100]), 8, 2, extra=1), 205),
        (encode(Image.new("YCbCr", (40, 40), (200, 128, 128)), "TIFF"), 200),
    ],
    ids=["premultiplied grey", "YCbCr"],
)
def test_what_only_newer_pillows_decode_has_the_right_colour(data: bytes, grey: int) -> None:
    try:
        shown = colour(data)
    except Unusable as refused:
        pytest.skip(str(refused))
    assert shown == [grey] * 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff(bytes(4), 32, kind=3), "floating-point values"),
        (tiff(bytes(8), 64, kind=3), "unknown pixel mode"),
        (tiff(bytes(12), 32, 3, kind=3, colours=2), "unknown pixel mode"),
        (tiff(bytes(4), 32), "signed or 32-bit values"),
        (tiff(b"\x34\x72", 16, kind=2), "signed or 32-bit values"),
        (tiff(b"\x90", 8, kind=2), "signed values"),
        (tiff(bytes(10), 10), "unknown pixel mode"),
        (b"Pf 32 32 -1.0\n" + struct.pack("<f", 0.5) * 1024, "floating-point values"),
        (png16(0, 1023), "16-bit values below a quarter of the range"),
        (png16(2, 255, 200, 100), "16-bit values below a quarter of the range"),
        (tiff(b"\xff\x0f", 16), "16-bit values below a quarter of the range"),
        (
            encode(Image.fromarray(np.full((40, 40), 1023, np.uint16)), "JPEG2000"),
            "16-bit values below a quarter of the range",
        ),
        (png16(6, 1023, 900, 800, 0), "16-bit values below a quarter of the range"),
        (png16(0, 0x8234, key=True), "16-bit values with a transparent one"),
    ],
)
def test_values_of_unknown_meaning_are_refused_and_never_black(data: bytes, said: str) -> None:
    for read in (lambda: square(data, 32), lambda: whole(data)):
        with pytest.raises(Unusable, match=said) as caught:
            read()
        assert caught.value.reason == "not supported"


def test_formats_are_those_of_pillow_that_are_pictures() -> None:
    assert {"JPEG", "PNG", "TIFF", "WEBP", "JPEG2000"} <= set(formats())
    assert not {"EPS", "MPEG", "HDF5", "WMF"} & set(formats())
    assert {".jpg", ".jpe", ".jfif", ".tif", ".pnm", ".jp2"} <= endings()
    assert not {".eps", ".pdf", ".mpg", ".h5", ".txt"} & endings()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    image, exif = picture(5, (64, 96)), Image.Exif()
    exif[0x0112] = orientation
    data = encode(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    plain = Image.open(io.BytesIO(encode(image, kind))) if kind == "JPEG" else image
    upright = ImageOps.exif_transpose(_with(plain, exif))
    np.testing.assert_array_equal(np.asarray(whole(data)), np.asarray(upright))
    expected = square(encode(upright), 32).astype(int)
    assert np.abs(square(data, 32) - expected).max() <= (6 if kind == "JPEG" else 1)
    assert whole(data, upright=False).size == (image.size if kind != "TIFF" else upright.size)


def _with(image: Image.Image, exif: Image.Exif) -> Image.Image:
    tagged = image.copy()
    tagged.getexif().update(exif)
    return tagged


def test_an_exif_block_of_nonsense_spoils_no_picture() -> None:
    data = encode(picture(1, (64, 64)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert square(data, 32).shape == (32, 32, 3)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", encode(picture(1, (300, 300)), "JPEG")[:900]])
def test_damaged_bytes_are_unusable(data: bytes) -> None:
    with pytest.raises(Unusable) as caught:
        square(data, 32)
    assert caught.value.reason == "damaged"
    assert caught.value.detail


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(100), "a HEIF picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "a JPEG XL picture"),
        (b"\xff\x0a" + bytes(100), "a JPEG XL picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML file, often the error page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n", r"git lfs pull"),
        (b"\n<!DOCTYPE html><title>Quota exceeded</title>", "a web page"),
    ],
)
def test_other_things_under_the_name_of_a_picture_are_called_what_they_are(data: bytes, said: str) -> None:
    with pytest.raises(Unusable, match=said) as caught:
        square(data, 8)
    assert caught.value.reason == "not supported"


def bmp16(value: int) -> bytes:
    """A BMP of 5, 6 and 5 bits per pixel."""
    description = struct.pack("<IiiHHIIiiII3I", 40, 4, 4, 1, 16, 3, 32, 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F)
    return b"BM" + struct.pack("<IHHI", 14 + 52 + 32, 0, 0, 14 + 52) + description + struct.pack("<H", value) * 16


def ico16(value: int) -> bytes:
    """An icon of 5, 5 and 5 bits per pixel."""
    description = struct.pack("<IiiHHIIiiII", 40, 4, 8, 1, 16, 0, 0, 0, 0, 0, 0)
    bitmap = description + struct.pack("<H", value) * 16 + bytes(16)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 4, 4, 0, 0, 1, 16, len(bitmap), 22) + bitmap


@pytest.mark.parametrize(("data", "red"), [(bmp16(0xF800), 255), (bmp16(0x1000), 16), (ico16(0x7C00), 255)])
def test_three_values_in_16_bits_may_be_dark(data: bytes, red: int) -> None:
    assert colour(data) == [red, 0, 0]


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
