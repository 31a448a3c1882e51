"""Colour distortions. Images are float32 [..., H, W, 3], RGB in [0, 1].

The reference hands channel-reversed images to its colour conversions, so Lab here is that of an image whose red and
blue are exchanged; that is part of the degradation as published.
"""

import jax
import jax.numpy as jnp
from jax import Array

from qualiclip_jax.degradations import filters
from qualiclip_jax.degradations.color_spaces import lab_to_rgb, luma, rgb_to_lab

MAX_FACTOR = 12


def color_diffusion(images: Array, factor: Array | float) -> Array:
    """Blurs Lab a and b with standard deviation 1.5 factor + 2 px, then scales them; the result is cut to 8 bits.

    Args:
      images: float32 [..., H, W, 3].
      factor: 1 to 12; may be traced.
    """
    sigma = 1.5 * jnp.asarray(factor, jnp.float32) + 2
    taps = filters.gaussian_taps(sigma, jnp.ceil(2 * sigma), int(3 * MAX_FACTOR + 4))
    lab = rgb_to_lab(images[..., ::-1])
    lab = lab.at[1:].set(filters.separable_wide(lab[1:], taps) * factor)
    return _truncate(lab_to_rgb(lab)[..., ::-1])


def color_shift(images: Array, rows: Array | int, columns: Array | int) -> Array:
    """Displaces the green channel, blended with the undisplaced one by a blurred map of the edges.

    The reference also means to clip the map at its 1st and 99th percentile, but compares it with the indices of a sort
    in place of its values, which changes nothing but two pixels a row. That step is left out, and so are the rows that
    its circular shift lets in from the opposite border.

    Args:
      images: float32 [..., H, W, 3].
      rows: integer, displacement downward in px; the uncovered rows repeat the edge. May be traced.
      columns: integer, displacement to the right.
    """
    height, width = images.shape[-3:-1]
    green = images[..., 1]
    shifted = jnp.take(green, jnp.arange(height) - rows, axis=-2, mode="clip")
    shifted = jnp.take(shifted, jnp.arange(width) - columns, axis=-1, mode="clip")
    green = green + _edge_map(luma(images)) * (shifted - green)
    return jnp.stack([images[..., 0], green, images[..., 2]], axis=-1)


def random_color_shift(images: Array, amount: Array | float, key: Array) -> Array:
    """`color_shift` by `amount` px in one direction of the first quadrant (down and right) for all of `images`."""
    direction = jax.random.uniform(key, (2,))
    shift = jnp.round(direction / jnp.linalg.norm(direction) * amount).astype(jnp.int32)
    return color_shift(images, shift[0], shift[1])


def hsv_saturation(images: Array, factor: Array | float) -> Array:
    """Multiplies the saturation S of HSV.

    V and hue stay, so the distance of every sample from V, the largest of the pixel, is multiplied.
    """
    value = images.max(axis=-1, keepdims=True)
    return jnp.clip(value - factor * (value - images), 0, 1)


def lab_saturation(images: Array, factor: Array | float) -> Array:
    """Multiplies Lab a and b; the result is cut to 8 bits."""
    lab = rgb_to_lab(images[..., ::-1])
    return _truncate(lab_to_rgb(lab.at[1:].multiply(factor))[..., ::-1])


def _truncate(images: Array) -> Array:
    return jnp.floor(images * 255) / 255


def _edge_map(grey: Array) -> Array:
    """Gradient magnitude [..., H, W], blurred with standard deviation 4, stretched to 0..1 over each image."""
    padded = jnp.pad(grey, [(0, 0)] * (grey.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    edges = filters.separable(jnp.sqrt(down**2 + right**2)[..., None], filters.gaussian_taps(4.0, 8, 8))[..., 0]
    low, high = edges.min((-2, -1), keepdims=True), edges.max((-2, -1), keepdims=True)
    return (edges - low) / jnp.where(high > low, high - low, 1.0)
