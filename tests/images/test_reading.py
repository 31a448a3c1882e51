"""Reading image files: every format and mode, and everything that can be wrong with a file."""

import base64
import io
import itertools
import os
import random
import signal
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from qualiclip_jax.images import (
    FORMATS,
    ImageError,
    decode_image,
    decode_size,
    read_image,
    read_size,
    write_image,
)
from tests.images.makers import Page, png, png_chunk, tiff

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}
LOSSY = {"JPEG": {"quality": 98, "subsampling": 0}, "AVIF": {"quality": 98}}
ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYn"
    "KSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo"
    "KCgoKCgoKCj/yQARCAAgACgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANlUVDJwx5dboKVerO9eC7/td9kp"
    "2Z+ZL8+E8strx3wT1Yhfa/3uBLBAAXQ2a2/Pxmxo7D+w2Z5CyOypPp+tmUoWOrA1JGPRpFrdIHhI4p0XAX0BIbo8iTSXxawSYRPP"
    "fSh18zyjA2D/2Q=="
)
ARITHMETIC_PROGRESSIVE = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYn"
    "KSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo"
    "KCgoKCgoKCj/ygARCAAgACgDASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8Aspbbx3qYJ0YN10msZp7nXlw626dY5BX1"
    "+6Y6uIVHYP/MAAQQBf/aAAgBAQABBQIeqNU3q58XE4bjiYcfNU/i/8wABBEF/9oACAEDAQE/ARVNWHt70EJ0RmD/zAAEEQX/2gAI"
    "AQIBAT8BEGBtdRbA/8wABBAF/9oACAEBAAY/ArD/zAAEEAX/2gAIAQEAAT8hvID/2gAMAwEAAgADAAAAECrbPzXw/8wABBEF/9oA"
    "CAEDAQE/ECMNCIdNjv/MAAQRBf/aAAgBAgEBPxC8gP/MAAQQBf/aAAgBAQABPxBQJtdvMbUFCYiEJeaA/9k="
)


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


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_of_several(format):
    frames = [Image.new("RGB", (40, 40), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode_image(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options))
    np.testing.assert_allclose(image, np.array(frames[0]), atol=1 if format == "MPO" else 0)  # several JPEG images


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


def test_large_or_damaged_metadata_do_no_harm(pixels):
    """A workflow, a colour profile or a history of megabytes; in PNG, all that Pillow takes for an attack or damage."""
    picture, large = Image.fromarray(pixels), os.urandom(3 << 20)
    packed = zlib.compress(b"x" * (2 << 20))
    before = {
        b"zTXt": b"workflow\0\0" + packed,
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + packed,
        b"tEXt": b"parameters\0" + b"x" * (5 << 20),
        b"iCCP": b"profile\0\0" + packed,
        b"eXIf": b"MM\0*" + large,
        b"cHRM": b"too short",
        b"prIv": large,
        b"acTL": b"\0\0\0\2\0\0\0\0",
    }
    for chunks in (list(before.items()), []):
        data = png(pixels, 8, 2, chunks, after=list(before.items()))
        damaged = data.replace(b"workflow", b"workflaw")  # its checksum is wrong now
        for variant in (data, damaged):
            np.testing.assert_array_equal(decode_image(variant), pixels)
    for format, options in {"TIFF": LOSSLESS["TIFF"], "WEBP": LOSSLESS["WEBP"], "JPEG": {"quality": 98}}.items():
        bare = decode_image(encoded(picture, format, **options))
        more = {"icc_profile": large, "xmp": b"x" * 60_000 if format == "JPEG" else large}
        more["exif"] = b"Exif\0\0MM\0*" + large[:60_000]
        more = {key: value for key, value in more.items() if (format, key) not in (("TIFF", "xmp"), ("TIFF", "exif"))}
        np.testing.assert_array_equal(decode_image(encoded(picture, format, **options, **more)), bare, err_msg=format)


def test_png_of_a_kind_that_is_not_decoded(pixels):
    with pytest.raises(ImageError, match="PNG with the chunk CgBI is not supported"):  # as Xcode packs them
        decode_image(png(pixels, 8, 2, [(b"CgBI", bytes(4))]))
    whole = png(pixels, 8, 2)
    np.testing.assert_array_equal(decode_image(whole[:-12]), pixels)  # without the chunk that marks the end
    with pytest.raises(ImageError, match="bad checksum of IHDR"):
        decode_image(whole.replace(b"IHDR\0\0\0", b"IHDR\0\0\1"))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"quality": 100, "subsampling": 0}], ids=str
)
def test_jpeg_that_lacks_its_end_marker_alone(options, pixels):
    """All pixels are there. One that ends earlier is truncated, wherever it was cut, and whatever fills it up."""
    for picture in (Image.effect_noise((70, 50), 80).convert("RGB"), Image.fromarray(pixels[..., 0])):
        data = encoded(picture, "JPEG", **options)
        whole = decode_image(data)
        for variant in (data[:-2], data[:-1], data[:-2] + bytes(1000)):
            np.testing.assert_array_equal(decode_image(variant), whole)
        start = data.index(b"\xff\xda")
        scans = [place for place in range(start + 1, len(data)) if data[place : place + 2] == b"\xff\xda"]
        restarts = [place for place in range(start, len(data)) if data[place : place + 2] == b"\xff\xd1"]
        for length in {*range(start + 20, len(data) - 10, 97), *scans, *restarts}:
            for variant in (data[:length], data[:length] + bytes(1000)):
                with pytest.raises(ImageError, match="truncated|damaged"):
                    decode_image(variant)


