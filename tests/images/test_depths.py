"""The right pixels at every depth, colour, layout and byte order; where that is not possible, an error that says so."""

import io
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import tifffile
from PIL import Image

from qualiclip_jax.images import ImageError, decode_image, decode_size
from tests.images.makers import Page, bmp, png, tiff

GREY, RGB, CMYK = 1, 3, 4
HEIGHT, WIDTH = 19, 37  # no multiples of a byte, a strip or a tile


def over_white(color: np.ndarray, alpha: np.ndarray | None, premultiplied: bool = False) -> np.ndarray:
    """Samples in [0, 1], [H, W, 1 or 3], as they should be seen: float64 [H, W, 3], 0 to 255."""
    if alpha is not None:
        color = 1 - alpha + (color if premultiplied else color * alpha)
    return 255 * np.broadcast_to(color, (*color.shape[:2], 3))


def assert_rounded(image: np.ndarray, expected: np.ndarray, case: object) -> None:
    assert image.shape == expected.shape, case
    error = np.abs(image - expected).max()
    assert error <= 0.501, (case, error)  # rounded to the nearest, with something for float32


def meant(page: Page, extras: tuple[int, ...]) -> np.ndarray:
    """What a TIFF page shows, by the definitions of its tags."""
    unit = page.samples.astype(np.float64) / (1 if page.samples.dtype.kind == "f" else 2.0**page.bits - 1)
    count = {0: 1, 1: 1, 2: 3, 5: 4}[page.photometric]
    color = unit[..., :count]
    if page.photometric == 0:
        color = 1 - color
    elif page.photometric == 5:
        color = (1 - color[..., :3]) * (1 - color[..., 3:])
    alpha = next((count + k for k, extra in enumerate(extras) if extra in (1, 2)), None)
    return over_white(color, None if alpha is None else unit[..., alpha, None], 1 in extras)


def layouts(page: Page) -> Iterator[tuple[Page, str, bool]]:
    """A page in different layouts, each with a byte order and whether the file is a BigTIFF."""
    predictors = [1] if page.bits not in (8, 16, 32, 64) else [1, 2, 3] if page.samples.dtype.kind == "f" else [1, 2]
    choices = itertools.product((1, 2), (1, 2), (1, 5, 8, 32773), (None, (16, 16)), predictors, "<>", (False, True))
    for planar, fill, compression, tile, predictor, order, big in itertools.islice(
        choices, (page.bits + 7 * page.photometric + page.samples.shape[2]) % 29, None, 29
    ):
        predictor = predictor if compression in (5, 8) else 1
        arguments = {"planar": planar, "fill": fill, "compression": compression, "predictor": predictor, "tile": tile}
        rows = None if tile else 7
        yield Page(page.samples, page.bits, page.photometric, rows=rows, tags=page.tags, **arguments), order, big


def random_samples(shape: tuple[int, ...], kind: str, bits: int) -> np.ndarray:
    rng = np.random.default_rng(bits)
    if kind == "f":
        return rng.random(shape).astype(f"f{bits // 8}")
    low = -(2 ** (bits - 1)) if kind == "i" else 0
    return rng.integers(low, low + 2**bits - 1, shape, f"{kind}8", endpoint=True)


@pytest.mark.parametrize("extras", [(), (0,), (1,), (2,), (0, 2)], ids=str)
@pytest.mark.parametrize("photometric", [0, 1, 2, 5])
def test_tiff(photometric, extras):
    """0 white is zero, 1 black is zero, 2 RGB, 5 CMYK; extra samples: 0 anything, 1 premultiplied alpha, 2 alpha."""
    count = {0: 1, 1: 1, 2: 3, 5: 4}[photometric]
    integers = [("u", bits) for bits in (1, 2, 4, 8, 10, 12, 16, 32)]
    for kind, bits in [*integers, ("i", 8), ("i", 16), ("f", 16), ("f", 32), ("f", 64)]:
        samples = random_samples((HEIGHT, WIDTH, count + len(extras)), kind, bits)
        if extras == (1,):
            samples[..., :count] = np.minimum(samples[..., :count], samples[..., count:])
        readable = kind != "i" and bits not in (10, 12) and (kind, bits) != ("u", 32) and samples.shape[2] * bits <= 256
        readable &= not (extras == (1,) and photometric in (0, 5))
        for page, order, big in layouts(Page(samples, bits, photometric, tags={338: (3, extras)} if extras else {})):
            data = tiff(page, order=order, big=big)
            if readable:
                case = (kind, bits, page.planar, page.fill, page.compression, page.predictor, page.tile, order, big)
                assert_rounded(decode_image(data), meant(page, extras), case)
                assert decode_size(data) == (HEIGHT, WIDTH)
            else:
                with pytest.raises(ImageError, match="not supported"):
                    decode_image(data)


