"""A model whose scores also count the magnitude of its image features."""

import dataclasses

import jax
import numpy as np

from qualiclip_jax import models, quality
from qualiclip_jax.data import pristine
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import pure

SIDE = 224  # px of the crops, for a model that takes any size


def fused(model: models.Model, weight: float) -> models.Model:
    """The same model with scores that are averaged with one of the magnitude, see `quality.attribute_scores`.

    Its constants are measured once, on crops of the photos that come with scikit-image, and rounded: the same on every
    machine. It needs no training.

    Args:
      model: without a rating: that was fitted to other scores.
      weight: of the magnitude; that of the cosines is 1.

    Raises:
      UserError: the model has a rating; or all crops give features of one magnitude; or no photo is large enough.
    """
    if model.rating is not None:
        raise UserError("a model fitted to ratings cannot count the magnitude: take the one it was fitted from")
    config = model.clip.config
    side = config.image.image_size if config.position == "native" else max(SIDE, config.image.stride)
    judge = pure.judge(model)
    measure = jax.jit(lambda images: quality.magnitude(judge(images)[0]))
    photos = [photo for _, photo in pristine.photos("sample:train") if min(photo.shape[:2]) >= side]
    if not photos:
        raise UserError(f"no photo to measure the magnitude on is as large as this model needs: {side} x {side} pixels")
    found = np.concatenate([np.asarray(measure(_corners(photo, side))) for photo in photos])
    center, spread = (float(f"{x:.3g}") for x in (found.mean(), found.std()))
    if not spread > 0:
        raise UserError("the features of this model have one magnitude: it says nothing of quality")
    return dataclasses.replace(model, magnitude=quality.Magnitude(float(weight), center, spread))


def _corners(photo: np.ndarray, side: int) -> np.ndarray:
    """The crops [4, side, side, 3] at the corners of a photo."""
    halves = (slice(None, side), slice(-side, None))
    return np.stack([photo[rows, columns] for rows in halves for columns in halves])
