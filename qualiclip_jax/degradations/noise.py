"""Noise, drawn independently for each image of a batch. Images are float32 [..., H, W, 3], RGB in [0, 1]."""

import jax
import jax.numpy as jnp
from jax import Array

from qualiclip_jax.degradations import draws
from qualiclip_jax.degradations.color_spaces import ycbcr_to_rgb

MAX_FRACTION = 0.03


def white_noise(images: Array, variance: Array | float, key: Array) -> Array:
    """Adds Gaussian noise of the given variance, independent in every sample."""
    return jnp.clip(images + draws.normal(key, images.shape) * jnp.sqrt(variance), 0, 1)


def ycbcr_noise(images: Array, variance: Array | float, key: Array) -> Array:
    """Adds Gaussian noise of the given variance to Y, Cb and Cr.

    The conversions are linear, so what is added to the RGB samples is the noise taken from YCbCr to RGB.
    """

    keys = jax.random.split(key, 3)
    planes = jax.vmap(lambda key: draws.normal(key, images.shape[:-1]))(keys)
    return jnp.clip(images + ycbcr_to_rgb(planes) * jnp.sqrt(variance), 0, 1)


def impulse_noise(images: Array, fraction: Array | float, key: Array, max_fraction: float = MAX_FRACTION) -> Array:
    """Sets samples to 1 (salt) and as many to 0 (pepper), at positions drawn with replacement.

    Args:
      images: float32 [..., H, W, 3].
      fraction: of the samples of an image; int(fraction H W 3) are drawn, the first half of them salt. May be traced.
      key: of the positions.
      max_fraction: static bound of `fraction`.
    """
    size = images.shape[-3] * images.shape[-2] * images.shape[-1]

    def one(image: Array, key: Array) -> Array:
        index = jnp.arange(int(max_fraction * size))
        count = jnp.floor(jnp.asarray(fraction, jnp.float32) * size).astype(jnp.int32)
        where = jax.random.randint(key, index.shape, 0, size)
        where = jnp.where(index < count, where, size)  # what lies beyond the end is dropped
        impulse = (index < count // 2).astype(image.dtype)
        return image.reshape(-1).at[where].set(impulse, mode="drop").reshape(image.shape)

    return draws.per_image(one, images, key)


def multiplicative_noise(images: Array, variance: Array | float, key: Array) -> Array:
    """Multiplies every sample by 1 plus Gaussian noise of the given variance."""
    return jnp.clip(images * (1 + draws.normal(key, images.shape) * jnp.sqrt(variance)), 0, 1)
