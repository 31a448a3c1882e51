"""CLIP's vision transformer.

Source: VisionTransformer of OpenAI's CLIP.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qualiclip_jax.models.clip_config import CLIPConfig, ViTConfig
from qualiclip_jax.models.encoder import ImageEncoder
from qualiclip_jax.models.layers import Transformer, normal
from qualiclip_jax.models.position import grid_embedding


class ViT(ImageEncoder):
    """The image encoder of ViT-B/32 and its relatives; pixels beyond the last whole patch are not seen."""

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        shape, dtype = config.image, jnp.dtype(config.compute_dtype)
        assert isinstance(shape, ViTConfig)
        width, patch = shape.width, shape.patch_size
        init = normal(width**-0.5)
        self.position, self.dtype, self.patch_size = config.position, dtype, patch
        self.patches = nnx.Conv(
            3,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=dtype,
            kernel_init=normal((3 * patch * patch) ** -0.5),
            rngs=rngs,
        )
        self.class_token = nnx.Param(init(rngs.params(), (width,), jnp.float32))
        self.positions = nnx.Param(init(rngs.params(), (1 + shape.grid**2, width), jnp.float32))
        self.ln_pre = nnx.LayerNorm(width, epsilon=shape.layer_norm_eps, dtype=jnp.float32, rngs=rngs)
        self.transformer = Transformer(shape, dtype, config.remat, rngs)
        self.ln_post = nnx.LayerNorm(width, epsilon=shape.layer_norm_eps, dtype=jnp.float32, rngs=rngs)
        self.projection = nnx.Linear(width, config.embed_dim, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)

    @property
    def readout(self) -> nnx.Linear:
        """The last layer."""
        return self.projection

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """images [N, H, W, 3], normalised -> [N, D]; sizes int [N, 2] or None, see `CLIP.encode_image`."""
        return self._head(self.transformer(*self._embedded(images, sizes)))

    def before(self, images: jax.Array) -> jax.Array:
        """What reaches the last block, [N, 1 + rows * columns, W]: the class token, and the patches by rows."""
        return self.transformer(*self._embedded(images, None), slice(None, -1))

    def after(self, tokens: jax.Array) -> jax.Array:
        """What the last block and the projection make of `before`, [N, D]."""
        return self._head(self.transformer(tokens, None, slice(-1, None)))

    def _embedded(self, images: jax.Array, sizes: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """What reaches the first block, and its mask."""
        x = self.patches(images.astype(self.dtype))
        n, rows, columns, width = x.shape
        grid_sizes = None if sizes is None else sizes // self.patch_size
        first = jnp.broadcast_to(self.class_token[...].astype(self.dtype), (n, 1, width))
        x = jnp.concatenate([first, x.reshape(n, rows * columns, width)], axis=1)  # [N, 1 + rows * columns, W]
        embedding = grid_embedding(self.positions[...], self.position, (rows, columns), grid_sizes)
        if embedding is not None:
            x = x + embedding.astype(self.dtype)
        return self.ln_pre(x).astype(self.dtype), _token_mask(grid_sizes, rows, columns)

    def _head(self, x: jax.Array) -> jax.Array:
        return self.projection(self.ln_post(x[:, 0]).astype(self.dtype))


def _token_mask(grid_sizes: jax.Array | None, rows: int, columns: int) -> jax.Array | None:
    """bool [N, 1, 1, 1 + rows * columns]: the class token and the patches inside the valid area."""
    if grid_sizes is None:
        return None
    inside = (jnp.arange(rows) < grid_sizes[:, :1])[:, :, None] & (jnp.arange(columns) < grid_sizes[:, 1:])[:, None, :]
    inside = inside.reshape(len(grid_sizes), rows * columns)
    return jnp.pad(inside, ((0, 0), (1, 0)), constant_values=True)[:, None, None, :]
