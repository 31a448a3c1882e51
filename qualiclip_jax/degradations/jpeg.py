"""Baseline JPEG, encoded and decoded on the device, without the lossless entropy coding between the two.

Integer arithmetic with the formulas and roundings of libjpeg(-turbo) at its defaults, which are those of
`PIL.Image.save(file, "JPEG", quality=q)`: YCbCr, 4:2:0, accurate integer DCT, fancy upsampling. The pixels are those of
libjpeg-turbo to the last bit. Source: ITU-T T.81 and T.871; the libjpeg function that a step mirrors is named there.
"""

import jax.numpy as jnp
from jax import Array, lax

# ITU-T T.81, tables K.1 (luminance) and K.2 (chrominance), in raster order.
_QUANTISATION_TABLES = (
    (
        (16, 11, 10, 16, 24, 40, 51, 61),
        (12, 12, 14, 19, 26, 58, 60, 55),
        (14, 13, 16, 24, 40, 57, 69, 56),
        (14, 17, 22, 29, 51, 87, 80, 62),
        (18, 22, 37, 56, 68, 109, 103, 77),
        (24, 35, 55, 64, 81, 104, 113, 92),
        (49, 64, 78, 87, 103, 121, 120, 101),
        (72, 92, 95, 98, 112, 100, 103, 99),
    ),
    (
        (17, 18, 24, 47, 99, 99, 99, 99),
        (18, 21, 26, 66, 99, 99, 99, 99),
        (24, 26, 56, 99, 99, 99, 99, 99),
        (47, 66, 99, 99, 99, 99, 99, 99),
        (99, 99, 99, 99, 99, 99, 99, 99),
        (99, 99, 99, 99, 99, 99, 99, 99),
        (99, 99, 99, 99, 99, 99, 99, 99),
        (99, 99, 99, 99, 99, 99, 99, 99),
    ),
)

# 8-point DCT times sqrt(8), in units of 2^-13: what the butterflies of jfdctint.c and jidctint.c multiply out to (their
# rounded constants leave -2259, 2261, -11362, -6436 and -10704 beside the expected 2260, 11363, 6437 and 10703).
# Between the two roundings of a pass they are exact integer arithmetic, so this matrix gives the same bits.
_DCT = (
    (8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192),
    (11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363),
    (10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703),
    (9633, -2259, -11362, -6436, 6436, 11362, 2259, -9633),
    (8192, -8192, -8192, 8192, 8192, -8192, -8192, 8192),
    (6437, -11362, 2261, 9633, -9633, -2261, 11362, -6437),
    (4433, -10704, 10704, -4433, -4433, 10704, -10704, 4433),
    (2260, -6436, 9633, -11363, 11363, -9633, 6436, -2260),
)


