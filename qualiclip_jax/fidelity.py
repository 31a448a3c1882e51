"""How far an image is from its pristine original: full-reference measures, in pure JAX."""

import jax
import jax.numpy as jnp

from qualiclip_jax.degradations import color_spaces

_STABILITY = 170.0  # of the paper, for luma in 0..255


def gmsd(images: jax.Array, reference: jax.Array) -> jax.Array:
    """Gradient magnitude similarity deviation: the standard deviation of a map of similar edges.

    Source: Xue, Zhang, Mou and Bovik, "Gradient magnitude similarity deviation: a highly efficient perceptual image
    quality index" (IEEE TIP 2014): luma, averaged over 2 x 2 pixels and halved, Prewitt gradients. It has no parameter
    that was fitted to the photos at hand, and needs no training.

    Args:
      images: float [..., H, W, 3] in [0, 1], H and W >= 8.
      reference: what they were before they were degraded; broadcasts against `images`.

    Returns:
      float32 [...], 0 for equal images; 0.1 is a clearly visible fault, 0.3 a severe one.
    """
    first, second = _gradients(images), _gradients(reference)
    similarity = (2 * first * second + _STABILITY) / (first**2 + second**2 + _STABILITY)
    variance = jnp.var(similarity, axis=(-2, -1))
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)  # a finite gradient at 0


def _gradients(images: jax.Array) -> jax.Array:
    """Gradient magnitudes [..., H // 2 - 2, W // 2 - 2] of the halved luma; the border has none."""
    luma = 255 * color_spaces.luma(images.astype(jnp.float32))
    height, width = (side // 2 for side in luma.shape[-2:])
    luma = luma[..., : 2 * height, : 2 * width].reshape(*luma.shape[:-2], height, 2, width, 2).mean((-3, -1))
    rows = luma[..., :-2, :] + luma[..., 1:-1, :] + luma[..., 2:, :]
    columns = luma[..., :, :-2] + luma[..., :, 1:-1] + luma[..., :, 2:]
    across = (rows[..., :, 2:] - rows[..., :, :-2]) / 3
    down = (columns[..., 2:, :] - columns[..., :-2, :]) / 3
    return jnp.sqrt(jnp.maximum(across**2 + down**2, 1e-12))
