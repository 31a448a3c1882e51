"""JPEG 2000 as OpenJPEG writes it for a compression ratio, without running its arithmetic coder.

Mirrored is `PIL.Image.save(file, "JPEG2000", quality_mode="rates", quality_layers=[rate], num_resolutions=8)`, as the
reference degradations have it: every channel of RGB alone (no colour transform), the reversible 5/3 wavelet with 7
decompositions, code-blocks of 64 x 64 coefficients, each coded bit-plane by bit-plane in three passes and cut off after
one of them, so that no pass left out would buy more for its bytes than one kept.

The transform is exact. So is the cutting, but for a few coefficients at the ends of long chains (`_bit_lengths`). Where
to cut follows from the lengths of the passes, and these are estimated, from how many coefficients each one codes: a
joint histogram of their bit lengths and their neighbours'. Source: ITU-T T.800 and the OpenJPEG functions named below.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

CODE_BLOCK = 64
PLANES = 10  # bit-planes of a coefficient: 8 bits, 2 more for the gain of the wavelet
_CLASSES = PLANES + 2  # bit lengths 0..PLANES, and one more for `near` of `_bit_lengths`
_PROPAGATION_STEPS = 2  # links of a chain of coefficients that find one another in one pass
_SEARCH_STEPS = 24  # of a bisection over 50 octaves

# L2 norms of the synthesis functions of the 5/3 wavelet by decomposition 1..7, as in `opj_dwt_getnorm`.
_NORMS_DETAIL = (1.038, 1.592, 2.919, 5.703, 11.33, 22.64, 45.25)  # HL, LH
_NORMS_DIAGONAL = (0.7186, 0.9218, 1.586, 3.043, 6.019, 12.01, 24.00)  # HH
_NORMS_LOWPASS = (1.5, 2.75, 5.375, 10.68, 21.34, 42.67, 85.33)  # LL, if this decomposition is the last

# Sizes in bytes. The estimates were fitted to the code-blocks of files that OpenJPEG 2.5 wrote.
_FILE_HEADER = 195  # boxes and main header, with 3 more a decomposition; OpenJPEG takes it off the budget
_SMALLEST_BUDGET = 30
_PACKET_HEADER = 1.0  # each of the packets, one a channel and resolution
_BLOCK_HEADER = (1.64, 0.171)  # each code-block that is not left out, and for each bit of its length
_BLOCK_TAIL = (1.07, 0.824)  # what cutting a code-block adds to it, and for each doubling

# Bits in the passes: for each bit of entropy of the decisions who becomes significant, and for each coefficient.
_BITS_ENTROPY_PROPAGATION = 1.289
_BITS_SIGN = 0.638
_BITS_ENTROPY_CLEANUP = 1.209  # signs included
_BITS_FIRST_REFINEMENT = 0.565
_BITS_REFINEMENT = 1.102

# Squared error that a coefficient loses in a pass, for a step of 1: in significance propagation, refinement, clean-up.
_GAINS = (1.9, 0.29, 1.6)


def jpeg2000(images: Array, rate: Array | float) -> Array:
    """Images after JPEG 2000 compression to a ratio of `rate`, and decompression.

    Args:
      images: float [..., H, W, 3], RGB in [0, 1]; rounded to 8 bits first. A side under 128 means fewer decompositions.
      rate: compression ratio, raw size over file size (170 is worse than 16). A scalar, or one number an image: any
        shape that broadcasts to the leading axes of `images`. May be traced.

    Returns:
      float32 [..., H, W, 3], multiples of 1/255 in [0, 1].
    """
    *leading, height, width, _ = images.shape
    rate = jnp.broadcast_to(jnp.asarray(rate, jnp.float32), leading).reshape(-1)
    pixels = jnp.round(jnp.clip(images.astype(jnp.float32), 0, 1) * 255).astype(jnp.int32) - 128
    planes = jnp.moveaxis(pixels.reshape(-1, height, width, 3), -1, 0)  # [3, N, H, W]

    # One channel after the other where a result is read many times: XLA fuses nothing across a loop, and would else
    # compute it anew for each reader (3 times slower on a CPU).
    sides, blocks, norms = _layout(height, width)
    planes = jax.lax.map(partial(_analyse, sides=sides), planes)
    own, near = _bit_lengths(planes, blocks)
    counts = jax.lax.map(partial(_histogram, blocks=blocks, count=len(norms)), own * _CLASSES + near)
    sizes, gains = _passes(counts, norms)
    budget = jnp.maximum(3 * height * width / rate - (_FILE_HEADER + 3 * len(sides)), _SMALLEST_BUDGET)
    cuts = _allocate(sizes, gains, budget - 3 * (len(sides) + 1) * _PACKET_HEADER)  # [3, N, blocks]
    planes = _truncate(planes, own, near, cuts[..., blocks])
    planes = jax.lax.map(partial(_synthesise, sides=sides), planes)

    pixels = jnp.clip(planes + 128, 0, 255).astype(jnp.float32) / 255
    return jnp.moveaxis(pixels, 0, -1).reshape(images.shape)


def _layout(height: int, width: int) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
    """Where the wavelet bands and their code-blocks lie in a plane: LL at the top left, HL right of it, LH below it.

    Returns:
      sides: height and width of the part that each decomposition splits, largest first.
      blocks: int32 [H, W], the number of the code-block that a coefficient belongs to.
      norms: float32 [blocks], L2 norm of the synthesis functions of each code-block's band.
    """
    sides: list[tuple[int, int]] = []
    blocks, norms = np.zeros((height, width), np.int32), list[float]()

    def number(top: int, bottom: int, left: int, right: int, norm: float) -> None:
        for y in range(top, bottom, CODE_BLOCK):
            for x in range(left, right, CODE_BLOCK):
                blocks[y : min(y + CODE_BLOCK, bottom), x : min(x + CODE_BLOCK, right)] = len(norms)
                norms.append(norm)

    for k in range(min(len(_NORMS_DETAIL), min(height, width).bit_length() - 1)):
        sides.append((height, width))
        low_height, low_width = (height + 1) // 2, (width + 1) // 2
        number(0, low_height, low_width, width, _NORMS_DETAIL[k])
        number(low_height, height, 0, low_width, _NORMS_DETAIL[k])
        number(low_height, height, low_width, width, _NORMS_DIAGONAL[k])
        height, width = low_height, low_width
    number(0, height, 0, width, _NORMS_LOWPASS[len(sides) - 1])
    return sides, blocks, np.array(norms, np.float32)


def _analyse(planes: Array, sides: list[tuple[int, int]]) -> Array:
    """Reversible 5/3 wavelet of int32 [N, H, W], down the columns first, in the places of `_layout`."""
    for height, width in sides:
        part = planes[..., :height, :width].swapaxes(-1, -2)
        part = _split(_split(part).swapaxes(-1, -2))
        planes = planes.at[..., :height, :width].set(part)
    return planes


def _synthesise(planes: Array, sides: list[tuple[int, int]]) -> Array:
    """The inverse of `_analyse`."""
    for height, width in reversed(sides):
        part = _merge(planes[..., :height, :width]).swapaxes(-1, -2)
        planes = planes.at[..., :height, :width].set(_merge(part).swapaxes(-1, -2))
    return planes


def _split(x: Array) -> Array:
    """int32 [..., n] -> its low-pass [..., (n + 1) // 2] and, behind it, its high-pass."""
    low, high = x[..., ::2], x[..., 1::2]
    high = high - (_neighbours(low, 0, high.shape[-1]) >> 1)
    low = low + ((_neighbours(high, 1, low.shape[-1]) + 2) >> 2)
    return jnp.concatenate([low, high], axis=-1)


def _merge(x: Array) -> Array:
    """The inverse of `_split`."""
    count = x.shape[-1]
    low, high = x[..., : (count + 1) // 2], x[..., (count + 1) // 2 :]
    low = low - ((_neighbours(high, 1, low.shape[-1]) + 2) >> 2)
    high = high + (_neighbours(low, 0, high.shape[-1]) >> 1)
    high = jnp.pad(high, [(0, 0)] * (x.ndim - 1) + [(0, count % 2)])
    return jnp.stack([low, high], axis=-1).reshape(*x.shape[:-1], -1)[..., :count]


def _neighbours(x: Array, before: int, count: int) -> Array:
    """Sums x[i - before] + x[i - before + 1] for i < count, with the first and last repeated beyond the ends."""
    after = count + 1 - before - x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)], mode="edge")
    return x[..., :-1] + x[..., 1:]


