"""Blur: Gaussian, lens (disk) and motion (line). Images are float32 [..., H, W, 3] in [0, 1], edges replicated."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qualiclip_jax.degradations import filters

MAX_SIGMA, MAX_RADIUS, MAX_LENGTH = 5.0, 8, 10


def gaussian_blur(images: Array, sigma: Array | float, max_sigma: float = MAX_SIGMA) -> Array:
    """Gaussian blur with a window of 2 ceil(2 sigma) + 1 px.

    Args:
      images: float32 [..., H, W, C].
      sigma: standard deviation in px, > 0; may be traced.
      max_sigma: static bound of `sigma`, the size of the compiled window.
    """
    taps = filters.gaussian_taps(sigma, jnp.ceil(2 * jnp.asarray(sigma, jnp.float32)), math.ceil(2 * max_sigma))
    return filters.separable(images, taps)


def lens_blur(images: Array, radius: int) -> Array:
    """Blur by a disk, as an unfocused lens.

    Args:
      images: float32 [..., H, W, C].
      radius: of the disk in px, static, >= 1.
    """
    return filters.correlate(images, jnp.asarray(disk_kernel(radius)))


def motion_blur(images: Array, length: Array | float, angle_degrees: Array | float) -> Array:
    """Blur along a line.

    Args:
      images: float32 [..., H, W, C].
      length: of the path in px, 1 (no blur) to 10; may be traced.
      angle_degrees: of the path, counterclockwise from horizontal; 180 degrees make a half turn, the same line; may be traced.
    """
    return filters.correlate(images, line_kernel(length, angle_degrees, MAX_LENGTH))


def random_motion_blur(images: Array, length: Array | float, key: Array) -> Array:
    """`motion_blur` at one angle, uniform in 0..180 degrees, for all of `images`."""
    return motion_blur(images, length, jax.random.uniform(key, maxval=180.0))


def lens_blur_from_table(images: Array, radius: Array) -> Array:
    """`lens_blur` for a traced integer radius, 1 to 8."""
    return filters.correlate(images, jnp.asarray(_disk_kernels())[jnp.asarray(radius).astype(jnp.int32)])


def disk_kernel(radius: int) -> np.ndarray:
    """The kernel of `lens_blur`: of each pixel, the area that a disk covers. Mirrors `fspecial('disk', radius)` of ARNIQA.

    That code leaves the square roots out of two crossings of circle and pixel edge that MATLAB's `fspecial` has, so some
    weights next to the rim are negative or above those inside. It is what the published models were trained with.

    Args:
      radius: px, integer >= 1.

    Returns:
      float32 [2 radius + 1, 2 radius + 1], sum 1.
    """
    offsets = np.abs(np.arange(-radius, radius + 1.0))
    far, near = np.maximum.outer(offsets, offsets), np.minimum.outer(offsets, offsets)
    square = radius**2
    inner, outer = (far - 0.5) ** 2, (far + 0.5) ** 2  # squared distances to the edges of the pixel, along the far axis
    start = np.where(square < outer + (near - 0.5) ** 2, near - 0.5, 0.0)
    stop = np.where(square > inner + (near + 0.5) ** 2, near + 0.5, np.sqrt(square - (near - 0.5) ** 2))

    def below_circle(t):  # integral of sqrt(radius^2 - t^2)
        return 0.5 * (square * np.arcsin(t / radius) + t * np.sqrt(square - t**2))

    area = below_circle(stop) - below_circle(start) - (far - 0.5) * (stop - start) + (start - near + 0.5)
    inside = outer + (near + 0.5) ** 2 < square
    on_rim = (square < outer + (near + 0.5) ** 2) & (square > inner + (near - 0.5) ** 2)
    on_rim |= (near == 0) & (far == radius)
    kernel = area * on_rim + inside
    kernel[radius, radius] = 1
    return (kernel / kernel.sum()).astype(np.float32)


def line_kernel(length: Array | float, angle_degrees: Array | float, max_length: int) -> Array:
    """The kernel of `motion_blur`: weights fall linearly to 0 at 1 px from a segment. Mirrors MATLAB's `fspecial('motion')`.

    Args:
      length: of the path in px, >= 1.
      angle_degrees: counterclockwise from horizontal.
      max_length: static bound of `length`.

    Returns:
      float32 [K, K] with K = 2 ceil(max_length / 2) + 1, sum 1.
    """
    half = jnp.maximum(jnp.asarray(length, jnp.float32), 1.0) / 2 - 0.5
    angle = jnp.asarray(angle_degrees, jnp.float32) * (math.pi / 180)
    radius = math.ceil(max_length / 2)
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
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
    kernels = [np.pad(disk_kernel(radius), MAX_RADIUS - radius) for radius in range(1, MAX_RADIUS + 1)]
    return np.stack([np.zeros_like(kernels[0]), *kernels])
