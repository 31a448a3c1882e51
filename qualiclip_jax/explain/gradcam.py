"""Grad-CAM: which parts of an image pull its features towards a prompt.

Source: Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization" (2017), of
the last activations that have a place in the image: what reaches the pool of a ResNet, the moments of squares of an
EfficientNet, the patches before the last block of a ViT.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from qualiclip_jax import models, quality
from qualiclip_jax.models.efficientnet import EfficientNet
from qualiclip_jax.models.encoder import Area
from qualiclip_jax.models.vit import ViT

if TYPE_CHECKING:
    from qualiclip_jax.models import Model


def gradcam(model: "Model") -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives Grad-CAM of an image against the positive and against the negative prompts.

    What is explained is the cosine of the image's features and the prompt's, its mean over the pairs that make the
    score.

    Args:
      model: the model.

    Returns:
      A function of an image uint8 [H, W, 3] that gives float32 [2, h, w], positive prompts first: 0 where nothing pulls
      towards them, 1 where most does.
    """
    encoder, prompts = model.clip.image, jnp.asarray(model.prompt_features)
    scored = model.scored or len(model.prompts)

    def cosines(activations: jax.Array, rest: jax.Array | None) -> jax.Array:
        if isinstance(encoder, ViT):
            assert rest is not None
            features = encoder.after(jnp.concatenate([rest, activations.reshape(1, -1, activations.shape[-1])], axis=1))
        else:
            features = encoder.pool(activations, Area(None))
        return quality.similarities(features, prompts)[0, :scored].mean(0)  # [2]

    @jax.jit
    def explain(pixels: jax.Array) -> jax.Array:
        pixels = models.normalise(pixels[None].astype(jnp.float32) / 255)
        rest = None
        if isinstance(encoder, ViT):
            tokens, rows = encoder.before(pixels), pixels.shape[1] // encoder.patch_size
            first = encoder.class_tokens
            rest, activations = tokens[:, :first], tokens[:, first:].reshape(1, rows, -1, tokens.shape[-1])
        else:
            activations = encoder.tokens(pixels)[0]
        slopes = jax.jacrev(cosines)(activations, rest)  # [2, 1, h, w, C]
        if isinstance(encoder, EfficientNet):  # the counts of positions are no activations
            slopes = slopes.at[..., 2 * sum(encoder.pool.widths) :].set(0)
        weights = slopes.mean((2, 3), keepdims=True)
        return jax.nn.relu((weights * activations).sum(-1))[:, 0]

    def maps(image: np.ndarray) -> np.ndarray:
        found = np.asarray(explain(jnp.asarray(image)), np.float32)
        return found / np.maximum(found.max((1, 2), keepdims=True), 1e-12)

    return maps


def over(image: np.ndarray, found: np.ndarray) -> np.ndarray:
    """A photo uint8 [H, W, 3] under a map [h, w] from 0 (dark blue, faint) to 1 (yellow), in colours for all eyes."""
    from matplotlib import colormaps

    size = (image.shape[1], image.shape[0])
    large = np.clip(np.asarray(Image.fromarray(found).resize(size, Image.Resampling.BICUBIC)), 0, 1)[..., None]
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None]
    color = 255 * colormaps["cividis"](large[..., 0])[..., :3]
    alpha = 0.25 + 0.45 * large
    return np.round((1 - alpha) * grey + alpha * color).astype(np.uint8)