def _bit_lengths(planes: Array, blocks: np.ndarray) -> tuple[Array, Array]:
    """What decides in which pass each coefficient is coded.

    Returns:
      own: int32 [3, N, H, W] in 0..PLANES, bit length of each magnitude.
      near: int32 [3, N, H, W] in 0..PLANES + 1. While the coefficient is insignificant, significance propagation visits
        it in the planes of bit length < near: below the greatest bit length among its eight neighbours in the
        code-block, and in that plane itself if such a neighbour was found by propagation there, earlier in the scan
        (stripes of 4 rows, column by column). Else clean-up does.
    """
    exponent = jax.lax.bitcast_convert_type(jnp.abs(planes).astype(jnp.float32), jnp.int32) >> 23
    own = jnp.clip(exponent - 126, 0, PLANES)
    row = _row_in_block(blocks) % 4
    always = row >= 0
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    earlier = {(-1, -1): always, (-1, 0): always, (-1, 1): row == 0, (0, -1): always, (1, -1): row < 3}
    greatest = _greatest(own, dict.fromkeys(around, always), blocks)

    def propagate(_: int, near: Array) -> Array:
        found = _greatest(jnp.where(own < near, own, 0), earlier, blocks)
        return greatest + ((found == greatest) & (greatest > 0)).astype(jnp.int32)

    return own, jax.lax.fori_loop(0, _PROPAGATION_STEPS, propagate, greatest)


