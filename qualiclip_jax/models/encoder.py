"""What every image encoder can do, and the valid area of padded images.

Images are padded at the right and bottom when their sizes differ. `Area` keeps track of what is valid, so that the
features are those of the unpadded images.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax.models.clip_config import CLIPConfig
from qualiclip_jax.models.layers import BatchNorm


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
        mask = self.mask(x)
        return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))

    def convolved(self) -> "Area":
        """After a 3 x 3 convolution of stride 2 and padding 1: sizes rounded up."""
        return Area(None if self.sizes is None else (self.sizes + 1) // 2)

    def pooled(self) -> "Area":
        """After 2 x 2 average pooling: sizes rounded down, so a window never leaves the valid area."""
        return Area(None if self.sizes is None else self.sizes // 2)


def run(block: Any, x: jax.Array, area: Area, remat: bool) -> jax.Array:
    """block(x, area); recomputed in the backward pass if `remat`."""
    if not remat:
        y: jax.Array = block(x, area)
        return y
    graph, state = nnx.split(block)

    @jax.checkpoint
    def compute(state: Any, x: jax.Array, sizes: jax.Array | None) -> tuple[jax.Array, Any]:
        block = nnx.merge(graph, state, copy=True)
        return block(x, Area(sizes)), nnx.state(block, nnx.BatchStat)

    x, statistics = compute(state, x, area.sizes)
    if any(isinstance(module, BatchNorm) and module.training for _, module in nnx.iter_modules(block)):
        nnx.update(block, statistics)
    return x


class ImageEncoder(nnx.Module):
    """Images to features; built from a `CLIPConfig`, whose `image` tells what kind it is.

    An encoder whose config has a `halo` computes its tokens by convolutions alone, in two parts, `early` and `late`,
    and then pools them. Such an encoder can take a large image tile by tile. Others define `__call__` only.

    Attributes:
      pool: function of tokens [N, H, W, features] and their valid area, gives features [N, D].
    """

    pool: Callable[[jax.Array, Area], jax.Array]

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        raise NotImplementedError

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """images [N, H, W, 3], normalised -> [N, D]; sizes int [N, 2] or None, see `CLIP.encode_image`."""
        return self.pool(*self.tokens(images, sizes))

    def tokens(self, images: jax.Array, sizes: jax.Array | None = None) -> tuple[jax.Array, Area]:
        """What reaches the pool, [N, H // stride, W // stride, features], and its valid area."""
        return self.late(*self.early(images, sizes))

    def early(self, images: jax.Array, sizes: jax.Array | None = None) -> tuple[Any, Area]:
        """The first part, where activations are large: what `late` takes."""
        raise NotImplementedError

    def late(self, x: Any, area: Area) -> tuple[jax.Array, Area]:
        """The second part: tokens and their valid area."""
        raise NotImplementedError

    @property
    def readout(self) -> nnx.Linear:
        """The last layer, a linear one: from pooled features to those of the common space."""
        raise NotImplementedError

    @property
    def readout_width(self) -> int:
        """How many numbers of an image the functions that `widened` adds are read from."""
        return int(self.readout.in_features)

    def widened(self, columns: np.ndarray) -> Self:
        """A copy that gives [N, D + M]: behind each image's features, M more linear functions of what `readout` reads
        (or of the features, in an encoder without one).

        Args:
          columns: float32 [F, M]; F is `readout_width`.
        """
        wide = nnx.clone(self)
        last = wide.readout
        last.kernel = nnx.Param(jnp.concatenate([last.kernel[...], jnp.asarray(columns)], axis=1))
        if last.bias is not None:
            last.bias = nnx.Param(jnp.pad(last.bias[...], (0, columns.shape[1])))
        last.out_features += columns.shape[1]
        return wide

    def for_inference(self, winograd: bool) -> Self:
        """An encoder that computes the same faster. Its parameters may have shapes that no other format knows.

        Args:
          winograd: compute 3 x 3 convolutions by Winograd's algorithm where that pays.
        """
        return self