def test_jpeg_with_arithmetic_coding():
    """Made by jpegtran -arithmetic from a file with Huffman codes."""
    y, x = np.mgrid[:32, :40]
    expected = np.stack([x * 6, y * 7, (x + y) * 3], -1)
    for data in (ARITHMETIC, ARITHMETIC_PROGRESSIVE):
        assert np.abs(decode_image(base64.b64decode(data)) - expected).mean() < 4


def test_jpeg_of_kinds_that_are_not_decoded(pixels):
    data = encoded(Image.fromarray(pixels), "JPEG")
    frame = data.index(b"\xff\xc0")
    for marker, name in ((0xC3, "lossless JPEG"), (0xC6, "hierarchical JPEG"), (0xF7, r"lossless \(LS\) JPEG")):
        with pytest.raises(ImageError, match=f"{name} is not supported"):
            decode_image(data[: frame + 1] + bytes([marker]) + data[frame + 2 :])
    with pytest.raises(ImageError, match="not supported .*12-bit"):
        decode_image(data[: frame + 4] + bytes([12]) + data[frame + 5 :])


def test_jpeg_in_cmyk_as_adobe_writes_it(pixels):
    """Inverted; and as YCCK, which its marker says: inks are turned as RGB is turned into YCbCr, black is inverted."""
    inks = Image.merge("CMYK", [Image.fromarray(pixels[..., k]) for k in (0, 1, 2, 0)])
    data = encoded(inks, "JPEG", quality=100, subsampling=0)
    marker = data.index(b"Adobe") + 11
    assert data[marker] == 0  # CMYK
    expected = np.array(inks.convert("RGB"))
    assert np.abs(decode_image(data).astype(int) - expected).mean() < 2
    ycck = np.dstack([np.array(Image.fromarray(pixels).convert("YCbCr")), 255 - pixels[..., 0]])
    as_stored = Image.fromarray(255 - ycck, "CMYK")  # Pillow inverts as it writes
    data = bytearray(encoded(as_stored, "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2  # YCCK
    assert np.abs(decode_image(bytes(data)).astype(int) - expected).mean() < 2


def test_heic(pixels):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra `heif` is not installed")
    smooth = pixels.copy()
    smooth[..., 2] = 90
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(file, quality=95, chroma=444, exif=exif.tobytes())
    data = file.getvalue()
    image = decode_image(data)
    assert image.shape[:2] == decode_size(data)
    if image.shape[:2] == (44, 36):
        smooth = smooth.transpose(1, 0, 2)[:, ::-1]
    assert np.abs(image.astype(int) - smooth).mean() < 3
    with pytest.raises(ImageError, match="truncated|damaged"):
        decode_image(data[: len(data) // 2])


def test_heic_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk(format):
    inks = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0)}
    for ink, expected in inks.items():
        image = decode_image(encoded(Image.new("CMYK", (32, 32), ink), format))
        np.testing.assert_allclose(image[16, 16], expected, atol=3)


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


def test_no_permission(tmp_path, ordinary_user, monkeypatch):
    write_image(tmp_path / "secret.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "secret.png").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with ordinary_user(), pytest.raises(ImageError, match="secret.png: no permission"):
        read_image("secret.png")


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
    """Damaged files give an image or an `ImageError`, in time.

    Nor is it an image that Pillow would not give. Of TIFF it may be: there, Pillow gives up on more than is needed.
    """
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
                if format != "TIFF":
                    plugin = AvifImagePlugin.AvifImageFile if format == "AVIF" else Image.open
                    end = b"\xff\xd9" if format == "JPEG" else b""
                    plugin(io.BytesIO(data + end)).load()  # raises if the file is unreadable
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


def _png_of_rows(samples: np.ndarray, depth: int, color: int, interlaced: bool, rows: float) -> bytes:
    """A PNG file whose compressed data are sound, but hold a part of its rows alone."""
    data = png(samples, depth, color, interlaced=interlaced)
    start = data.index(b"IDAT") + 4
    packed = zlib.decompress(data[start:-16])
    height, width, count = samples.shape
    line = 1 + (width * count * depth + 7) // 8  # of the last pass, too, if the rows are interlaced
    content = zlib.compress(packed[: len(packed) - round(height * (1 - rows)) * line])
    return data[: start - 8] + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")


def test_pixels_that_end_early_are_truncated_however_properly_they_end(pixels):
    """The compressed data stop as they should, but too soon: decoders fill the rest with black or grey."""
    rng = np.random.default_rng(0)
    files = {}
    for interlaced, (depth, color, count) in itertools.product(
        (False, True), ((8, 2, 3), (8, 0, 1), (1, 0, 1), (16, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4))
    ):
        samples = rng.integers(0, 1 << depth, (36, 44, count))
        whole = decode_image(_png_of_rows(samples, depth, color, interlaced, 1))
        np.testing.assert_array_equal(whole, decode_image(png(samples, depth, color)))
        for rows in (0.6, 1 - 1 / 36):
            files["PNG", depth, color, interlaced, rows] = _png_of_rows(samples, depth, color, interlaced, rows)
    black = np.zeros((36, 44, 3), np.uint8)
    np.testing.assert_array_equal(decode_image(png(black, 8, 2)), black)  # rows that are there, and black
    files["PNG", "black"] = _png_of_rows(black, 8, 2, False, 0.5)

    noise = Image.effect_noise((160, 120), 60).convert("RGB")
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}, {"quality": 98, "subsampling": 0}):
        for picture in (noise, noise.convert("L"), noise.convert("CMYK")):
            data = encoded(picture, "JPEG", **options)
            start = data.index(b"\xff\xda") + 20
            for share in (0.1, 0.5) if "progressive" in options else (0.1, 0.5, 0.9):
                cut = data[: start + int(share * (len(data) - start))].rstrip(b"\xff")
                files["JPEG", picture.mode, str(options), share] = cut + b"\xff\xd9"
    grey = Image.new("RGB", (70, 50), (128, 128, 128))  # what a decoder puts in the place of missing pixels
    grey.paste(noise, (-100, -90))
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        data = encoded(grey, "JPEG", **options)
        np.testing.assert_array_equal(decode_image(data), np.array(Image.open(io.BytesIO(data))))
        np.testing.assert_array_equal(decode_image(data + encoded(noise, "JPEG")), decode_image(data))

    for compression, rows, tile in itertools.product((1, 5, 8, 32773), (None, 8), (None, (16, 16))):
        page = Page(pixels, 8, 2, compression=compression, rows=rows, tile=tile)
        blocks = page.blocks
        page.blocks = lambda order, blocks=blocks: [*blocks(order)[:-1], b""]
        files["TIFF", compression, rows, tile] = tiff(page) + bytes(10_000)
    for compression in ("jpeg", "tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma"):
        data = encoded(Image.fromarray(pixels), "TIFF", compression=compression)
        size = Image.open(io.BytesIO(data)).tag_v2[279][0]
        place = data.rindex(struct.pack("<HHI", 279, 4, 1)) + 8
        assert struct.unpack_from("<I", data, place) == (size,)
        files["TIFF", compression] = data[:place] + struct.pack("<I", size // 2) + data[place + 4 :]

    for case, data in files.items():
        with pytest.raises(ImageError, match="truncated image|broken or end early"):
            pytest.fail(f"{case} was decoded: {decode_image(data).shape}")


def test_writes_whole_files_or_none(tmp_path, pixels):
    write_image(tmp_path / "image.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), pixels)
    write_image(tmp_path / "image.png", pixels / 255)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), pixels)
    with pytest.raises(ValueError, match="unknown file extension"):
        write_image(tmp_path / "image.nothing", pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]