def _greatest(values: Array, offsets: dict[tuple[int, int], np.ndarray], blocks: np.ndarray) -> Array:
    """Maximum of int32 [..., H, W] >= 0 over neighbours: where their mask [H, W] allows, and in the same code-block."""
    height, width = blocks.shape
    values = jnp.pad(values, [(0, 0)] * (values.ndim - 2) + [(1, 1), (1, 1)])
    padded = np.pad(blocks, 1, constant_values=-1)
    result = jnp.zeros((), jnp.int32)
    for (dy, dx), mask in offsets.items():
        there = slice(1 + dy, 1 + dy + height), slice(1 + dx, 1 + dx + width)
        mask = (mask & (padded[there] == blocks)).astype(np.int32)
        result = jnp.maximum(result, values[..., *there] * mask)
    return result


def _row_in_block(blocks: np.ndarray) -> np.ndarray:
    """Row of each coefficient, counted from the top of its code-block: int [H, W]."""
    rows = np.broadcast_to(np.arange(len(blocks))[:, None], blocks.shape)
    first = np.full(blocks.max() + 1, len(blocks))
    np.minimum.at(first, blocks, rows)
    return rows - first[blocks]


def _histogram(kinds: Array, blocks: np.ndarray, count: int) -> Array:
    """How many coefficients of each code-block are of each kind.

    Args:
      kinds: int32 [N, H, W], bit length times `_CLASSES`, plus that of the neighbours.
      blocks: int32 [H, W] in 0..count-1.
      count: number of code-blocks.

    Returns:
      float32 [N, count, _CLASSES, _CLASSES], whole numbers.
    """
    first = (jnp.arange(len(kinds), dtype=jnp.int32)[:, None, None] * count + blocks) * _CLASSES**2
    total = jnp.zeros(len(kinds) * count * _CLASSES**2, jnp.int32)
    total = total.at[(first + kinds).reshape(-1)].add(1, mode="promise_in_bounds")
    return total.astype(jnp.float32).reshape(-1, count, _CLASSES, _CLASSES)


