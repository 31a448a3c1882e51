"""Preprocessing of pixel values: CLIP's, and how encoders of others get theirs from it."""

import jax
import jax.numpy as jnp
import numpy as np

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# Name -> mean and standard deviation with which published weights expect RGB in [0, 1] to be normalised.
PIXELS = {
    "clip": (MEAN, STD),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def normalise(images: jax.Array) -> jax.Array:
    """CLIP's preprocessing of pixel values: RGB [..., 3] in [0, 1], minus the mean, over the standard deviation."""
    return (images - jnp.array(MEAN, images.dtype)) / jnp.array(STD, images.dtype)


def renormalise(images: jax.Array, pixels: str) -> jax.Array:
    """Images [..., 3] that `normalise` gave, as if they had been normalised with an entry of `PIXELS`."""
    if pixels == "clip":
        return images
    mean, deviation = (np.array(values) for values in PIXELS[pixels])
    scale, offset = np.array(STD) / deviation, (np.array(MEAN) - mean) / deviation
    return images * jnp.asarray(scale, images.dtype) + jnp.asarray(offset, images.dtype)
