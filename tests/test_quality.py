"""The score against scipy's softmax and Box-Cox transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import boxcox

from qualiclip_jax import quality


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_score_is_the_mean_softmax_over_pairs(temperature):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 16))
    prompts = rng.normal(size=(7, 2, 16))
    prompts /= np.linalg.norm(prompts, axis=-1, keepdims=True)
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    logits = 100 / temperature * np.einsum("nd,pcd->npc", unit, prompts)
    expected = softmax(logits, axis=-1)[..., 0].mean(-1)
    score = quality.quality_score(jnp.array(features, jnp.float32), jnp.array(prompts, jnp.float32), temperature)
    np.testing.assert_allclose(score, expected, atol=2e-5)


def test_zero_features_have_a_finite_gradient():
    prompts = jnp.eye(4, dtype=jnp.float32)[None, :2]
    gradient = jax.grad(lambda f: quality.quality_score(f, prompts).sum())(jnp.zeros((2, 4)))
    assert np.all(np.isfinite(gradient))


def test_the_magnitude_counts_as_the_mean_box_cox_transform():
    rng = np.random.default_rng(1)
    features, prompts = rng.normal(size=(4, 16)), rng.normal(size=(7, 2, 16))
    prompts /= np.linalg.norm(prompts, axis=-1, keepdims=True)
    expected = boxcox(np.abs(features), 0.5).mean(-1)
    given = jnp.array(features, jnp.float32), jnp.array(prompts, jnp.float32)
    np.testing.assert_allclose(quality.magnitude(given[0]), expected, atol=1e-5)
    fused = quality.Magnitude(0.6, -0.3, 0.2)
    by_cosine = np.asarray(quality.attribute_scores(*given))
    both = (by_cosine + 0.6 * expit((expected + 0.3) / 0.2)[:, None]) / 1.6
    np.testing.assert_allclose(quality.attribute_scores(*given, fused=fused), both, atol=1e-5)
    low, high = (quality.attribute_scores(given[0] * x, given[1], fused=fused) for x in (1e-9, 1e9))
    assert 0 <= low.min() < high.max() <= 1
    largest = quality.attribute_scores(*given, fused=fused._replace(weight=1e308))  # beyond float32
    np.testing.assert_allclose(largest[:, 0], quality.magnitude_score(given[0], fused), atol=1e-6)
    slope = jax.grad(lambda x: quality.magnitude_score(x, fused).sum())(jnp.zeros((2, 4)))
    assert np.all(np.isfinite(slope))
