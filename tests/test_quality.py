"""The score against scipy's softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

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
