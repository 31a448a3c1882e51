"""A model as a pure function of images that are not padded, in the arithmetic of any device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qualiclip_jax import models


def judge(model: models.Model) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """A function of images uint8, or float in [0, 1], [N, H, W, 3] that gives features [N, D] and attributes [N, P].

    Both are float32. It is differentiable, and can be traced with symbolic sizes. It checks nothing.
    """
    encoder = models.fold_batch_norm(model.clip).image

    def of(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        scale = 1 / 255 if images.dtype == jnp.uint8 else 1.0
        features = encoder(models.normalise(images.astype(jnp.float32) * scale), None).astype(jnp.float32)
        return features, model.attribute_scores(features)

    return of
