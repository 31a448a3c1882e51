"""Spatial distortions and quantization. Images are float32 [..., H, W, 3], RGB in [0, 1], H and W >= 32."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qualiclip_jax.degradations import draws
from qualiclip_jax.degradations.catalog import PARAMETERS

PATCH, REACH, BLOCK = 16, 8, 32  # px
MAX_PATCHES, MAX_BLOCKS, MAX_BINS = 100, 10, 20  # of the table
JITTER_ROUNDS = 5


def jitter(images: Array, std: Array | float, key: Array) -> Array:
    """Displaces every pixel by normal noise with `std` px in both directions, five times."""
    keys = jax.random.split(key, (2, JITTER_ROUNDS))
    down, right = jax.vmap(jax.vmap(lambda key: draws.normal(key, images.shape[:-1])))(keys) * std
    return jax.lax.scan(lambda images, by: (displace(images, *by), None), images, (down, right))[0]


def displace(images: Array, down: Array, right: Array) -> Array:
    """Moves every pixel by a displacement of its own, with bilinear sampling; beyond the edge images are replicated.

    Args:
      images: float32 [..., H, W, C].
      down: float32 [..., H, W], in px: pixel (y, x) becomes what was at (y - down[y, x], x - right[y, x]).
      right: float32 [..., H, W].
    """
    height, width, channels = images.shape[-3:]
    pixels = images.reshape(-1, channels)
    y = jnp.clip(jnp.arange(height, dtype=jnp.float32)[:, None] - down.reshape(-1, height, width), 0, height - 1)
    x = jnp.clip(jnp.arange(width, dtype=jnp.float32) - right.reshape(-1, height, width), 0, width - 1)
    top, left = jnp.floor(y), jnp.floor(x)
    from_top, from_left = (y - top)[..., None], (x - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    image = jnp.arange(len(y))[:, None, None] * height

    def at(row: Array, column: Array) -> Array:
        return pixels.at[(image + row) * width + column].get(mode="promise_in_bounds")

    above = at(top, left) * (1 - from_left) + at(top, right) * from_left
    below = at(bottom, left) * (1 - from_left) + at(bottom, right) * from_left
    return (above * (1 - from_top) + below * from_top).reshape(images.shape)


def non_eccentricity_patch(images: Array, count: Array | int, key: Array, max_count: int = MAX_PATCHES) -> Array:
    """Copies patches of 16 x 16 px to within 8 px of their place, one after another.

    Args:
      images: float32 [..., H, W, 3].
      count: how many; may be traced.
      key: of places and offsets.
      max_count: static bound of `count`.
    """

    def one(image: Array, key: Array) -> Array:
        place_key, offset_key = jax.random.split(key)
        last = jnp.array(image.shape[:2], jnp.int32) - PATCH
        low, high = jnp.minimum(PATCH, last), jnp.maximum(last - PATCH, 0)  # a margin of 16 px where there is room
        room = (high - low).astype(jnp.float32)
        sources = low + _rounded(jax.random.uniform(place_key, (max_count, 2)) * room)
        offsets = _rounded((jax.random.uniform(offset_key, (max_count, 2)) - 0.5) * 2 * REACH)
        return copy_patches(image, sources, jnp.clip(sources + offsets, 0, last), count)

    return draws.per_image(one, images, key)


def copy_patches(image: Array, sources: Array, targets: Array, count: Array | int) -> Array:
    """Copies the first `count` of N patches of 16 x 16 px, one after another.

    Args:
      image: float32 [H, W, C].
      sources: int32 [N, 2], top and left of each patch.
      targets: int32 [N, 2], where it goes.
      count: may be traced.
    """
    size = (PATCH, PATCH, image.shape[-1])

    def copy_one(index: Array, image: Array) -> Array:
        target = targets[index]
        source = jnp.where(index < count, sources[index], target)
        patch = jax.lax.dynamic_slice(image, (*source, 0), size)
        return jax.lax.dynamic_update_slice(image, patch, (*target, 0))

    return jax.lax.fori_loop(0, len(sources), copy_one, image)


def pixelate(images: Array, strength: float) -> Array:
    """Shrinks by the factor 0.95 - strength^0.6 and enlarges again, nearest neighbour; `strength` is static."""
    height, width = images.shape[-3:-1]
    images = jnp.take(images, _nearest(height, strength), axis=-3)
    return jnp.take(images, _nearest(width, strength), axis=-2)


def pixelate_from_table(images: Array, strength: Array) -> Array:
    """`pixelate` for a traced strength, one of those in the table."""
    strengths = PARAMETERS["pixelate"]
    row = jnp.argmin(jnp.abs(jnp.array(strengths, jnp.float32) - strength))
    height, width = images.shape[-3:-1]
    rows, columns = (jnp.asarray(np.stack([_nearest(size, k) for k in strengths]))[row] for size in (height, width))
    return jnp.take(jnp.take(images, rows, axis=-3), columns, axis=-2)


def quantization(images: Array, bins: Array | int) -> Array:
    """Numbers each sample by its bin of 255 / bins grey levels, then stretches the numbers to 0..1 over each image.

    As in the reference, an image that lies within one bin has nothing to stretch and its numbers are clipped to 1: it
    turns white, or stays black.

    Args:
      images: float32 [..., H, W, 3].
      bins: number of equal bins over 0..255, at most 20; may be traced.
    """
    value = images * 255 - 1e-3  # an 8-bit sample on an edge stays below it, however 1/255 was rounded
    bins = jnp.asarray(bins).astype(jnp.int32)
    index = (value > 0).astype(jnp.float32)
    for k in range(1, MAX_BINS):
        edge = k * 255 // bins  # in integers: float division rounds some of them to the wrong side
        index += ((k < bins) & (value > edge.astype(jnp.float32))).astype(jnp.float32)
    low, high = index.min((-3, -2, -1), keepdims=True), index.max((-3, -2, -1), keepdims=True)
    return jnp.where(high > low, (index - low) / jnp.maximum(high - low, 1), jnp.minimum(index, 1))


def color_block(images: Array, count: Array | int, key: Array, max_count: int = MAX_BLOCKS) -> Array:
    """Paints squares of 32 x 32 px, each of one random colour, one after another.

    Args:
      images: float32 [..., H, W, 3].
      count: how many; may be traced.
      key: of places and colours.
      max_count: static bound of `count`.
    """

    def one(image: Array, key: Array) -> Array:
        place_key, color_key = jax.random.split(key)
        room = jnp.array(image.shape[:2], jnp.float32) - BLOCK
        corners = jnp.floor(jax.random.uniform(place_key, (max_count, 2)) * room).astype(jnp.int32)
        return paint_blocks(image, corners, jax.random.uniform(color_key, (max_count, 3)), count)

    return draws.per_image(one, images, key)


def paint_blocks(image: Array, corners: Array, colors: Array, count: Array | int) -> Array:
    """Paints the first `count` of N squares of 32 x 32 px, one after another.

    Args:
      image: float32 [H, W, 3].
      corners: int32 [N, 2], top and left of each square.
      colors: float32 [N, 3].
      count: may be traced.
    """
    size = (BLOCK, BLOCK, image.shape[-1])

    def paint_one(index: Array, image: Array) -> Array:
        corner = (*corners[index], 0)
        block = jnp.where(index < count, colors[index], jax.lax.dynamic_slice(image, corner, size))
        return jax.lax.dynamic_update_slice(image, block, corner)

    return jax.lax.fori_loop(0, len(corners), paint_one, image)


def _rounded(x: Array) -> Array:
    return jnp.round(x).astype(jnp.int32)


def _nearest(size: int, strength: float) -> np.ndarray:
    """Which of `size` samples each becomes when nearest-neighbour resizing goes down and up, as in PyTorch."""
    small = int(size * (0.95 - strength**0.6))
    return _nearest_neighbour(size, small)[_nearest_neighbour(small, size)]


def _nearest_neighbour(size: int, new_size: int) -> np.ndarray:
    """Source index of each of `new_size` samples; in float32, whose roundings decide ties."""
    index = np.floor(np.arange(new_size, dtype=np.float32) * np.float32(size / new_size))
    return np.minimum(index, size - 1).astype(np.int32)
