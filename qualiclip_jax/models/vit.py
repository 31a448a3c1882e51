"""Vision transformers: CLIP's, read at a class token (or by a mean), and SigLIP's, read by an attention pool.

Source: VisionTransformer of OpenAI's CLIP; Zhai et al., "Sigmoid loss for language image pre-training" (2303.15343) and
Zhai et al., "Scaling vision transformers" (2106.04560), for the pool.
"""

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax.models.clip_config import CLIPConfig, ViTConfig
from qualiclip_jax.models.encoder import ImageEncoder
from qualiclip_jax.models.layers import ACTIVATIONS, Transformer, attend, normal
from qualiclip_jax.models.pixels import renormalise
from qualiclip_jax.models.position import grid_embedding


class MapPool(nnx.Module):
    """A learned query attends to all tokens; a perceptron with a shortcut follows."""

    def __init__(self, shape: ViTConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        def linear(into: int, out: int) -> nnx.Linear:
            return nnx.Linear(into, out, kernel_init=normal(into**-0.5), dtype=dtype, rngs=rngs)

        width, hidden = shape.width, shape.mlp_width or 4 * shape.width
        self.heads, self.activation, self.dtype = shape.heads, shape.activation, dtype
        self.probe = nnx.Param(normal(width**-0.5)(rngs.params(), (width,), jnp.float32))
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)
        self.ln = nnx.LayerNorm(width, epsilon=shape.layer_norm_eps, dtype=jnp.float32, rngs=rngs)
        self.fc = linear(width, hidden)
        self.proj = linear(hidden, width)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x [N, T, W] in the compute type, mask as in `layers.attention` -> [N, W]."""
        n, _, width = x.shape
        assert self.qkv.bias is not None
        kernel, bias = self.qkv.kernel[...].astype(self.dtype), self.qkv.bias[...].astype(self.dtype)
        q = self.probe[...].astype(self.dtype) @ kernel[:, :width] + bias[:width]
        k, v = jnp.split(
            (x @ kernel[:, width:] + bias[width:]).reshape(n, -1, 2 * self.heads, width // self.heads), 2, 2
        )
        q = jnp.broadcast_to(q.reshape(1, 1, self.heads, -1), (n, 1, *k.shape[2:]))
        x = self.out(attend(q, k, v, mask).reshape(n, width))
        return x + self.proj(ACTIVATIONS[self.activation](self.fc(self.ln(x).astype(self.dtype))))


class ViT(ImageEncoder):
    """The image encoder of ViT-B/32 and its relatives; pixels beyond the last whole patch are not seen.

    Attributes:
      class_tokens: tokens before those of the patches, 1 or 0.
    """

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        shape, dtype = config.image, jnp.dtype(config.compute_dtype)
        assert isinstance(shape, ViTConfig)
        width, patch = shape.width, shape.patch_size
        init = normal(width**-0.5)

        def norm() -> nnx.LayerNorm:
            return nnx.LayerNorm(width, epsilon=shape.layer_norm_eps, dtype=jnp.float32, rngs=rngs)

        self.position, self.dtype, self.patch_size, self.pixels = config.position, dtype, patch, shape.pixels
        self.class_tokens, self.pool_kind, self.resampling = shape.class_tokens, shape.pool, shape.resampling
        self.patches = nnx.Conv(
            3,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            use_bias=not self.class_tokens,
            dtype=dtype,
            kernel_init=normal((3 * patch * patch) ** -0.5),
            rngs=rngs,
        )
        first = nnx.Param(init(rngs.params(), (width,), jnp.float32)) if self.class_tokens else None
        self.class_token = nnx.data(first)
        self.positions = nnx.Param(init(rngs.params(), (self.class_tokens + shape.grid**2, width), jnp.float32))
        self.ln_pre = norm() if shape.pre_norm else None
        self.transformer = Transformer(shape, dtype, config.remat, rngs)
        self.ln_post = norm()
        if self.class_tokens:
            out = config.embed_dim
            self.projection = nnx.Linear(width, out, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        else:
            self.head = MapPool(shape, dtype, rngs)
        self.columns: nnx.Param[jax.Array] | None = nnx.data(None)

    @property
    def readout(self) -> nnx.Linear:
        """The last layer, unless features come out of the attention pool."""
        return self.projection

    @property
    def readout_width(self) -> int:
        """As in `ImageEncoder`: the features themselves, where the attention pool is the last layer."""
        return int(self.ln_post.num_features)

    def widened(self, columns: np.ndarray) -> Self:
        """As in `ImageEncoder`."""
        if self.class_tokens:
            return super().widened(columns)
        wide = nnx.clone(self)
        wide.columns = nnx.Param(jnp.asarray(columns))
        return wide

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """images [N, H, W, 3], normalised -> [N, D]; sizes int [N, 2] or None, see `CLIP.encode_image`."""
        x, mask = self._embedded(images, sizes)
        return self._head(self.transformer(x, mask), mask)

    def before(self, images: jax.Array) -> jax.Array:
        """What reaches the last block, [N, class_tokens + rows * columns, W]: the patches by rows."""
        return self.transformer(*self._embedded(images, None), slice(None, -1))

    def after(self, tokens: jax.Array) -> jax.Array:
        """What the last block and the projection make of `before`, [N, D]."""
        return self._head(self.transformer(tokens, None, slice(-1, None)), None)

    def _embedded(self, images: jax.Array, sizes: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """What reaches the first block, and its mask."""
        x, rows, columns = self._patches(renormalise(images, self.pixels).astype(self.dtype))
        grid_sizes = None if sizes is None else sizes // self.patch_size
        if self.class_token is not None:
            x = x + jnp.pad(self.class_token[...].astype(self.dtype)[None], ((0, rows * columns), (0, 0)))
        embedding = grid_embedding(self.positions[...], self.position, (rows, columns), grid_sizes, self.resampling)
        if embedding is not None:
            x = x + embedding.astype(self.dtype)
        x = x if self.ln_pre is None else self.ln_pre(x).astype(self.dtype)
        return x, _token_mask(grid_sizes, rows, columns, self.class_tokens)

    def _patches(self, images: jax.Array) -> tuple[jax.Array, int, int]:
        """The embedded patches [N, class_tokens + rows * columns, W], zeros in place of a class token, and the grid.

        `patches` is a convolution. As a matrix product its gradient is one, too, not a convolution with a kernel as
        large as the image. On a TPU the convolution moves less memory.
        """
        n, height, width, channels = images.shape
        side, first = self.patch_size, ((0, 0), (self.class_tokens, 0), (0, 0))
        rows, columns = height // side, width // side
        if jax.default_backend() == "tpu":
            return jnp.pad(self.patches(images).reshape(n, rows * columns, -1), first), rows, columns
        x = images[:, : rows * side, : columns * side].reshape(n, rows, side, columns, side * channels)
        x = jnp.pad(x.swapaxes(2, 3).reshape(n, rows * columns, side * side * channels), first)
        x = x @ self.patches.kernel[...].reshape(x.shape[-1], -1).astype(self.dtype)
        if self.patches.bias is not None:  # only where there is no class token
            x = x + self.patches.bias[...].astype(self.dtype)
        return x, rows, columns

    def _head(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        if self.pool_kind == "token":
            return self.projection(self.ln_post(x[:, 0]).astype(self.dtype))
        if self.pool_kind == "mean":
            return self.projection(self.ln_post(_mean(x, mask)).astype(self.dtype))
        if self.pool_kind == "norm_mean":
            return self.projection(_mean(self.ln_post(x), mask).astype(self.dtype))
        features = self.head(self.ln_post(x).astype(self.dtype), mask)
        if self.columns is None:
            return features
        return jnp.concatenate([features, features @ self.columns[...].astype(self.dtype)], axis=-1)


def _mean(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean of the patches of x [N, 1 + T, W] in float32, [N, W]; `mask` as `_token_mask` gives it."""
    weight = jnp.ones((1, x.shape[1] - 1, 1)) if mask is None else mask[:, 0, 0, 1:, None].astype(jnp.float32)
    return (x[:, 1:].astype(jnp.float32) * weight).sum(1) / weight.sum(1)


def _token_mask(grid_sizes: jax.Array | None, rows: int, columns: int, first: int) -> jax.Array | None:
    """bool [N, 1, 1, first + rows * columns]: the first tokens, and the patches inside the valid area."""
    if grid_sizes is None:
        return None
    inside = (jnp.arange(rows) < grid_sizes[:, :1])[:, :, None] & (jnp.arange(columns) < grid_sizes[:, 1:])[:, None, :]
    inside = inside.reshape(len(grid_sizes), rows * columns)
    return jnp.pad(inside, ((0, 0), (first, 0)), constant_values=True)[:, None, None, :]
