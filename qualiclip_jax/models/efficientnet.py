"""EfficientNet-Lite: inverted bottlenecks with ReLU6, read out as channel means and deviations at several depths.

Source: Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (2019), in the variant
"Lite" of TensorFlow's TPU models: no squeeze-and-excitation, ReLU6 in place of swish. Zeros around images are those
that TensorFlow puts around images of even sides, here for every size (see `depthwise.padding`): equal to TensorFlow at
multiples of 32, where every feature map that is halved has even sides.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax.models import depthwise
from qualiclip_jax.models.clip_config import CLIPConfig
from qualiclip_jax.models.config_efficientnet import EfficientNetConfig
from qualiclip_jax.models.encoder import Area, ImageEncoder, run
from qualiclip_jax.models.layers import BatchNorm, convolve, normal
from qualiclip_jax.models.pixels import MEAN, STD

VARIANCE_EPS = 1e-5  # added to a variance before the root: flat images have a gradient, and features are of order 1
Grid = tuple[int, int]
Moments = tuple[tuple[jax.Array, jax.Array, jax.Array], ...]  # of some levels, see `moments`


class Unit(nnx.Module):
    """A convolution and BatchNorm, as in `resnet.ConvNorm`; or, folded, a convolution with bias.

    Args:
      config: `image` and `compute_dtype` count.
      into, out: channels.
      size: side of the kernel.
      stride: 1 or 2.
      groups: 1, or `into` for a depthwise convolution.
      gain: what the convolution does to the variance at the start, given uncorrelated inputs: 2 after a ReLU.
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
        groups: int = 1,
        gain: float = 1.0,
    ):
        self.groups, self.stride, self.dtype = groups, stride, jnp.dtype(config.compute_dtype)
        self.conv = nnx.Conv(
            into,
            out,
            (size, size),
            strides=stride,
            padding=(depthwise.padding(size, stride),) * 2,
            feature_group_count=groups,
            use_bias=not config.image.batch_norm,
            dtype=self.dtype,
            kernel_init=normal((gain * groups / (size * size * into)) ** 0.5),  # He et al.
            rngs=rngs,
        )
        self.norm = BatchNorm(out, eps=config.image.batch_norm_eps) if config.image.batch_norm else None

    def __call__(self, x: jax.Array, after: Area) -> jax.Array:
        """x [N, H, W, into], zero outside its valid area unless the kernel is 1 x 1; `after` is that of the result."""
        kernel = self.conv.kernel[...]
        if self.norm is None:
            assert self.conv.bias is not None
            return self._convolved(x, kernel) + self.conv.bias[...].astype(self.dtype)
        if self.norm.training:
            x = self._convolved(x, kernel)
            return self.norm(x, after.mask(x))
        multiplier, bias = self.norm.frozen()
        return self._convolved(x, kernel * multiplier) + bias.astype(self.dtype)

    def _convolved(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if self.groups > 1:
            return depthwise.convolve(x, kernel.astype(self.dtype), self.stride)
        return convolve(x, kernel, self.stride, depthwise.padding(kernel.shape[0], self.stride))


def relu6(x: jax.Array) -> jax.Array:
    """x between 0 and 6; without a gradient at the ends, as in PyTorch."""
    return jax.lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


class Block(nnx.Module):
    """An inverted bottleneck: 1 x 1 to more channels, depthwise, 1 x 1 to few; beside a shortcut where shapes allow."""

    def __init__(self, config: CLIPConfig, into: int, out: int, size: int, stride: int, expansion: int, rngs: nnx.Rngs):
        wide = expansion * into
        self.stride, self.shortcut = stride, stride == 1 and into == out
        self.expand = Unit(config, into, wide, 1, rngs) if expansion > 1 else None
        self.depthwise = Unit(config, wide, wide, size, rngs, stride=stride, groups=wide, gain=2.0)
        self.project = Unit(config, wide, out, 1, rngs, gain=2.0)

    def __call__(self, x: jax.Array, area: Area) -> jax.Array:
        """x [N, H, W, into] -> [N, H // stride, W // stride, out]; `area` is that of x."""
        after = area if self.stride == 1 else area.pooled()
        y = x if self.expand is None else relu6(self.expand(x, area))
        y = relu6(self.depthwise(area.clear(y), after))
        y = self.project(y, after)
        return x + y if self.shortcut else y


class MomentPool(nnx.Module):
    """Channel means and standard deviations over the image, standardised and projected.

    A token holds, for one square of the image, the means and the variances of all channels, and for each level how many
    positions of its feature map lie in the square. Those of the whole image follow exactly.

    Attributes:
      mean, deviation: what the features are standardised with, [2 * channels]. Not trained. Set by
        `expected_features` for published weights, else 0 and 1.
    """

    def __init__(self, config: CLIPConfig, shape: EfficientNetConfig, rngs: nnx.Rngs):
        self.widths = shape.pooled_channels
        count = 2 * sum(self.widths)
        self.mean = nnx.BatchStat(jnp.zeros(count, jnp.float32))
        self.deviation = nnx.BatchStat(jnp.ones(count, jnp.float32))
        self.projection = nnx.Linear(count, config.embed_dim, kernel_init=normal(count**-0.5), rngs=rngs)

    def __call__(self, tokens: jax.Array, area: Area) -> jax.Array:
        """tokens float32 [N, R, K, features]; those that count nothing need no area -> float32 [N, D]."""
        return self.projection(self.standardised(tokens))

    def standardised(self, tokens: jax.Array) -> jax.Array:
        """What is projected: `statistics` of about mean 0 and deviation 1, float32 [N, 2 * channels]."""
        return (self.statistics(tokens) - self.mean[...]) / self.deviation[...]

    def statistics(self, tokens: jax.Array) -> jax.Array:
        """Channel means, then standard deviations, float32 [N, 2 * channels]."""
        channels = sum(self.widths)
        means, variances, counts = jnp.split(tokens, (channels, 2 * channels), axis=-1)
        share = counts / counts.sum((1, 2), keepdims=True)
        share = jnp.repeat(share, np.array(self.widths), axis=-1, total_repeat_length=channels)
        mean = (share * means).sum((1, 2), keepdims=True)
        variance = (share * (variances + jnp.square(means - mean))).sum((1, 2))
        return jnp.concatenate([mean[:, 0, 0], jnp.sqrt(variance + VARIANCE_EPS)], axis=-1)


def moments(x: jax.Array, area: Area, square: int, grid: Grid | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means and variances of all channels, in two passes, and the number of positions.

    Args:
      x: float [N, H, W, C].
      area: which positions are valid.
      square: side of the squares; counts if there is a grid.
      grid: rows R and columns K of squares; None for one square that holds all.

    Returns:
      float32 [N, R, K, C] twice, [N, R, K, 1]; zeros where a square has no valid position.
    """
    n, height, width, channels = x.shape
    rows, columns = grid or (1, 1)
    tall, wide = (height, width) if grid is None else (square, square)
    edges = ((0, 0), (0, rows * tall - height), (0, columns * wide - width), (0, 0))
    mask = area.mask(x)
    valid = jnp.ones((1, height, width, 1), bool) if mask is None else mask
    valid = jnp.pad(valid, edges).reshape(-1, rows, tall, columns, wide, 1)
    x = jnp.pad(x.astype(jnp.float32), edges).reshape(n, rows, tall, columns, wide, channels)
    count = valid.sum((2, 4), keepdims=True, dtype=jnp.float32)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.where(valid, values, 0).sum((2, 4), keepdims=True) / jnp.maximum(count, 1)

    center = mean(x)
    variance = mean(jnp.square(x - center))
    counts = jnp.broadcast_to(count[:, :, 0, :, 0], (n, rows, columns, 1))
    return center[:, :, 0, :, 0], variance[:, :, 0, :, 0], counts


class EfficientNet(ImageEncoder):
    """The image encoder of EfficientNet-Lite0 and its relatives; the smallest image side is 32."""

    pool: MomentPool

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        shape = config.image
        assert isinstance(shape, EfficientNetConfig)
        self.remat, self.dtype, self.shape = config.remat, jnp.dtype(config.compute_dtype), shape
        self.stem = Unit(config, 3, shape.stem, 3, rngs, stride=2)
        stages: list[nnx.List[Block]] = []
        into = shape.stem
        for size, stride, expansion, out, layers in shape.stages:
            blocks: nnx.List[Block] = nnx.List()
            for layer in range(layers):
                blocks.append(Block(config, into, out, size, 1 if layer else stride, expansion, rngs))
                into = out
            stages.append(blocks)
        self.stages = nnx.List(stages)
        self.head = Unit(config, into, shape.head, 1, rngs) if shape.has_head else None
        self.pool = MomentPool(config, shape, rngs)

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """images [N, H, W, 3], normalised -> [N, D]; sizes int [N, 2] or None, see `CLIP.encode_image`."""
        return self.pool(*self.late(*self.early(images, sizes)))

    @property
    def readout(self) -> nnx.Linear:
        """The last layer."""
        return self.pool.projection

    def tokens(self, images: jax.Array, sizes: jax.Array | None = None) -> tuple[jax.Array, Area]:
        """Moments of squares of 32 x 32 pixels, float32 [N, ceil(H / 32), ceil(W / 32), features], and their area."""
        grid = (-(-images.shape[1] // 32), -(-images.shape[2] // 32))
        x, _ = self.late(*self.early(images, sizes, grid), grid)
        return x, Area(None if sizes is None else -(-sizes // 32))

    def early(
        self, images: jax.Array, sizes: jax.Array | None = None, grid: Grid | None = None
    ) -> tuple[tuple[jax.Array, Moments], Area]:
        """The levels where feature maps are large, down to 1 / 8: what `late` takes; `grid` as in `moments`."""
        shape, area = self.shape, Area(sizes)
        deviation, mean = np.array(STD), np.array(MEAN)  # of CLIP's normalisation, which `images` have
        scale, offset = deviation / shape.pixel_deviation, (mean - shape.pixel_mean) / shape.pixel_deviation
        x = images.astype(jnp.float32) * jnp.asarray(scale, jnp.float32) + jnp.asarray(offset, jnp.float32)
        return self._levels((area.clear(x).astype(self.dtype), ()), area, range(shape.early_levels), grid)

    def late(self, x: tuple[jax.Array, Moments], area: Area, grid: Grid | None = None) -> tuple[jax.Array, Area]:
        """The other levels: tokens, one for each square of the grid, and the area of the last feature map."""
        (_, found), area = self._levels(x, area, range(self.shape.early_levels, self.shape.levels), grid)
        return jnp.concatenate([part for kind in zip(*found) for part in kind], axis=-1), area

    def _levels(
        self, start: tuple[jax.Array, Moments], area: Area, levels: range, grid: Grid | None
    ) -> tuple[tuple[jax.Array, Moments], Area]:
        """Levels one after the other: 0 is the stem, then the stages, then the head."""
        x, found = start
        for level in levels:
            if level == 0:
                x, area = relu6(self.stem(x, area.pooled())), area.pooled()
            elif level <= len(self.stages):
                for block in self.stages[level - 1]:
                    x = run(block, x, area, self.remat)
                    area = area if block.stride == 1 else area.pooled()
            elif self.head is not None:
                x = relu6(self.head(x, area))
            if level in self.shape.pooled:
                found += (moments(x, area, 32 // self.shape.reduction(level), grid),)
        return (x, found), area
