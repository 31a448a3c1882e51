"""Reading image files: every format and mode, and everything that can be wrong with a file."""

import io
import os
import random
import signal
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax.images import (
    FORMATS,
    ImageError,
    decode_image,
    decode_size,
    read_image,
    read_size,
    write_image,
)

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}
LOSSY = {"JPEG": {"quality": 98, "subsampling": 0}, "AVIF": {"quality": 98}}


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 [36, 44, 3], smooth, no symmetry."""
    y, x = np.mgrid[:36, :44]
    return np.stack([x * 5, y * 6, (x * y) % 251], -1).astype(np.uint8)


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_the_exact_pixels(format, pixels):
    image = decode_image(encoded(Image.fromarray(pixels), format, **LOSSLESS[format]))
    assert image.dtype == np.uint8
    assert image.flags.writeable
    np.testing.assert_array_equal(image, pixels)


@pytest.mark.parametrize("format", LOSSY)
def test_lossy_formats_come_close(format, pixels):
    smooth = pixels.copy()
    smooth[..., 2] = 90
    image = decode_image(encoded(Image.fromarray(smooth), format, **LOSSY[format]))
    assert np.abs(image.astype(int) - smooth).mean() < 2


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_several(format):
    frames = [Image.new("RGB", (40, 40), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode_image(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options))
    np.testing.assert_array_equal(image, np.array(frames[0]))


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation(format, tag, pixels, tmp_path):
    """What a viewer shows, by the definition of the tag: which side of the picture row 0 and column 0 are."""
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"tiffinfo": {0x0112: tag}} if format == "TIFF" else {"exif": exif}
    options |= (LOSSLESS | LOSSY)[format]
    (tmp_path / "image").write_bytes(encoded(Image.fromarray(pixels), format, **options))
    image = read_image(tmp_path / "image")
    expected = upright[tag](pixels)
    assert image.shape == expected.shape
    assert read_size(tmp_path / "image") == expected.shape[:2]
    red = np.abs(image[..., 0].astype(int) - expected[..., 0])
    assert red.mean() < 12  # the mean distance to another orientation is above 40


def test_grey_palette_and_two_levels(pixels):
    grey = Image.fromarray(pixels[..., 0])
    np.testing.assert_array_equal(decode_image(encoded(grey, "PNG")), np.repeat(pixels[..., :1], 3, -1))
    palette = grey.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG")), np.array(palette.convert("RGB")))
    two = Image.fromarray(pixels[..., 0] > 100)
    assert two.mode == "1"
    np.testing.assert_array_equal(decode_image(encoded(two, "PNG"))[..., 1], (pixels[..., 0] > 100) * 255)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_over_white(format, pixels):
    alpha = (np.arange(44) * 5).astype(np.uint8)[None].repeat(36, 0)
    options = {"exact": True, "lossless": True} if format == "WEBP" else {}
    image = decode_image(encoded(Image.fromarray(np.dstack([pixels, alpha])), format, **options))
    share = alpha[..., None] / 255
    np.testing.assert_allclose(image, pixels * share + 255 * (1 - share), atol=1)


def test_other_kinds_of_transparency():
    grey = Image.fromarray(np.array([[0, 100, 255]] * 3, np.uint8).repeat(12, 0).repeat(12, 1))
    assert decode_image(encoded(grey, "PNG", transparency=100))[0, ::12].tolist() == [[0] * 3, [255] * 3, [255] * 3]
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode_image(encoded(palette, "GIF"))[0, 0].tolist() == [40, 50, 60]
    assert decode_image(encoded(palette, "GIF", transparency=1))[0, 0].tolist() == [255, 255, 255]
    assert decode_image(encoded(palette, "PNG", transparency=b"\xff\x80"))[0, 0].tolist() == [147, 152, 157]
    two = Image.fromarray(np.array([[0, 51]] * 2, np.uint8).repeat(16, 0).repeat(16, 1))
    two.putalpha(Image.new("L", two.size, 51))
    assert decode_image(encoded(two, "PNG"))[0, ::16, 0].tolist() == [204, 214]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format):
    inks = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0)}
    for ink, expected in inks.items():
        image = decode_image(encoded(Image.new("CMYK", (32, 32), ink), format))
        np.testing.assert_allclose(image[16, 16], expected, atol=3)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    deep = np.linspace(0, 65535, 40 * 40).round().astype(np.uint16).reshape(40, 40)
    image = decode_image(encoded(Image.fromarray(deep), format))
    np.testing.assert_allclose(image, np.repeat(deep[..., None], 3, -1) / 257, atol=0.501)


def test_16_bit_colour_is_scaled_not_clipped():
    deep = np.random.default_rng(0).integers(0, 65536, (40, 40, 3), dtype=np.uint16)
    image = decode_image(_png(40, 40, b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep), depth=16))
    np.testing.assert_allclose(image, deep / 257, atol=1)


def test_floating_point_grey():
    unit = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    np.testing.assert_allclose(decode_image(encoded(Image.fromarray(unit), "TIFF"))[..., 0], unit * 255, atol=0.501)
    for wrong in (unit * 7, unit - 0.5, unit * np.nan):
        with pytest.raises(ImageError, match="grey values from"):
            decode_image(encoded(Image.fromarray(wrong), "TIFF"))


def _png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    """A PNG file of RGB samples, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    data = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_refuses_a_decompression_bomb_before_decoding():
    bomb = _png(60_000, 60_000, b"\0" * 10_000_000)
    assert len(bomb) < 20_000
    with pytest.raises(ImageError, match="60000 x 60000 pixels, more than 512 megapixels"):
        decode_image(bomb, "bomb.png")
    with pytest.raises(ImageError, match="bomb"):
        decode_size(bomb)


