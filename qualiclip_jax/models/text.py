"""CLIP's text transformer, and SigLIP's.

Source: CLIP.encode_text of OpenAI's CLIP; Zhai et al., "Sigmoid loss for language image pre-training" (2303.15343).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qualiclip_jax.models.clip_config import CLIPConfig
from qualiclip_jax.models.layers import Transformer, normal


class TextEncoder(nnx.Module):
    """Transformer; the feature of a text is read at its end token, at the first, or at the last that fills it up."""

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        shape, dtype = config.text, jnp.dtype(config.compute_dtype)
        assert shape is not None
        width = shape.width
        self.end_token, self.causal, self.pool, self.dtype = shape.end_token, shape.causal, shape.pool, dtype
        self.tokens = nnx.Param(normal(0.02)(rngs.params(), (shape.vocab_size, width), jnp.float32))
        self.positions = nnx.Param(normal(0.01)(rngs.params(), (shape.context_length, width), jnp.float32))
        self.transformer = Transformer(shape, dtype, config.remat, rngs)
        self.ln_final = nnx.LayerNorm(width, epsilon=shape.layer_norm_eps, dtype=jnp.float32, rngs=rngs)
        init = normal(width**-0.5)
        bias = shape.projection_bias
        self.projection = nnx.Linear(width, config.embed_dim, use_bias=bias, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens int [P, T] -> [P, D]; T is at most the context length, and equal to it where what fills up counts."""
        if self.pool != "end":
            place = 0 if self.pool == "first" else tokens.shape[1] - 1
            return self.encode(self.tokens[...][tokens], jnp.full(len(tokens), place))
        is_end = tokens if self.end_token is None else tokens == self.end_token
        return self.encode(self.tokens[...][tokens], jnp.argmax(is_end, axis=1))  # the first of the largest

    def encode(self, embedded: jax.Array, end: jax.Array) -> jax.Array:
        """Embedded tokens float [P, T, W], and which token of each text is read, int [P] -> [P, D]."""
        x = (embedded + self.positions[...][: embedded.shape[1]]).astype(self.dtype)
        x = self.transformer(x, jnp.tri(embedded.shape[1], dtype=bool) if self.causal else None)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return self.projection(self.ln_final(x).astype(self.dtype))
