"""A loss that asks for quality and is hard to fool: for restoration, enhancement and generation.

Maximising a score alone finds pixels that please the network and nobody else (docs/loss.md shows some). `QualityLoss`
judges many views of an image, by several models if there are, and holds the image to what it was made from.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from qualiclip_jax import quality, zoo
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import pure
from qualiclip_jax.models import Model

Judge = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
REDUCTIONS = ("mean", "none")


@dataclasses.dataclass(frozen=True, eq=False)
class QualityLoss:
    """1 - score, averaged over views and models, plus what the image pays for leaving its reference.

        loss = QualityLoss()
        value, gradient = jax.value_and_grad(loss)(images, reference, key)

    A pure function of its arguments: the same key gives the same views. It works under `jit`, `grad` and `vmap`. With a
    reference, three terms add up for each image x with reference r:

        1 - score(views of x) + fidelity * mean |x - r| + drift * max(0, 1 - cos(features of x and of r) - margin)

    Attributes:
      models: what judges: names as in `zoo.load`, paths, or models. Their scores are averaged.
      views: how many random views of an image are judged; 0 judges the image itself.
      crop: side of a view, as a share of the image's sides: views are cut at random places (1: no cropping).
      scale: a view is the image shrunk by a random factor from this (at least `crop`) to 1.
      flip: whether views are mirrored at random.
      fidelity: weight of the mean absolute difference to the reference.
      drift: weight of the distance in the space of features beyond `margin`, averaged over the models.
      margin: how far the features may go for nothing: 1 - cosine, from 0 to 2.
      reduction: "mean" over the images, or "none".

    Raises:
      UserError: no models, or a field out of range.
    """

    _judges: ClassVar[list[tuple[Model, Judge]]]  # of each loss; no field

    models: Sequence[str | os.PathLike[str] | Model] = (zoo.TINY,)
    views: int = 4
    crop: float = 0.75
    scale: float = 1.0
    flip: bool = True
    fidelity: float = 30.0
    drift: float = 0.0
    margin: float = 0.01
    reduction: str = "mean"

    def __post_init__(self) -> None:
        given = [self.models] if isinstance(self.models, str | os.PathLike | Model) else list(self.models)
        if not given:
            raise UserError("QualityLoss: name at least one model")
        if not (type(self.views) is int and self.views >= 0):
            raise UserError(f"QualityLoss: views must be an integer from 0, got {self.views!r}")
        for name, least, most in (("crop", 0.1, 1), ("scale", 0.1, 1), ("margin", 0, 2)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"QualityLoss: {name} must be from {least} to {most}, got {getattr(self, name)!r}")
        for name in ("fidelity", "drift"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"QualityLoss: {name} must be a weight from 0, got {getattr(self, name)!r}")
        if self.reduction not in REDUCTIONS:
            raise UserError(f"QualityLoss: reduction must be one of {', '.join(REDUCTIONS)}, got {self.reduction!r}")
        loaded = [model if isinstance(model, Model) else zoo.load(os.fspath(model)) for model in given]
        object.__setattr__(self, "_judges", [(model, jax.jit(pure.judge(model))) for model in loaded])

    def __call__(
        self, images: jax.Array, reference: jax.Array | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """The loss.

        Args:
          images: float [N, H, W, 3], meant to be in [0, 1]; values outside are judged as they are.
          reference: what the images were made from and are held to, e.g. the noisy input, of the same shape. It gets no
            gradient.
          key: of the random views; needed where there are some.

        Returns:
          float32, a scalar; or [N] with reduction "none".

        Raises:
          UserError: other shapes or types, images too small for the views, no key, or a weight but no reference.
        """
        self._check(images, reference, key)
        images = images.astype(jnp.float32)
        losses = 1 - self.score(images, key)
        if reference is not None:
            reference = jax.lax.stop_gradient(reference.astype(jnp.float32))
            if self.fidelity:
                losses += self.fidelity * jnp.abs(images - reference).mean((1, 2, 3))
            if self.drift:
                losses += self.drift * jnp.maximum(0, self._distance(images, reference) - self.margin)
        return losses.mean() if self.reduction == "mean" else losses

    def score(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The score of each image, float32 [N] in [0, 1]: the mean over models and views."""
        seen = images if self.views == 0 or key is None else self._views(images, key)
        scores = [model.score_of(judge(seen)[1]) for model, judge in self._judges]
        return jnp.stack(scores).mean(0).reshape(-1, len(images)).mean(0)

    def _distance(self, images: jax.Array, reference: jax.Array) -> jax.Array:
        """1 - cosine of the features of images and reference, [N], the mean over the models."""
        both = jnp.concatenate([images, reference])
        distances = []
        for _, judge in self._judges:
            first, second = jnp.split(quality.unit(judge(both)[0]), 2)
            distances.append(1 - (first * second).sum(-1))
        return jnp.stack(distances).mean(0)

    def _views(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Random views [views * N, h, w, 3] of images [N, H, W, 3], each with draws of its own."""
        size = self._view_size(images)

        def view(image: jax.Array, key: jax.Array) -> jax.Array:
            for_scale, for_place, for_flip = jax.random.split(key, 3)
            scale = jax.random.uniform(for_scale, (), minval=max(self.scale, self.crop), maxval=1.0)
            room = jnp.floor(jnp.array(image.shape[:2], jnp.float32) * scale) - jnp.array(size, jnp.float32)
            place = -jnp.floor(jax.random.uniform(for_place, (2,)) * (room + 1))  # whole pixels: nothing is smoothed
            seen = jax.image.scale_and_translate(
                image, (*size, 3), (0, 1), jnp.stack([scale, scale]), place, "linear", antialias=True
            )
            return jnp.where(jax.random.bernoulli(for_flip) & self.flip, seen[:, ::-1], seen)

        keys = jax.random.split(key, (self.views, len(images)))
        seen = jax.vmap(jax.vmap(view), (None, 0))(images, keys)
        return seen.reshape(-1, *size, 3)

    def _view_size(self, images: jax.Array) -> tuple[int, int]:
        return int(self.crop * images.shape[1]), int(self.crop * images.shape[2])

    def _check(self, images: jax.Array, reference: jax.Array | None, key: jax.Array | None) -> None:
        if images.ndim != 4 or images.shape[-1] != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(f"QualityLoss: images are {images.dtype} {images.shape}: give float [N, H, W, 3] in [0, 1]")
        if reference is not None and reference.shape != images.shape:
            raise UserError(f"QualityLoss: the reference has the shape {reference.shape}, the images {images.shape}")
        if reference is None and (self.fidelity or self.drift):
            raise UserError("QualityLoss: give a reference, or set fidelity and drift to 0 (docs/loss.md says why not)")
        if self.views and key is None:
            raise UserError("QualityLoss: give a key for the random views, or set views to 0")
        sides = self._view_size(images) if self.views else images.shape[1:3]
        least = max(max(32, model.clip.config.image.stride) for model, _ in self._judges)
        if min(sides) < least:
            raise UserError(f"QualityLoss: views of {sides[0]} x {sides[1]} pixels; the smallest side is {least}")