def test_a_header_beyond_the_limit_of_pillow_is_no_bomb():
    """200 megapixels, as from a phone: Pillow itself would refuse them."""
    assert decode_size(_png(20_000, 10_000, b"")) == (10_000, 20_000)


def test_says_what_is_wrong_with_a_file(tmp_path, pixels):
    def reason(path: os.PathLike) -> str:
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert caught.value.path == str(path)
        assert "\n" not in str(caught.value)
        return caught.value.reason

    whole = encoded(Image.fromarray(pixels), "PNG")
    contents = {
        "empty.png": (b"", "empty file"),
        "text.jpg": (b"this is no image at all", "not an image in a format read here"),
        "short.jpg": (b"\xff\xd8\xff", "truncated|damaged"),
        "cut.png": (whole[: len(whole) // 2], "truncated image"),
        "cut.jpg": (encoded(Image.fromarray(pixels), "JPEG")[:-300], "truncated image"),
        "page.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image in a format read here"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format read here"),
    }
    for name, (content, expected) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert any(words in reason(tmp_path / name) for words in expected.split("|")), name
    assert reason(tmp_path / "nothing.png") == "no such file"
    assert "folder" in reason(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in reason(tmp_path / "pipe.png")
    assert "cannot be opened" in reason("null\0byte.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_no_permission(tmp_path):
    write_image(tmp_path / "secret.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(ImageError, match="no permission"):
        read_image(tmp_path / "secret.png")


def test_warnings_of_pillow_do_not_become_errors(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(pixels), "JPEG", exif=exif)
    place = data.index(b"MM\0*") + 8
    broken = data[:place] + b"\xff\xff" + data[place + 2 :]  # more EXIF entries than there are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(broken).shape[-1] == 3


def _mutations(data: bytes, rng: random.Random):
    """Damaged variants of a file, without end."""
    while True:
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            place = rng.randrange(len(damaged)) if rng.random() < 0.6 else rng.randrange(min(64, len(damaged)))
            kind = rng.randrange(6)
            if kind == 0:
                damaged[place] = rng.randrange(256)
            elif kind == 1:
                damaged[place] ^= 1 << rng.randrange(8)
            elif kind == 2:
                damaged[place : place + rng.randrange(1, 32)] = b""
            elif kind == 3:
                damaged[place:place] = rng.randbytes(rng.randrange(1, 32))
            elif kind == 4:
                damaged[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"))
            else:
                del damaged[place:]
            damaged = damaged or bytearray(data)
        yield bytes(damaged)


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "HEIF"])
def test_fuzz(format):
    """Damaged files give an image or an `ImageError`, in time, and never an image that Pillow would not give."""
    rng = random.Random(format)
    sources = [Image.effect_noise((32 + 5 * k, 37), 60).convert(mode) for k, mode in enumerate(("RGB", "L", "RGB"))]
    if format in ("PNG", "TIFF", "WEBP"):
        sources[2].putalpha(sources[2].convert("L"))
    files = [encoded(source, format) for source in sources]
    files += [encoded(sources[0], format, exif=Image.Exif())] if format in ("JPEG", "PNG", "WEBP", "TIFF") else []
    streams = [_mutations(data, rng) for data in files]
    outcomes, lines = {"image": 0, "error": 0}, set()

    def too_late(*_):
        raise TimeoutError(f"a damaged {format} file takes longer than 10 s")

    before = signal.signal(signal.SIGALRM, too_late)
    try:
        for k in range(2000):
            data = next(streams[k % len(streams)])
            signal.alarm(10)
            try:
                image = decode_image(data, f"{format} {k}")
            except ImageError as error:
                outcomes["error"] += 1
                lines.add(str(error).count("\n") + 1)
            else:
                assert image.dtype == np.uint8
                assert image.ndim == 3
                assert image.shape[2] == 3
                outcomes["image"] += 1
                Image.open(io.BytesIO(data)).load()  # raises if the file is unreadable
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert min(outcomes.values()) >= 10, outcomes
    assert lines == {1}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_a_truncated_file_is_never_an_image(format):
    data = encoded(Image.effect_noise((64, 48), 60).convert("RGB"), format)
    for length in np.linspace(0, 0.95 * len(data), 60).astype(int):
        with pytest.raises(ImageError):
            decode_image(data[:length])


def test_writes_whole_files_or_none(tmp_path, pixels):
    write_image(tmp_path / "image.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), pixels)
    write_image(tmp_path / "image.png", pixels / 255)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), pixels)
    with pytest.raises(ValueError, match="unknown file extension"):
        write_image(tmp_path / "image.nothing", pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]