def jpeg(images: Array, quality: Array | float) -> Array:
    """Images after JPEG compression and decompression.

    Args:
      images: float [..., H, W, 3], RGB in [0, 1], any H, W >= 1; rounded to 8 bits first.
      quality: libjpeg's quality, rounded to an integer and clipped to 1..100 (100 is best). A scalar, or one number an
        image: any shape that broadcasts to the leading axes of `images`. May be traced.

    Returns:
      float32 [..., H, W, 3], multiples of 1/255 in [0, 1].
    """
    *leading, height, width, _ = images.shape
    pixels = jnp.round(jnp.clip(images.astype(jnp.float32), 0, 1) * 255).astype(jnp.int32).reshape(-1, height, width, 3)
    tables = quantisation_tables(jnp.broadcast_to(jnp.asarray(quality), leading).reshape(-1))

    planes = _rgb_to_ycbcr(pixels)  # [N, 3, H, W]
    luminance = _code(_pad(planes[:, 0], -height % 8, -width % 8), tables[:, 0])[:, :height, :width]
    chroma = _downsample(planes[:, 1:].reshape(-1, height, width))  # [2 N, H / 2, W / 2] and more, to whole blocks
    chroma = _code(chroma, jnp.repeat(tables[:, 1], 2, axis=0))
    chroma = _upsample(chroma[:, : (height + 1) // 2, : (width + 1) // 2])[:, :height, :width]
    chroma = chroma.reshape(-1, 2, height, width)
    pixels = _ycbcr_to_rgb(luminance, chroma[:, 0], chroma[:, 1])
    return (pixels.astype(jnp.float32) / 255).reshape(images.shape)


def quantisation_tables(quality: Array) -> Array:
    """The luminance and chrominance steps of a quality. Mirrors `jpeg_set_quality` with `force_baseline`.

    Args:
      quality: float or int [N], 1..100.

    Returns:
      int32 [N, 2, 8, 8] in 1..255, raster order.
    """
    quality = jnp.clip(jnp.round(quality.astype(jnp.float32)).astype(jnp.int32), 1, 100)
    scale = jnp.where(quality < 50, lax.div(5000, quality), 200 - 2 * quality)[:, None, None, None]  # percent
    return jnp.clip(lax.div(jnp.array(_QUANTISATION_TABLES, jnp.int32) * scale + 50, 100), 1, 255)


def _rgb_to_ycbcr(pixels: Array) -> Array:
    """int32 [N, H, W, 3] -> [N, 3, H, W], both in 0..255. 16-bit fixed point, mirrors `rgb_ycc_convert`."""
    matrix = jnp.array(((19595, 38470, 7471), (-11059, -21709, 32768), (32768, -27439, -5329)), jnp.int32)
    offset = jnp.array((1 << 15, (128 << 16) + (1 << 15) - 1, (128 << 16) + (1 << 15) - 1), jnp.int32)
    products = pixels[:, None] * matrix[:, None, None, :]
    return (products.sum(-1) + offset[:, None, None]) >> 16


def _ycbcr_to_rgb(luminance: Array, chroma_blue: Array, chroma_red: Array) -> Array:
    """Three int32 [...] in 0..255 -> int32 [..., 3] in 0..255. Mirrors `ycc_rgb_convert`."""
    half, blue, red = 1 << 15, chroma_blue - 128, chroma_red - 128
    channels = (
        luminance + ((91881 * red + half) >> 16),
        luminance + ((-22554 * blue - 46802 * red + half) >> 16),
        luminance + ((116130 * blue + half) >> 16),
    )
    return jnp.clip(jnp.stack(channels, axis=-1), 0, 255)


def _pad(planes: Array, rows: int, columns: int) -> Array:
    """Repeats the last row and column of int32 [N, H, W], as an encoder fills its last blocks."""
    return jnp.pad(planes, ((0, 0), (0, rows), (0, columns)), mode="edge")


def _downsample(planes: Array) -> Array:
    """Halves both sides of [N, H, W] and fills up to whole blocks.

    Means of 2 x 2 whose rounding alternates from column to column. Mirrors `h2v2_downsample`: columns are filled before
    it, rows after.
    """
    count, height, width = planes.shape
    planes = _pad(planes, height % 2, -width % 16)
    sums = planes.reshape(count, (height + 1) // 2, 2, -1, 2).sum((2, 4))
    means = (sums + 1 + jnp.arange(sums.shape[-1], dtype=jnp.int32) % 2) >> 2
    return _pad(means, -means.shape[1] % 8, 0)


def _upsample(planes: Array) -> Array:
    """Doubles both sides of int32 [N, H, W] with the triangle filter (3/4, 1/4). Mirrors `h2v2_fancy_upsample`."""
    count, height, width = planes.shape
    padded = jnp.pad(planes, ((0, 0), (1, 1), (1, 1)), mode="edge")
    centre = 3 * padded[:, 1:-1]
    rows = jnp.stack([centre + padded[:, :-2], centre + padded[:, 2:]], axis=2).reshape(count, 2 * height, width + 2)
    centre = 3 * rows[:, :, 1:-1]
    columns = jnp.stack([(centre + rows[:, :, :-2] + 8) >> 4, (centre + rows[:, :, 2:] + 7) >> 4], axis=3)
    return columns.reshape(count, 2 * height, 2 * width)


def _code(planes: Array, tables: Array) -> Array:
    """DCT, quantisation and back, of samples int32 [N, H, W] in whole blocks, with steps int32 [N, 8, 8].

    Mirrors `jpeg_fdct_islow`, the quantisation of jcdctmgr.c (halves away from zero) and `jpeg_idct_islow`.
    """
    count, height, width = planes.shape
    blocks = planes.reshape(count, height // 8, 8, width // 8, 8) - 128
    blocks = _transform_rows(_transform_columns(blocks, _DCT, 11), _DCT, 15)  # 8 times the coefficients of T.81
    steps = tables[:, None, :, None, :]
    # |coefficient| / step + 1/2, and half the least difference of such quotients more: no rounding error meets a tie.
    inverse_steps = 0.125 / steps.astype(jnp.float32)
    levels = jnp.floor(((jnp.abs(blocks) + 4 * steps).astype(jnp.float32) + 0.5) * inverse_steps)
    blocks = jnp.sign(blocks) * levels.astype(jnp.int32) * steps
    inverse = tuple(zip(*_DCT, strict=True))
    blocks = _transform_columns(_transform_rows(blocks, inverse, 11), inverse, 18)
    return jnp.clip(blocks + 128, 0, 255).reshape(planes.shape)


def _transform_columns(blocks: Array, matrix: tuple[tuple[int, ...], ...], shift: int) -> Array:
    """One DCT pass along the last axis of int32 [N, Y, 8, X, 8], rounded to multiples of 2^shift and divided by it."""
    return ((blocks[..., None, :] * jnp.array(matrix, jnp.int32)).sum(-1) + (1 << shift - 1)) >> shift


def _transform_rows(blocks: Array, matrix: tuple[tuple[int, ...], ...], shift: int) -> Array:
    """The same along axis 2. Multiply-and-sum: an integer matrix product is several times slower on a CPU."""
    products = blocks[:, :, None] * jnp.array(matrix, jnp.int32)[:, :, None, None]
    return (products.sum(3) + (1 << shift - 1)) >> shift
