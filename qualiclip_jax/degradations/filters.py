"""Linear filters with replicated edges whose kernels are data, so that one compiled program serves every level."""

import functools
from collections.abc import Iterable

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
    """Filters both axes of images [..., H, W, C] with the same taps [2 R + 1]; R is small."""
    radius = len(taps) // 2
    height = images.shape[-3]
    padded = _pad(_flatten(images), radius, axis=-2)
    rows = _add_up(taps[k] * jax.lax.slice_in_dim(padded, k, k + height, axis=-2) for k in range(len(taps)))
    return _along_rows(_pad(rows.reshape(images.shape), radius, axis=-2), taps).reshape(images.shape)


def separable_wide(planes: Array, taps: Array) -> Array:
    """Filters both axes of planes [..., H, W] with the same taps [2 R + 1], for a wide window.

    As products with banded matrices, whose time does not depend on R.
    """
    height, width = planes.shape[-2:]
    precision = jax.lax.Precision.HIGHEST
    columns = jnp.matmul(_banded(taps, height), planes, precision=precision)
    return jnp.matmul(columns, _banded(taps, width).T, precision=precision)


def correlate(images: Array, kernel: Array, radius: Array | int) -> Array:
    """Correlates images [..., H, W, C] with a kernel [2 R + 1, 2 R + 1].

    Args:
      images: float32 [..., H, W, C].
      kernel: float32.
      radius: rows of the kernel further than this from the middle are 0; may be traced.
    """
    middle = len(kernel) // 2
    height = images.shape[-3]
    padded = _pad(_pad(images, middle, axis=-3), middle, axis=-2)

    def add_row(k: Array, total: Array) -> Array:
        return total + _along_rows(jax.lax.dynamic_slice_in_dim(padded, k, height, axis=-3), kernel[k])

    total = _flatten(jnp.zeros_like(images))
    return jax.lax.fori_loop(middle - radius, middle + radius + 1, add_row, total).reshape(images.shape)


def _along_rows(padded: Array, taps: Array) -> Array:
    """Filters images [..., H, W + 2 R, C] along their rows: [..., H, W C]."""
    channels = padded.shape[-1]
    flat = _flatten(padded)
    size = flat.shape[-1] - (len(taps) - 1) * channels
    return _add_up(
        taps[k] * jax.lax.slice_in_dim(flat, k * channels, k * channels + size, axis=-1) for k in range(len(taps))
    )


def _add_up(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


def _banded(taps: Array, size: int) -> Array:
    """The matrix [size, size] that filters a column of `size` samples, edges replicated."""
    radius = len(taps) // 2
    output, tap = jnp.arange(size)[:, None], jnp.arange(len(taps))[None, :]
    source = jnp.clip(output + tap - radius, 0, size - 1)
    return jnp.zeros((size, size)).at[output, source].add(taps)


def _flatten(images: Array) -> Array:
    return images.reshape(*images.shape[:-2], -1)


def _pad(images: Array, radius: int, axis: int) -> Array:
    widths = [(0, 0)] * images.ndim
    widths[axis] = (radius, radius)
    return jnp.pad(images, widths, mode="edge")
