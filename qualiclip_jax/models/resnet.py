"""CLIP's modified ResNet: three-convolution stem, anti-aliased strides, attention pool.

Source: ModifiedResNet and AttentionPool2d of OpenAI's CLIP. Images are padded at the right and bottom when their sizes
differ; `Area` then keeps track of what is valid, so that the features are those of the unpadded images.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax.models.config import CLIPConfig
from qualiclip_jax.models.layers import BatchNorm, normal
from qualiclip_jax.models.position import grid_embedding


@dataclasses.dataclass(frozen=True)
class Area:
    """The valid area of each padded feature map: sizes int [N, 2], or None where nothing is padded."""

    sizes: jax.Array | None

    def mask(self, x: jax.Array) -> jax.Array | None:
        """bool [N, H, W, 1], true inside the valid area of x [N, H, W, C]."""
        if self.sizes is None:
            return None
        rows = jnp.arange(x.shape[1])[None, :] < self.sizes[:, :1]
        columns = jnp.arange(x.shape[2])[None, :] < self.sizes[:, 1:]
        return (rows[:, :, None] & columns[:, None, :])[..., None]

    def clear(self, x: jax.Array) -> jax.Array:
        """x with zeros outside the valid area: what a 3 x 3 convolution sees beyond the edge of an unpadded image."""
        return x if self.sizes is None else jnp.where(self.mask(x), x, jnp.zeros((), x.dtype))

    def convolved(self) -> "Area":
        """After a 3 x 3 convolution of stride 2 and padding 1: sizes rounded up."""
        return Area(None if self.sizes is None else (self.sizes + 1) // 2)

    def pooled(self) -> "Area":
        """After 2 x 2 average pooling: sizes rounded down, so a window never leaves the valid area."""
        return Area(None if self.sizes is None else self.sizes // 2)


def average_pool(x: jax.Array) -> jax.Array:
    """2 x 2 average pooling, [N, H, W, C] -> [N, H // 2, W // 2, C]; as sums of halves, which XLA fuses well."""
    n, rows, columns, channels = x.shape
    rows, columns = rows // 2, columns // 2
    x = x[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, columns, 2 * channels)
    x = x[:, :, 0] + x[:, :, 1]
    return (x[..., :channels] + x[..., channels:]) * jnp.asarray(0.25, x.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias and BatchNorm; or, folded, convolution with bias."""

    def __init__(self, into, out, size, stride, folded, dtype, rngs, scale=1.0):
        self.conv = nnx.Conv(
            into,
            out,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=folded,
            dtype=dtype,
            kernel_init=normal((2 / (size * size * into)) ** 0.5),  # He et al.
            rngs=rngs,
        )
        self.norm = None if folded else BatchNorm(out, scale)

    def __call__(self, x: jax.Array, area: Area) -> jax.Array:
        """x [N, H, W, into]; `area` is the valid area of the result."""
        x = self.conv(x)
        return x if self.norm is None else self.norm(x, area.mask(x) if self.norm.training else None)


class Bottleneck(nnx.Module):
    """A residual block: 1 x 1, 3 x 3, 1 x 1 convolution beside a shortcut; a stride is an average pool in both."""

    def __init__(self, into, width, stride, folded, dtype, rngs):
        def unit(into, out, size, scale=1.0):
            return ConvNorm(into, out, size, 1, folded, dtype, rngs, scale)

        self.stride = stride
        self.conv1 = unit(into, width, 1)
        self.conv2 = unit(width, width, 3)
        self.conv3 = unit(width, 4 * width, 1, scale=0.0)  # each block starts as its shortcut
        self.shortcut = unit(into, 4 * width, 1) if stride > 1 or into != 4 * width else None

    def __call__(self, x: jax.Array, area: Area) -> jax.Array:
        """x [N, H, W, into] -> [N, H // stride, W // stride, 4 * width]; `area` is that of x."""
        after = area if self.stride == 1 else area.pooled()
        y = jax.nn.relu(self.conv1(x, area))
        y = jax.nn.relu(self.conv2(area.clear(y), area))
        if self.stride > 1:
            x, y = average_pool(x), average_pool(y)
        y = self.conv3(y, after)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, after)))


