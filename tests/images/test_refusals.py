"""Files that are refused: camera raws and other formats by their names, decompression bombs before they unpack."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax.images import ImageError, decode_image, decode_size
from tests.images.makers import Page, png_chunk, tiff
from tests.memory import growth

REDUCED, SUBFILE = {254: (4, [1])}, {255: (3, [2])}


def picture(height: int, width: int, photometric: int = 2, **options) -> Page:
    samples = np.random.default_rng(height).integers(0, 256, (height, width, 3 if photometric == 2 else 1), np.uint8)
    return Page(samples, 8, photometric, **options)


FULL = picture(60, 80)
CFA = picture(60, 80, 32803)
MAKE = {271: (2, list(b"NIKON CORPORATION\0"))}


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_photo_of_a_tiff_not_its_thumbnail(order, big):
    mask = Page(np.zeros((90, 90, 1), np.uint8), 1, 4, tags={254: (4, [4])})
    cases = {
        "thumbnail with the photo below it": [picture(20, 30, tags=REDUCED, subs=[FULL])],
        "several below it": [picture(20, 30, tags=REDUCED, subs=[picture(30, 40, tags=REDUCED), mask, FULL])],
        "thumbnail as the old tag says it": [picture(20, 30, tags=SUBFILE), FULL],
        "thumbnail before the photo": [picture(20, 30, tags=REDUCED), FULL],
        "thumbnail that is not called one": [picture(20, 30, subs=[FULL])],
        "mask before the photo": [mask, FULL],
        "photo before the thumbnail": [FULL, picture(20, 30, tags=REDUCED)],
        "smaller versions below the photo": [picture(60, 80, subs=[picture(30, 40), picture(15, 20)])],
        "pages: the first one": [FULL, picture(90, 90)],
    }
    for case, pages in cases.items():
        data = tiff(*pages, order=order, big=big)
        assert decode_size(data) == (60, 80), case
        np.testing.assert_array_equal(decode_image(data), FULL.samples, err_msg=case)
    assert decode_size(tiff(picture(20, 30, tags=REDUCED), order=order, big=big)) == (20, 30)  # there is no other


@pytest.mark.parametrize("order", ["<", ">"])
def test_raw_files_that_are_tiff_files(order):
    version = {50706: (1, [1, 4, 0, 0])}
    cases = {
        "DNG": [picture(20, 30, tags=REDUCED | version, subs=[CFA])],
        " (DNG)": [picture(60, 80, 34892, tags=version)],
        "NEF": [picture(20, 30, tags=REDUCED | MAKE, subs=[FULL, CFA])],
        "ARW": [picture(20, 30, tags={271: (2, list(b"SONY\0"))}, subs=[CFA])],
        "camera raw is": [CFA],
        "raw": [picture(20, 30, tags=REDUCED), picture(60, 80, 34892)],
    }
    for name, pages in cases.items():
        for read in (decode_image, decode_size):
            with pytest.raises(ImageError) as caught:
                read(tiff(*pages, order=order))
            assert name in caught.value.reason, name
            assert "camera raw" in caught.value.reason
            assert "not supported: develop it first" in caught.value.reason


@pytest.mark.parametrize(
    ("start", "name"),
    {
        b"II*\0\x10\0\0\0CR\x02\0": "camera raw (CR2)",
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom": "camera raw (CR3)",
        b"FUJIFILMCCD-RAW 0201": "camera raw (RAF)",
        b"IIRO\x08\0\0\0": "camera raw (ORF)",
        b"IIU\0\x18\0\0\0": "camera raw (RW2)",
        b"FOVb": "camera raw (X3F)",
        b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
        b"\xff\x0a\xfa\x1f": "JPEG XL",
        b"8BPS\0\1": "Photoshop (PSD)",
        b"%PDF-1.7": "PDF",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom": "MP4",
    }.items(),
)
def test_other_formats_are_named(start, name):
    with pytest.raises(ImageError) as caught:
        decode_image(start + bytes(100))
    assert name in caught.value.reason
    assert "not supported" in caught.value.reason


def test_directories_that_lead_nowhere():
    """Damage is an error in no time, and does no harm where the photo has been found already."""
    data = tiff(FULL, picture(20, 30, tags=REDUCED))
    first = struct.unpack_from("<I", data, 4)[0]
    link = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    for following in (first, link, 7, len(data) - 1, 2**32 - 1):  # in a circle, into nonsense, beyond the end
        changed = bytearray(data)
        struct.pack_into("<I", changed, link, following)
        np.testing.assert_array_equal(decode_image(bytes(changed)), FULL.samples)
    struct.pack_into("<I", changed, 4, len(data) - 1)
    with pytest.raises(ImageError, match="truncated image"):
        decode_image(bytes(changed))
    endless = tiff(picture(20, 30, subs=[picture(4, 4) for _ in range(200)]))
    assert decode_size(endless) == (20, 30)


def _deflated_zeros(size: int) -> bytes:
    deflate, zeros = zlib.compressobj(6), bytes(1 << 20)
    return b"".join(deflate.compress(zeros) for _ in range(size >> 20)) + deflate.flush()


def _png_of(width: int, height: int, data: bytes, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + end


def _large_webp(size: int) -> bytes:
    """A WebP file of one colour, made larger by its header alone."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(file, "WEBP", lossless=True)
    data = bytearray(file.getvalue())
    struct.pack_into("<I", data, data.index(b"VP8L") + 9, (size - 1) | (size - 1) << 14)
    return bytes(data)


