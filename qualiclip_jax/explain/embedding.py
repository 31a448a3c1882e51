"""What an image encoder knows of an image before its projection, and maps of it in two dimensions."""

from typing import TYPE_CHECKING

import jax
import numpy as np
from PIL import Image

from qualiclip_jax import models
from qualiclip_jax.models.efficientnet import EfficientNet
from qualiclip_jax.models.encoder import ImageEncoder

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP


def features(model: "QualiCLIP", images: np.ndarray) -> np.ndarray:
    """Features of images of one size, of unit length: an EfficientNet's standardised moments, else the CLIP's features.

    Args:
      model: the model.
      images: uint8 or float32 in [0, 1], [N, H, W, 3].

    Returns:
      float32 [N, F].
    """

    def encode(image: ImageEncoder, pixels: jax.Array) -> jax.Array:
        pixels = models.normalise(pixels)
        if isinstance(image, EfficientNet):
            return image.pool.standardised(image.late(*image.early(pixels))[0])
        return image(pixels)

    run = model._encoder.jit(encode)
    scale = np.float32(1 / 255) if images.dtype == np.uint8 else np.float32(1)
    found = np.concatenate([np.asarray(run(one[None].astype(np.float32) * scale)) for one in images])
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def square(image: np.ndarray, side: int) -> np.ndarray:
    """An image uint8 [H, W, 3] squeezed into a square, uint8 [side, side, 3]."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))
