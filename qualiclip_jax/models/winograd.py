"""3 x 3 convolutions with 36 multiplications for every 144: Winograd's F(4 x 4, 3 x 3), for inference on CPUs.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), section 4.1, with the points of
interpolation 0, +-3/4, +-3/2 and infinity in place of 0, +-1, +-2 and infinity: a third of the rounding error. The
results differ from those of the plain convolution by float32 rounding alone, which is about four times as large.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_A, _B = 0.75, 1.5  # the points are 0, +-_A, +-_B and infinity
_AA, _BB = _A**2, _B**2
LEAST_CHANNELS = 64  # below, transforming the samples takes longer than it saves


class WinogradConv(nnx.Module):
    """What a 3 x 3 convolution of stride 1 and padding 1 computes.

    Args:
      conv: the convolution; its kernel is [3, 3, C, D], and it has a bias.
    """

    def __init__(self, conv: nnx.Conv):
        if conv.bias is None:
            raise ValueError("a convolution with bias is needed")
        kernel = np.asarray(conv.kernel[...], np.float64)
        both_axes = np.kron(_kernel_transform(), _kernel_transform())  # [36, 9]
        transformed = both_axes @ kernel.reshape(9, -1)
        self.kernel = nnx.Param(jnp.asarray(transformed.reshape(36, *kernel.shape[2:]), jnp.float32))
        self.bias = nnx.Param(conv.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """x float32 [N, H, W, C] -> [N, H, W, D]."""
        return convolve(x, self.kernel[...]) + self.bias[...]


def pays(conv: nnx.Conv) -> bool:
    """Whether this is the faster way to compute a 3 x 3 convolution of stride 1."""
    return conv.in_features >= LEAST_CHANNELS


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3 x 3 convolution with zeros around: every 6 x 6 tile, overlapping the next by 2, gives 4 x 4 results.

    Args:
      x: float32 [N, H, W, C].
      kernel: transformed, float32 [36, C, D].

    Returns:
      float32 [N, H, W, D].
    """
    n, height, width, channels = x.shape
    rows, columns, out = -(-height // 4), -(-width // 4), kernel.shape[-1]  # of tiles
    x = jnp.pad(x, ((0, 0), (1, 4 * rows + 3 - height), (1, 4 * columns + 3 - width), (0, 0)))
    x = x.reshape(n, rows + 1, 4, columns + 1, 4, channels)
    this, following = x[:, :-1], x[:, 1:]
    tiles = jnp.stack(_spread(*(this[:, :, k] for k in range(4)), *(following[:, :, k] for k in range(2))))
    tiles = jax.lax.optimization_barrier(tiles)  # or XLA computes it once more for each result of the next lines
    this, following = tiles[:, :, :, :-1], tiles[:, :, :, 1:]
    tiles = jnp.stack(_spread(*(this[..., k, :] for k in range(4)), *(following[..., k, :] for k in range(2))), 1)
    products = jnp.einsum("ktc,kcd->ktd", tiles.reshape(36, n * rows * columns, channels), kernel)
    products = products.reshape(6, 6, n, rows, columns, out)
    along_height = jnp.stack(_gather(*products), 3)  # [6, N, rows, 4, columns, D]
    y = jnp.stack(_gather(*along_height), 4)  # [N, rows, 4, columns, 4, D]
    return y.reshape(n, 4 * rows, 4 * columns, out)[:, :height, :width]


def _kernel_transform() -> np.ndarray:
    """What one kernel is multiplied by along an axis, float64 [6, 3]."""

    def powers(x: float) -> np.ndarray:
        return np.array([1, x, x * x])

    a, b = 2 * _AA * (_AA - _BB), 2 * _BB * (_BB - _AA)
    rows = (powers(0) / (_AA * _BB), powers(_A) / a, powers(-_A) / a, powers(_B) / b, powers(-_B) / b, (0, 0, 1))
    return np.stack(rows).astype(np.float64)


def _spread(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, e: jax.Array, f: jax.Array
) -> tuple[jax.Array, ...]:
    """Six neighbouring samples, transformed along one axis."""
    even_a, odd_a = e - _BB * c, _A * (d - _BB * b)
    even_b, odd_b = e - _AA * c, _B * (d - _AA * b)
    first, last = (x[2] - (_AA + _BB) * x[1] + _AA * _BB * x[0] for x in ((a, c, e), (b, d, f)))
    return first, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, last


def _gather(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, e: jax.Array, f: jax.Array
) -> tuple[jax.Array, ...]:
    """Four neighbouring results from six products, along one axis."""
    even_a, odd_a, even_b, odd_b = b + c, _A * (b - c), d + e, _B * (d - e)
    return a + even_a + even_b, odd_a + odd_b, _AA * even_a + _BB * even_b, _AA * odd_a + _BB * odd_b + f