def test_refuses_more_pixels_than_allowed_before_decoding():
    bomb = _png_of(60_000, 60_000, b"")
    for read in (decode_image, decode_size):
        with pytest.raises(ImageError, match="60000 x 60000 pixels, more than 512 megapixels"):
            read(bomb, "bomb.png")
    assert decode_size(_png_of(20_000, 10_000, b"")) == (10_000, 20_000)  # as from a phone; Pillow would refuse it


def test_bombs_take_no_memory(tmp_path):
    """One process reads them all and says how far its memory has grown for each."""
    zeros = _deflated_zeros(80 << 20)
    tile = picture(20, 30, tile=(16, 16))
    tile.tags |= {322: (4, [1 << 16]), 323: (4, [1 << 16])}
    text = [png_chunk(kind, b"name\0\0" + zeros) for kind in (b"zTXt", b"iCCP")]
    text.append(png_chunk(b"iTXt", b"name\0\1\0\0\0" + zeros))
    files = {
        "pixels": (_png_of(20_000, 20_000, zeros), "taken for a decompression bomb"),
        "header": (_png_of(20_000, 20_000, b""), "taken for a decompression bomb"),
        "webp": (_large_webp(12_000), "taken for a decompression bomb"),
        "tiff": (
            tiff(Page(np.zeros((1, 1, 1), np.uint8), 8, 1, tags={256: (4, [20_000]), 257: (4, [20_000])})),
            "bomb",
        ),
        "tile": (tiff(tile), "larger than the image"),
        "more pixels than there are": (_png_of(32, 32, zeros), "(32, 32, 3)"),
        "text": (_png_of(32, 32, _deflated_zeros(1 << 20), *text), "(32, 32, 3)"),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    setup = """
from qualiclip_jax.images import ImageError, read_image
def call(path):
    try:
        return read_image(path).shape
    except ImageError as error:
        return error.reason
"""
    found = growth(setup, [str(tmp_path / name) for name in files])
    for (name, (data, expected)), (mebibytes, said) in zip(files.items(), found, strict=True):
        assert expected in said, name
        assert mebibytes <= 16 + 4 * len(data) / 2**20, (name, mebibytes, said)


def test_names_of_files_in_memory_mean_nothing(tmp_path, monkeypatch):
    """Pillow would read the pixels from the file of that name, if there is one."""
    monkeypatch.chdir(tmp_path)
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    for format in ("BMP", "TIFF"):
        Image.fromarray(255 - grey).save(f"photo.{format}")
        file = io.BytesIO()
        Image.fromarray(grey).save(file, format)
        np.testing.assert_array_equal(decode_image(file.getvalue(), f"photo.{format}")[..., 0], grey)
    assert len(list(Path().iterdir())) == 2
