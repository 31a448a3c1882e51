"""From image features to a quality score in [0, 1], higher is better."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
LOGIT_SCALE = 100.0  # CLIP's, at temperature 1


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
    features: jax.Array, prompt_features: Array, temperature: float = 1.0, bias: float | None = None
) -> jax.Array:
    """One score for each antonym pair.

    By default softmax over (positive, negative), the positive entry. With a bias, each prompt is judged by itself, as
    SigLIP was trained: p = sigmoid(100 cos / temperature + bias), and the score is p_positive / (p_positive +
    p_negative). Where both are small, that is nearly the softmax.

    Args:
      features: float [..., D].
      prompt_features: float [P, 2, D], unit length, positive first.
      temperature: divides the logits 100 cos; 1 is the authors' hub release, 2 their port in IQA-PyTorch.
      bias: added to the logits of the sigmoids; None for the softmax.

    Returns:
      float32 [..., P] in [0, 1].
    """
    return jax.nn.sigmoid(attribute_logits(features, prompt_features, temperature, bias))


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
