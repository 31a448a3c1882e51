"""`QualiCLIP`: the score of an image is its own, whatever else is scored, and however it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax import QualiCLIP, models, quality
from qualiclip_jax.errors import UserError


def plain_attributes(model: QualiCLIP, image: np.ndarray) -> np.ndarray:
    """Attribute scores [P] straight from the CLIP: no padding, no folding, no batch."""
    normalised = models.normalise(jnp.asarray(image, jnp.float32)[None] / 255)
    features = nnx.jit(lambda clip, images: clip.encode_image(images))(model.clip, normalised)
    return np.asarray(quality.attribute_scores(features, model.prompt_features, model.temperature))[0]


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_mixed_sizes_score_as_each_image_alone_in_any_order(kind, photos, request):
    model = request.getfixturevalue(kind)
    together = model.attributes(photos)
    assert together.shape == (len(photos), 3)
    assert together.std(0).min() > 1e-3  # the images do differ
    expected = np.stack([plain_attributes(model, photo) for photo in photos])
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_allclose(model.attributes(photos[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([model.attributes(p) for p in photos[:3]]), together[:3], atol=1e-5)
    np.testing.assert_allclose(model.score(photos), together.mean(-1), atol=1e-7)


def test_accepts_arrays_lists_and_floats(resnet, photos):
    stack = np.stack([photos[0], photos[2]])
    expected = resnet.score([photos[0], photos[2]])
    assert expected.dtype == np.float32
    np.testing.assert_allclose(resnet.score(stack), expected, atol=1e-6)
    np.testing.assert_allclose(resnet.score(jnp.asarray(stack)), expected, atol=1e-6)
    np.testing.assert_allclose(resnet.score(stack[0]), expected[:1], atol=1e-6)
    np.testing.assert_allclose(resnet.score(stack / 255), expected, atol=1e-5)
    np.testing.assert_allclose(resnet.score([stack[0] / np.float32(255), stack[1]]), expected, atol=1e-5)
    assert resnet.score([]).shape == (0,)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((31, 64, 3), np.uint8), "image 0: 31 x 64 pixels, the smallest side"),
        (np.zeros((64, 64, 4), np.uint8), r"shape \[64, 64, 4\]"),
        (np.zeros((64, 64), np.uint8), r"shape \[64, 64\]"),
        (np.zeros((64, 64, 3), np.int32), "type int32"),
        (np.full((64, 64, 3), 2.0), "values from 2 to 2"),
        (np.full((64, 64, 3), np.nan), "values from nan"),
    ],
)
def test_says_what_is_wrong_with_an_image(resnet, image, message):
    with pytest.raises(UserError, match=message):
        resnet.score([image])


def test_apply_equals_score_and_has_finite_gradients(resnet, photos):
    stack = np.stack([photos[0], photos[2], np.zeros_like(photos[0]), np.full_like(photos[0], 255)]) / np.float32(255)
    np.testing.assert_allclose(resnet.apply(jnp.asarray(stack)), resnet.score(stack), atol=1e-5)
    value, gradient = jax.jit(jax.value_and_grad(lambda images: resnet.apply(images).sum()))(stack)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient[:2]).max((1, 2, 3)) > 0).all()


def test_apply_is_a_loss_that_gradient_ascent_raises(resnet, photos):
    step = jax.jit(lambda x: jnp.clip(x + 0.5 * jnp.sign(jax.grad(resnet.apply)(x)) / 255, 0, 1))
    image = before = jnp.asarray(photos[0], jnp.float32) / 255
    for _ in range(3):
        image = step(image)
    assert resnet.apply(image).shape == ()
    assert resnet.apply(image) > resnet.apply(before) + 1e-3


@pytest.mark.skip(reason="fails on a loaded machine, not yet understood")
def test_apply_agrees_with_finite_differences(resnet, photos):
    image = jnp.asarray(photos[0], jnp.float32) / 255 * 0.5 + 0.25
    direction = np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    step = 1e-2
    slope = (resnet.apply(image + step * direction) - resnet.apply(image - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(jax.grad(resnet.apply)(image), direction), slope, rtol=0.05)


def test_saved_and_loaded_gives_the_same_bits(resnet, photos, tmp_path):
    resnet.save(tmp_path / "model")
    loaded = QualiCLIP.load(tmp_path / "model")
    assert loaded.fingerprint == resnet.fingerprint
    assert loaded.prompts == resnet.prompts
    np.testing.assert_array_equal(loaded.attributes(photos), resnet.attributes(photos))
    with pytest.raises(UserError, match="exists"):
        resnet.save(tmp_path / "model")


def test_load_says_what_is_wrong_with_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        QualiCLIP.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint in"):
        QualiCLIP.load(tmp_path / "empty")
