"""Changes of sharpness and contrast. Images are float32 [..., H, W, 3], RGB in [0, 1]."""

import jax.numpy as jnp
from jax import Array

from qualiclip_jax.degradations import filters
from qualiclip_jax.degradations.color_spaces import lab_to_rgb, rgb_to_lab


def sharpen(images: Array, amount: Array | float) -> Array:
    """Unsharp mask on L of Lab (red and blue exchanged): L + amount (L - blurred L), Gaussian of 13 px and sigma 6.

    Args:
      images: float32 [..., H, W, 3].
      amount: >= 0; may be traced.
    """
    lab = rgb_to_lab(images[..., ::-1])
    blurred = filters.separable(lab[0, ..., None], filters.gaussian_taps(6.0, 6, 6))[..., 0]
    return lab_to_rgb(lab.at[0].add(amount * (lab[0] - blurred)))[..., ::-1]


def linear_contrast(images: Array, amount: Array | float) -> Array:
    """The curve through (0, 0), (0.3, 0.25 - amount / 4), (0.5, 0.5), (0.7, 0.75 + amount / 4) and (1, 1).

    The reference takes the cubic spline with not-a-knot ends. The points are symmetric about (0.5, 0.5), which leaves
    an odd cubic u (slope + bend u^2) in u = x - 0.5.

    Args:
      images: float32 [..., H, W, 3].
      amount: positive steepens the middle, negative flattens it; may be traced.
    """
    rise = 0.25 + amount / 4  # at u = 0.2; 0.5 at u = 0.5
    slope = (0.5**3 * rise - 0.2**3 * 0.5) / (0.2 * 0.5**3 - 0.5 * 0.2**3)
    bend = 4 - 4 * slope
    u = images - 0.5
    return jnp.clip(0.5 + u * (slope + bend * u**2), 0, 1)


def nonlinear_contrast(images: Array, half_range: Array | float) -> Array:
    """Squeezes the range to 0.5 - half_range .. 0.5 + half_range. (The name is the reference's; the map is linear.)"""
    low = jnp.round((0.5 - half_range) * 1e6) / 1e6  # 0.1, not the float below: black becomes 25.5 of 255 at level 1
    return jnp.clip(2 * half_range * images + low, low, 1 - low)
