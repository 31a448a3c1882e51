"""What the camera does to a picture with kernels: defocus and motion, denoising, shrinking and enlarging."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qualiclip_jax.degradations import filters

Number = Array | float
_DISK_RADIUS, _PATH_RADIUS = 6, 12  # px, of the windows
_DISK_POINTS, _PATH_POINTS = 40, 64  # across the disk, along the path


def disk_kernel(radius: Number) -> Array:
    """The kernel of a lens out of focus: a disk of equal light, spread over pixels linearly.

    Args:
      radius: of the disk in px, 0 (no blur) to 5; may be traced.

    Returns:
      float32 [13, 13], sum 1.
    """
    y, x = (jnp.asarray(points) for points in _disk_points())
    return _spread(radius * y, radius * x, _DISK_RADIUS)


def path_kernel(length: Number, angle: Number, bend: Number) -> Array:
    """The kernel of a camera that moves along a parabola at constant speed, spread over pixels linearly.

    The path is (l t, -bend l (t^2 - 1/12)) for t from -1/2 to 1/2, turned by the angle; x goes right, y down.

    Args:
      length: l in px, 0 (no blur) to 18; may be traced.
      angle: in degrees, clockwise from horizontal.
      bend: -1.5 to 1.5; 0 is a straight line.

    Returns:
      float32 [25, 25], sum 1.
    """
    t = jnp.linspace(-0.5, 0.5, _PATH_POINTS)
    along, across = length * t, -bend * length * (t**2 - 1 / 12)
    turn = jnp.asarray(angle, jnp.float32) * (math.pi / 180)
    sine, cosine = jnp.sin(turn), jnp.cos(turn)
    return _spread(along * sine + across * cosine, along * cosine - across * sine, _PATH_RADIUS)


def denoise(light: Array, shot: Number, read: Number) -> Array:
    """Smooths images where they vary no more than by noise: a local Wiener filter.

    A sample becomes m + max(0, v - n) / v (x - m), with m and v the mean and variance around it (Gaussian, 1.2 px) and
    n = shot m + read the variance of the noise. Edges stay; noise, and texture weaker than it, is smeared.

    Args:
      light: float32 [..., H, W, 3].
      shot: variance for each unit of light, >= 0.
      read: variance in the dark, >= 0.
    """
    taps = filters.gaussian_taps(1.2, 3, 3)
    mean = filters.separable(light, taps)
    variance = filters.separable(jnp.square(light - mean), taps)
    noise = shot * jnp.maximum(mean, 0) + read
    return mean + jnp.maximum(variance - noise, 0) / jnp.maximum(variance, 1e-12) * (light - mean)


def resample_matrix(size: int, shrink: Number, enlarger: Number) -> Array:
    """The matrix that shrinks a column of samples and enlarges it again.

    Mirrors Pillow's `resize` in floating point: BICUBIC to round(size / shrink) samples, 8 at least, then BICUBIC,
    BILINEAR or NEAREST back.

    Args:
      size: of the column; static.
      shrink: times smaller, 1 to 4; may be traced.
      enlarger: 0 cubic, 1 linear, 2 nearest neighbour; may be traced.

    Returns:
      float32 [size, size], rows of sum 1; the identity for `shrink` 1.
    """
    small = jnp.maximum(jnp.round(size / jnp.asarray(shrink, jnp.float32)), 8)
    ratio, index = size / small, jnp.arange(size, dtype=jnp.float32)
    inside = index < small  # the shrunk column is kept in one of `size` samples
    in_large, in_small = (index + 0.5) * ratio - 0.5, (index + 0.5) / ratio - 0.5  # centres of one in the other
    down = jnp.where(inside[:, None], _cubic((in_large[:, None] - index) / ratio), 1)
    offset = in_small[:, None] - index
    nearest = (index == jnp.floor((index + 0.5) / ratio)[:, None]).astype(jnp.float32)
    up = jnp.stack([_cubic(offset), jnp.maximum(1 - jnp.abs(offset), 0), nearest])[jnp.asarray(enlarger, jnp.int32)]
    up = jnp.where(inside, up, 0)
    down, up = (matrix / matrix.sum(1, keepdims=True) for matrix in (down, up))
    return jnp.matmul(up, down, precision=jax.lax.Precision.HIGHEST)


def convolve(images: Array, kernel: Array) -> Array:
    """Correlates images [..., H, W, C] with a kernel [2 R + 1, 2 R + 1], most of it 0; edges are replicated."""
    radius, side = len(kernel) // 2, len(kernel)
    *leading, height, width, channels = images.shape
    padded = jnp.pad(images, [(0, 0)] * len(leading) + [(radius, radius)] * 2 + [(0, 0)], mode="edge")
    padded = padded.reshape(-1, height + 2 * radius, (width + 2 * radius) * channels)
    weights = kernel.reshape(-1)
    order = jnp.argsort(-weights)
    zero = jnp.zeros((), order.dtype)

    def add(k: Array, total: Array) -> Array:
        row, column = jnp.divmod(order[k], side)
        part = jax.lax.dynamic_slice(padded, (zero, row, column * channels), total.shape)
        return total + weights[order[k]] * part

    total = jnp.zeros((len(padded), height, width * channels), images.dtype)
    return jax.lax.fori_loop(0, (weights > 0).sum(), add, total).reshape(images.shape)


def _disk_points() -> np.ndarray:
    """Points of a square grid within the unit disk: float32 [2, N], y and x."""
    across = (np.arange(_DISK_POINTS, dtype=np.float32) + 0.5) / _DISK_POINTS * 2 - 1
    points = np.stack(np.meshgrid(across, across, indexing="ij")).reshape(2, -1)
    return points[:, np.hypot(*points) <= 1]


def _spread(y: Array, x: Array, radius: int) -> Array:
    """A kernel [2 R + 1, 2 R + 1] of equal weights at points [N], each shared by the four pixels around it."""
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    rows, columns = (jnp.maximum(1 - jnp.abs(offsets - at[:, None]), 0) for at in (y, x))
    return jnp.matmul(rows.T, columns, precision=jax.lax.Precision.HIGHEST) / len(y)


def _cubic(x: Array) -> Array:
    """Keys' cubic with a = -1/2, as in Pillow's BICUBIC."""
    x = jnp.abs(x)
    return jnp.where(x < 1, (1.5 * x - 2.5) * x * x + 1, jnp.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))
