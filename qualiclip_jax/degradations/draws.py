"""Random numbers for pixels: the same for a key on every device, and cheap enough to draw 150,000 per image.

`jax.random` makes the keys. From a key come two words, and from these and the index of a sample 32 bits, by integer
hashing. On a CPU that takes a tenth of the time of `jax.random.bits`, whose generator is a cryptographic one.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def per_image(function: Callable[[Array, Array], Array], images: Array, key: Array) -> Array:
    """Calls `function(image [H, W, C], key)` for every image of [..., H, W, C]; image i gets `fold_in(key, i)`."""
    flat = images.reshape(-1, *images.shape[-3:])
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(flat)))
    return jax.vmap(function)(flat, keys).reshape(images.shape)


def bits(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform random uint32 of the given shape (at most 2^32 of them)."""
    words = jax.random.bits(key, (2,))
    index = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _hash(_hash(index * np.uint32(0x9E3779B9) + words[0]) + words[1])


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal float32 of the given shape, from 24 bits each: no value is beyond 5.3."""
    odd = (bits(key, shape) >> 8 | 1).astype(jnp.int32) - (1 << 23)  # odd, so never 0 or at an end
    return math.sqrt(2) * jax.lax.erf_inv(odd.astype(jnp.float32) * 2.0**-23)


def _hash(x: Array) -> Array:
    """A bijection of uint32 in which each bit of x changes each bit with probability 1/2 (bias below 0.2 per mille)."""
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
    return x ^ (x >> 15)
