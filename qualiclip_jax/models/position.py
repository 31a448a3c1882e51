"""Positional embeddings on a 2-D grid, resized to the grid of the image."""

import math

import jax
import jax.numpy as jnp

from qualiclip_jax.errors import UserError


def grid_embedding(
    embedding: jax.Array,
    position: str,
    shape: tuple[int, int],
    grid_sizes: jax.Array | None = None,
    resampling: str = "bicubic",
) -> jax.Array | None:
    """The positional embedding for a grid of tokens.

    Args:
      embedding: float32 [F + G * G, C]: of the first F tokens (class or mean token, 1 or 0), then of the native grid by
        rows.
      position: "none", "native" or "interpolate".
      shape: rows and columns of the grid of tokens, padding included.
      grid_sizes: int [N, 2], rows and columns that are valid in each image; None if all are.
      resampling: a key of `WEIGHTS`.

    Returns:
      float32 [N or 1, F + rows * columns, C]; None for "none". Tokens outside the valid area get finite values without
      meaning.

    Raises:
      UserError: "native" with another grid than the native one.
    """
    if position == "none":
        return None
    side = math.isqrt(len(embedding))
    count = len(embedding) - side**2
    if shape == (side, side) and grid_sizes is None:
        return embedding[None]
    if position == "native":
        raise UserError(
            f"images of {shape[0]} x {shape[1]} patches (or padded ones) with the native positional embedding, which "
            f"is for {side} x {side}: resize the images, or set position to 'interpolate' or 'none'"
        )
    sizes = jnp.array([shape], jnp.int32) if grid_sizes is None else grid_sizes
    weights = WEIGHTS[resampling]
    rows = weights(side, shape[0], sizes[:, 0])  # [N, rows, side]
    columns = weights(side, shape[1], sizes[:, 1])
    native = embedding[count:].reshape(side, side, -1)
    precise = jax.lax.Precision.HIGHEST
    resized = jnp.einsum("nrs,stc->nrtc", rows, native, precision=precise)
    resized = jnp.einsum("nkt,nrtc->nrkc", columns, resized, precision=precise)
    first = jnp.broadcast_to(embedding[:count], (len(sizes), count, embedding.shape[1]))
    return jnp.concatenate([first, resized.reshape(len(sizes), shape[0] * shape[1], -1)], axis=1)


def bicubic_weights(source: int, length: int, size: jax.Array) -> jax.Array:
    """Matrices that resize a line of `source` samples to `size` samples, without antialiasing.

    Source: torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False): Keys' kernel with
    a = -0.75, the edge sample repeated.

    Args:
      source: samples before.
      length: rows of a matrix, at least the largest `size`.
      size: int [N], samples after; may be traced.

    Returns:
      float32 [N, length, source]; rows from `size` on have no meaning.
    """
    a = -0.75
    ratio = source / jnp.maximum(size, 1).astype(jnp.float32)  # [N]
    x = (jnp.arange(length, dtype=jnp.float32) + 0.5) * ratio[:, None] - 0.5  # [N, length]
    left = jnp.floor(x)
    offsets = jnp.arange(-1.0, 3.0, dtype=jnp.float32)
    distance = jnp.abs((x - left)[..., None] - offsets)  # [N, length, 4]
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    taps = jnp.where(distance <= 1, near, far)
    index = jnp.clip(left[..., None] + offsets, 0, source - 1).astype(jnp.int32)
    return jnp.einsum("nlt,nlts->nls", taps, jax.nn.one_hot(index, source, dtype=jnp.float32), precision="highest")


def bilinear_weights(source: int, length: int, size: jax.Array) -> jax.Array:
    """Matrices that resize a line of `source` samples to `size` samples, with antialiasing.

    Source: torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=True): a triangle, as wide
    as two samples of the coarser line; what lies beyond the edges does not count.

    Args, Returns:
      As in `bicubic_weights`.
    """
    ratio = source / jnp.maximum(size, 1).astype(jnp.float32)[:, None, None]
    x = (jnp.arange(length, dtype=jnp.float32)[:, None] + 0.5) * ratio - 0.5  # [N, length, 1]
    distance = jnp.abs(x - jnp.arange(source, dtype=jnp.float32)) / jnp.maximum(ratio, 1)
    taps = jnp.maximum(1 - distance, 0)
    return taps / jnp.maximum(taps.sum(-1, keepdims=True), 1e-6)  # rows without meaning stay finite


WEIGHTS = {"bicubic": bicubic_weights, "bilinear": bilinear_weights}
