"""What an image encoder knows of an image before its projection."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import numpy as np
from PIL import Image

from qualiclip_jax import models
from qualiclip_jax.models.efficientnet import EfficientNet
from qualiclip_jax.models.encoder import ImageEncoder

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP


def encoder(model: "QualiCLIP") -> Callable[[np.ndarray], np.ndarray]:
    """A function from images uint8 or float32 in [0, 1] [N, H, W, 3] to features of unit length, float32 [N, F].

    The features are an EfficientNet's standardised moments, else those of the CLIP.
    """

    def encode(image: ImageEncoder, pixels: jax.Array) -> jax.Array:
        pixels = models.normalise(pixels)
        if isinstance(image, EfficientNet):
            return image.pool.standardised(image.late(*image.early(pixels))[0])
        return image(pixels)

    run = model._encoder.jit(encode)

    def features(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        scale = np.float32(1 / 255) if images.dtype == np.uint8 else np.float32(1)
        found = np.concatenate([np.asarray(run(one[None].astype(np.float32) * scale)) for one in images])
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    return features


def square(image: np.ndarray, side: int) -> np.ndarray:
    """An image uint8 [H, W, 3] squeezed into a square, uint8 [side, side, 3]."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))
