"""Random numbers of each image of a batch from one key, whatever the size of the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def per_image(function: Callable[[Array, Array], Array], images: Array, key: Array) -> Array:
    """Calls `function(image [H, W, C], key)` for every image of [..., H, W, C]; image i gets `fold_in(key, i)`."""
    flat = images.reshape(-1, *images.shape[-3:])
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(flat)))
    return jax.vmap(function)(flat, keys).reshape(images.shape)
