"""JPEG 2000 as OpenJPEG writes it for a compression ratio, without running its arithmetic coder.

The loss is simulated where it happens. Mirrored is what `PIL.Image.save(file, "JPEG2000", quality_mode="rates",
quality_layers=[rate])` does: every channel of RGB alone (no colour transform), the reversible 5/3 wavelet with 5
decompositions, code-blocks of 64 x 64 coefficients, each coded bit-plane by bit-plane in three passes and cut off after one
of them, so that no pass left out buys more distortion per byte than one kept. The lengths of the passes are estimated from
how many coefficients each codes (a joint histogram of their bit lengths and their neighbours'), so no image leaves the
device. Source: ITU-T T.800; the OpenJPEG functions mirrored are named below.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

DECOMPOSITIONS = 5
CODE_BLOCK = 64
PLANES = 10  # bit-planes of a coefficient: 8 bits, 2 more for the gain of the wavelet
_SEARCH_STEPS = 24

# L2 norms of the synthesis functions of the 5/3 wavelet, by decomposition 1..5: HL and LH, HH; and LL of the last.
# Mirrors `opj_dwt_getnorm`.
_NORM_DETAIL = (1.038, 1.592, 2.919, 5.703, 11.33)
_NORM_DIAGONAL = (0.7186, 0.9218, 1.586, 3.043, 6.019)
_NORM_LOWPASS = (1.0, 1.5, 2.75, 5.375, 10.68, 21.34)

# Sizes in bytes.
_FILE_HEADER = 210.0  # boxes and main header, which OpenJPEG takes off the budget
_SMALLEST_BUDGET = 30.0
_PACKET_HEADER = 1.0  # each of the packets, one a channel and resolution
_BLOCK_HEADER = 3.0  # each code-block that is not left out
_BLOCK_TAIL = 3.0  # what a cut-off pass adds to its code-block


def jpeg2000(images: Array, rate: Array | float) -> Array:
    """Images after JPEG 2000 compression to a ratio of `rate`, and decompression.

    Args:
      images: float [..., H, W, 3], RGB in [0, 1], any H, W >= 32; rounded to 8 bits first.
      rate: compression ratio, raw size over file size (170 is worse than 16). A scalar, or one number an image: any shape
        that broadcasts to the leading axes of `images`. May be traced.

    Returns:
      float32 [..., H, W, 3], multiples of 1/255 in [0, 1].
    """
    *leading, height, width, _ = images.shape
    rate = jnp.broadcast_to(jnp.asarray(rate, jnp.float32), leading).reshape(-1)
    pixels = jnp.round(jnp.clip(images.astype(jnp.float32), 0, 1) * 255).astype(jnp.int32) - 128
    planes = jnp.moveaxis(pixels.reshape(-1, height, width, 3), -1, 1)  # [N, 3, H, W]

    bands, norms = [], []
    for k in range(DECOMPOSITIONS):
        planes, details = _analyse(planes)
        bands += details
        norms += [_NORM_DETAIL[k], _NORM_DETAIL[k], _NORM_DIAGONAL[k]]
    bands.append(planes)
    norms.append(_NORM_LOWPASS[DECOMPOSITIONS])

    blocks = [_split(band) for band in bands]  # [N, 3, blocks, h, w]
    lengths = [_bit_lengths(block) for block in blocks]
    tables = [_passes(_histogram(own, near), norm) for (own, near), norm in zip(lengths, norms, strict=True)]
    sizes, gains = (jnp.concatenate(x, axis=2) for x in zip(*tables, strict=True))  # [N, 3, all blocks, 1 + passes]
    budget = jnp.maximum(height * width * 3 / rate - _FILE_HEADER, _SMALLEST_BUDGET)
    cuts = _allocate(sizes, gains, budget - 3 * (DECOMPOSITIONS + 1) * _PACKET_HEADER)  # [N, 3, all blocks]

    start = 0
    for i, (block, (own, near), band) in enumerate(zip(blocks, lengths, bands, strict=True)):
        cut = cuts[:, :, start : start + block.shape[2]]
        start += block.shape[2]
        bands[i] = _join(_truncate(block, own, near, cut), band.shape)
    planes = bands.pop()
    for _ in range(DECOMPOSITIONS):
        planes = _synthesise(planes, bands[-3:])
        del bands[-3:]
    pixels = jnp.clip(planes + 128, 0, 255).astype(jnp.float32) / 255
    return jnp.moveaxis(pixels, 1, -1).reshape(images.shape)


def _lift(x: Array, axis: int) -> tuple[Array, Array]:
    """One step of the reversible 5/3 analysis of int32 `x` along an axis: low-pass (the longer if odd) and high-pass."""
    x = jnp.moveaxis(x, axis, -1)
    low, high = x[..., ::2], x[..., 1::2]
    after = _extend(low, 0, high.shape[-1] + 1 - low.shape[-1])
    high = high - ((after[..., :-1] + after[..., 1:]) >> 1)
    around = _extend(high, 1, low.shape[-1] - high.shape[-1])
    low = low + ((around[..., :-1] + around[..., 1:] + 2) >> 2)
    return jnp.moveaxis(low, -1, axis), jnp.moveaxis(high, -1, axis)


def _unlift(low: Array, high: Array, axis: int) -> Array:
    """The inverse of `_lift`."""
    low, high = jnp.moveaxis(low, axis, -1), jnp.moveaxis(high, axis, -1)
    count = low.shape[-1] + high.shape[-1]
    around = _extend(high, 1, low.shape[-1] - high.shape[-1])
    low = low - ((around[..., :-1] + around[..., 1:] + 2) >> 2)
    after = _extend(low, 0, high.shape[-1] + 1 - low.shape[-1])
    high = high + ((after[..., :-1] + after[..., 1:]) >> 1)
    high = _extend(high, 0, low.shape[-1] - high.shape[-1])
    x = jnp.stack([low, high], axis=-1).reshape(*low.shape[:-1], -1)[..., :count]
    return jnp.moveaxis(x, -1, axis)


def _extend(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)], mode="edge")


def _analyse(planes: Array) -> tuple[Array, list[Array]]:
    """int32 [..., H, W] -> LL and (HL, LH, HH)."""
    low, high = _lift(planes, -2)
    (ll, hl), (lh, hh) = _lift(low, -1), _lift(high, -1)
    return ll, [hl, lh, hh]


def _synthesise(ll: Array, details: list[Array]) -> Array:
    hl, lh, hh = details
    return _unlift(_unlift(ll, hl, -1), _unlift(lh, hh, -1), -2)


def _split(band: Array) -> Array:
    """int32 [N, C, H, W] -> code-blocks [N, C, blocks, h, w], filled up with zeros."""
    n, c, height, width = band.shape
    h, w = min(height, CODE_BLOCK), min(width, CODE_BLOCK)
    band = jnp.pad(band, ((0, 0), (0, 0), (0, -height % h), (0, -width % w)))
    return band.reshape(n, c, -(-height // h), h, -1, w).swapaxes(3, 4).reshape(n, c, -1, h, w)


def _join(blocks: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_split`."""
    n, c, height, width = shape
    _, _, _, h, w = blocks.shape
    rows, columns = -(-height // h), -(-width // w)
    band = blocks.reshape(n, c, rows, columns, h, w).swapaxes(3, 4).reshape(n, c, rows * h, columns * w)
    return band[:, :, :height, :width]


def _bit_lengths(blocks: Array) -> tuple[Array, Array]:
    """Bit length 0..PLANES of each magnitude, and the greatest of its eight neighbours in the code-block."""
    exponent = jax.lax.bitcast_convert_type(jnp.abs(blocks).astype(jnp.float32), jnp.int32) >> 23
    own = jnp.clip(exponent - 126, 0, PLANES)
    padded = jnp.pad(own, ((0, 0),) * 3 + ((1, 1), (1, 1)))
    sides = jnp.maximum(padded[..., :-2], padded[..., 2:])
    rows = jnp.maximum(sides, padded[..., 1:-1])
    near = jnp.maximum(jnp.maximum(rows[..., :-2, :], rows[..., 2:, :]), sides[..., 1:-1, :])
    return own, near


def _histogram(own: Array, near: Array) -> Array:
    """How many coefficients of each code-block have these bit lengths: float32 [N, C, blocks, own, near]."""
    classes = jnp.arange(PLANES + 1, dtype=own.dtype)
    own, near = (x.reshape(*x.shape[:3], -1, 1) == classes for x in (own, near))
    return jnp.einsum("ncbpi,ncbpj->ncbij", own.astype(jnp.float32), near.astype(jnp.float32))


def _passes(counts: Array, norm: float) -> tuple[Array, Array]:
    """Estimated bytes and distortion gained up to each pass.

    Args:
      counts: float32 [N, C, blocks, own, near], see `_histogram`.
      norm: L2 norm of the band's synthesis functions.

    Returns:
      sizes and gains, float32 [N, C, blocks, 1 + 3 PLANES], the first for no pass at all.
    """
    planes = np.arange(PLANES, 0, -1)[:, None, None]  # bit length of a coefficient that this plane makes significant
    own, near = np.arange(PLANES + 1)[:, None], np.arange(PLANES + 1)[None, :]
    fresh, known, awake = own == planes, own > planes, near > planes
    candidate = ~known

    def count(mask):  # [N, C, blocks, PLANES]
        return jnp.einsum(
            "ncbij,pij->ncbp", counts, jnp.asarray(np.broadcast_to(mask, (PLANES, PLANES + 1, PLANES + 1)), jnp.float32)
        )

    unit = (norm * 2.0 ** (planes[:, 0, 0] - 1)) ** 2  # square of the plane's step
    propagated, cleaned = count(fresh & awake), count(fresh & ~awake)
    refined = count(known)
    bits = jnp.stack(
        [
            _entropy(propagated, count(candidate & awake)) + propagated,
            refined,
            _entropy(cleaned, count(candidate & ~awake)) + cleaned,
        ],
        axis=-1,
    )
    gain = (
        jnp.stack([2.25 * propagated, 0.25 * refined, 2.25 * cleaned], axis=-1)
        * jnp.asarray(unit, jnp.float32)[:, None]
    )
    bits, gain = (jnp.cumsum(x.reshape(*x.shape[:3], -1), axis=-1) for x in (bits, gain))
    sizes = jnp.where(gain > 0, bits / 8 + _BLOCK_TAIL, 0)
    start = ((0, 0),) * 3 + ((1, 0),)
    return jnp.pad(sizes, start), jnp.pad(gain, start)


def _entropy(ones: Array, total: Array) -> Array:
    """Bits to tell which `ones` of `total` decisions are ones."""
    zeros = total - ones
    log = lambda x: jnp.log2(jnp.maximum(x, 1))
    return total * log(total) - ones * log(ones) - zeros * log(zeros)


def _allocate(sizes: Array, gains: Array, budget: Array) -> Array:
    """Number of passes kept of each code-block: int32 [N, C, blocks].

    The bisection of `opj_tcd_rateallocate` for the slope (distortion a byte) at which the file fits.
    """
    cost = sizes + jnp.where(gains > 0, _BLOCK_HEADER, 0)

    def choose(log_slope):
        return jnp.argmax(gains - jnp.exp2(log_slope)[:, None, None, None] * sizes, axis=-1)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        spent = jnp.take_along_axis(cost, choose(middle)[..., None], axis=-1).sum((1, 2, 3))
        fits = spent <= budget
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    ones = jnp.ones_like(budget)
    return choose(jax.lax.fori_loop(0, _SEARCH_STEPS, halve, (-10 * ones, 30 * ones))[1])


def _truncate(blocks: Array, own: Array, near: Array, cut: Array) -> Array:
    """What a decoder makes of coefficients whose code-block was cut after `cut` passes."""
    cut = cut[..., None, None]
    whole, rest = cut // 3, cut % 3  # whole planes, then 1: significance propagation, 2: and refinement
    plane = PLANES - whole  # bit length that the next plane makes significant
    coded = ((rest >= 1) & (own <= plane) & (near > plane)) | ((rest == 2) & (own > plane))
    step = jnp.where(coded, plane - 1, plane)
    kept = (jnp.abs(blocks) >> step) << step
    return jnp.where(kept > 0, jnp.sign(blocks) * (kept + ((1 << step) >> 1)), 0)