def test_the_tiff_files_of_these_tests_are_what_they_are_meant_to_be():
    """Another library reads the same samples from them, as far as it reads them without a package for codecs."""
    count = 0
    for kind, bits in (("u", 1), ("u", 8), ("u", 16), ("f", 32)):
        samples = random_samples((HEIGHT, WIDTH, 3 if bits > 1 else 1), kind, bits)
        for page, order, big in layouts(Page(samples, bits, 2 if bits > 1 else 1)):
            if page.compression != 5 and page.predictor != 3 and (page.planar == 1 or bits > 1):
                found = tifffile.imread(io.BytesIO(tiff(page, order=order, big=big)))
                found = np.moveaxis(found, 0, -1) if page.planar == 2 else found.reshape(samples.shape)
                np.testing.assert_array_equal(found, samples)
                count += 1
    assert count >= 10


@pytest.mark.parametrize("width_of_colors", [256, 257, 1])
def test_tiff_palettes(width_of_colors):
    """Colours of 16 bits, whether they were multiplied by 256 or 257; a few writers leave them at 8 bits."""
    for bits, fill, alpha in itertools.product((1, 2, 4, 8), (1, 2), (False, True)):
        colors = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
        colors[0] = 255
        samples = random_samples((HEIGHT, WIDTH, 2 if alpha else 1), "u", bits)
        tags = {320: (3, (colors.T.ravel() * width_of_colors).tolist())} | ({338: (3, [2])} if alpha else {})
        image = decode_image(tiff(Page(samples, bits, 3, fill=fill, tags=tags)))
        expected = over_white(colors[samples[..., 0]] / 255, samples[..., 1:] / (2**bits - 1) if alpha else None)
        assert_rounded(image, expected, (bits, fill, alpha))


def test_tiff_kinds_that_pillow_decodes():
    """JPEG, fax and YCbCr inside a TIFF."""
    y, x = np.mgrid[:64, :80]
    smooth = Image.fromarray(np.stack([x * 3, y * 3, x + y], -1).astype(np.uint8))
    for mode, compression in (("RGB", "jpeg"), ("L", "jpeg"), ("CMYK", "jpeg"), ("1", "group4"), ("YCbCr", "tiff_lzw")):
        image, file = smooth.convert(mode), io.BytesIO()
        image.save(file, "TIFF", compression=compression, tiffinfo={274: 6})
        found = decode_image(file.getvalue())
        expected = np.array(image.convert("RGB")).transpose(1, 0, 2)[:, ::-1]
        assert decode_size(file.getvalue()) == found.shape[:2] == expected.shape[:2]
        assert np.abs(found.astype(int) - expected).mean() < 3, mode


def test_tiff_kinds_that_are_not_supported():
    rgb = random_samples((HEIGHT, WIDTH, 3), "u", 8)
    pages = {
        "YCbCr with fewer samples of colour": Page(rgb, 8, 6),
        "Lab": Page(rgb, 8, 8),
        "samples of different depths": Page(rgb, 8, 2, tags={258: (3, [8, 8, 4])}),
        "inks that are not CMYK": Page(random_samples((HEIGHT, WIDTH, 4), "u", 8), 8, 5, tags={332: (3, [2])}),
        "JPEG of 12 bits": Page(rgb[..., :1], 12, 1, tags={259: (3, [7])}),
        "an unknown compression": Page(rgb, 8, 2, tags={259: (3, [34712])}),
        "samples without a meaning": Page(rgb, 8, 1),
        "hundreds of samples": Page(random_samples((HEIGHT, WIDTH, 70), "u", 8), 8, 1),
    }
    for case, page in pages.items():
        with pytest.raises(ImageError, match="TIFF of this kind .* is not supported"):
            print(case, decode_image(tiff(page)).shape)
    full = decode_image(tiff(Page(rgb, 8, 6, tags={530: (3, [1, 1])})))
    expected = Image.fromarray(rgb.astype(np.uint8), "YCbCr").convert("RGB")
    np.testing.assert_array_equal(full, np.array(expected))


def test_floating_point_outside_0_to_1_is_an_error():
    unit = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32, 1)
    for wrong in (unit * 7, unit - 0.5, unit * np.nan, unit / 0.5):
        with pytest.raises(ImageError, match="floating point values from .* is not supported: scale them"):
            decode_image(tiff(Page(wrong, 32, 1)))


