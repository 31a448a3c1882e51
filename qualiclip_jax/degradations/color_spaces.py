"""RGB to CIE Lab and back, and luma, with the constants of kornia.color (D65, sRGB primaries). Channels last."""

import jax.numpy as jnp
import numpy as np
from jax import Array

_RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_WHITE = (_RGB_TO_XYZ / _WHITE[:, None]).tolist()
_FROM_WHITE = (np.linalg.inv(_RGB_TO_XYZ) * _WHITE).tolist()


def rgb_to_lab(images: Array) -> tuple[Array, Array, Array]:
    """Mirrors `kornia.color.rgb_to_lab`.

    Args:
      images: float32 [..., 3], RGB in [0, 1].

    Returns:
      L in [0, 100], a, b; float32 [...] each.
    """
    linear = jnp.where(images > 0.04045, ((jnp.maximum(images, 0.04045) + 0.055) / 1.055) ** 2.4, images / 12.92)
    red, green, blue = linear[..., 0], linear[..., 1], linear[..., 2]

    def response(row):
        xyz = row[0] * red + row[1] * green + row[2] * blue
        return jnp.where(xyz > 0.008856, jnp.cbrt(jnp.maximum(xyz, 0.008856)), 7.787 * xyz + 4 / 29)

    x, y, z = (response(row) for row in _TO_WHITE)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def lab_to_rgb(lightness: Array, a: Array, b: Array) -> Array:
    """Mirrors `kornia.color.lab_to_rgb`, with its clipping.

    Args:
      lightness: float32 [...], L in [0, 100].
      a: float32 [...].
      b: float32 [...].

    Returns:
      float32 [..., 3], RGB in [0, 1].
    """
    y = (lightness + 16) / 116
    xyz = [jnp.where(f > 0.2068966, f**3, (f - 4 / 29) / 7.787) for f in (y + a / 500, y, jnp.maximum(y - b / 200, 0))]
    linear = jnp.stack([row[0] * xyz[0] + row[1] * xyz[1] + row[2] * xyz[2] for row in _FROM_WHITE], axis=-1)
    rgb = jnp.where(linear > 0.0031308, 1.055 * jnp.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return jnp.clip(rgb, 0, 1)


def luma(images: Array) -> Array:
    """Rec. 601 luma of RGB images [..., 3]: [...]. Mirrors `kornia.color.rgb_to_grayscale`."""
    return 0.299 * images[..., 0] + 0.587 * images[..., 1] + 0.114 * images[..., 2]
