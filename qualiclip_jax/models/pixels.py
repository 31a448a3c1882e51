"""CLIP's preprocessing of pixel values."""

import jax
import jax.numpy as jnp

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(images: jax.Array) -> jax.Array:
    """CLIP's preprocessing of pixel values: RGB [..., 3] in [0, 1], minus the mean, over the standard deviation."""
    return (images - jnp.array(MEAN, images.dtype)) / jnp.array(STD, images.dtype)
