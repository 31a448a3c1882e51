"""A model compiled for scoring: batches of padded images, and huge images in tiles."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.export import is_symbolic_dim

from qualiclip_jax import models, quality
from qualiclip_jax.inference import buckets, machine, tiles
from qualiclip_jax.inference.buckets import Batch, Costs, Shape
from qualiclip_jax.models.encoder import Area, ImageEncoder


class Encoder:
    """Computes the attribute scores of images.

    Attributes:
      config: of the CLIP.
      compiled: the shapes that need not be compiled any more.
      blank: pixels of padding that were computed since a shape was last compiled.
      compiling: whether it is compiling at this moment.

    Args:
      model: the model.
      columns: float32 [F, K], of further outputs, see `QualiCLIP.widened`.
    """

    def __init__(self, model: models.Model, columns: np.ndarray | None = None):
        self._columns = columns
        self.config = model.clip.config
        self.take(model)
        devices = machine.devices()
        kind = (jax.sharding.AxisType.Auto,)
        self._mesh = jax.make_mesh((len(devices),), ("device",), kind, devices=devices)
        self.compiled: set[Shape] = set()
        self.blank = 0
        self.compiling = False
        self._called: set[tuple[Any, ...]] = set()

    def take(self, model: models.Model) -> None:
        """Takes the parameters and the prompt features of a model that differs in nothing else: nothing is compiled."""
        encoder = models.fold_batch_norm(model.clip).image.for_inference(machine.prefers_winograd(self.config))
        of_rating = None if model.rating is None or not model.rating.columns.size else model.rating.columns
        if wanted := [columns for columns in (of_rating, self._columns) if columns is not None]:
            encoder = encoder.widened(np.concatenate(wanted, axis=1))
        graph, state = nnx.split(encoder)
        rater = None if model.rating is None else model.rating.rater
        rater = rater if rater is not None and rater.clip is model.clip else None  # of the same features
        self._function = _Function(graph, self.config, (model.temperature, model.bias, model.magnitude), rater)
        self._state = (state, jnp.asarray(model.prompt_features))
        vars(self).pop("_shared_state", None)

    @functools.cached_property
    def costs(self) -> Costs:
        """What compiling and computing cost, for `buckets.plan`."""
        costs = machine.costs(self.config)
        return costs if self.config.position != "native" else dataclasses.replace(costs, compile=0)  # never padded

    @property
    def costs_now(self) -> Costs:
        """`costs` for one of many calls: the more padding was computed so far, the less a compilation counts.

        At least a quarter, so that a call with many sizes does not spend it on many shapes.
        """
        compilation = self.costs.compile
        return dataclasses.replace(self.costs, compile=max(compilation / 4, compilation - self.blank))

    @property
    def smallest_side(self) -> int:
        """The fewest pixels an image may have in height and in width."""
        return max(32, self.config.image.stride)

    def why_not(self, height: int, width: int) -> str | None:
        """Why an image of this size cannot be scored; None if it can, or if the size is symbolic (`jax.export`)."""
        config, image = self.config, self.config.image
        if is_symbolic_dim(height) or is_symbolic_dim(width):
            return None
        if min(height, width) < self.smallest_side:
            return f"{height} x {width} pixels, the smallest side that can be scored is {self.smallest_side}"
        if config.position == "native" and (height, width) != (image.image_size, image.image_size):
            return f"{height} x {width} pixels, and this model takes only {image.image_size} x {image.image_size}"
        if not config.can_tile and height * width > machine.most_pixels(config):
            megapixels = machine.most_pixels(config) / 1e6
            return f"{height} x {width} pixels are more than this model takes here ({megapixels:.0f} million)"
        return None

    def is_huge(self, height: int, width: int) -> bool:
        """Whether an image must be scored in tiles."""
        pixels = height * width
        return self.config.can_tile and pixels > machine.whole_image_pixels(self.config, pixels)

    def attributes(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """Attribute scores, pure and differentiable; one program, outside of `jax.jit` as well. See `_Function`."""
        return self._pure_attributes(self._state, images, sizes)

    def start(self, batch: Batch, images: list[np.ndarray]) -> jax.Array | np.ndarray:
        """Starts to score a batch: on all devices if they can share it evenly, else on one.

        Args:
          batch: from `buckets.plan`; or a single image of its own size, in tiles if it is huge.
          images: at most `batch.shape[0]`, uint8 or float32 [H, W, 3], all of one type.

        Returns:
          Attribute scores float32 [count, P]; those behind the last image have no meaning.
        """
        count, height, width = batch.shape
        if self.is_huge(*images[0].shape[:2]):
            return self.score_in_tiles(images[0])
        padded = np.zeros((count, height, width, 3), images[0].dtype)
        sizes = np.full((count, 2), (height, width), np.int32)
        for i, image in enumerate(images):
            rows, columns = sizes[i] = image.shape[:2]
            padded[i, :rows, :columns] = image
        self.blank = self.blank + batch.pixels - int(sizes[: len(images)].prod(1).sum())
        if batch.shape not in self.compiled:
            self.compiled.add(batch.shape)
            self.blank = 0
        given = None if self.config.position == "native" else sizes
        if self._mesh.size > 1 and count % self._mesh.size == 0:
            return self._call(self._shared_attributes, padded, given, self._shared_state)
        return self._call(self._compiled_attributes, padded, given)

    def score_in_tiles(self, image: np.ndarray, tile_pixels: float | None = None) -> np.ndarray:
        """Scores one huge image.

        Args:
          image: uint8 or float32 [H, W, 3].
          tile_pixels: the most pixels a tile may have; by the machine's memory if None.

        Returns:
          Attribute scores float32 [1, P].
        """
        return self.score_tokens(*self.tokens(image, tile_pixels))

    def tokens(self, image: np.ndarray, tile_pixels: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What reaches the pool of an encoder that takes tiles.

        Args:
          image: uint8 or float32 [H, W, 3].
          tile_pixels: as in `score_in_tiles`.

        Returns:
          Tokens [1, R, K, C], zeros behind the valid ones, and how many rows and columns of them are valid, int [1, 2].
        """
        (height, width), config = image.shape[:2], self.config.image
        limit = tile_pixels or machine.whole_image_pixels(self.config, height * width)
        count = (config.tokens(height), config.tokens(width))
        cut = tiles.layout((height, width), count, config.halo or 0, limit)
        most = [max(piece.last - piece.first for piece in pieces) for pieces in (cut.rows, cut.columns)]
        grid = (len(cut.rows) * most[0], len(cut.columns) * most[1])  # a shape that many image sizes share
        sides = [cut.height, cut.width]
        if len(cut.rows) == len(cut.columns) == 1:  # no huge image: a shape that others of about its size share, too
            sides = [int(buckets.rungs(side)[-1]) for side in sides]
            grid = (config.tokens(sides[0]), config.tokens(sides[1]))
        tokens: np.ndarray | None = None
        tile = np.zeros((1, *sides, 3), image.dtype)
        for row in cut.rows:
            for column in cut.columns:
                tile[:] = 0
                source = image[row.start : row.start + row.length, column.start : column.start + column.length]
                tile[0, : row.length, : column.length] = source
                size = np.array([[row.length, column.length]], np.int32)
                seen = np.asarray(self._call(self._compiled_tokens, tile, size))
                kept = (_kept(row), _kept(column))
                tokens = np.zeros((1, *grid, config.features), seen.dtype) if tokens is None else tokens
                tokens[0, row.first : row.last, column.first : column.last] = seen[0, *kept]
        assert tokens is not None  # there is at least one tile
        return tokens, np.array([count], np.int32)

    def score_tokens(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Attribute scores float32 [1, P] of what `tokens` gives."""
        return np.asarray(self._call(self._compiled_pool, tokens, count))

    def jit(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(image encoder, *arrays)` as a compiled function of the arrays."""
        run = jax.jit(lambda state, *arrays: function(self._function.encoder(state), *arrays))
        return lambda *arrays: run(self._state, *arrays)

    def _call(
        self, function: Callable[..., jax.Array], images: np.ndarray, sizes: np.ndarray | None, state: Any = None
    ) -> jax.Array:
        """Calls a compiled function, and tells meanwhile whether it must be compiled first."""
        kind = (function, images.shape, images.dtype)
        self.compiling = kind not in self._called
        self._called.add(kind)
        try:
            return function(self._state if state is None else state, images, sizes)
        finally:
            self.compiling = False

    @functools.cached_property
    def _compiled_attributes(self) -> Callable[..., jax.Array]:
        return _program(self._function, "attributes", self._options)

    @functools.cached_property
    def _pure_attributes(self) -> Callable[..., jax.Array]:
        return _program(self._function, "attributes", ())  # part of other programs, too, which have their own options

    @functools.cached_property
    def _shared_attributes(self) -> Callable[..., jax.Array]:
        """The same as one program for all devices; each computes its share of the images."""
        share = jax.P("device")
        function, mesh = self._function.attributes, self._mesh
        shared = jax.shard_map(function, mesh=mesh, in_specs=(jax.P(), share, share), out_specs=share, check_vma=False)
        return jax.jit(shared, compiler_options=machine.compiler_options(self.config))

    @functools.cached_property
    def _shared_state(self) -> Any:
        """The parameters, on each device."""
        return jax.device_put(self._state, jax.NamedSharding(self._mesh, jax.P()))

    @functools.cached_property
    def _compiled_tokens(self) -> Callable[..., jax.Array]:
        return _program(self._function, "tokens", self._options)

    @functools.cached_property
    def _compiled_pool(self) -> Callable[..., jax.Array]:
        return _program(self._function, "pool", self._options)

    @property
    def _options(self) -> tuple[tuple[str, str], ...]:
        return tuple(machine.compiler_options(self.config).items())


@dataclasses.dataclass(frozen=True)
class _Function:
    """What a model computes, without its parameters: models that are equal in it share their compiled programs.

    Attributes:
      graph: the modules of the image encoder.
      config: of the CLIP.
      judged_by: temperature, bias and magnitude.
      rater: the model that a rating reads, if it has the same encoder.
    """

    graph: nnx.GraphDef[ImageEncoder]
    config: models.CLIPConfig
    judged_by: tuple[float, float | None, quality.Magnitude | None]
    rater: models.Model | None

    def attributes(self, state: Any, images: jax.Array, sizes: jax.Array | None) -> jax.Array:
        """images uint8 or float in [0, 1] [N, H, W, 3], sizes as in `CLIP.encode_image` -> float32 [N, P].

        Where activations are large, a CPU is faster with few images at a time: they stay in its caches.
        """
        encoder = self.encoder(state)
        count, height, width = images.shape[:3]
        if sizes is None or not self.config.can_tile or count <= (most := machine.slice_images(height * width)):
            return self._quality(state, encoder(_normalised(images), sizes))
        each = next(k for k in range(most, 0, -1) if count % k == 0)

        def early(part: tuple[jax.Array, jax.Array]) -> Any:
            x, area = encoder.early(_normalised(part[0]), part[1])
            return x, area.sizes

        parts = (images.reshape(-1, each, height, width, 3), sizes.reshape(-1, each, 2))
        x, sizes = jax.tree.map(lambda y: y.reshape(count, *y.shape[2:]), jax.lax.map(early, parts))
        return self._quality(state, encoder.pool(*encoder.late(x, Area(sizes))))

    def tokens(self, state: Any, tile: jax.Array, size: jax.Array) -> jax.Array:
        """A tile [1, H, W, 3] and its valid size [1, 2] -> what reaches the attention pool, [1, H / 32, W / 32, C]."""
        return self.encoder(state).tokens(_normalised(tile), size)[0]

    def pool(self, state: Any, tokens: jax.Array, size: jax.Array) -> jax.Array:
        """Tokens [1, R, K, C], of which size [1, 2] are valid -> attribute scores float32 [1, P]."""
        encoder = self.encoder(state)
        return self._quality(state, encoder.pool(tokens, Area(size)))

    def encoder(self, state: Any) -> ImageEncoder:
        return nnx.merge(self.graph, state[0])

    def _quality(self, state: Any, features: jax.Array) -> jax.Array:
        features, more = jnp.split(features.astype(jnp.float32), [self.config.embed_dim], axis=-1)
        attributes = quality.attribute_scores(features, state[1], *self.judged_by)
        if (rater := self.rater) is not None:
            rated = rater.score_of(rater.attribute_scores(features))
            more = jnp.concatenate([rated[..., None], more], axis=-1)
        return jnp.concatenate([attributes, more], axis=-1) if more.shape[-1] else attributes


@functools.lru_cache(maxsize=32)
def _program(function: _Function, name: str, options: tuple[tuple[str, str], ...]) -> Callable[..., jax.Array]:
    """A method of a `_Function` as a compiled function, with options of the compiler."""
    return jax.jit(getattr(function, name), compiler_options=dict(options) or None)


def _normalised(images: jax.Array) -> jax.Array:
    scale = 1 / 255 if images.dtype == jnp.uint8 else 1
    return models.normalise(images.astype(jnp.float32) * scale)


def _kept(piece: tiles.Piece) -> slice:
    return slice(piece.skip, piece.skip + piece.last - piece.first)
