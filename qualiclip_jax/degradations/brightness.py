"""Changes of brightness. Images are float32 [..., H, W, 3], RGB in [0, 1]."""

import dm_pix
import jax.numpy as jnp
from jax import Array

from qualiclip_jax.degradations.color_spaces import lab_to_rgb, rgb_to_lab


def brighten(images: Array, amount: Array | float) -> Array:
    """Lifts mid-grey by amount / 2.

    Two thirds of the result are a curve on RGB, one third is the same curve on L of Lab (red and blue exchanged).

    Args:
      images: float32 [..., H, W, 3].
      amount: >= 0; may be traced.
    """
    lab = rgb_to_lab(images[..., ::-1])
    in_lab = lab_to_rgb(lab.at[0].set(100 * _curve(lab[0] / 100, 0.5 + amount / 2)))[..., ::-1]
    return (2 * _curve(images, 0.5 + amount / 2) + in_lab) / 3


def darken(images: Array, amount: Array | float) -> Array:
    """Lowers mid-grey by amount / 2, by a curve on RGB.

    Args:
      images: float32 [..., H, W, 3].
      amount: >= 0; may be traced.
    """
    return _curve(images, 0.5 - amount / 2)


def mean_shift(images: Array, amount: Array | float) -> Array:
    """Adds `amount` to every sample."""
    return jnp.clip(dm_pix.adjust_brightness(images, amount), 0, 1)


def _curve(x: Array, middle: Array | float) -> Array:
    """The parabola through (0, 0), (0.5, middle) and (1, 1), clipped to [0, 1]."""
    return jnp.clip(x * (4 * middle - 1 + x * (2 - 4 * middle)), 0, 1)
