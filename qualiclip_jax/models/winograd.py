"""3 x 3 convolutions with 16 multiplications for every 36: Winograd's F(2 x 2, 3 x 3), for inference on CPUs.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), section 4.1. The results differ from
those of the plain convolution by float32 rounding alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax.models.resnet import ResNet

# What one 3 x 3 kernel becomes along one axis.
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
LEAST_CHANNELS = 64  # below, transforming the samples takes longer than it saves


class WinogradConv(nnx.Module):
    """What a 3 x 3 convolution of stride 1 and padding 1 computes.

    Args:
      conv: the convolution; its kernel is [3, 3, C, D], and it has a bias.
    """

    def __init__(self, conv: nnx.Conv):
        kernel = np.einsum("ai,bj,ijcd->abcd", _G, _G, np.asarray(conv.kernel[...]))
        self.kernel = nnx.Param(jnp.asarray(kernel.reshape(16, *kernel.shape[2:])))
        self.bias = nnx.Param(conv.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """x float32 [N, H, W, C] -> [N, H, W, D]."""
        return convolve(x, self.kernel[...]) + self.bias[...]


def use_winograd(image: ResNet) -> ResNet:
    """A copy of a folded encoder whose residual blocks compute their 3 x 3 convolutions this way, where it pays."""
    image = nnx.clone(image)
    for block in (block for stage in image.stages for block in stage):
        if block.conv2.conv.in_features >= LEAST_CHANNELS:
            block.conv2.conv = WinogradConv(block.conv2.conv)
    return image


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3 x 3 convolution with zeros around: every 4 x 4 tile, overlapping the next by 2, gives 2 x 2 results.

    Args:
      x: float32 [N, H, W, C].
      kernel: transformed, float32 [16, C, D].

    Returns:
      float32 [N, H, W, D].
    """
    n, height, width, channels = x.shape
    rows, columns, out = -(-height // 2), -(-width // 2), kernel.shape[-1]  # of tiles
    x = jnp.pad(x, ((0, 0), (1, 2 * rows + 1 - height), (1, 2 * columns + 1 - width), (0, 0)))
    x = x.reshape(n, rows + 1, 2, columns + 1, 2, channels)
    tiles = jnp.stack(_spread(x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0], x[:, 1:, 1]))  # along the height
    tiles = jax.lax.optimization_barrier(tiles)  # or XLA computes it once more for each result of the next line
    before, after = tiles[:, :, :, :-1], tiles[:, :, :, 1:]
    tiles = jnp.stack(_spread(before[..., 0, :], before[..., 1, :], after[..., 0, :], after[..., 1, :]), 1)
    products = jnp.einsum("ktc,kcd->ktd", tiles.reshape(16, n * rows * columns, channels), kernel)
    products = products.reshape(4, 4, n, rows, columns, out)
    along_height = zip(*(_gather(*products[:, k]) for k in range(4)))
    y = jnp.stack([jnp.stack(_gather(*row), 3) for row in along_height], 2)
    return y.reshape(n, 2 * rows, 2 * columns, out)[:, :height, :width]


def _spread(a, b, c, d):
    """Four neighbouring samples, transformed along one axis."""
    return a - c, b + c, c - b, b - d


def _gather(a, b, c, d):
    """Two neighbouring results from four products, along one axis."""
    return a + b + c, b - c - d
