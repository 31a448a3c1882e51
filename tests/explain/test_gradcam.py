"""Grad-CAM against autodiff and finite differences on small models of each kind."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import RESNET, SIGLIP, VIT, make_model

from qualiclip_jax import quality
from qualiclip_jax.explain.gradcam import gradcam, over
from qualiclip_jax.models import normalise
from qualiclip_jax.models.encoder import Area

IMAGE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)


def test_by_finite_differences_of_the_pool():
    """The weight of a channel is the mean slope of the cosine, measured by moving that channel everywhere."""
    model = make_model(RESNET)
    encoder = model.clip.image
    pixels = normalise(jnp.asarray(IMAGE[None], jnp.float32) / 255)
    tokens = jax.jit(lambda x: encoder.tokens(x)[0])(pixels)

    @jax.jit
    def cosines(tokens):
        return quality.similarities(encoder.pool(tokens, Area(None)), model.prompt_features)[0].mean(0)

    channels, step = tokens.shape[-1], 1e-2
    weights = np.zeros((2, channels))
    for channel in range(channels):
        moved = step * (np.arange(channels) == channel).astype(np.float32)
        weights[:, channel] = np.asarray(cosines(tokens + moved) - cosines(tokens - moved)) / (2 * step)
    expected = np.maximum(np.einsum("pc,hwc->phw", weights, np.asarray(tokens[0])), 0)
    expected /= np.maximum(expected.max((1, 2), keepdims=True), 1e-12)
    np.testing.assert_allclose(gradcam(model)(IMAGE), expected, atol=0.02)


@pytest.mark.parametrize(("config", "mode"), [(VIT, "none"), (VIT, "interpolate"), (SIGLIP, "none")])
def test_a_vit_in_two_parts_is_the_whole(config, mode):
    model = make_model(dataclasses.replace(config, position=mode))
    encoder = model.clip.image
    pixels = normalise(jnp.asarray(IMAGE[None], jnp.float32) / 255)
    whole, parts = jax.jit(lambda x: (encoder(x), encoder.after(encoder.before(x))))(pixels)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    if mode == "none":
        found = gradcam(model)(IMAGE)
        assert found.shape == (2, 6, 8)
        assert found.min() >= 0
        assert found.max() == 1


def test_the_overlay_is_brightest_where_the_map_is():
    found = np.zeros((3, 4), np.float32)
    found[1, 3] = 1
    drawn = over(np.full((48, 64, 3), 128, np.uint8), found).sum(-1, dtype=int)
    assert np.unravel_index(drawn.argmax(), drawn.shape)[1] >= 48
    assert drawn.max() - drawn.min() > 100