class AttentionPool(nnx.Module):
    """Multi-head attention with one query, the mean token; memory and time are linear in the area of the image.

    With a single query the key and value projections need not be applied to every token: q . (W t) = (W' q) . t, and
    the weighted mean of W t is W times the weighted mean of t. A bias of the keys adds the same to every logit of a
    head, so it drops out of the softmax; the parameter is kept, without effect, for the sake of the other formats.
    """

    def __init__(self, features, heads, grid, out, dtype, rngs):
        def linear(into, out):
            init = normal(features**-0.5)
            return nnx.Linear(into, out, kernel_init=init, dtype=dtype, rngs=rngs)

        self.heads, self.dtype = heads, dtype
        init = normal(features**-0.5)
        self.position = nnx.Param(init(rngs.params(), (1 + grid * grid, features), jnp.float32))
        self.q, self.k, self.v = (linear(features, features) for _ in range(3))
        self.out = linear(features, out)

    def split_heads(self) -> None:
        """Stores the kernels of keys and values by head, as they are used; without, each call transposes them.

        For inference: other formats do not know kernels of this shape.
        """
        for linear in (self.k, self.v):
            kernel = self._by_head(np.asarray(linear.kernel[...]))  # NumPy has nothing to compile
            linear.kernel = nnx.Param(jnp.asarray(kernel))

    def _by_head(self, kernel: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """A kernel of keys or values [features, features] -> [heads, features, features of a head]."""
        return kernel if kernel.ndim == 3 else kernel.reshape(len(kernel), self.heads, -1).transpose(1, 0, 2)

    def __call__(self, x: jax.Array, area: Area, position: str) -> jax.Array:
        """x [N, H, W, features] -> [N, out]."""
        n, height, width, features = x.shape
        valid = area.mask(x)
        x = x.reshape(n, height * width, features)
        if valid is not None:
            valid = valid.reshape(n, height * width, 1)
        mean = jnp.mean(x, axis=1, keepdims=True, dtype=jnp.float32, where=valid).astype(x.dtype)
        tokens = jnp.concatenate([mean, x], axis=1)  # [N, T, features]
        embedding = grid_embedding(self.position[...], position, (height, width), area.sizes)
        if embedding is not None:
            tokens = tokens + embedding.astype(tokens.dtype)

        w_k = self._by_head(self.k.kernel[...]).astype(self.dtype)  # [heads, features, F]
        w_v = self._by_head(self.v.kernel[...]).astype(self.dtype)
        q = self.q(tokens[:, 0]).reshape(n, self.heads, -1) * (w_k.shape[2] ** -0.5)
        q = jnp.einsum("nhf,hcf->nhc", q, w_k)
        logits = jnp.einsum("nhc,ntc->nht", q, tokens, preferred_element_type=jnp.float32)
        if valid is not None:
            seen = jnp.pad(valid[:, None, :, 0], ((0, 0), (0, 0), (1, 0)), constant_values=True)
            logits = jnp.where(seen, logits, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        pooled = jnp.einsum("nht,ntc->nhc", weights, tokens)
        value = jnp.einsum("nhc,hcf->nhf", pooled, w_v).reshape(n, features)
        return self.out(value + self.v.bias[...].astype(self.dtype))


class ResNet(nnx.Module):
    """The image encoder of RN50 and its relatives; the smallest image side is 32."""

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        shape, dtype = config.image, jnp.dtype(config.compute_dtype)
        folded, width = not shape.batch_norm, shape.width
        self.position, self.remat, self.dtype = config.position, config.remat, dtype
        self.stem1 = ConvNorm(3, width // 2, 3, 2, folded, dtype, rngs)
        self.stem2 = ConvNorm(width // 2, width // 2, 3, 1, folded, dtype, rngs)
        self.stem3 = ConvNorm(width // 2, width, 3, 1, folded, dtype, rngs)
        stages, into = [], width
        for stage, blocks in enumerate(shape.layers):
            narrow = width * 2**stage
            stages.append(nnx.List())
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages[-1].append(Bottleneck(into, narrow, stride, folded, dtype, rngs))
                into = 4 * narrow
        self.stages = nnx.List(stages)
        self.pool = AttentionPool(shape.features, shape.heads, shape.grid, config.embed_dim, dtype, rngs)

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """images [N, H, W, 3], normalised -> [N, D]; sizes int [N, 2] or None, see `CLIP.encode_image`."""
        return self.pool(*self.tokens(images, sizes), self.position)

    def tokens(self, images: jax.Array, sizes: jax.Array | None = None) -> tuple[jax.Array, Area]:
        """What reaches the attention pool, [N, H // 32, W // 32, features], and its valid area."""
        return self.late(*self.early(images, sizes))

    def early(self, images: jax.Array, sizes: jax.Array | None = None) -> tuple[jax.Array, Area]:
        """Stem and the first two stages, where images are large: [N, H // 8, W // 8, 8 * width], and the valid area."""
        area, x = Area(sizes), images.astype(self.dtype)
        after = area.convolved()
        x = jax.nn.relu(self.stem1(area.clear(x), after))
        for unit in (self.stem2, self.stem3):
            x = jax.nn.relu(unit(after.clear(x), after))
        return self.blocks(average_pool(x), after.pooled(), 0, 2)

    def late(self, x: jax.Array, area: Area) -> tuple[jax.Array, Area]:
        """The last two stages."""
        return self.blocks(x, area, 2, 4)

    def blocks(self, x: jax.Array, area: Area, first: int, last: int) -> tuple[jax.Array, Area]:
        """The stages from `first` to before `last`."""
        for stage in range(first, last):
            for block in self.stages[stage]:
                x = self.apply(block, x, area)
                area = area if block.stride == 1 else area.pooled()
        return x, area

    def apply(self, block: Bottleneck, x: jax.Array, area: Area) -> jax.Array:
        """One block, recomputed in the backward pass if `remat`."""
        if not self.remat:
            return block(x, area)
        graph, state = nnx.split(block)

        @jax.checkpoint
        def run(state, x, sizes):
            block = nnx.merge(graph, state, copy=True)
            return block(x, Area(sizes)), nnx.state(block, nnx.BatchStat)

        x, statistics = run(state, x, area.sizes)
        if block.conv1.norm is not None and block.conv1.norm.training:
            nnx.update(block, statistics)
        return x
