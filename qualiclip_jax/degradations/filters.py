"""Linear filters with replicated edges whose kernels are data, so that one compiled program serves every level."""

import jax
import jax.numpy as jnp
from jax import Array


def gaussian_taps(sigma: Array | float, support: Array | int, radius: int) -> Array:
    """Normalised samples of a Gaussian.

    Args:
      sigma: standard deviation in samples.
      support: the taps further than this from the centre are 0.
      radius: static; the window is -radius..radius.

    Returns:
      float32 [2 radius + 1], sum 1.
    """
    offsets = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    taps = jnp.where(jnp.abs(offsets) <= support, jnp.exp(-0.5 * (offsets / sigma) ** 2), 0.0)
    return taps / taps.sum()


def separable(images: Array, taps: Array) -> Array:
    """Filters both axes of images [..., H, W, C] with the same taps [2 R + 1]; edges replicated."""
    radius = len(taps) // 2
    height, width, channels = images.shape[-3:]
    rows = _pad(images, radius, 0)
    rows = sum(taps[k] * jax.lax.slice_in_dim(rows, k, k + height, axis=-3) for k in range(len(taps)))
    flat = _pad(rows, 0, radius)
    flat = flat.reshape(*flat.shape[:-2], -1)
    columns = sum(
        taps[k] * jax.lax.slice_in_dim(flat, k * channels, (k + width) * channels, axis=-1) for k in range(len(taps))
    )
    return columns.reshape(images.shape)


def correlate(images: Array, kernel: Array) -> Array:
    """Correlates images [..., H, W, C] with a kernel [K, K], K odd; edges replicated."""
    size = len(kernel)
    height, width, channels = images.shape[-3:]
    padded = _pad(images, size // 2, size // 2)
    padded = padded.reshape(*padded.shape[:-2], -1)  # [..., H + K - 1, (W + K - 1) C]

    def add_row(k, total):
        rows = jax.lax.dynamic_slice_in_dim(padded, k, height, axis=-2)
        return total + sum(
            kernel[k, j] * jax.lax.slice_in_dim(rows, j * channels, (j + width) * channels, axis=-1)
            for j in range(size)
        )

    total = jnp.zeros((*images.shape[:-3], height, width * channels), images.dtype)
    return jax.lax.fori_loop(0, size, add_row, total).reshape(images.shape)


def _pad(images: Array, rows: int, columns: int) -> Array:
    widths = [(0, 0)] * (images.ndim - 3) + [(rows, rows), (columns, columns), (0, 0)]
    return jnp.pad(images, widths, mode="edge")