def _passes(counts: Array, norms: np.ndarray) -> tuple[Array, Array]:
    """Estimated bytes and distortion gained from the start of a code-block to the end of each pass.

    Args:
      counts: float32 [3, N, blocks, own, near], see `_histogram`.
      norms: float32 [blocks].

    Returns:
      sizes and gains, float32 [3, N, blocks, 1 + 3 PLANES], the first for no pass at all.
    """
    upto = jnp.cumsum(counts, axis=-2)  # coefficients not yet significant above the plane of bit length `own`
    entropy = _entropy(counts, upto)
    visited = np.triu(np.ones((_CLASSES, _CLASSES), np.float32), 1)  # by significance propagation: own < near
    propagated, cleaned = (counts * visited).sum(-1), (counts * (1 - visited)).sum(-1)
    refined = counts.sum((-2, -1))[..., None] - upto.sum(-1)
    refined_first = jnp.pad(counts.sum(-1)[..., 1:], ((0, 0),) * 3 + ((0, 1),))

    bits = (
        _BITS_ENTROPY_PROPAGATION * (entropy * visited).sum(-1) + _BITS_SIGN * propagated,
        _BITS_REFINEMENT * refined + (_BITS_FIRST_REFINEMENT - _BITS_REFINEMENT) * refined_first,
        _BITS_ENTROPY_CLEANUP * (entropy * (1 - visited)).sum(-1),
    )
    step = norms[:, None] * np.exp2(np.arange(_CLASSES, dtype=np.float32) - 1)  # [blocks, _CLASSES]
    gained = tuple(g * step**2 * x for g, x in zip(_GAINS, (propagated, refined, cleaned), strict=True))

    def accumulate(passes: Sequence[Array | np.ndarray]) -> Array:  # from the highest plane down
        """Three of [3, N, blocks, _CLASSES] -> [3, N, blocks, 1 + 3 PLANES]."""
        flat = jnp.stack(passes, axis=-1)[..., PLANES:0:-1, :].reshape(*counts.shape[:3], -1)
        return jnp.pad(jnp.cumsum(flat, axis=-1), ((0, 0),) * 3 + ((1, 0),))

    sizes, gains = accumulate(bits) / 8, accumulate(gained)
    sizes = sizes + _BLOCK_TAIL[0] + _BLOCK_TAIL[1] * jnp.log2(1 + sizes)
    return jnp.where(gains > 0, sizes, 0), gains


def _entropy(ones: Array, total: Array) -> Array:
    """Bits to tell which `ones` of `total` decisions are ones."""

    def part(x: Array) -> Array:
        return x * jnp.log2(jnp.maximum(x, 1))

    return part(total) - part(ones) - part(total - ones)


def _allocate(sizes: Array, gains: Array, budget: Array) -> Array:
    """How many passes to keep of each code-block.

    The bisection of `opj_tcd_rateallocate` for the slope (distortion per byte) at which the file fits. For one slope,
    `opj_tcd_makelayer` stops a code-block where gain - slope * size is greatest.

    Args:
      sizes, gains: float32 [3, N, blocks, 1 + 3 PLANES], see `_passes`.
      budget: float32 [N], bytes for the code-blocks and their headers.

    Returns:
      int32 [3, N, blocks] in 0..3 PLANES.
    """
    cost = sizes + jnp.where(gains > 0, _BLOCK_HEADER[0] + _BLOCK_HEADER[1] * jnp.log2(1 + sizes), 0)

    def choose(log_slope: Array) -> Array:
        return jnp.argmax(gains - jnp.exp2(log_slope)[:, None, None] * sizes, axis=-1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        spent = jnp.take_along_axis(cost, choose(middle)[..., None], axis=-1).sum((0, 2, 3))
        fits = spent <= budget
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    bounds = jnp.full_like(budget, -10), jnp.full_like(budget, 40)
    return choose(jax.lax.fori_loop(0, _SEARCH_STEPS, halve, bounds)[1])


def _truncate(planes: Array, own: Array, near: Array, cut: Array) -> Array:
    """What `opj_t1_decode_cblk` makes of coefficients whose code-block was cut after `cut` passes: interval middles."""
    whole, rest = cut // 3, cut % 3  # whole planes, then 1: significance propagation, 2: and refinement
    plane = PLANES - whole  # bit length that the next plane makes significant
    coded = ((rest >= 1) & (own <= plane) & (near > plane)) | ((rest == 2) & (own > plane))
    step = jnp.where(coded, plane - 1, plane)
    kept = (jnp.abs(planes) >> step) << step
    return jnp.where(kept > 0, jnp.sign(planes) * (kept + ((1 << step) >> 1)), 0)
