"""RGB to CIE Lab and back, and luma, with the constants of kornia.color (D65, sRGB primaries).

Lab images are planar, [3, ..., H, W]: mixing channels is then one product with a 3 x 3 matrix, several times as fast as
the same on interleaved channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_RESPONSE_TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])

_YCBCR_TO_RGB = np.array([[1, 0, 1.403], [1, -0.344, -0.714], [1, 1.773, 0]])  # Cb and Cr centred at 0


def rgb_to_lab(images: Array) -> Array:
    """Mirrors `kornia.color.rgb_to_lab`.

    Args:
      images: float32 [..., 3], RGB in [0, 1].

    Returns:
      float32 [3, ...]: L in [0, 100], a, b.
    """
    rgb = jnp.moveaxis(images, -1, 0)
    xyz = _mix(_RGB_TO_XYZ / _WHITE[:, None], srgb_to_linear(rgb))
    response = jnp.where(xyz > 0.008856, _power(xyz, 1 / 3), 7.787 * xyz + 4 / 29)
    return _mix(_RESPONSE_TO_LAB, response).at[0].add(-16)


def lab_to_rgb(lab: Array) -> Array:
    """Mirrors `kornia.color.lab_to_rgb`, with its clipping.

    Args:
      lab: float32 [3, ...]: L in [0, 100], a, b.

    Returns:
      float32 [..., 3], RGB in [0, 1].
    """
    response = _mix(np.linalg.inv(_RESPONSE_TO_LAB), lab.at[0].add(16))
    response = response.at[2].max(0)
    xyz = jnp.where(response > 0.2068966, response**3, (response - 4 / 29) / 7.787)
    linear = _mix(np.linalg.inv(_RGB_TO_XYZ) * _WHITE, xyz)
    return jnp.moveaxis(jnp.clip(linear_to_srgb(linear), 0, 1), 0, -1)


def srgb_to_linear(images: Array) -> Array:
    """Linear light of sRGB samples in [0, 1] (IEC 61966-2-1); float32 of any shape."""
    return jnp.where(images > 0.04045, _power((images + 0.055) / 1.055, 2.4), images / 12.92)


def linear_to_srgb(light: Array) -> Array:
    """sRGB samples of linear light in [0, 1], the inverse of `srgb_to_linear`."""
    return jnp.where(light > 0.0031308, 1.055 * _power(light, 1 / 2.4) - 0.055, 12.92 * light)


def luma(images: Array) -> Array:
    """Luma of Rec. 601, 0.299 R + 0.587 G + 0.114 B, of images [..., 3]. Mirrors `kornia.color.rgb_to_grayscale`."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    return green + 0.299 * (red - green) + 0.114 * (blue - green)


def ycbcr_to_rgb(planes: Array) -> Array:
    """Y, Cb, Cr [3, ...] with Cb and Cr centred at 0 to RGB [..., 3]. Mirrors `kornia.color.ycbcr_to_rgb`."""
    return jnp.moveaxis(_mix(_YCBCR_TO_RGB, planes), 0, -1)


def _mix(matrix: np.ndarray, planes: Array) -> Array:
    return jnp.tensordot(jnp.asarray(matrix, jnp.float32), planes, axes=1, precision=jax.lax.Precision.HIGHEST)


def _power(x: Array, exponent: float) -> Array:
    """x ** exponent for x > 0 (1e-3 ** exponent below 1e-3); a quarter of the time of `**` on a CPU."""
    return jnp.exp(exponent * jnp.log(jnp.maximum(x, 1e-3)))
