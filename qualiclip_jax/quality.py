"""From image features to a quality score in [0, 1], higher is better."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
LOGIT_SCALE = 100.0  # CLIP's, at temperature 1


class Magnitude(NamedTuple):
    """How the magnitude of image features counts in scores.

    Attributes:
      weight: of its score; that of the cosines has the weight 1.
      center, spread: mean and deviation of `magnitude` over some photos, constants of the model.
    """

    weight: float
    center: float
    spread: float


def unit(features: jax.Array) -> jax.Array:
    """Scales vectors to length 1 along the last axis; a zero vector stays zero, with a finite gradient."""
    features = features.astype(jnp.float32)
    squares = jnp.sum(features * features, axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def similarities(features: jax.Array, prompt_features: Array) -> jax.Array:
    """Cosine similarity of image features to each prompt.

    Args:
      features: float [..., D], not necessarily of unit length.
      prompt_features: float [P, 2, D], unit length, the positive prompt of each antonym pair first.

    Returns:
      float32 [..., P, 2] in [-1, 1].
    """
    return jnp.einsum("...d,pcd->...pc", unit(features), prompt_features, precision=jax.lax.Precision.HIGHEST)


def attribute_scores(
    features: jax.Array,
    prompt_features: Array,
    temperature: float = 1.0,
    bias: float | None = None,
    fused: Magnitude | None = None,
) -> jax.Array:
    """One score for each antonym pair.

    By default softmax over (positive, negative), the positive entry. With a bias, each prompt is judged by itself, as
    SigLIP was trained: p = sigmoid(100 cos / temperature + bias), and the score is p_positive / (p_positive +
    p_negative). Where both are small, that is nearly the softmax.

    With `fused`, each is averaged with the same score of the features' magnitude, see `magnitude_score`, and so is the
    score of the image, their mean. Source: MA-CLIP (2511.09948), whose weights are 1.0 and 0.6. There, these two are
    moved in opposite directions by the difference of both scores, times a factor that we do not know; here they are
    constant.

    Args:
      features: float [..., D].
      prompt_features: float [P, 2, D], unit length, positive first.
      temperature: divides the logits 100 cos; 1 is the authors' hub release, 2 their port in IQA-PyTorch.
      bias: added to the logits of the sigmoids; None for the softmax.
      fused: how the magnitude counts; None where it does not.

    Returns:
      float32 [..., P] in [0, 1].
    """
    scores = jax.nn.sigmoid(attribute_logits(features, prompt_features, temperature, bias))
    if fused is None:
        return scores
    share = fused.weight / (1 + fused.weight)  # below 1: no weight is too large for float32
    return (1 - share) * scores + share * magnitude_score(features, fused)[..., None]


def magnitude(features: jax.Array) -> jax.Array:
    """The magnitude of features that are not normalised: the mean Box-Cox transform of their absolute values.

    The exponent is 0.5: (sqrt(|f|) - 1) / 0.5. Source: MA-CLIP (2511.09948).

    Args:
      features: float [..., D].

    Returns:
      float32 [...], -2 or more.
    """
    size = jnp.abs(features.astype(jnp.float32))
    positive = size > 0  # the root has no gradient at 0
    return 2 * (jnp.where(positive, jnp.sqrt(jnp.where(positive, size, 1)), 0) - 1).mean(-1)


def magnitude_score(features: jax.Array, fused: Magnitude) -> jax.Array:
    """A score by the magnitude alone, float32 [...] in [0, 1]: a sigmoid of it, standardised by the model's constants.

    How the paper brings magnitudes to the range of scores is not known to us. This way is ours: a score does not depend
    on what else is scored.
    """
    return jax.nn.sigmoid((magnitude(features) - fused.center) / fused.spread)


def attribute_logits(
    features: jax.Array, prompt_features: Array, temperature: float = 1.0, bias: float | None = None
) -> jax.Array:
    """The logits of `attribute_scores`, float32 [..., P]."""
    return pair_logits(similarities(features, prompt_features), temperature, bias)


def pair_logits(similarity: jax.Array, temperature: float = 1.0, bias: float | None = None) -> jax.Array:
    """The logits of `attribute_scores` from similarities: float [..., P, 2], positive first -> [..., P]."""
    logits = similarity * (LOGIT_SCALE / temperature)
    if bias is not None:
        logits = jax.nn.log_sigmoid(logits + bias)
    return logits[..., 0] - logits[..., 1]  # softmax over two entries


def quality_score(features: jax.Array, prompt_features: Array, temperature: float = 1.0) -> jax.Array:
    """The score of an image: the mean of `attribute_scores` over the pairs, float32 [...] in [0, 1]."""
    return attribute_scores(features, prompt_features, temperature).mean(-1)
