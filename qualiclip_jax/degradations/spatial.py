"""Spatial distortions and quantization. Images are float32 [..., H, W, 3], RGB in [0, 1], H and W >= 32."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qualiclip_jax.degradations.random import per_image
from qualiclip_jax.degradations.table import PARAMETERS

PATCH, REACH, BLOCK = 16, 8, 32  # px
JITTER_ROUNDS = 5
MAX_BLOCKS = 10


def jitter(images: Array, std: Array | float, key: Array) -> Array:
    """Displaces every pixel by normal noise with `std` px in both directions, five times."""

    def one(image, key):
        def displace_once(round, image):
            displacement = std * jax.random.normal(jax.random.fold_in(key, round), (*image.shape[:2], 2))
            return displace(image, displacement)

        return jax.lax.fori_loop(0, JITTER_ROUNDS, displace_once, image)

    return per_image(one, images, key)


def displace(image: Array, displacement: Array) -> Array:
    """Samples an image at displaced places, bilinearly; beyond the edge it is replicated.

    Args:
      image: float32 [H, W, C].
      displacement: float32 [H, W, 2], in px: pixel (y, x) becomes what was at (y, x) - displacement[y, x].
    """
    height, width, channels = image.shape
    y = jnp.clip(jnp.arange(height, dtype=jnp.float32)[:, None] - displacement[..., 0], 0, height - 1)
    x = jnp.clip(jnp.arange(width, dtype=jnp.float32)[None, :] - displacement[..., 1], 0, width - 1)
    top, left = jnp.floor(y), jnp.floor(x)
    down, across = (y - top)[..., None], (x - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    pixels = image.reshape(-1, channels)
    above = pixels[top * width + left] * (1 - across) + pixels[top * width + right] * across
    below = pixels[bottom * width + left] * (1 - across) + pixels[bottom * width + right] * across
    return above * (1 - down) + below * down


def non_eccentricity_patch(images: Array, count: Array | int, key: Array) -> Array:
    """Copies `count` patches of 16 x 16 px to within 8 px of their place, one after another."""

    def one(image, key):
        height, width = image.shape[:2]
        place_key, offset_key = jax.random.split(key)
        limit = jnp.array([height, width], jnp.int32) - PATCH
        low = jnp.minimum(PATCH, limit)
        high = jnp.maximum(limit - PATCH, 0)

        def copy_one(index, image):
            room = (high - low).astype(jnp.float32)
            place = jax.random.uniform(jax.random.fold_in(place_key, index), (2,)) * room
            place = low + jnp.round(place).astype(jnp.int32)
            offset = jnp.round(
                jax.random.uniform(jax.random.fold_in(offset_key, index), (2,), minval=-REACH, maxval=REACH)
            ).astype(jnp.int32)
            target = jnp.clip(place + offset, 0, limit)
            patch = jax.lax.dynamic_slice(image, (place[0], place[1], 0), (PATCH, PATCH, image.shape[2]))
            return jax.lax.dynamic_update_slice(image, patch, (target[0], target[1], 0))

        return jax.lax.fori_loop(0, jnp.asarray(count).astype(jnp.int32), copy_one, image)

    return per_image(one, images, key)


def pixelate(images: Array, strength: float) -> Array:
    """Shrinks by the factor 0.95 - strength^0.6 and enlarges again, nearest neighbour both ways; `strength` is static."""
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

    As in the reference, an image that lies within one bin has nothing to stretch and its numbers are clipped to 1: it turns
    white, or stays black.

    Args:
      images: float32 [..., H, W, 3].
      bins: number of equal bins over 0..255; may be traced.
    """
    value = images * 255
    edge = jnp.floor(jnp.arange(1, 20, dtype=jnp.float32) * 255 / bins)
    index = (value > 0).astype(jnp.float32)
    for k in range(19):
        index += ((value > edge[k]) & (k + 1 < bins)).astype(jnp.float32)
    low, high = index.min((-3, -2, -1), keepdims=True), index.max((-3, -2, -1), keepdims=True)
    return jnp.where(high > low, (index - low) / jnp.maximum(high - low, 1), jnp.minimum(index, 1))


def color_block(images: Array, count: Array | int, key: Array, max_count: int = MAX_BLOCKS) -> Array:
    """Paints `count` squares of 32 x 32 px, each of one random colour; later ones cover earlier ones.

    Args:
      images: float32 [..., H, W, 3].
      count: number of squares; may be traced.
      key: of places and colours.
      max_count: static bound of `count`.
    """

    def one(image, key):
        place_key, color_key = jax.random.split(key)
        free = jnp.array(image.shape[:2], jnp.float32) - BLOCK
        corners = jnp.floor(jax.random.uniform(place_key, (max_count, 2)) * free).astype(jnp.int32)
        colors = jax.random.uniform(color_key, (max_count, 3))
        return paint_blocks(image, corners, colors, count)

    return per_image(one, images, key)


def paint_blocks(image: Array, corners: Array, colors: Array, count: Array | int) -> Array:
    """Paints the first `count` of N squares of 32 x 32 px.

    Args:
      image: float32 [H, W, 3].
      corners: integer [N, 2], top and left.
      colors: float32 [N, 3].
      count: how many of them.
    """
    rows, columns = jnp.arange(image.shape[0])[:, None, None], jnp.arange(image.shape[1])[None, :, None]
    for index in range(len(corners)):
        top, left = corners[index, 0], corners[index, 1]
        inside = (rows >= top) & (rows < top + BLOCK) & (columns >= left) & (columns < left + BLOCK) & (index < count)
        image = jnp.where(inside, colors[index], image)
    return image


def _nearest(size: int, strength: float) -> np.ndarray:
    """Which of `size` samples each becomes when nearest-neighbour resizing goes down and up, as in PyTorch."""
    small = int(size * (0.95 - strength**0.6))
    return _nearest_neighbour(size, small)[_nearest_neighbour(small, size)]


def _nearest_neighbour(size: int, new_size: int) -> np.ndarray:
    """Source index of each of `new_size` samples; in float32, whose roundings decide ties."""
    index = np.floor(np.arange(new_size, dtype=np.float32) * np.float32(size / new_size))
    return np.minimum(index, size - 1).astype(np.int32)
