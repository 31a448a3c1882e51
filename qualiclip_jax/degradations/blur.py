"""Blur: Gaussian, lens (disk) and motion (line). Images are float32 [..., H, W, 3] in [0, 1], edges replicated."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qualiclip_jax.degradations import filters

MAX_SIGMA = 5.0
RADIUS = 8  # of the window of lens and motion blur. XLA makes faster CPU code of sums over 17 taps than over 11 to 15.


def gaussian_blur(images: Array, sigma: Array | float, max_sigma: float = MAX_SIGMA) -> Array:
    """Gaussian blur with a window of 2 ceil(2 sigma) + 1 px.

    Args:
      images: float32 [..., H, W, C].
      sigma: standard deviation in px, > 0; may be traced.
      max_sigma: static bound of `sigma`, the size of the compiled window.
    """
    taps = filters.gaussian_taps(sigma, jnp.ceil(2 * jnp.asarray(sigma, jnp.float32)), math.ceil(2 * max_sigma))
    return jnp.clip(filters.separable(images, taps), 0, 1)


def lens_blur(images: Array, radius: int) -> Array:
    """Blur by a disk, as an unfocused lens.

    Args:
      images: float32 [..., H, W, C].
      radius: of the disk in px, static, >= 1.
    """
    return jnp.clip(filters.correlate(images, jnp.asarray(disk_kernel(radius)), radius), 0, 1)


def motion_blur(images: Array, length: Array | float, angle_degrees: Array | float) -> Array:
    """Blur along a line.

    Args:
      images: float32 [..., H, W, C].
      length: of the path in px, 1 (no blur) to 16; may be traced.
      angle_degrees: of the path, counterclockwise from horizontal; 0 and 180 are the same line. May be traced.
    """
    length = jnp.asarray(length, jnp.float32)
    radius = jnp.ceil(length / 2 - 0.5).astype(jnp.int32)
    return jnp.clip(filters.correlate(images, line_kernel(length, angle_degrees), radius), 0, 1)


def random_motion_blur(images: Array, length: Array | float, key: Array) -> Array:
    """`motion_blur` at one angle, uniform in 0..180 degrees, for all of `images`."""
    return motion_blur(images, length, jax.random.uniform(key, maxval=180.0))


def lens_blur_from_table(images: Array, radius: Array) -> Array:
    """`lens_blur` for a traced integer radius, 1 to 8."""
    radius = jnp.asarray(radius).astype(jnp.int32)
    return jnp.clip(filters.correlate(images, jnp.asarray(_disk_kernels())[radius], radius), 0, 1)


def disk_kernel(radius: int) -> np.ndarray:
    """The kernel of `lens_blur`: how much of each pixel a disk covers. Mirrors `fspecial('disk', radius)` of ARNIQA.

    That code departs from MATLAB's `fspecial` where the circle crosses the edges of a pixel: next to the rim some
    weights are negative, or larger than those inside. It is what the published models were trained with.

    Args:
      radius: px, integer >= 1.

    Returns:
      float32 [2 radius + 1, 2 radius + 1], sum 1.
    """
    offsets = np.abs(np.arange(-radius, radius + 1.0))
    far, near = np.maximum.outer(offsets, offsets), np.minimum.outer(offsets, offsets)
    square = radius**2
    inner, outer = (far - 0.5) ** 2, (far + 0.5) ** 2  # of the near and the far edge of the pixel
    start = np.where(square < outer + (near - 0.5) ** 2, near - 0.5, 0.0)
    stop = np.where(square > inner + (near + 0.5) ** 2, near + 0.5, np.sqrt(square - (near - 0.5) ** 2))

    def below_circle(t: np.ndarray) -> np.ndarray:  # integral of sqrt(radius^2 - t^2)
        return 0.5 * (square * np.arcsin(t / radius) + t * np.sqrt(square - t**2))

    area = below_circle(stop) - below_circle(start) - (far - 0.5) * (stop - start) + (start - near + 0.5)
    inside = outer + (near + 0.5) ** 2 < square
    on_rim = (square < outer + (near + 0.5) ** 2) & (square > inner + (near - 0.5) ** 2)
    on_rim |= (near == 0) & (far == radius)
    kernel = area * on_rim + inside
    kernel[radius, radius] = 1
    return (kernel / kernel.sum()).astype(np.float32)


def line_kernel(length: Array | float, angle_degrees: Array | float) -> Array:
    """The kernel of `motion_blur`: weights fall linearly to 0 at 1 px from a segment.

    Mirrors MATLAB's `fspecial('motion', length, angle)`.

    Args:
      length: of the path in px, 1 to 16.
      angle_degrees: counterclockwise from horizontal.

    Returns:
      float32 [17, 17], sum 1.
    """
    half = jnp.maximum(jnp.asarray(length, jnp.float32), 1.0) / 2 - 0.5
    angle = jnp.asarray(angle_degrees, jnp.float32) * (math.pi / 180)
    offsets = jnp.arange(-RADIUS, RADIUS + 1, dtype=jnp.float32)
    x, y = offsets[None, :], -offsets[:, None]  # y upward
    across = jnp.abs(y * jnp.cos(angle) - x * jnp.sin(angle))
    along = jnp.abs(x * jnp.cos(angle) + y * jnp.sin(angle))
    near_an_end = x**2 + y**2 >= half**2
    distance = jnp.where(near_an_end, jnp.hypot(across, along - half), across)
    weights = jnp.maximum(1 - distance, 0)
    return weights / weights.sum()


@functools.cache
def _disk_kernels() -> np.ndarray:
    """All kernels up to the largest radius, [R + 1, 2 R + 1, 2 R + 1]; that of radius 0 is not used."""
    kernels = [np.pad(disk_kernel(radius), RADIUS - radius) for radius in range(1, RADIUS + 1)]
    return np.stack([np.zeros_like(kernels[0]), *kernels])
