"""CLIP's modified ResNet: three-convolution stem, anti-aliased strides, attention pool.

Source: ModifiedResNet and AttentionPool2d of OpenAI's CLIP.
"""

from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig
from qualiclip_jax.models.encoder import Area, ImageEncoder, run
from qualiclip_jax.models.layers import BatchNorm, convolve, normal
from qualiclip_jax.models.position import grid_embedding
from qualiclip_jax.models.winograd import WinogradConv, pays


def average_pool(x: jax.Array) -> jax.Array:
    """2 x 2 average pooling, [N, H, W, C] -> [N, H // 2, W // 2, C]; as sums of halves, which XLA fuses well."""
    n, rows, columns, channels = x.shape
    rows, columns = rows // 2, columns // 2
    x = x[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, columns, 2 * channels)
    x = x[:, :, 0] + x[:, :, 1]
    return (x[..., :channels] + x[..., channels:]) * jnp.asarray(0.25, x.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias and BatchNorm; or, folded, convolution with bias.

    Frozen, BatchNorm is a factor of the kernel and a bias. So what lies between the two is neither computed nor kept
    for the gradient.

    Args:
      config: `image.batch_norm` and `compute_dtype` count.
      into, out: channels.
      size: side of the kernel, odd; the padding is half of it.
      stride: of the convolution.
      scale: that BatchNorm starts with.
    """

    def __init__(
        self,
        config: CLIPConfig,
        into: int,
        out: int,
        size: int,
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        scale: float = 1.0,
    ):
        self.stride, self.padding = stride, size // 2
        self.conv: nnx.Conv | WinogradConv = nnx.Conv(
            into,
            out,
            (size, size),
            strides=stride,
            padding=self.padding,
            use_bias=not config.image.batch_norm,
            dtype=jnp.dtype(config.compute_dtype),
            kernel_init=normal((2 / (size * size * into)) ** 0.5),  # He et al.
            rngs=rngs,
        )
        self.norm = BatchNorm(out, scale) if config.image.batch_norm else None

    def __call__(self, x: jax.Array, area: Area) -> jax.Array:
        """x [N, H, W, into]; `area` is the valid area of the result."""
        if self.norm is None:
            return self.conv(x)
        assert isinstance(self.conv, nnx.Conv)
        if self.norm.training:
            x = self.conv(x)
            return self.norm(x, area.mask(x))
        multiplier, bias = self.norm.frozen()
        x = convolve(x, self.conv.kernel[...] * multiplier, self.stride, (self.padding,) * 2)
        return x + bias.astype(x.dtype)


class Bottleneck(nnx.Module):
    """A residual block: 1 x 1, 3 x 3, 1 x 1 convolution beside a shortcut; a stride is an average pool in both."""

    def __init__(self, config: CLIPConfig, into: int, width: int, stride: int, rngs: nnx.Rngs):
        self.stride = stride
        self.conv1 = ConvNorm(config, into, width, 1, rngs)
        self.conv2 = ConvNorm(config, width, width, 3, rngs)
        self.conv3 = ConvNorm(config, width, 4 * width, 1, rngs, scale=0.0)  # each block starts as its shortcut
        has_shortcut = stride > 1 or into != 4 * width
        self.shortcut = ConvNorm(config, into, 4 * width, 1, rngs) if has_shortcut else None

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

    def __init__(self, config: CLIPConfig, shape: ResNetConfig, rngs: nnx.Rngs):
        features, init = shape.features, normal(shape.features**-0.5)

        def linear(out: int) -> nnx.Linear:
            return nnx.Linear(features, out, kernel_init=init, dtype=self.dtype, rngs=rngs)

        self.heads, self.mode, self.dtype = shape.heads, config.position, jnp.dtype(config.compute_dtype)
        self.position = nnx.Param(init(rngs.params(), (1 + shape.grid**2, features), jnp.float32))
        self.q, self.k, self.v = (linear(features) for _ in range(3))
        self.out = linear(config.embed_dim)

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

    def __call__(self, x: jax.Array, area: Area) -> jax.Array:
        """x [N, H, W, features] -> [N, out]."""
        n, height, width, features = x.shape
        valid = area.mask(x)
        x = x.reshape(n, height * width, features)
        if valid is not None:
            valid = valid.reshape(n, height * width, 1)
        mean = jnp.mean(x, axis=1, keepdims=True, dtype=jnp.float32, where=valid).astype(x.dtype)
        tokens = jnp.concatenate([mean, x], axis=1)  # [N, T, features]
        embedding = grid_embedding(self.position[...], self.mode, (height, width), area.sizes)
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
        assert self.v.bias is not None
        return self.out(value + self.v.bias[...].astype(self.dtype))


class ResNet(ImageEncoder):
    """The image encoder of RN50 and its relatives; the smallest image side is 32."""

    pool: AttentionPool

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        shape = config.image
        assert isinstance(shape, ResNetConfig)
        width = shape.width
        self.remat, self.dtype = config.remat, jnp.dtype(config.compute_dtype)
        self.stem1 = ConvNorm(config, 3, width // 2, 3, rngs, stride=2)
        self.stem2 = ConvNorm(config, width // 2, width // 2, 3, rngs)
        self.stem3 = ConvNorm(config, width // 2, width, 3, rngs)
        stages: list[nnx.List[Bottleneck]] = []
        into = width
        for stage, blocks in enumerate(shape.layers):
            narrow = width * 2**stage
            stages.append(nnx.List())
            for block in range(blocks):
                stages[-1].append(Bottleneck(config, into, narrow, 2 if stage > 0 and block == 0 else 1, rngs))
                into = 4 * narrow
        self.stages = nnx.List(stages)
        self.pool = AttentionPool(config, shape, rngs)

    @property
    def readout(self) -> nnx.Linear:
        """The last layer."""
        return self.pool.out

    def for_inference(self, winograd: bool) -> Self:
        """A copy of a folded encoder: the pool's kernels stored as they are used, Winograd where it pays."""
        fast = nnx.clone(self)
        fast.pool.split_heads()
        for block in (block for stage in fast.stages for block in stage):
            conv = block.conv2.conv
            if winograd and isinstance(conv, nnx.Conv) and pays(conv):
                block.conv2.conv = WinogradConv(conv)
        return fast

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
                x = run(block, x, area, self.remat)
                area = area if block.stride == 1 else area.pooled()
        return x, area