def test_a_large_tiff_is_refused_by_our_limit_alone(monkeypatch):
    """Pillow has one of its own for TIFF, for the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    samples = random_samples((HEIGHT, WIDTH, 1), "u", 8)
    assert decode_image(tiff(Page(samples, 8, 1, compression=8))).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="more than 0.0005 megapixels"):
        decode_image(tiff(Page(samples, 8, 1)), max_pixels=500)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("color", [0, 2, 3, 4, 6])
def test_png(color, interlaced):
    """0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha; the transparent colour in the file's own depth."""
    count = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    for depth, transparent in itertools.product((1, 2, 4, 8, 16), (False, True)):
        if (color in (2, 4, 6) and depth < 8) or (color == 3 and depth == 16) or (color in (4, 6) and transparent):
            continue
        samples = random_samples((HEIGHT, WIDTH, count), "u", depth)
        top, chunks, alpha = 2**depth - 1, [], None
        unit = samples / top
        if color == 3:
            colors = np.random.default_rng(depth).integers(0, 256, (2**depth, 3))
            alphas = np.random.default_rng(1).integers(0, 256, 2**depth)
            chunks = [(b"PLTE", colors.astype(np.uint8).tobytes())]
            chunks += [(b"tRNS", alphas.astype(np.uint8).tobytes())] if transparent else []
            unit = colors[samples[..., 0]] / 255
            alpha = alphas[samples] / 255 if transparent else None
        elif transparent:
            key = samples[3, 5]
            samples[7:9, 11:13] = key
            if depth == 16:
                samples[0, :4] = key ^ 1  # another colour, although the same at 8 bits
            unit, alpha = samples / top, (samples != key).any(-1, keepdims=True) * 1.0
            chunks = [(b"tRNS", key.astype(">u2").tobytes())]
        elif color in (4, 6):
            unit, alpha = unit[..., :-1], unit[..., -1:]
        image = decode_image(png(samples, depth, color, chunks, interlaced=interlaced))
        expected = over_white(unit, alpha)
        error = np.abs(image - expected).max()
        assert error <= (1 if alpha is not None and depth < 16 else 0.501), (
            depth,
            transparent,
            error,
        )  # Pillow lays over


def _pixels(rgb: np.ndarray, masks: tuple[int, ...]) -> np.ndarray:
    """Packs samples [H, W, S] of 8 bits into whole pixels, cutting them to the bits of the masks."""
    pixels = np.zeros(rgb.shape[:2], np.uint32)
    for k, mask in enumerate(masks):
        low, bits = (mask & -mask).bit_length() - 1, mask.bit_count()
        pixels |= (rgb[..., k].astype(np.uint32) >> (8 - bits)) << low
    return pixels


@pytest.mark.parametrize("top_down", [False, True])
def test_bmp(top_down):
    rgba = random_samples((HEIGHT, WIDTH, 4), "u", 8)
    plain = {16: (0x7C00, 0x3E0, 0x1F), 24: (0xFF0000, 0xFF00, 0xFF), 32: (0xFF0000, 0xFF00, 0xFF)}
    for bits, masks in plain.items():  # the fourth byte of 32 bits has no meaning
        pixels = _pixels(rgba, masks) | (0x5A000000 if bits == 32 else 0)
        image = decode_image(bmp(pixels, bits, top_down=top_down))
        assert np.abs(image - rgba[..., :3].astype(int)).max() <= (8 if bits == 16 else 0), bits
    image = decode_image(bmp(_pixels(rgba, (0xF800, 0x7E0, 0x1F)), 16, masks=(0xF800, 0x7E0, 0x1F), top_down=top_down))
    assert np.abs(image - rgba[..., :3].astype(int)).max() <= 8
    with_alpha = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    image = decode_image(bmp(_pixels(rgba, with_alpha), 32, masks=with_alpha, top_down=top_down))
    assert np.abs(image - over_white(rgba[..., :3] / 255, rgba[..., 3:] / 255)).max() <= 1
    for bits in (1, 4, 8):
        colors = np.random.default_rng(bits).integers(0, 256, (2**bits, 4)).astype(np.uint8)
        indices = random_samples((HEIGHT, WIDTH), "u", bits)
        image = decode_image(bmp(indices, bits, colors.tobytes(), top_down=top_down))
        np.testing.assert_array_equal(image, colors[indices][..., 2::-1], err_msg=str(bits))


def test_bmp_whose_alpha_was_left_empty_is_no_invisible_picture():
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    rgba = random_samples((HEIGHT, WIDTH, 4), "u", 8) * [1, 1, 1, 0]
    np.testing.assert_array_equal(decode_image(bmp(_pixels(rgba, masks), 32, masks=masks)), rgba[..., :3])


def test_bmp_that_pillow_would_read_wrong_is_not_supported():
    black_and_white = b"\0\0\0\0\xff\xff\xff\0"
    for bits, palette in (
        (8, black_and_white),
        (4, black_and_white),
        (4, bytes(k // 4 * (k % 4 < 3) for k in range(64))),
    ):
        with pytest.raises(ImageError, match=f"BMP of {bits} bits and a grey palette is not supported"):
            decode_image(bmp(random_samples((HEIGHT, WIDTH), "u", 1), bits, palette))
    with pytest.raises(ImageError, match="not supported .*bitfields"):
        decode_image(bmp(random_samples((HEIGHT, WIDTH), "u", 16), 16, masks=(0xF00, 0xF0, 0xF)))
