"""`QualityLoss`: its terms one by one, and the views that it judges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.loss import QualityLoss
from qualiclip_jax.models import normalise
from tests.small_models import VIT, make_model

PLAIN = {"views": 0, "fidelity": 0.0, "drift": 0.0}


@pytest.fixture(scope="module")
def vit():
    return make_model(VIT)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((2, 64, 64, 3), np.float32)


@pytest.fixture(scope="module")
def reference(images):
    return np.clip(images + np.random.default_rng(1).normal(0, 0.3, images.shape), 0, 1).astype(np.float32)


def test_the_plain_loss_is_one_minus_the_score(vit, images):
    losses = jax.jit(QualityLoss(vit, **PLAIN, reduction="none"))(jnp.array(images))
    np.testing.assert_allclose(losses, 1 - vit.score(images), atol=1e-6)
    assert float(jax.jit(QualityLoss(vit, **PLAIN))(jnp.array(images))) == pytest.approx(float(losses.mean()), abs=1e-6)


def test_models_share_the_score(vit, images):
    other = make_model(VIT, seed=1)
    losses = jax.jit(QualityLoss([vit, other], **PLAIN, reduction="none"))(jnp.array(images))
    np.testing.assert_allclose(losses, 1 - (vit.score(images) + other.score(images)) / 2, atol=1e-6)


def test_fidelity_and_drift_are_what_they_say(vit, images, reference):
    plain = 1 - vit.score(images)
    encode = jax.jit(lambda x: vit.clip.encode_image(normalise(x)))
    features = [np.asarray(encode(x)) for x in (images, reference)]
    first, second = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in features)
    distance, apart = 1 - (first * second).sum(-1), np.abs(images - reference).mean((1, 2, 3))
    margin = float(distance.mean())  # between the two
    arguments = (jnp.array(images), jnp.array(reference))
    for options, extra in (
        ({"fidelity": 3.0}, 3 * apart),
        ({"drift": 2.0, "margin": margin}, 2 * np.maximum(0, distance - margin)),
    ):
        losses = jax.jit(QualityLoss(vit, **(PLAIN | options), reduction="none"))(*arguments)
        np.testing.assert_allclose(losses - plain, extra, atol=2e-6)
        assert extra.max() > 1e-3


def test_a_view_that_changes_nothing_is_the_image(vit, images):
    loss = QualityLoss(vit, **(PLAIN | {"views": 2}), crop=1.0, scale=1.0, flip=False, reduction="none")
    losses = jax.jit(loss)(jnp.array(images), key=jax.random.key(0))
    np.testing.assert_allclose(losses, 1 - vit.score(images), atol=1e-5)


def test_views_lie_within_the_image_and_are_shrunk_as_asked(vit):
    """Coordinates as colours: a view shows where it was cut, and by what it was shrunk."""
    rows, columns = np.mgrid[:80, :120].astype(np.float32)
    image = jnp.array(np.stack([rows, columns, 0 * rows], -1)[None])
    cut = jax.jit(QualityLoss(vit, views=40, crop=0.5, scale=0.8)._views)
    views = np.asarray(cut(image, jax.random.key(0)))
    assert views.shape == (40, 40, 60, 3)
    inner = views[:, 2:-2, 2:-2]
    down, right = np.diff(inner[..., 0], axis=1), np.diff(inner[..., 1], axis=2)
    shrunk = 1 / down.mean((1, 2))
    np.testing.assert_allclose(np.abs(right).mean((1, 2)), 1 / shrunk, rtol=5e-3)  # a sampled kernel has ripples
    assert 0.795 < shrunk.min() < 0.85
    assert 0.95 < shrunk.max() < 1.005
    assert views[..., 0].min() >= 0
    assert views[..., 0].max() <= 79
    assert views[..., 1].max() <= 119
    flipped = (right.mean((1, 2)) < 0).sum()
    assert 8 < flipped < 32
    assert np.ptp(inner[:, 0, 0, 0]) > 20  # in many places
    assert np.array_equal(views, cut(image, jax.random.key(0)))
    assert not np.array_equal(views, cut(image, jax.random.key(1)))


def test_the_gradient_is_finite_and_leads_downwards(vit, images, reference):
    loss, key = QualityLoss(vit, views=2), jax.random.key(3)
    start = jnp.array(reference)  # where the fidelity has its kink
    value, gradient = jax.jit(jax.value_and_grad(loss))(start, start, key)
    assert np.isfinite(gradient).all()
    step = 0.05 * gradient / jnp.linalg.norm(gradient)
    quality = jax.jit(QualityLoss(vit, views=2, fidelity=0.0, drift=0.0))
    assert float(quality(start, key=key)) == pytest.approx(float(value), abs=1e-6)
    assert quality(start - step, key=key) < value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ()}, "at least one model"),
        ({"views": -1}, "views must be"),
        ({"views": True}, "views must be"),
        ({"crop": 0.0}, "crop must be from 0.1 to 1"),
        ({"fidelity": -1.0}, "fidelity must be a weight"),
        ({"drift": float("nan")}, "drift must be a weight"),
        ({"reduction": "sum"}, "reduction must be"),
    ],
)
def test_fields_out_of_range_are_named(vit, options, message):
    with pytest.raises(UserError, match=message):
        QualityLoss(**({"models": vit} | options))


def test_arguments_that_do_not_fit_are_named(vit):
    loss, key, image = QualityLoss(vit), jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    for arguments, message in (
        ((image[0], image[0], key), "give float"),
        ((image.astype(jnp.uint8), None, key), "give float"),
        ((image, image[:, :32], key), "the reference has the shape"),
        ((image, None, key), "give a reference"),
        ((image, image), "give a key"),
        ((image[:, :40], image[:, :40], key), "views of 30 x 48 pixels; the smallest side is 32"),
    ):
        with pytest.raises(UserError, match=message):
            loss(*arguments)
